"""Near-duplicates by perceptual hash, and the groups that must stay on one side of a split.

Public data sets hold re-encoded copies of one frame under other case numbers (DDTI: 127 frames), so grouping by patient
number alone leaks.
"""

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thyroid import cores
from thyroid.imaging import images

if TYPE_CHECKING:
    import pandas as pd

Hashes: TypeAlias = "Collection[str] | pd.Series"
"""Hashes of `perceptual_hash`, perhaps with repetitions. A column of a table is the smallest form."""

HASH_SIDE = 32
MAX_BITS = 95
"""Two images are near-duplicates if at most this many of the 1024 bits differ.

Copies of 243 DDTI frames and 240 phantoms (JPEG quality 30, half and third size, brightness x.6 to x1.3, gamma .7,
contrast x1.4) differ by at most 72 bits; frames of different patients differ by at least 246. The usual 64-bit hash
leaves no such gap between frames of one scanner, whose layout fills the low frequencies.
"""

_TABLES, _KEY_BITS = 48, 21
"""Hash tables of the search, and bits of a table's key.

If at most 95 bits differ, one of the 48 keys has at most one of them, so a search that flips each bit of each key once
misses no pair (multi-index hashing: Norouzi, Punjani and Fleet, CVPR 2012).
"""
_BLOCK = 125_000
"""Hashes that are indexed at a time; their tables take 0.6 GB."""
_FLAT = 12_000
"""Up to so many hashes, comparing with each takes no longer than looking into the tables."""
_CROWD = 256
"""Most hashes that share a key, before they are compared one by one instead.

A table with many of its hashes under one key costs more than no table.
"""
_QUERIES = 16_384
_ANSWERS = 2_000_000
"""Pairs that are in memory at a time before they are thinned out."""
_KINDS = 32
"""Owners whose hashes stay linked to a hash when pairs are thinned out.

There are 31 sets of one to five patients, so 32 different sets hold more than five patients.
"""

_Codes = NDArray[np.uint8]
_Rows = NDArray[np.int64]
_Pairs = NDArray[np.int64]


def perceptual_hash(image: images.Pixels) -> str:
    """Return the 1024-bit DCT hash (imagehash.phash, side 32) as 256 hexadecimal digits.

    The hash survives re-encoding, resizing and changes of brightness and contrast.

    Args:
        image: uint8 [height, width, 3].
    """
    import imagehash  # here and below: a run without new scans loads neither SciPy nor faiss

    return str(imagehash.phash(Image.fromarray(image).convert("L"), hash_size=HASH_SIDE, highfreq_factor=2))


def links(
    hashes: Hashes, known: Hashes = (), owners: Callable[[], Mapping[str, Hashable]] | None = None
) -> list[tuple[str, str]]:
    """Return pairs of different hashes that differ by at most `MAX_BITS`.

    Every new hash is compared with the known ones and with the other new ones. Known hashes are not compared with each
    other. The work is done in blocks, so memory stays flat.

    The pairs are all there are, up to `_ANSWERS`. Thousands of nearly equal images have more. Of these, pairs are kept
    that connect the same hashes, and that link a hash to those of `_KINDS` other owners, or of all if it has fewer.

    Args:
        hashes: Hashes of `perceptual_hash`; those that are in `known` are skipped.
        known: Hashes whose links are known already.
        owners: Gives what counts as one owner, by hash: a patient, or the set of patients who have an image with that
            hash. A hash that is not there is its own owner. It is called if not all pairs are kept.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    old, new = _array(known).unique(), _array(hashes).unique()
    new = new.filter(pc.invert(pc.is_in(new, value_set=old)))
    if not len(new):
        return []
    codes, count = _codes(pa.chunked_array([new, old])), len(new)
    del hashes, known, old, new  # beside the tables of the search there are only the codes

    def numbers() -> NDArray[np.int64]:
        of_hash, number = owners() if owners else {}, dict[Hashable, int]()
        return np.array([number.setdefault(of_hash.get(text, text), len(number)) for text in _texts(codes)])

    found = _Links(len(codes), numbers)
    for start in range(0, count, _BLOCK):
        block = codes[start : min(start + _BLOCK, count)]
        for pairs in _close(block, codes[start:], found.settled[start:]):
            code, query = pairs.T
            # A pair of two codes of the block is found twice.
            found.add(pairs[(query < code) | (query >= len(block))] + start)
    rows, place = np.unique(found.pairs(), return_inverse=True)
    texts = list(_texts(codes[rows]))
    return [(texts[i], texts[j]) for i, j in place.reshape(-1, 2).tolist()]


def near(hashes: Hashes, known: Hashes) -> set[str]:
    """Return those of `hashes` that differ from a known hash by at most `MAX_BITS`; memory stays flat.

    Args:
        hashes: Hashes of `perceptual_hash`.
        known: Hashes to compare them with.
    """
    new = _array(hashes).unique()
    is_near = np.zeros(len(new), bool)
    queries = _codes(_array(known).unique())
    for start in range(0, len(new), _BLOCK):
        for pairs in _close(_codes(new[start : start + _BLOCK]), queries):
            is_near[start + pairs[:, 0]] = True
    return set(new.filter(is_near).to_pylist())


def near_duplicates(hashes: Hashes, linked: Sequence[tuple[str, str]] | None = None) -> list[tuple[int, int]]:
    """Return index pairs i < j that link all hashes which differ by at most `MAX_BITS`.

    Equal hashes are linked only to the first of them, so that many blank frames do not make a quadratic list.

    Args:
        hashes: Hashes of `perceptual_hash`.
        linked: Pairs that `links` found among these hashes, and perhaps others; None to search now.
    """
    import pyarrow.compute as pc

    own = _array(hashes)
    sides = _array([text for pair in (links(hashes) if linked is None else linked) for text in pair])
    places = pc.index_in(sides, value_set=own).fill_null(-1).to_numpy().reshape(-1, 2)
    return index_pairs(pc.index_in(own, value_set=own).to_numpy(), places[(places >= 0).all(axis=1)])


def index_pairs(pictures: NDArray[np.integer], linked: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Return index pairs i < j that link equal pictures to the first of them, and the first ones of linked pictures.

    Args:
        pictures: Number of the picture per scan [n].
        linked: Pairs of numbers of near-duplicate pictures, all of which occur in `pictures`, [k, 2].
    """
    known, first, number = np.unique(pictures, return_index=True, return_inverse=True)
    firsts = first[number]
    repeated = np.flatnonzero(firsts != np.arange(len(number)))
    equal = np.column_stack([firsts[repeated], repeated])
    near = np.sort(first[np.searchsorted(known, linked)], axis=1)
    return [(i, j) for i, j in np.concatenate([equal, near]).tolist()]


def groups(patients: Sequence[int], pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the connected components of "same patient or near-duplicate".

    Args:
        patients: Patient number per scan [n].
        pairs: Index pairs of near-duplicates.

    Returns:
        Component number per scan, int64 [n], numbered by first appearance.
    """
    _, first, number = np.unique(np.asarray(patients), return_index=True, return_inverse=True)
    same = np.column_stack([first[number], np.arange(len(patients))])
    return _components(np.concatenate([same, np.array(pairs, np.int64).reshape(-1, 2)]), len(patients))


def _components(pairs: _Pairs, count: int) -> NDArray[np.int64]:
    """Return the number of the connected component of every row, int64 [count], numbered by first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.uint8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    numbers: NDArray[np.int64] = component.astype(np.int64)
    return numbers


def _array(hashes: Hashes) -> Any:
    """Return the hashes as an Arrow array, in which a million take 264 MB; as Python's texts they take 305 MB more."""
    import pyarrow as pa

    return pa.array(hashes if hasattr(hashes, "dtype") else list(hashes), pa.large_string())


def _codes(hashes: Any) -> _Codes:
    """Return the bits of the hashes in the order in which they are searched, lowest bit first, packed, uint8 [n, 128].

    Neighbouring bits of a hash are alike in many images, and keys of such bits would be, too. In a fixed random order
    1.3 of 1,000 pairs of DDTI frames have almost the same key somewhere, in the given order 10.5.
    """
    order = _order()
    codes = np.empty((len(hashes), HASH_SIDE**2 // 8), np.uint8)
    for start in range(0, len(hashes), _QUERIES):
        some = hashes[start : start + _QUERIES]
        bits = np.unpackbits(
            np.frombuffer(bytes.fromhex("".join(some.to_pylist())), np.uint8).reshape(len(some), -1), axis=1
        )
        codes[start : start + len(some)] = np.packbits(bits[:, order], axis=1, bitorder="little")
    return codes


def _order() -> NDArray[np.int64]:
    """Return which bit of a hash is searched where, int64 [1024]."""
    return np.random.default_rng(0).permutation(HASH_SIDE**2)


def _texts(codes: _Codes) -> Iterator[str]:
    """Yield the hashes that `_codes` was given."""
    order = _order()
    for start in range(0, len(codes), _QUERIES):
        some = codes[start : start + _QUERIES]
        bits = np.empty((len(some), HASH_SIDE**2), np.uint8)
        bits[:, order] = np.unpackbits(some, axis=1, bitorder="little")
        yield from (row.tobytes().hex() for row in np.packbits(bits, axis=1))


def _close(codes: _Codes, queries: _Codes, settled: NDArray[np.int64] | None = None) -> Iterator[_Pairs]:
    """Find the pairs of a code and a query that differ by at most `MAX_BITS`.

    Args:
        codes: uint8 [n, 128] of `_codes`. They are indexed, so memory grows with their number.
        queries: uint8 [m, 128] of `_codes`.
        settled: `_Links.settled` if the codes are the first of the queries; pairs that it says are of no use may be
            left out. None for all pairs.

    Yields:
        Row of the code and row of the query, int64 [k, 2], for some queries at a time.
    """
    import faiss

    crowded = _crowded(codes) if len(codes) > _FLAT else np.ones(len(codes), bool)
    # Without threads of faiss, which turn idly while they wait for each other.
    with ThreadPoolExecutor(cores.available(), initializer=faiss.omp_set_num_threads, initargs=(1,)) as threads:
        search = _Search(queries, threads)
        rows = np.flatnonzero(crowded)
        yield from _one_by_one(codes, rows, search, np.full(len(queries), -1) if settled is None else settled)
        rows = np.flatnonzero(~crowded)
        if not len(rows):
            return
        tables = faiss.IndexBinaryMultiHash(HASH_SIDE**2, _TABLES, _KEY_BITS)
        tables.nflip = 1
        tables.add(_at(codes, rows))
        for start in range(0, len(queries), _QUERIES):
            yield search.pairs(tables, rows, np.arange(start, min(start + _QUERIES, len(queries))))


def _one_by_one(codes: _Codes, rows: _Rows, search: "_Search", settled: _Rows) -> Iterator[_Pairs]:
    """Compare each query with the codes of `rows`, but for codes that are settled in one component with the query."""
    import faiss

    flat = faiss.IndexBinaryFlat(HASH_SIDE**2)
    indexed = rows[:0]
    to_do = np.ones(len(settled), bool)
    while len(remaining := np.flatnonzero(to_do)):
        component = settled[remaining[0]]
        others = rows if component < 0 else rows[settled[rows] != component]
        which = remaining[settled[remaining] == component][: max(1, _ANSWERS // max(1, len(others)))]
        to_do[which] = False
        if not np.array_equal(others, indexed):
            flat.reset()
            flat.add(_at(codes, others))
            indexed = others
        if len(others):
            yield search.pairs(flat, others, which)


class _Search:
    """Queries of an index, shared out among threads."""

    def __init__(self, queries: _Codes, threads: ThreadPoolExecutor) -> None:
        """Search for `queries`, uint8 [m, 128], in `threads`."""
        self._queries = queries
        self._threads = threads

    def pairs(self, index: Any, rows: _Rows, which: _Rows) -> _Pairs:
        """Return the pairs of an indexed code, by its place in `rows`, and a query among `which`."""

        def pairs_of(some: _Rows) -> _Pairs:
            ends, _, found = index.range_search(_at(self._queries, some), MAX_BITS + 1)  # faiss means less than
            return np.column_stack([rows[found], np.repeat(some, np.diff(ends.astype(np.int64)))])

        shares = -(-len(which) // cores.available())
        parts = [which[start : start + shares] for start in range(0, len(which), shares)]
        return np.concatenate(list(self._threads.map(pairs_of, parts)))


def _at(codes: _Codes, rows: _Rows) -> _Codes:
    """Return some rows, with memory behind the last one, since faiss reads whole words that end after its last byte."""
    some: _Codes = codes[np.append(rows, 0)]
    return some[:-1]


def _crowded(codes: _Codes) -> NDArray[np.bool_]:
    """Return which codes share a key of the tables with more than `_CROWD` others, bool [n]."""
    crowded = np.zeros(len(codes), bool)
    for table in range(_TABLES):
        byte, bit = divmod(table * _KEY_BITS, 8)
        word = np.ascontiguousarray(codes[:, byte : byte + 4]).view("<u4")[:, 0]
        key = (word >> bit) & (2**_KEY_BITS - 1)
        crowded |= np.bincount(key)[key] > _CROWD
    return crowded


class _Links:
    """Pairs of rows as they are found, thinned out when there are too many.

    Attributes:
        settled: Connected component of a row that needs no more pairs within it; -1 for other rows. Int64 [n].
    """

    def __init__(self, count: int, owners: Callable[[], NDArray[np.int64]]) -> None:
        """Begin without pairs.

        Args:
            count: Number of rows, n.
            owners: Gives the number of the owner per row, int64 [n], from 0 to n - 1.
        """
        self._count = count
        self._owners = functools.cache(owners)
        self._component = np.arange(count)
        self.settled = np.full(count, -1)
        self._kept: _Pairs = np.empty((0, 2), np.int64)
        self._fresh: list[_Pairs] = []

    def add(self, pairs: _Pairs) -> None:
        """Add pairs that were not there before, int64 [k, 2]."""
        a, b = pairs.T
        is_of_use = (self._component[a] != self._component[b]) | (self.settled[a] < 0) | (self.settled[b] < 0)
        self._fresh.append(pairs[is_of_use])
        if sum(map(len, self._fresh)) > _ANSWERS:
            self._thin_out()

    def pairs(self) -> _Pairs:
        """Return the pairs that were kept, int64 [k, 2]."""
        return np.concatenate([self._kept, *self._fresh])

    def _thin_out(self) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree

        pairs, count, owners = self.pairs(), self._count, self._owners()
        is_kept = np.zeros(len(pairs), bool)
        weights = np.arange(1, len(pairs) + 1)
        tree = minimum_spanning_tree(coo_array((weights, (pairs[:, 0], pairs[:, 1])), shape=(count, count)).tocsr())
        is_kept[tree.data.astype(np.int64) - 1] = True
        row, other = np.concatenate([pairs, pairs[:, ::-1]]).T
        foreign = np.flatnonzero(owners[row] != owners[other])
        kinds, place = np.unique(row[foreign] * count + owners[other[foreign]], return_index=True)
        of_row = kinds // count
        rank = np.arange(len(of_row)) - np.searchsorted(of_row, of_row)
        is_kept[foreign[place[rank < _KINDS]] % len(pairs)] = True
        self._kept, self._fresh = pairs[is_kept], []
        self._component = _components(self._kept, count)
        # No row has more kinds of neighbours than its component has owners besides its own.
        in_component = np.unique(self._component * count + owners) // count
        most = np.minimum(np.bincount(in_component, minlength=count)[self._component] - 1, _KINDS)
        is_settled = np.bincount(of_row, minlength=count) >= most
        self.settled[:] = np.where(is_settled, self._component, -1)
