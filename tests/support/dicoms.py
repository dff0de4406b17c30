"""Ultrasound DICOM files of every transfer syntax, with a patient's name in the header and burned into the picture.

data = dicoms.write(dicoms.frame(7))                                   # one grey frame, region and text
data = dicoms.write(dicoms.cine(30), dicoms.JPEG_BASELINE, name="Roe^Jane", patient="ID 7")
data = dicoms.write(dicoms.frame(7), regions=(), BurnedInAnnotation="NO", Modality="CT")
"""

import io
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence as Items

EXPLICIT, IMPLICIT = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian
BIG_ENDIAN, DEFLATED = uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian
RLE, JPEG_BASELINE = uid.RLELossless, uid.JPEGBaseline8Bit
JPEG_LOSSLESS, JPEG_LOSSLESS_14 = uid.JPEGLosslessSV1, uid.JPEGLossless
JPEG_LS = uid.JPEGLSLossless
JPEG_2000, JPEG_2000_LOSSY = uid.JPEG2000Lossless, uid.JPEG2000

LOSSLESS = {
    "explicit": EXPLICIT,
    "implicit": IMPLICIT,
    "big-endian": BIG_ENDIAN,
    "deflated": DEFLATED,
    "rle": RLE,
    "jpeg-lossless": JPEG_LOSSLESS,
    "jpeg-lossless-14": JPEG_LOSSLESS_14,
    "jpeg-ls": JPEG_LS,
    "jpeg-2000": JPEG_2000,
}
LOSSY = {"jpeg-baseline": JPEG_BASELINE, "jpeg-2000-lossy": JPEG_2000_LOSSY}
SYNTAXES = LOSSLESS | LOSSY

SIZE = (160, 128)
"""Width and height of `frame` and `cine`."""
REGION = (16, 24, 143, 119)
"""First and last column and row of their tissue as x0, y0, x1, y1, both included as in DICOM."""
TEXT = (4, 2, 120, 16)
"""Box of their burned-in text: left, top, right, bottom."""


def frame(seed: int = 0, colour: bool = False, text: str = "ROE JANE 7") -> NDArray[np.uint8]:
    """Return a scanner's picture: tissue within `REGION`, the patient's name within `TEXT`, and black elsewhere.

    Args:
        seed: Seed of the tissue.
        colour: Whether to return [height, width, 3] with a tint instead of [height, width].
        text: Burned-in text; "" for none.
    """
    x0, y0, x1, y1 = REGION
    picture = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    picture[y0 : y1 + 1, x0 : x1 + 1] = _tissue(seed, (x1 - x0 + 1, y1 - y0 + 1))
    cv2.putText(picture, text, (TEXT[0], TEXT[3] - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)
    if not colour:
        return picture
    return np.stack([picture, (picture * 0.8).astype(np.uint8), (picture * 0.6).astype(np.uint8)], axis=2)


def cine(frames: int, seed: int = 0, colour: bool = False) -> NDArray[np.uint8]:
    """Return different frames: [frames, height, width] or [frames, height, width, 3]."""
    return np.stack([frame(seed * 1000 + number, colour) for number in range(frames)])


def _tissue(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(40, 255, (40, 48), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def write(
    pixels: NDArray[Any],
    syntax: str = EXPLICIT,
    *,
    name: str = "Roe^Jane",
    patient: str = "ID-7",
    regions: Sequence[tuple[int, int, int, int]] = (REGION,),
    photometric: str = "",
    extended: bool = False,
    **tags: Any,
) -> bytes:
    """Return a DICOM ultrasound file.

    Args:
        pixels: Array [height, width] or [height, width, 3], or several of them, uint8 or uint16. The values are grey or
            RGB as displayed, whatever `photometric` makes of them.
        syntax: Transfer syntax, one of `SYNTAXES`.
        name: PatientName.
        patient: PatientID; "" leaves it empty.
        regions: x0, y0, x1, y1 of 2D regions, including the last column and row; () for a file without regions.
        photometric: "" for MONOCHROME2 or RGB (JPEG baseline in colour: YBR_FULL_422), or one of MONOCHROME1, YBR_FULL,
            YBR_FULL_422, PALETTE COLOR (of grey pixels).
        extended: Whether to write an extended offset table, if the syntax is compressed.
        tags: Other tags by keyword, or other values of the tags above (Modality, NumberOfFrames, ...). None leaves a
            tag out. They are set last, so they can contradict the rest.
    """
    colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
    frames = pixels if pixels.ndim == (4 if colour else 3) else pixels[None]
    photometric = photometric or ("RGB" if colour else "MONOCHROME2")
    dataset = _header(frames, colour, photometric, name, patient)
    if regions:
        dataset.SequenceOfUltrasoundRegions = Items([_region(*corners) for corners in regions])
    encoded = [_encode(one, syntax, photometric, dataset) for one in frames]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID, meta.ImplementationClassUID = uid.UID(syntax), uid.PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    if meta.TransferSyntaxUID.is_encapsulated:
        if extended:
            dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
                encoded
            )
        else:
            dataset.PixelData = encapsulate(encoded)
    else:
        data = b"".join(encoded)
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    wide = dataset.BitsAllocated == 16 and not meta.TransferSyntaxUID.is_encapsulated
    dataset["PixelData"].VR = "OW" if wide or syntax == IMPLICIT else "OB"
    retag(dataset, **tags)
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer,
        dataset,
        implicit_vr=syntax == IMPLICIT,
        little_endian=syntax != BIG_ENDIAN,
        enforce_file_format=True,
    )
    return buffer.getvalue()


def retag(dataset: Dataset, **tags: Any) -> None:
    """Set other values of some tags; None deletes a tag."""
    for tag, value in tags.items():
        if value is None:
            del dataset[tag]
        else:
            setattr(dataset, tag, value)


def _header(frames: NDArray[Any], colour: bool, photometric: str, name: str, patient: str) -> Dataset:
    dataset = Dataset()
    several = len(frames) > 1
    dataset.SOPClassUID = uid.UltrasoundMultiFrameImageStorage if several else uid.UltrasoundImageStorage
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[name, patient, frames.tobytes().hex()])
    dataset.Modality = "US"
    dataset.PatientName, dataset.PatientID = name, patient
    dataset.PatientBirthDate, dataset.StudyDate, dataset.InstitutionName = "19700101", "20260101", "General Hospital"
    dataset.InstanceNumber = 1
    dataset.BurnedInAnnotation = "YES"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour:
        dataset.PlanarConfiguration = 0
    if several:
        dataset.NumberOfFrames, dataset.FrameTime = len(frames), 40
        dataset.FrameIncrementPointer = 0x00181063
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    bits = frames.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    if photometric == "PALETTE COLOR":
        for part in ("Red", "Green", "Blue"):
            setattr(dataset, f"{part}PaletteColorLookupTableDescriptor", [256, 0, 16])
            # indices stand for the greys from white to black
            table = (255 - np.arange(256, dtype="<u2")) * 257
            setattr(dataset, f"{part}PaletteColorLookupTableData", table.tobytes())
    return dataset


def _region(x0: int, y0: int, x1: int, y1: int) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1, y1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    return region


def _encode(picture: NDArray[Any], syntax: str, photometric: str, dataset: Dataset) -> bytes:
    """Return one frame as it is stored in the file."""
    if syntax == JPEG_BASELINE:
        return _baseline(picture, dataset)
    stored = _stored(picture, photometric)
    if not uid.UID(syntax).is_encapsulated:
        if photometric == "YBR_FULL_422":
            return _subsampled(stored)
        return stored.astype(stored.dtype.newbyteorder(">" if syntax == BIG_ENDIAN else "<")).tobytes()
    if syntax in (JPEG_2000, JPEG_2000_LOSSY):
        return _openjpeg(stored, syntax, dataset)
    return _gdcm(stored, syntax, photometric)


def _stored(picture: NDArray[Any], photometric: str) -> NDArray[Any]:
    """Return the stored samples that are displayed as `picture`."""
    if photometric in ("MONOCHROME1", "PALETTE COLOR"):
        return np.iinfo(picture.dtype).max - picture
    if photometric.startswith("YBR"):
        return np.asarray(Image.fromarray(picture).convert("YCbCr"))
    return np.ascontiguousarray(picture)


def _subsampled(ybr: NDArray[Any]) -> bytes:
    """Store Y1 Y2 Cb Cr for every two pixels (PS3.3 C.7.6.3.1.2)."""
    height, width = ybr.shape[:2]
    packed = np.empty((height, width // 2, 4), np.uint8)
    packed[..., 0], packed[..., 1] = ybr[:, 0::2, 0], ybr[:, 1::2, 0]
    packed[..., 2:] = ybr[:, 0::2, 1:]
    return packed.tobytes()


def _baseline(picture: NDArray[Any], dataset: Dataset) -> bytes:
    """Encode with Pillow's JPEG; in colour it is YCbCr with half the chroma."""
    if picture.ndim == 3:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling="4:2:2")
    return buffer.getvalue()


def _openjpeg(picture: NDArray[Any], syntax: str, dataset: Dataset) -> bytes:
    from openjpeg.utils import encode_array

    if picture.ndim == 3:
        dataset.PhotometricInterpretation = "YBR_RCT" if syntax == JPEG_2000 else "YBR_ICT"
    ratios = [4.0] if syntax == JPEG_2000_LOSSY else None
    return encode_array(
        picture, photometric_interpretation=1 if picture.ndim == 3 else 2, use_mct=True, compression_ratios=ratios
    )


def _gdcm(picture: NDArray[Any], syntax: str, photometric: str) -> bytes:
    """Encode RLE, JPEG lossless and JPEG-LS with GDCM."""
    writer = gdcm.ImageWriter()  # owns the image
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((picture.shape[1], picture.shape[0], 1))
    bits, samples = picture.dtype.itemsize * 8, 3 if picture.ndim == 3 else 1
    image.SetPixelFormat(gdcm.PixelFormat(samples, bits, bits, bits - 1, 0))
    known = photometric if photometric.startswith("MONO") else "RGB" if picture.ndim == 3 else "MONOCHROME2"
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.GetPIType(known)))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(picture.tobytes())
    image.SetDataElement(element)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(image)
    assert change.Change(), f"GDCM does not write {syntax}"
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    assert fragments.GetNumberOfFragments() == 1
    text: str = fragments.GetFragment(0).GetByteValue().GetBuffer()
    return text.encode("utf-8", "surrogateescape")


def regions_bomb(count: int) -> bytes:
    """Return a deflated file of some kilobytes with `count` empty ultrasound regions."""
    return deflated_with(
        b"\x18\x00\x11\x60SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * count + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )


def deflated_bomb(megabytes: int) -> bytes:
    """Return a deflated file with `megabytes` MB of zeros before its pixels, in a tag of their own."""
    length = (megabytes << 20).to_bytes(4, "little")
    return deflated_with(b"\x43\x00\x10\x10OB\0\0" + length + bytes(megabytes << 20))


def deflated_with(elements: bytes, behind: bytes = b"") -> bytes:
    """Return a deflated file with these elements in the order of tags, and these bytes after its pixels."""
    data = write(frame(1), DEFLATED)
    start = 144 + int.from_bytes(data[140:144], "little")  # end of the file's meta information
    dataset = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    at = dataset.index(b"\xe0\x7f\x10\x00") if elements[:2] > b"\x28" else dataset.index(b"\x28\x00\x02\x00")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    whole = dataset[:at] + elements + dataset[at:] + behind
    return data[:start] + packer.compress(whole) + packer.flush()
