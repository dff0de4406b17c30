"""Turn DICOM ultrasound into one picture without a patient: only needed tags are read, and burned-in text is blanked.

The picture shows the scan area that `geometry.scan_area` finds, within the file's ultrasound regions (DICOM PS3.3
C.8.5.5) if it has any. Everything outside, where scanners write the patient's name, is black. If neither is found, the
whole picture is taken only where the file says that it has no burned-in text. Text that was drawn over the tissue
itself stays.

Untrusted files are read by `dicom_guard`, which does the same in a process that can be ended.

The names of DICOM files do not give label and patient, but dicom.csv does (`ingest.dicom_csv`). For the holder of the
key, `python -m thyroid.dicom DIR` lists the files of a folder with the pseudonyms that ingest's tables use.
"""

import io
import logging
import math
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble  # the public reader takes only paths
from pydicom.pixels import apply_color_lut, apply_rescale, apply_windowing, pixel_array

from thyroid.imaging import geometry, images
from thyroid.imaging.dicom_picture import DicomError, Picture

MAX_BYTES = 500_000_000
"""Largest file on disk, in bytes: an uncompressed cine loop of 20 seconds.

Over HTTP, the limits of the endpoint and the page apply.
"""
MAX_PIXELS = 10_000_000
"""Most pixels of a frame; scanners have 3 million. Decoders take up to 20 bytes for each."""

_PIXEL_TAGS = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "InstanceNumber",
    "BurnedInAnnotation",
    "SequenceOfUltrasoundRegions",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleIntercept",
    "RescaleSlope",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
)
"""The only tags that are ever read of a file; names, dates and the rest are skipped unread."""
_MODALITIES = {
    "ANN", "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC", "DX",
    "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO",
    "LEN", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS",
    "OT", "PA", "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT",
    "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN",
    "TEXTUREMAP", "TG", "US", "VA", "XA", "XAPROTOCOL", "XC",
}  # fmt: skip
"""Defined terms of DICOM PS3.3 C.7.3.1.1.1; any other text may be somebody's name, so messages do not repeat it."""
_ULTRASOUND = {
    uid.UltrasoundImageStorage,
    uid.UltrasoundMultiFrameImageStorage,
    "1.2.840.10008.5.1.4.1.1.6",  # retired: Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.3",  # retired: Ultrasound Multi-frame Image Storage
}
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_DECODERS = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.DeflatedExplicitVRLittleEndian: "",
    **dict.fromkeys(_JPEG, "pillow"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "pylibjpeg"),
    uid.RLELossless: "pydicom",
}
"""Decoding plug-in of pydicom for each transfer syntax, chosen so that damaged pixels cannot crash it.

GDCM, which pydicom tries first, aborts the process. Uncompressed syntaxes need no plug-in.
"""
_HEADER = 4_000_000
"""Most bytes before the pixels of a deflated file; scanners write thousands.

They are inflated to learn how many pixels there are.
"""
_BEHIND = 65_536
"""Bytes after the pixels that are also inflated: padding and the like."""
_MOST_ITEMS = 20_000
"""Most items of sequences and fragments of pixels: five for each of 4,000 frames.

Every item is built before anything else is known about the file.
"""
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIXEL_DATA = 0x7FE00010
_MOST_REGIONS = 64
_EVERYWHERE = 0.95
"""Share of the picture above which regions would keep the scanner's text, so they are ignored."""
_TISSUE = 1  # Region Spatial Format 2D, PS3.3 C.8.5.5.1.1
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_MOST_SCANS = 8
_MOST_TILES = 1024
_MOST_LAYERS = 64
_LEAST_PRECINCT = 5  # binary logarithm of the side in pixels

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages contain values of the file


def read(data: bytes, frame: int | None = None) -> Picture:
    """Decode and de-identify one frame of an ultrasound file.

    Sizes are checked before any pixel is decoded, both in the DICOM header and in the compressed frame's own header. A
    deflated file is inflated within bounds.

    Args:
        data: Bytes of the whole file.
        frame: Number of the frame, from 1; None for the middle one.

    Raises:
        DicomError: The file is not ultrasound, has no pixels, is too large or too small, is damaged, or has no such
            frame, or burned-in text cannot be distinguished from tissue.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd values next to sound pixels
        try:
            dataset = _parse(data)
            modality = str(dataset.get("Modality") or "")
            if modality != "US" and not (not modality and dataset.get("SOPClassUID") in _ULTRASOUND):
                kind = modality if modality in _MODALITIES else "unknown"
                raise DicomError("modality", f"DICOM of modality {kind}; only ultrasound (US) is taken")
            chosen, frames = _choose(dataset, frame)
            allowed = _regions(dataset)
            pixels = _deidentified(_decode(dataset, chosen), allowed, str(dataset.get("BurnedInAnnotation") or ""))
            return Picture(
                pixels,
                chosen,
                frames,
                _instance(dataset),
                str(dataset.get("PatientID") or "").strip(),
                allowed is not None,
            )
        except DicomError:
            raise
        except MemoryError:
            raise DicomError("damaged", "DICOM that asks for more memory than a picture needs") from None
        except Exception as error:  # pydicom and its decoders raise many kinds of errors for malformed files
            raise DicomError("damaged", f"damaged DICOM, or one of an unknown kind ({type(error).__name__})") from None


def _instance(dataset: Dataset) -> int:
    """Return the instance number of the file; 0 if it has none that fits an integer string (PS3.5 6.2)."""
    number = int(dataset.get("InstanceNumber") or 0)
    return number if abs(number) < 2**31 else 0


def _parse(data: bytes) -> Dataset:
    """Parse the tags of `_PIXEL_TAGS`; a deflated data set is inflated only as far as its picture needs."""
    _count_items(data)
    stream = io.BytesIO(data)
    read_preamble(stream, force=False)
    meta = _read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") != uid.DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(io.BytesIO(data), specific_tags=list(_PIXEL_TAGS))
    inflated = _inflated(stream.read())
    dataset = _read(inflated)
    dataset.file_meta = meta
    dataset.set_original_encoding(False, True)
    return dataset


def _count_items(data: bytes) -> None:
    """Refuse, by a scan of the bytes, what would take minutes and gigabytes to build."""
    if any(data.count(item) > _MOST_ITEMS for item in _ITEMS):
        raise DicomError("damaged", f"damaged DICOM: it has more than {_MOST_ITEMS:,} items")


def _inflated(deflated: bytes) -> bytes:
    """Return a data set inflated up to its pixels and the bytes that rows x columns x frames need."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    header = unpacker.decompress(deflated, _HEADER)
    _count_items(header)
    reached = False

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal reached
        reached = tag == _PIXEL_DATA
        return reached

    told = _read(header, at_pixels)
    if not reached:
        if unpacker.unconsumed_tail:
            raise DicomError("size", f"deflated DICOM of more than {_HEADER:,} bytes before its pixels")
        return header
    rows, columns, frames = int(told.Rows), int(told.Columns), int(told.get("NumberOfFrames") or 1)
    _check_size(rows, columns)
    samples = int(told.get("SamplesPerPixel") or 1) * int(told.get("BitsAllocated") or 8) // 8
    wanted = rows * columns * frames * samples
    if wanted > MAX_BYTES:
        raise DicomError("size", f"deflated DICOM of more than {MAX_BYTES:,} bytes")
    return header + unpacker.decompress(unpacker.unconsumed_tail, wanted + _BEHIND)


def _read(inflated: bytes, stop: Callable[[int, str | None, int], bool] | None = None) -> Dataset:
    tags: list[Any] = list(map(pydicom.tag.Tag, _PIXEL_TAGS))
    return read_dataset(io.BytesIO(inflated), False, True, stop_when=stop, specific_tags=tags)


def _choose(dataset: Dataset, frame: int | None) -> tuple[int, int]:
    """Return the number of the frame to decode and of all frames.

    What the decoders rely on is checked on the way.
    """
    if "PixelData" not in dataset or not dataset.PixelData:
        raise DicomError("pixels", "DICOM without pixels, a report or a reference to an image elsewhere")
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    _check_size(rows, columns)
    if dataset.get("SamplesPerPixel", 1) not in (1, 3) or dataset.get("BitsAllocated") not in (8, 16):
        raise DicomError("damaged", "damaged DICOM: samples of a pixel that no ultrasound image has")
    if frames < 1:
        raise DicomError("damaged", "damaged DICOM: it has no frame")
    chosen = (frames + 1) // 2 if frame is None else frame
    if not 1 <= chosen <= frames:
        raise DicomError("frame", f"there is no frame {chosen}; the file has {frames}, counted from 1")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in _DECODERS:
        raise DicomError(
            "damaged", "DICOM whose pixels are compressed in a way that is not taken (video, for instance)"
        )
    if syntax.is_encapsulated:
        offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
        known = (offsets[0], offsets[1]) if all(offsets) else None
        encoded = get_frame(dataset.PixelData, chosen - 1, number_of_frames=frames, extended_offsets=known)
        if syntax in _JPEG and dataset.BitsAllocated != 8:
            raise DicomError(
                "damaged", "DICOM whose pixels are a JPEG of more than 8 bits a sample, which is not taken"
            )
        shape = (rows, columns, int(dataset.get("SamplesPerPixel", 1)))
        if syntax == uid.RLELossless:
            # even incompressible data grows by less than this (PS3.5 G.3.1)
            if len(encoded) > 2 * math.prod(shape) * dataset.BitsAllocated // 8 + 64:
                raise DicomError("damaged", "damaged DICOM: its compressed image is larger than an uncompressed one")
        elif _encoded_shape(encoded) != shape:
            raise DicomError("damaged", "damaged DICOM: its compressed image has another size than its header says")
    return chosen, frames


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MAX_PIXELS or max(rows, columns) > images.MAX_SIDE:
        raise DicomError("size", f"image of {columns}x{rows} is larger than the limit of {MAX_PIXELS:,} pixels")
    if min(rows, columns) < images.MIN_SIDE:
        raise DicomError("size", f"image of {columns}x{rows} is smaller than {images.MIN_SIDE} pixels a side")


def _encoded_shape(frame: bytes) -> tuple[int, int, int]:
    """Return height, width and samples per pixel from the header of a JPEG, JPEG-LS or JPEG 2000 code stream."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # SIZ directly follows SOC (ISO 15444-1 A.5.1)
        width, height, left, top, tile_width, tile_height = (
            int.from_bytes(frame[at : at + 4], "big") for at in range(8, 32, 4)
        )
        tiles = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))
        if tiles > _MOST_TILES or not _sound_jpeg2000(frame):
            raise DicomError("damaged", "damaged DICOM: its JPEG 2000 image is cut into too many parts")
        return height - top, width - left, int.from_bytes(frame[40:42], "big")
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in _START_OF_FRAME:
            if marker in _PROGRESSIVE or frame.count(b"\xff\xda") > _MOST_SCANS:
                raise DicomError("damaged", "damaged DICOM: its JPEG image is of a kind that DICOM does not have")
            height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (place + 5, place + 7))
            return height, width, frame[place + 9]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in (0x01, *range(0xD0, 0xD9)):  # markers without a length
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(frame[place + 2 : place + 4], "big"))
    raise DicomError("damaged", "damaged DICOM: its compressed image has no header")


def _sound_jpeg2000(frame: bytes) -> bool:
    """Return whether the coding styles in all headers of a JPEG 2000 code stream are such as encoders write.

    Precincts of a few pixels, or thousands of layers, cost gigabytes in a file of some hundred bytes (ISO 15444-1
    A.6.1).
    """
    place, start = 2, 0
    while place + 4 <= len(frame):
        marker, length = frame[place : place + 2], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == b"\xff\x93":  # SOD: data until the end of the tile-part
            size = int.from_bytes(frame[start + 6 : start + 10], "big")
            if size < 14:  # 0: until the end of the code stream
                return True
            place = start + size
            continue
        if marker == b"\xff\xd9":
            return True
        if marker == b"\xff\x90":  # SOT
            start = place
        if marker in (b"\xff\x52", b"\xff\x53"):  # COD, or COC, whose component number takes one byte
            style = place + (4 if marker == b"\xff\x52" else 5)
            levels = style + (5 if marker == b"\xff\x52" else 1)
            layers = int.from_bytes(frame[style + 2 : style + 4], "big") if marker == b"\xff\x52" else 1
            precincts = frame[levels + 5 : place + 2 + length] if frame[style : style + 1] and frame[style] & 1 else b""
            if layers > _MOST_LAYERS or any(min(one & 15, one >> 4) < _LEAST_PRECINCT for one in precincts):
                return False
        place += 2 + max(2, length)
    return True


def _decode(dataset: Dataset, frame: int) -> images.Pixels:
    """Decode one frame, counted from 1, to uint8 [rows, columns, 3]."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in _JPEG:
        dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit  # libjpeg-turbo detects the actual kind itself
    values = pixel_array(dataset, index=frame - 1, decoding_plugin=_DECODERS[syntax])
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        if values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
    elif values.ndim == 2:
        values = _grey(dataset, values)
        if photometric == "MONOCHROME1":
            values = 255 - values
    elif values.dtype != np.uint8:
        values = _scaled(values, dataset)
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    return np.ascontiguousarray(values[..., :3], np.uint8)


def _grey(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Return greys of 0 to 255: by the file's window if it has one, else by the range of its samples (PS3.3 C.11.2)."""
    if "WindowWidth" in dataset and "WindowCenter" in dataset:
        slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
        low, high = sorted(bound * slope + intercept for bound in _range(dataset))
        return _looked_up(
            values,
            lambda every: (
                (apply_windowing(apply_rescale(every, dataset), dataset).astype(float) - low) / max(high - low, 1e-9)
            ),
        )
    return values if values.dtype == np.uint8 and dataset.get("BitsStored", 8) == 8 else _scaled(values, dataset)


def _scaled(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    low, high = _range(dataset)
    return _looked_up(values, lambda every: (every.astype(float) - low) / max(high - low, 1))


def _looked_up(values: np.ndarray, share: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return `share` of every sample, scaled from 0..1 to uint8.

    `share` is computed once for each possible value, since a picture of floats takes 8 times the memory.

    Args:
        values: Samples of 8 or 16 bits, signed or not.
        share: Function from an array of samples to an array of floats.
    """
    places = values.view(f"u{values.itemsize}")
    every = np.arange(1 << 8 * values.itemsize, dtype=places.dtype)
    table = np.clip(share(every.view(values.dtype)) * 255, 0, 255).round().astype(np.uint8)
    looked_up: np.ndarray = table[places]
    return looked_up


def _range(dataset: Dataset) -> tuple[int, int]:
    """Return the smallest and the largest value that the samples can hold."""
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if dataset.get("PixelRepresentation") else (0, (1 << bits) - 1)


def _deidentified(pixels: images.Pixels, allowed: NDArray[np.uint8] | None, burned_in: str) -> images.Pixels:
    """Return the pixels with everything outside the tissue black.

    Args:
        pixels: uint8 [rows, columns, 3].
        allowed: Mask of `_regions`.
        burned_in: Value of the file's BurnedInAnnotation, which says whether text is in the picture.

    Raises:
        DicomError: Neither a region nor a scan area is found, and the file does not say that it has no burned-in text.
    """
    kept: images.Pixels
    if allowed is not None:
        pixels = cv2.copyTo(pixels, allowed)
        kept = cv2.copyTo(pixels, geometry.scan_area(pixels).mask)
        return kept
    area = geometry.scan_area(_without_text(pixels))
    if area.found:
        kept = cv2.copyTo(pixels, area.mask)
        return kept
    if burned_in == "NO":
        return pixels
    raise DicomError(
        "burned_in",
        "neither an ultrasound region nor a scan area is to be found, so burned-in text cannot be blanked",
    )


def _regions(dataset: Dataset) -> NDArray[np.uint8] | None:
    """Return where the file says that its tissue is, 0 or 1 [rows, columns].

    It is None if the file does not say so, or says that tissue is everywhere.

    Raises:
        DicomError: There are too many regions, or none is a 2D one.
    """
    regions = dataset.get("SequenceOfUltrasoundRegions") or []
    if not regions:
        return None
    if len(regions) > _MOST_REGIONS:
        raise DicomError("damaged", f"damaged DICOM: it has more than {_MOST_REGIONS} ultrasound regions")
    allowed = np.zeros((dataset.Rows, dataset.Columns), np.uint8)
    for one in regions:
        if one.get("RegionSpatialFormat") == _TISSUE:
            # never below 0, which would count from the other end
            left, top = (max(0, int(one[f"RegionLocationMin{side}0"].value)) for side in "XY")
            right, bottom = (max(0, int(one[f"RegionLocationMax{side}1"].value) + 1) for side in "XY")
            allowed[top:bottom, left:right] = 1
    if not allowed.any():
        raise DicomError("pixels", "DICOM without a 2D ultrasound region in its image")
    return None if allowed.mean() > _EVERYWHERE else allowed


def _without_text(pixels: images.Pixels) -> images.Pixels:
    """Black out everything thin: speckle fills its surroundings, while letters leave most of theirs dark."""
    bright = pixels.max(axis=2)
    background = int(np.bincount(bright.ravel(), minlength=256)[:64].argmax())
    side = max(5, min(bright.shape) // 16) | 1
    share = cv2.blur((bright > background + 4).astype(np.float32), (side, side))
    kept: images.Pixels = cv2.copyTo(pixels, (share > 0.6).astype(np.uint8))
    return kept


def read_file(path: str | Path) -> bytes:
    """Read a file's bytes.

    Raises:
        DicomError: The file is empty or larger than `MAX_BYTES`.
    """
    size = Path(path).stat().st_size
    if size == 0:
        raise DicomError("damaged", "empty file (0 bytes)")
    if size > MAX_BYTES:
        raise DicomError("size", f"file of {size:,} bytes is larger than the limit of {MAX_BYTES:,}")
    return Path(path).read_bytes()


def png(pixels: images.Pixels) -> bytes:
    """Encode a PNG without any metadata; it has one channel if all three are equal."""
    grey = bool((pixels == pixels[..., :1]).all())
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()
