"""Near-duplicates of a million hashes, against the comparison of all pairs.

python bench/scale_duplicates.py 1000000
"""

import resource
import time

import numpy as np
from numpy.typing import NDArray

from thyroid.data import duplicates

NEW = 10_000
ROWS, COLUMNS = 512, 500_000
"""The part of all pairs that the old way is measured on: the mean of its blocks.

It compared 512 rows with all later ones at a time. Smaller blocks would be faster, since they stay in the cache.
"""


def near_duplicates(count: int) -> dict[str, float]:
    """Measure the search for near-duplicates.

    The hashes are drawn, since a million frames are not at hand. Bit k of all hashes is 1 with the same probability,
    from .3 to .7 and rising with k. Like frames of DDTI, two hashes then differ by 485 bits on average (DDTI: 492), and
    14 of 10,000 pairs have almost the same key in a table (DDTI: 13 to 17; independent bits: 5). One hash in a hundred
    is a copy of another one with 1 to 95 bits flipped, and one in a thousand with 96 to 140.

    Args:
        count: Number of hashes.

    Returns:
        Seconds and seconds of processor time for all against all and for `NEW` against `count`; the share of the
        planted copies that was found; the number of pairs that were not planted or are too far apart; the peak of
        memory in MB; seconds of NumPy's comparison of all pairs, extrapolated from a part; and the ratio of the two.
    """
    rng = np.random.default_rng(0)
    codes = _codes(rng, count)
    expected, far = _plant(rng, codes, count // 100, 1, 95), _plant(rng, codes, count // 1000, 96, 140)
    hashes = [code.tobytes().hex() for code in codes]
    figures: dict[str, float] = {}
    with_all = _Clock()
    found = {frozenset(pair) for pair in duplicates.links(hashes)}
    figures |= with_all.read("all")
    planted = {frozenset((hashes[a], hashes[b])) for a, b in expected}
    figures["recall"] = len(found & planted) / len(planted)
    figures["wrong"] = len(found - planted)
    assert not found & {frozenset((hashes[a], hashes[b])) for a, b in far}
    fresh = _codes(rng, NEW)
    fresh[: NEW // 10] = codes[rng.choice(count, NEW // 10, replace=False)]
    for code in fresh[: NEW // 10]:
        _flip(rng, code, 95)
    new = [code.tobytes().hex() for code in fresh]
    with_new = _Clock()
    linked = {a for pair in duplicates.links(new, hashes) for a in pair}
    figures |= with_new.read("new")
    figures["recall_of_new"] = len(linked.intersection(new[: NEW // 10])) / (NEW // 10)
    with_near = _Clock()
    near = duplicates.near(new, hashes)
    figures |= with_near.read("near")
    figures["recall_of_near"] = len(near.intersection(new[: NEW // 10])) / (NEW // 10)
    figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures |= all_pairs(codes)
    figures["duplicates_million_vs_all_pairs"] = figures["all_pairs_seconds"] / figures["all_seconds"]
    return figures


def all_pairs(codes: NDArray[np.uint8]) -> dict[str, float]:
    """Return the seconds that NumPy's comparison of all pairs takes, extrapolated from one block of rows."""
    words = codes.view(np.uint64)
    columns = words[:COLUMNS]
    clock = _Clock()
    distance = np.zeros((ROWS, len(columns)), np.uint16)
    for word in range(words.shape[1]):
        distance += np.bitwise_count(words[:ROWS, None, word] ^ columns[None, :, word])
    np.nonzero(np.triu(distance <= 128, 1))
    share = ROWS * len(columns) / (len(codes) * (len(codes) - 1) / 2)
    return {key: seconds / share for key, seconds in clock.read("all_pairs").items()}


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        return {
            f"{name}_seconds": time.perf_counter() - self._wall,
            f"{name}_cpu_seconds": time.process_time() - self._cpu,
        }


def _codes(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    ones = np.linspace(0.3, 0.7, 1024, dtype=np.float32)
    codes = np.empty((count, 128), np.uint8)
    for start in range(0, count, 10_000):
        some = codes[start : start + 10_000]
        some[:] = np.packbits(rng.random((len(some), 1024), dtype=np.float32) < ones, axis=1)
    return codes


def _plant(
    rng: np.random.Generator, codes: NDArray[np.uint8], count: int, low: int, high: int
) -> list[tuple[int, int]]:
    """Turn codes into copies of others that differ by `low` to `high` bits, and return the pairs of rows."""
    half = len(codes) // 2
    # Copies with up to 95 bits are in odd rows, farther ones in even rows, so that none is replaced twice.
    rows = 2 * rng.choice(half // 2, count, replace=False) + (low == 1)
    pairs = [(int(row), half + int(row)) for row in rows]
    for original, copy in pairs:
        codes[copy] = codes[original]
        _flip(rng, codes[copy], int(rng.integers(low, high + 1)))
    return pairs


def _flip(rng: np.random.Generator, code: NDArray[np.uint8], count: int) -> None:
    bits = np.unpackbits(code)
    bits[rng.choice(1024, count, replace=False)] ^= 1
    code[:] = np.packbits(bits)


if __name__ == "__main__":
    import sys

    for key, value in near_duplicates(int(sys.argv[1])).items():
        print(f"{key:40} {value:.5g}")
