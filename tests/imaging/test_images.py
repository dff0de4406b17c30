import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from thyroid.imaging import images


def jpeg(width: int = 40, height: int = 30, **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_decodes_to_rgb():
    image = images.decode(jpeg())
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8


def test_applies_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(jpeg(40, 30, exif=exif)).shape == (40, 30, 3)


def test_encoding_drops_metadata_and_keeps_grey_exactly_one_channel():
    image = images.decode(jpeg(exif=b"Exif\x00\x00patient", comment=b"patient"))
    data = images.encode(image)
    assert b"patient" not in data
    assert Image.open(io.BytesIO(data)).mode == "L"


def test_a_png_is_not_a_jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="JPEG"):
        images.decode(buffer.getvalue())


def test_text_is_not_a_jpeg():
    with pytest.raises(ValueError, match="JPEG"):
        images.decode(b"hello")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_file_is_damaged(share):
    data = jpeg(300, 200)
    with pytest.raises(ValueError, match="JPEG"):
        images.decode(data[: int(len(data) * share)])


def test_huge_header_is_refused_before_decoding():
    data = bytearray(jpeg())
    marker = data.index(b"\xff\xc0")
    data[marker + 5 : marker + 9] = struct.pack(">HH", 30000, 30000)
    with pytest.raises(ValueError, match="50,000,000"):
        images.decode(bytes(data))
    data[marker + 5 : marker + 9] = struct.pack(">HH", 9000, 9000)
    with pytest.raises(ValueError, match="9000x9000"):
        images.decode(bytes(data))


def test_tiny_image_is_refused():
    with pytest.raises(ValueError, match="8x8"):
        images.decode(jpeg(8, 8))


def test_empty_file(tmp_path):
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ValueError, match="empty"):
        images.read(tmp_path / "x.jpg")


def test_oversized_file(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 3)
    (tmp_path / "x.jpg").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"\b3\b"):
        images.read(tmp_path / "x.jpg")


@pytest.mark.parametrize(("width", "height"), [(100, 40), (40, 100), (33, 77), (10, 500)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_letterbox_never_stretches(width, height, size):
    out = images.letterbox(np.full((height, width, 3), 200, np.uint8), size)
    assert out.shape == (size, size, 3)
    rows, columns = np.nonzero(out[..., 0])
    extent = (np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert max(extent) == size
    scale = size / max(width, height)
    assert extent == pytest.approx((width * scale, height * scale), abs=1)
    assert out[rows, columns].min() >= 150


def test_square_of_the_right_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.letterbox(image, 64), image)


def test_a_strip_is_refused_since_its_square_would_be_huge():
    with pytest.raises(ValueError, match="10,000"):
        images.decode(jpeg(12_000, 16))


def test_malformed_exif_is_a_damaged_file_not_a_crash():
    data = bytearray(
        jpeg(exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00")
    )
    start = data.index(b"Exif")
    rng = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(data)
        for place in rng.integers(start + 6, start + 32, 3):
            broken[place] = rng.integers(256)
        with contextlib.suppress(ValueError):
            images.decode(bytes(broken))


@pytest.mark.parametrize("size", [32, 64, 100, 224])
@pytest.mark.parametrize("colour", [False, True])
def test_the_models_input_is_the_letterboxed_image(size, colour):
    """A scaled decode differs from a full one by a grey level or two, and only where it is used."""
    y, x = np.mgrid[0:200, 0:300]
    image = np.stack([128 + 90 * np.sin(x / 17 + c * colour) * np.cos(y / 23) for c in range(3)], -1).astype(np.uint8)
    data = images.encode(image)
    square = images.square(data, size)
    assert square.shape == (size, size, 3 if colour else 1)
    full = images.letterbox(images.decode(data), size)
    difference = np.abs(images.rgb(square).astype(int) - full)
    assert difference.mean() < (3 if size == 32 else 1.5)  # of a pattern with waves of 17 pixels
    if size > 150:
        assert difference.max() == 0
    assert images.square(images.encode(image[:2, :40]), size).shape[:2] == (size, size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_decoded_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40)).save(buffer, kind, exif=exif)
        height, width = images.decode(buffer.getvalue(), formats=images.SERVED).shape[:2]
        assert images.size(buffer.getvalue(), formats=images.SERVED) == (width, height)


def test_kinds_of_files_are_told_by_their_bytes():
    assert images.kind(bytes(128) + b"DICM") == "DICOM"
    assert images.kind(b"\xff\xd8\xff" + bytes(125) + b"DICM") == "JPEG"
    assert images.kind(b"<svg/>") is None


def test_only_the_orientation_that_browsers_see_counts():
    """Not XMP's, and not that of a PNG's EXIF behind its pixels: a box is drawn on what the browser shows."""
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description tiff:Orientation="6" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></rdf:RDF></x:xmpmeta>'
    )
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "JPEG", xmp=xmp)
    assert images.decode(buffer.getvalue()).shape == (40, 60, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "PNG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    late = data[:start] + data[start + length : data.index(b"IEND") - 4] + data[start : start + length] + data[-12:]
    assert images.decode(late, formats=images.SERVED).shape == (40, 60, 3)
    assert images.size(late, formats=images.SERVED) == (60, 40)


def test_a_jpeg_of_hundreds_of_scans_is_refused():
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    assert images.decode(buffer.getvalue()).shape == (64, 64, 3)
    data = buffer.getvalue()
    start = data.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match=r"\b100\b"):
        images.decode(data[:-2] + data[start:-2] * 101 + data[-2:])
