import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from thyroid.data import duplicates
from thyroid.imaging import images, phantom


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


COPIES = {
    "re-encoded": lambda i: reencoded(i, 30),
    "halved": lambda i: reencoded(i.resize((i.width // 2, i.height // 2)), 80),
    "doubled": lambda i: i.resize((i.width * 2, i.height * 2)),
    "darker": lambda i: reencoded(ImageEnhance.Brightness(i).enhance(0.6), 75),
    "brighter": lambda i: reencoded(ImageEnhance.Brightness(i).enhance(1.3), 75),
}


def bits(image: Image.Image, other: Image.Image) -> int:
    one, two = (bytes.fromhex(duplicates.perceptual_hash(np.asarray(i.convert("RGB")))) for i in (image, other))
    return sum((a ^ b).bit_count() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("copy", COPIES)
def test_hash_survives_on_phantoms(copy):
    for patient in range(3):
        image = Image.fromarray(phantom.draw("M", patient, 1).image)
        assert bits(image, COPIES[copy](image)) < duplicates.MAX_BITS * 0.7


def test_phantoms_of_different_patients_are_far_apart(phantoms):
    hashes = [duplicates.perceptual_hash(images.decode(images.read(f))) for f in sorted((phantoms / "scans").iterdir())]
    assert duplicates.links(hashes, max_bits=int(duplicates.MAX_BITS * 1.3)) == []


def test_ddti_copies_are_found_and_cases_kept_apart(ddti):
    files = sorted((ddti / "normal").iterdir())
    frames = [Image.open(file).convert("RGB") for file in files]
    changes = list(COPIES.values())
    copies = [changes[i % len(changes)](frame).convert("RGB") for i, frame in enumerate(frames)]
    hashes = [duplicates.perceptual_hash(np.asarray(image)) for image in [*frames, *copies]]
    pairs = sorted(duplicates.near_duplicates(hashes))
    assert pairs == [(i, i + len(files)) for i in range(len(files))]


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40), st.integers(0, 200))
def test_groups_are_those_of_the_plain_definition(seeds, limit):
    hashes = [(np.random.default_rng(s % 7).bytes(126) + s.to_bytes(2)).hex() for s in seeds]
    expected = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (int(hashes[i], 16) ^ int(hashes[j], 16)).bit_count() <= limit
    ]
    found = duplicates.near_duplicates(hashes, duplicates.links(hashes, max_bits=limit))
    assert set(found) <= set(expected)
    alone = range(len(hashes))
    np.testing.assert_array_equal(duplicates.groups(alone, found), duplicates.groups(alone, expected))


def test_blocks_do_not_change_the_answer(monkeypatch):
    hashes = [np.random.default_rng(i // 2).bytes(128).hex() for i in range(50)]
    whole = duplicates.near_duplicates(hashes)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert sorted(duplicates.near_duplicates(hashes)) == sorted(whole) == [(i, i + 1) for i in range(0, 50, 2)]


def test_groups_join_patients_and_copies():
    groups = duplicates.groups([1, 2, 1, 3, 4], [(1, 3)])
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    assert len(set(groups)) == 3


def test_many_equal_images_do_not_make_a_quadratic_list():
    hashes = ["ab" * 128] * 3000
    assert duplicates.near_duplicates(hashes) == [(0, i) for i in range(1, 3000)]
