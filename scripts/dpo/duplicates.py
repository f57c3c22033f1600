"""Finding texts that are the same, or nearly so, among a million of them in little memory.

Exactly the same: equal 64-bit keys (BLAKE2b) of the normalised text. Nearly the same: a Jaccard similarity of their
sets of five-character shingles at or above a threshold. MinHash signatures (Broder 1997, "On the resemblance and
containment of documents"; computed by rensa) are cut into bands; texts that agree in a whole band are candidates
(Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4), and every candidate's similarity is then
computed exactly. With 32 bands of 8, a pair of similarity 0.8 is found with probability 0.997, one of 0.9 surely.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from rensa import RMinHash

SHINGLE = 5  # characters
BANDS, ROWS = 32, 8
SEED = 42
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: spreads neighbouring values (Knuth, TAOCP 6.4)


def key(*texts: str) -> int:
    """Return the 64-bit key of normalised texts: equal for equal texts, different for others but for 1 in 10^19."""
    return int.from_bytes(hashlib.blake2b("\x00".join(texts).encode(), digest_size=8).digest(), "little")


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of five characters of normalised texts; of a shorter text, the whole of it.

    Returns:
        hashes (uint64, one after another for all texts, repeats included) and offsets (uint64, one more than texts).
    """
    padded = [text.ljust(SHINGLE, "\x00") for text in texts]
    letters = np.frombuffer("".join(padded).encode("utf-32-le"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    rolling = np.zeros(max(len(letters) - SHINGLE + 1, 0), dtype=np.uint64)
    for place in range(SHINGLE):
        rolling *= MULTIPLIER
        rolling += letters[place : len(letters) - SHINGLE + 1 + place]
        rolling ^= rolling >> np.uint64(29)
    ends = np.cumsum(lengths)
    # The last four positions of each text would run into the next one.
    inside = np.ones(len(rolling), dtype=bool)
    for overhang in range(1, SHINGLE):
        inside[ends[:-1] - overhang] = False
    offsets = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)]).astype(np.uint64)
    return rolling[inside], offsets


def bands(texts: list[str]) -> np.ndarray:
    """Return the band hashes of normalised texts: uint32 of shape (texts, BANDS)."""
    if not texts:
        return np.empty((0, BANDS), dtype=np.uint32)
    hashes, offsets = shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, BANDS * ROWS, SEED)
    signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(texts), BANDS, ROWS)
    folded = np.zeros((len(texts), BANDS), dtype=np.uint64)
    for row in range(ROWS):
        folded = (folded ^ signatures[:, :, row]) * MULTIPLIER
        folded ^= folded >> np.uint64(32)
    return folded.astype(np.uint32)


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two normalised texts' sets of shingles, 0 to 1."""
    first, second = (np.unique(shingles([text])[0]) for text in (one, other))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def candidates(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs (later, earlier) of texts that share a band, ordered by the later one.

    In a band that many texts share, each is paired with the first and with the one before it, so that a million
    variations of one text stay a million times few pairs.

    Args:
        hashes: band hashes of shape (texts, BANDS).
    """
    found = np.empty(0, dtype=np.uint64)
    for band in hashes.T if len(hashes) else ():
        order = np.argsort(band, kind="stable").astype(np.uint64)
        starts = np.flatnonzero(np.concatenate([[True], band[order[1:]] != band[order[:-1]]]))
        first = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        repeated = order != first
        later = order[repeated] << np.uint64(32)
        previous = np.concatenate([order[:1], order[:-1]])[repeated]
        found = np.union1d(found, np.concatenate([later | first[repeated], later | previous]))
    for pair in found:
        yield int(pair >> np.uint64(32)), int(pair & np.uint64(0xFFFFFFFF))


def near_duplicates(
    hashes: np.ndarray, parts_of: Callable[[int], tuple[str, ...]], threshold: float
) -> dict[int, tuple[int, float]]:
    """Find the texts that nearly repeat an earlier one that is itself no near-duplicate.

    A text has parts, and two texts are as similar as their least similar parts: different answers to one long prompt
    are no duplicates, nor is "Yes." to two questions.

    Args:
        hashes: band hashes of the whole texts, of shape (texts, BANDS).
        parts_of: returns the normalised parts of a text by its position.
        threshold: least similarity of near-duplicates.

    Returns:
        position → (position of the earlier text, similarity).
    """
    found: dict[int, tuple[int, float]] = {}
    for later, earlier in candidates(hashes):
        if later in found or earlier in found:
            continue
        alike = min(map(similarity, parts_of(later), parts_of(earlier)))
        if alike >= threshold:
            found[later] = earlier, alike
    return found


def shared_bands(known: np.ndarray, hashes: np.ndarray) -> dict[int, set[int]]:
    """Find which texts could nearly be which known ones: those that share a band.

    Args:
        known: band hashes of shape (known texts, BANDS).
        hashes: band hashes of shape (texts, BANDS).

    Returns:
        position of a text → positions of known texts.
    """
    found: dict[int, set[int]] = {}
    for band in range(BANDS):
        order = np.argsort(known[:, band], kind="stable")
        ordered = known[order, band]
        left = np.searchsorted(ordered, hashes[:, band], side="left")
        right = np.searchsorted(ordered, hashes[:, band], side="right")
        for place in np.flatnonzero(right > left):
            found.setdefault(int(place), set()).update(order[left[place] : right[place]].tolist())
    return found
