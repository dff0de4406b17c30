"""Results that are cached between runs carry a version. It has to be raised when such a result changes."""

import hashlib

import numpy as np

from tests.conftest import write_scan
from thyroid.data import crops, duplicates, filenames
from thyroid.imaging import geometry, images
from thyroid.ingest import examine


def frame() -> images.Pixels:
    """Speckle on black with a scanner's text, uint8 [120, 160, 3]."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[20:110, 30:150] = rng.integers(40, 255, (90, 120, 1), dtype=np.uint8)
    pixels[5:8, 5:40:3] = 200
    return pixels


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_a_change_of_stored_images_raises_their_version():
    scan, box = frame(), (60, 50, 40, 30)
    found = digest(geometry.normal(scan).tobytes(), geometry.region(scan, box, margin=0.15).tobytes())
    assert (crops.CODE, found) == (1, "2a47fd220717374e"), "raise data.crops.CODE"


def test_a_change_of_what_is_read_of_a_file_raises_its_version(tmp_path):
    file = write_scan(tmp_path / "M_007-0002-1.0.jpg", seed=7)
    name = filenames.parse(file.name)
    found = digest(repr(name).encode(), duplicates.perceptual_hash(images.decode(file.read_bytes())).encode())
    assert (examine.EXAMINATION, found) == (2, "539ebcbc6f44b8ce"), "raise examine.EXAMINATION"
