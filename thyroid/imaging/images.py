"""Pixels in and out: one safe decoder, one encoder and one letterbox for ingest, training, evaluation and serving.

All of them use these same functions, so what the evaluation scored is bit for bit what the endpoint computes.
"""

import base64
import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

cv2.setNumThreads(1)
"""Images are processed in parallel, one per core; OpenCV's own threads would only compete with them."""

Pixels = NDArray[np.uint8]

MAX_BYTES = 50_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 10_000
MIN_SIDE = 16
JPEG_QUALITY = 95
LEAST_CONTRAST = 2.0
"""Least standard deviation of the grey levels of a picture that shows something.

DDTI's frames have 31 and more; blank pictures have only the codec's noise.
"""
MAX_SCANS = 100
"""Most scans of a progressive JPEG, which normally has ten.

Each scan passes over all pixels but takes only a few bytes.
"""
_START_OF_SCAN, _COMMENT = b"\xff\xda", b"\xff\xfe"
_JFIF = 20
"""Bytes of a JPEG up to the end of its JFIF header, after which a comment may follow."""
_DECODERS = {
    False: (cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_COLOR_8),
    True: (
        cv2.IMREAD_GRAYSCALE,
        cv2.IMREAD_REDUCED_GRAYSCALE_2,
        cv2.IMREAD_REDUCED_GRAYSCALE_4,
        cv2.IMREAD_REDUCED_GRAYSCALE_8,
    ),
}
"""OpenCV's flags by whether a JPEG is grey: for its full size, a half, a quarter and an eighth of it."""
_ENCODER = (
    *(cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


def read(path: str | Path) -> bytes:
    """Read a file's bytes.

    Raises:
        ValueError: The file is empty or larger than `MAX_BYTES`.
    """
    size = Path(path).stat().st_size
    if size == 0:
        raise ValueError("empty file (0 bytes)")
    if size > MAX_BYTES:
        raise ValueError(f"file of {size:,} bytes is larger than the limit of {MAX_BYTES:,}")
    return Path(path).read_bytes()


class SizeError(ValueError):
    """An image whose sides are not allowed.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        message: Why the size is not allowed.
    """

    def __init__(self, width: int, height: int, message: str) -> None:
        """Keep the size next to the message."""
        super().__init__(message)
        self.width, self.height = width, height


SERVED = ("JPEG", "PNG")
"""Formats that the endpoint accepts besides DICOM; scans on disk are JPEG or DICOM."""

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}


def kind(data: bytes) -> str | None:
    """Return the format of a file by its first 132 bytes, whatever its name says.

    Returns:
        One of `SERVED`, "DICOM" (PS3.10 7.1), or None.
    """
    known = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    return "DICOM" if known is None and data[128:132] == b"DICM" else known


def decode(
    data: bytes,
    min_side: int = MIN_SIDE,
    formats: tuple[str, ...] = ("JPEG",),
    max_pixels: int = MAX_PIXELS,
    max_scans: int = MAX_SCANS,
) -> Pixels:
    """Decode an image completely.

    The dimensions in the header are checked before any pixel is decoded (decompression bombs). Only Pillow's plug-ins
    for `formats` may look at the bytes. A truncated file is an error. The EXIF orientation is applied.

    Args:
        data: Bytes of the whole file.
        min_side: Smallest width and height that is accepted as a scan, in pixels.
        formats: Formats that are accepted.
        max_pixels: Most pixels of the image.
        max_scans: Most scans of a JPEG.

    Returns:
        uint8 [height, width, 3], RGB, 0..255.

    Raises:
        ValueError: The image has another format, or is too large, too small or damaged; the message says which.
    """
    image = _open(data, min_side, formats, max_pixels, max_scans)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turn = _TURNS.get(_orientation(image))
            plain = image if image.mode == "L" else image.convert("RGB")
            pixels = np.asarray(plain if turn is None else plain.transpose(turn))
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if image.mode == "L" else pixels
    except Exception as error:  # Pillow's plug-ins raise many kinds of errors
        raise ValueError(f"damaged {image.format}: {error}") from None


def size(data: bytes, min_side: int = MIN_SIDE, formats: tuple[str, ...] = ("JPEG",)) -> tuple[int, int]:
    """Return the width and height in pixels that `decode` would give, from the header alone.

    Raises:
        ValueError: The image has another format, or is too large or too small. Damage after the header is not noticed.
    """
    image = _open(data, min_side, formats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = _orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def is_empty(image: Pixels) -> bool:
    """Return whether a picture has a single colour apart from noise, such as black or white.

    Args:
        image: uint8 [height, width, 3].
    """
    _, deviation = cv2.meanStdDev(image)
    return bool(deviation.max() < LEAST_CONTRAST)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of each EXIF orientation upright."""


def _orientation(image: Image.Image) -> int:
    """Return the orientation that browsers use: from the EXIF block in the header.

    EXIF after the pixels and XMP do not count.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed EXIF raises struct.error, SyntaxError, TypeError and others in Pillow
        return 1


def _open(
    data: bytes,
    min_side: int,
    formats: tuple[str, ...],
    max_pixels: int = MAX_PIXELS,
    max_scans: int = MAX_SCANS,
) -> Image.Image:
    """Open an image before any pixel is decoded, and check that its sides are allowed."""
    if data.count(_START_OF_SCAN) > max_scans:
        raise ValueError(f"JPEG of more than {max_scans} scans")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bombs (MAX_PIXELS is stricter) and odd metadata with sound pixels
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"image is larger than the limit of {MAX_PIXELS:,} pixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):  # ValueError: chunks of a PNG that are too large
        raise ValueError(f"not a {' or '.join(formats)} image") from None
    width, height = image.size
    if width * height > max_pixels:
        raise SizeError(width, height, f"image of {width}x{height} is larger than the limit of {max_pixels:,} pixels")
    if max(width, height) > MAX_SIDE:  # letterboxing makes a square of the longer side
        raise SizeError(
            width, height, f"image of {width}x{height} is longer than the limit of {MAX_SIDE:,} pixels a side"
        )
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        raise ValueError("an animation; send one picture")
    if min(width, height) < min_side:
        raise SizeError(width, height, f"image of {width}x{height} is smaller than {min_side} pixels a side")
    return image


def encode(image: Pixels, comment: bytes | None = None) -> bytes:
    """Encode a JPEG without any metadata; it has one channel if all three are equal (which is lossless and smaller).

    Args:
        image: uint8 [height, width, 3], RGB.
        comment: The only thing to write besides the pixels, at most 65,533 bytes.
    """
    data, _ = _encode(image)
    if comment is None:
        return data
    return data[:_JFIF] + _COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment + data[_JFIF:]


def _encode(image: Pixels) -> tuple[bytes, bool]:
    """Return the JPEG and whether it is grey."""
    grey = bool(np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2]))
    pixels = image[..., 0] if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, _ENCODER)[1].tobytes(), grey


def letterbox(image: Pixels, size: int) -> Pixels:
    """Scale into a square without stretching, and pad with black around the centred image.

    Stretching changes a nodule's shape (taller-than-wide is a sign of malignancy) and costs accuracy
    (10.12659/MSM.927007).

    Args:
        image: uint8 [height, width, channels].
        size: Side of the square in pixels.

    Returns:
        uint8 [size, size, channels].
    """
    height, width, channels = image.shape
    scale = size / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    if new != (width, height):
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (size - new[0]) // 2, (size - new[1]) // 2
    out = np.zeros((size, size, channels), np.uint8)
    out[top : top + new[1], left : left + new[0]] = image.reshape(new[1], new[0], channels)
    return out


def square(data: bytes, size: int) -> Pixels:
    """Return the model's input from the bytes of an image that `crop` wrote or `encode` made.

    This is the only way to the model's input, for every caller. A JPEG that is at least twice too large is decoded at a
    half, quarter or eighth of its size (scaled inverse DCT), then letterboxed. The bytes are our own or their hash was
    checked, so the checks of `decode` are left out.

    Args:
        data: Bytes of the JPEG.
        size: Side of the square in pixels.

    Returns:
        uint8 [size, size, 1] for a grey JPEG, whose three channels would be equal, else [size, size, 3].

    Raises:
        OSError: The bytes are not a JPEG, or a damaged one.
    """
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    return _square(data, *image.size, image.mode == "L", size)


def stored(image: Pixels, size: int) -> Pixels:
    """Return what `square` makes of the bytes that `encode` makes of an image.

    A model thus sees an image that is not on disk exactly as it would see it from disk.

    Args:
        image: uint8 [height, width, 3], RGB.
        size: Side of the square in pixels.

    Returns:
        uint8 [size, size, 1] or [size, size, 3], as `square`.
    """
    data, grey = _encode(image)
    return _square(data, image.shape[1], image.shape[0], grey, size)


def _square(data: bytes, width: int, height: int, grey: bool, size: int) -> Pixels:
    scale = size / max(width, height)
    larger = min(8, *(side // max(1, round(side * scale)) for side in (width, height)))
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODERS[grey][max(larger, 1).bit_length() - 1])
    if pixels is None:
        raise OSError("damaged JPEG")
    return letterbox(pixels[..., None] if grey else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), size)


def data_uri(data: bytes) -> str:
    """Return an encoded PNG or JPEG as a data URI (RFC 2397), for an <img> that needs no second file."""
    return f"data:image/{'png' if kind(data) == 'PNG' else 'jpeg'};base64,{base64.b64encode(data).decode()}"


def rgb(image: Pixels) -> Pixels:
    """Return three channels for one channel or three.

    Args:
        image: One image [h, w, channels] or a batch [n, h, w, channels].

    Returns:
        A copy of a single image [h, w, 1]; otherwise a view [..., 3].
    """
    if image.ndim == 3 and image.shape[-1] == 1:
        # a view would be copied for the engine, four times as slowly
        copy: Pixels = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        return copy
    return np.broadcast_to(image, (*image.shape[:-1], 3))
