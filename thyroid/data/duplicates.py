"""Near-duplicates by perceptual hash, and the groups that must stay on one side of a split.

Public data sets hold re-encoded copies of one frame under other case numbers (DDTI: 127 frames), so grouping by patient
number alone leaks.
"""

from collections.abc import Collection, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thyroid.imaging import images

HASH_SIDE = 32
MAX_BITS = 128
"""Two images are near-duplicates if at most this many of the 1024 bits differ.

Copies of 243 DDTI frames and 240 phantoms (JPEG quality 30, half and third size, brightness x.6 to x1.3, gamma .7,
contrast x1.4) differ by at most 72 bits; frames of different patients differ by at least 246. The usual 64-bit hash
leaves no such gap between frames of one scanner, whose layout fills the low frequencies.
"""

_BLOCK = 512


def perceptual_hash(image: images.Pixels) -> str:
    """Return the 1024-bit DCT hash (imagehash.phash, side 32) as 256 hexadecimal digits.

    The hash survives re-encoding, resizing and changes of brightness and contrast.

    Args:
        image: uint8 [height, width, 3].
    """
    import imagehash  # here and below: a run without new scans does not load SciPy

    return str(imagehash.phash(Image.fromarray(image).convert("L"), hash_size=HASH_SIDE, highfreq_factor=2))


def links(hashes: Collection[str], known: Collection[str] = (), max_bits: int = MAX_BITS) -> list[tuple[str, str]]:
    """Return pairs of different hashes that differ by at most `max_bits`.

    Every new hash is compared with the known ones and with the other new ones. Known hashes are not compared with each
    other. The work is done in blocks, so memory stays flat.

    Args:
        hashes: Hashes of `perceptual_hash`; those that are in `known` are skipped.
        known: Hashes whose links are known already.
        max_bits: Largest number of different bits, of 1024.
    """
    old = dict.fromkeys(known)
    new = [hash_ for hash_ in dict.fromkeys(hashes) if hash_ not in old]
    if not new:
        return []
    every = [*new, *old]
    words = np.array([np.frombuffer(bytes.fromhex(hash_), np.uint64) for hash_ in every]).reshape(len(every), -1)
    found = []
    for start in range(0, len(new), _BLOCK):
        distance = _hamming(words[start : min(start + _BLOCK, len(new))], words[start:])
        for i, j in zip(*np.nonzero(np.triu(distance <= max_bits, 1)), strict=True):
            found.append((every[start + int(i)], every[start + int(j)]))
    return found


def near(hashes: Collection[str], known: Collection[str]) -> set[str]:
    """Return those of `hashes` that differ from a known hash by at most `MAX_BITS`; memory stays flat.

    Args:
        hashes: Hashes of `perceptual_hash`.
        known: Hashes to compare them with.
    """
    new, old = list(dict.fromkeys(hashes)), list(dict.fromkeys(known))
    if not new or not old:
        return set()
    left, right = (np.frombuffer(bytes.fromhex("".join(some)), np.uint8).reshape(len(some), -1) for some in (new, old))
    nearest, _ = cv2.batchDistance(left, right, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1)
    return {hash_ for hash_, distance in zip(new, nearest[:, 0].tolist(), strict=True) if distance <= MAX_BITS}


def near_duplicates(hashes: Sequence[str], linked: Sequence[tuple[str, str]] | None = None) -> list[tuple[int, int]]:
    """Return index pairs i < j that link all hashes which differ by at most `MAX_BITS`.

    Equal hashes are linked only to the first of them, so that many blank frames do not make a quadratic list.

    Args:
        hashes: Hashes of `perceptual_hash`.
        linked: Pairs that `links` found among these hashes, and perhaps others; None to search now.
    """
    first: dict[str, int] = {}
    pairs = [(first[h], i) for i, h in enumerate(hashes) if first.setdefault(h, i) != i]
    linked = links(hashes) if linked is None else linked
    places = [(first[a], first[b]) for a, b in linked if a in first and b in first]
    return pairs + [(min(pair), max(pair)) for pair in places]


def _hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint16]:
    distance = np.zeros((len(a), len(b)), np.uint16)
    for word in range(a.shape[1]):
        distance += np.bitwise_count(a[:, None, word] ^ b[None, :, word])
    return distance


def groups(patients: Sequence[int], pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the connected components of "same patient or near-duplicate".

    Args:
        patients: Patient number per scan [n].
        pairs: Index pairs of near-duplicates.

    Returns:
        Component number per scan, int64 [n], numbered by first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[int, int] = {}
    links = [(first.setdefault(patient, i), i) for i, patient in enumerate(patients)] + list(pairs)
    rows, columns = zip(*links, strict=True)
    graph = coo_array((np.ones(len(links), np.uint8), (rows, columns)), shape=(len(patients), len(patients)))
    _, component = connected_components(graph, directed=False)
    numbers: NDArray[np.int64] = component.astype(np.int64)
    return numbers
