import io
import itertools

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
    one, two = (duplicates.perceptual_hash(np.asarray(i.convert("RGB"))) for i in (image, other))
    return distance(one, two)


def distance(one: str, two: str) -> int:
    return (int(one, 16) ^ int(two, 16)).bit_count()


def flipped(hash_: str, rng: np.random.Generator, count: int) -> str:
    unpacked = np.unpackbits(np.frombuffer(bytes.fromhex(hash_), np.uint8))
    unpacked[rng.choice(1024, count, replace=False)] ^= 1
    return np.packbits(unpacked).tobytes().hex()


def by_all_pairs(hashes: list[str]) -> set[tuple[str, str]]:
    return {
        (min(a, b), max(a, b))
        for a, b in itertools.combinations(dict.fromkeys(hashes), 2)
        if distance(a, b) <= duplicates.MAX_BITS
    }


def ordered(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    assert len(pairs) == len(set(pairs))
    return {(min(pair), max(pair)) for pair in pairs}


@pytest.fixture(params=["one by one", "tables", "tables and crowds"])
def way(request, monkeypatch):
    """The ways in which a search may go, which depend on the number of hashes and on what they are like."""
    if request.param != "one by one":
        monkeypatch.setattr(duplicates, "_FLAT", 0)
    if request.param == "tables and crowds":
        monkeypatch.setattr(duplicates, "_CROWD", 2)


@pytest.mark.parametrize("copy", COPIES)
def test_hash_survives_on_phantoms(copy):
    for patient in range(3):
        image = Image.fromarray(phantom.draw("M", patient, 1).image)
        assert bits(image, COPIES[copy](image)) < duplicates.MAX_BITS * 0.7


def test_phantoms_of_different_patients_are_far_apart(phantoms):
    hashes = [duplicates.perceptual_hash(images.decode(images.read(f))) for f in sorted((phantoms / "scans").iterdir())]
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) > duplicates.MAX_BITS * 1.9


def test_ddti_copies_are_found_and_cases_kept_apart(ddti):
    files = sorted((ddti / "normal").iterdir())
    frames = [Image.open(file).convert("RGB") for file in files]
    changes = list(COPIES.values())
    copies = [changes[i % len(changes)](frame).convert("RGB") for i, frame in enumerate(frames)]
    hashes = [duplicates.perceptual_hash(np.asarray(image)) for image in [*frames, *copies]]
    pairs = sorted(duplicates.near_duplicates(hashes))
    assert pairs == [(i, i + len(files)) for i in range(len(files))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("way")
def test_copies_are_found_up_to_the_limit_and_none_beyond(seed):
    rng = np.random.default_rng(seed)
    originals = [rng.bytes(128).hex() for _ in range(141)]
    copies = [flipped(original, rng, count) for count, original in enumerate(originals)]
    every = [*originals, *copies, *originals]
    found = ordered(duplicates.links(every))
    assert found == by_all_pairs(every)
    assert len(found) == duplicates.MAX_BITS  # from 1 to 95 bits; with none the hashes are equal
    assert duplicates.near(copies, originals) == set(copies[: duplicates.MAX_BITS + 1])
    assert ordered(duplicates.links(copies, originals)) == found


@pytest.mark.usefixtures("way")
def test_no_place_of_the_different_bits_hides_a_copy():
    """Also if they are the bits of one key, or as even as they can be."""
    order = np.random.default_rng(0).permutation(1024)
    for count in (duplicates.MAX_BITS, duplicates.MAX_BITS + 1):
        spread = [(21 * (k % 48) + k // 48) for k in range(count)]
        for places in (range(count), spread, range(1024 - count, 1024)):
            packed = np.zeros(1024, np.uint8)
            packed[order[list(places)]] = 1
            hashes = ["00" * 128, np.packbits(packed).tobytes().hex()]
            assert len(duplicates.links(hashes)) == (count == duplicates.MAX_BITS)


def clusters(rng: np.random.Generator, sizes: list[int], flips: int) -> list[str]:
    """Hashes around some centres, from which they differ by up to `flips` bits."""
    centres = [rng.bytes(128).hex() for _ in sizes]
    hashes = [
        flipped(centre, rng, int(rng.integers(1, flips + 1)))
        for centre, size in zip(centres, sizes, strict=True)
        for _ in range(size)
    ]
    return [hashes[i] for i in rng.permutation(len(hashes))]


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 25), min_size=1, max_size=3),
    st.sampled_from([20, 50, 80]),
    st.integers(1, 40),
    st.integers(1, 50),
    st.sampled_from([0, 10**6]),
)
def test_thinning_out_changes_neither_groups_nor_who_shares_a_picture(seed, sizes, flips, people, answers, flat):
    rng = np.random.default_rng(seed)
    hashes = list(dict.fromkeys(clusters(rng, sizes, flips)))
    owners = {hash_: frozenset(rng.integers(0, people, rng.integers(1, 3)).tolist()) for hash_ in hashes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_ANSWERS", answers)
        patch.setattr(duplicates, "_QUERIES", 7)
        patch.setattr(duplicates, "_BLOCK", 30)
        patch.setattr(duplicates, "_FLAT", flat)
        found = ordered(duplicates.links(hashes, owners=lambda: owners))
    expected = by_all_pairs(hashes)
    assert found <= expected
    places = {hash_: place for place, hash_ in enumerate(hashes)}
    by_place = [[(places[a], places[b]) for a, b in pairs] for pairs in (found, expected)]
    np.testing.assert_array_equal(*(duplicates.groups(range(len(hashes)), pairs) for pairs in by_place))
    sharing = []
    for pairs in (found, expected):
        people_of = dict(owners)
        for a, b in pairs:
            people_of[a] |= owners[b]
            people_of[b] |= owners[a]
        sharing.append({hash_: min(6, len(of)) for hash_, of in people_of.items()})
    assert sharing[0] == sharing[1]


@pytest.mark.parametrize("people", [1, 2, 1500])
@pytest.mark.parametrize("flat", [0, 10**6])
def test_many_nearly_equal_images_cost_no_quadratic_list_and_no_quadratic_work(people, flat, monkeypatch):
    count = 1500
    hashes = clusters(np.random.default_rng(0), [count], 20)
    answers = []
    search = duplicates._Search.pairs
    monkeypatch.setattr(
        duplicates._Search, "pairs", lambda self, *given: answers.append(search(self, *given)) or answers[-1]
    )
    monkeypatch.setattr(duplicates, "_ANSWERS", 50_000)
    monkeypatch.setattr(duplicates, "_FLAT", flat)
    owners = {hash_: place % people for place, hash_ in enumerate(hashes)}
    found = duplicates.links(hashes, owners=lambda: owners)
    assert len(found) <= (duplicates._KINDS + 1) * count
    assert max(map(len, answers)) <= 50_000
    assert sum(map(len, answers)) < count**2 / 8
    assert not duplicates.groups(range(count), duplicates.near_duplicates(hashes, found)).any()


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
