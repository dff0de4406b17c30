"""Turn DICOM ultrasound into one picture without a patient: only needed tags are read, and burned-in text is blanked.

The picture shows the scan area that `geometry.scan_area` finds, within the file's ultrasound regions (DICOM PS3.3
C.8.5.5) if it has any. Everything outside, where scanners write the patient's name, is black. If neither is found, the
whole picture is used only where the file says that it has no burned-in text. Text that was drawn over the tissue
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

from thyroid.imaging import dicom_pixels, geometry, images
from thyroid.imaging.dicom_codestream import encoded_shape
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
        warnings.simplefilter("ignore")  # about odd values in files whose pixels are valid
        try:
            dataset = _parse(data)
            modality = str(dataset.get("Modality") or "")
            if modality != "US" and not (not modality and dataset.get("SOPClassUID") in _ULTRASOUND):
                kind = modality if modality in _MODALITIES else "unknown"
                raise DicomError("modality", f"DICOM of modality {kind}; only ultrasound (US) is accepted")
            chosen, frames = _choose(dataset, frame)
            allowed = _regions(dataset)
            pixels = _deidentified(
                dicom_pixels.decode(dataset, chosen), allowed, str(dataset.get("BurnedInAnnotation") or "")
            )
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

    parsed = _read(header, at_pixels)
    if not reached:
        if unpacker.unconsumed_tail:
            raise DicomError("size", f"deflated DICOM of more than {_HEADER:,} bytes before its pixels")
        return header
    rows, columns, frames = int(parsed.Rows), int(parsed.Columns), int(parsed.get("NumberOfFrames") or 1)
    _check_size(rows, columns)
    samples = int(parsed.get("SamplesPerPixel") or 1) * int(parsed.get("BitsAllocated") or 8) // 8
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
    if syntax not in dicom_pixels.DECODERS:
        raise DicomError(
            "damaged", "DICOM whose pixels are compressed in a way that is not accepted (as video, for example)"
        )
    if syntax.is_encapsulated:
        _check_compressed(dataset, chosen, frames)
    return chosen, frames


def _check_compressed(dataset: Dataset, frame: int, frames: int) -> None:
    """Check that a compressed frame is as large as the DICOM header says, before it is decoded."""
    syntax = dataset.file_meta.TransferSyntaxUID
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    known = (offsets[0], offsets[1]) if all(offsets) else None
    encoded = get_frame(dataset.PixelData, frame - 1, number_of_frames=frames, extended_offsets=known)
    if syntax in dicom_pixels.JPEG and dataset.BitsAllocated != 8:
        raise DicomError("damaged", "DICOM whose pixels are a JPEG of more than 8 bits a sample, which is not accepted")
    shape = (int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel", 1)))
    if syntax == uid.RLELossless:
        # even incompressible data grows by less than this (PS3.5 G.3.1)
        if len(encoded) > 2 * math.prod(shape) * dataset.BitsAllocated // 8 + 64:
            raise DicomError("damaged", "damaged DICOM: its compressed image is larger than an uncompressed one")
    elif encoded_shape(encoded) != shape:
        raise DicomError("damaged", "damaged DICOM: its compressed image has another size than its header says")


def _check_size(rows: int, columns: int) -> None:
    if rows * columns > MAX_PIXELS or max(rows, columns) > images.MAX_SIDE:
        raise DicomError("size", f"image of {columns}x{rows} is larger than the limit of {MAX_PIXELS:,} pixels")
    if min(rows, columns) < images.MIN_SIDE:
        raise DicomError("size", f"image of {columns}x{rows} is smaller than {images.MIN_SIDE} pixels a side")


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
        "neither an ultrasound region nor a scan area was found, so burned-in text cannot be blanked",
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
    for region in regions:
        if region.get("RegionSpatialFormat") == _TISSUE:
            # never below 0, which would count from the other end
            left, top = (max(0, int(region[f"RegionLocationMin{side}0"].value)) for side in "XY")
            right, bottom = (max(0, int(region[f"RegionLocationMax{side}1"].value) + 1) for side in "XY")
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
