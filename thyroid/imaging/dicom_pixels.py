"""Decodes one frame of a DICOM file to RGB pixels of 8 bits."""

from collections.abc import Callable

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_rescale, apply_windowing, pixel_array

from thyroid.imaging import images

JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODERS = {
    uid.ImplicitVRLittleEndian: "",
    uid.ExplicitVRLittleEndian: "",
    uid.ExplicitVRBigEndian: "",
    uid.DeflatedExplicitVRLittleEndian: "",
    **dict.fromkeys(JPEG, "pillow"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "pylibjpeg"),
    uid.RLELossless: "pydicom",
}
"""Decoding plug-in of pydicom for each transfer syntax, chosen so that damaged pixels cannot crash it.

GDCM, which pydicom tries first, aborts the process. Uncompressed syntaxes need no plug-in.
"""


def decode(dataset: Dataset, frame: int) -> images.Pixels:
    """Decode one frame, counted from 1, to uint8 [rows, columns, 3]."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in JPEG:
        dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit  # libjpeg-turbo detects the actual kind itself
    values = pixel_array(dataset, index=frame - 1, decoding_plugin=DECODERS[syntax])
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
