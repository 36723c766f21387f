"""Reads what CompressAI's range coder (rANS) writes, and nothing but that.

CompressAI's own decoder, in C++, goes on reading behind the end of a string that does not hold what its tables expect. This one gives the same
symbols for every string that its encoder wrote, and a ValueError for any other: it knows where a string ends, and in which state.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

PRECISION, LOWEST = 16, 1 << 31  # bits of a table's frequencies; a state is never below
NIBBLE, NIBBLES, FULL = (
    4,
    8,
    15,
)  # a symbol beyond its table: bits of a piece, most pieces, and a piece's largest value


class Tables:
    """CompressAI's `_quantized_cdf` (tables, length), `_cdf_length` and `_offset` (tables,), all integers; a table's last symbol is its escape."""

    def __init__(self, cdfs: np.ndarray, lengths: np.ndarray, offsets: np.ndarray):
        self.cdfs, self.lengths, self.offsets = cdfs, lengths, offsets.astype(np.int64)

    def read(self, data: bytes, indexes: np.ndarray) -> np.ndarray:
        """The symbols (n,) int32 of a string; indexes (n,): the table of each. Raises ValueError for a string that does not hold just them."""
        counts = np.bincount(indexes, minlength=len(self.lengths))
        tables = {i: self.cdfs[i, : self.lengths[i]] for i in counts.nonzero()[0].tolist()}
        likely = {i: int(np.diff(cdf).argmax()) for i, cdf in tables.items()}
        least_bits = sum(
            counts[i] * (PRECISION - np.log2(cdf[likely[i] + 1] - cdf[likely[i]]))
            for i, cdf in tables.items()
        )
        if len(data) % 4 or 8 * len(data) < least_bits:
            raise ValueError(
                f"a string of {len(data)} bytes cannot hold {len(indexes)} of these symbols"
            )
        words = iter(np.frombuffer(data, "<u4").tolist())
        try:
            symbols, state = _read(
                words, indexes.tolist(), {i: cdf.tolist() for i, cdf in tables.items()}, likely
            )
        except StopIteration:
            raise ValueError("a string that ends before its last symbol") from None
        if state != LOWEST or next(words, None) is not None:
            raise ValueError("a string that holds more than its symbols")
        return (np.array(symbols, np.int64) + self.offsets[indexes]).astype(np.int32)


def _read(
    words: Iterator[int], indexes: list[int], cdfs: dict[int, list[int]], likely: dict[int, int]
) -> tuple[list[int], int]:
    """Numbers of symbols within their tables, and the last state. The most probable symbol of a table is tried first."""
    first = {i: (cdf[likely[i]], cdf[likely[i] + 1], likely[i]) for i, cdf in cdfs.items()}
    state, symbols, mask = next(words) | next(words) << 32, [], (1 << PRECISION) - 1
    for i in indexes:
        place, (a, b, k) = state & mask, first[i]
        if not a <= place < b:
            cdf = cdfs[i]
            k = bisect_right(cdf, place) - 1
            a, b = cdf[k], cdf[k + 1]
        state = (b - a) * (state >> PRECISION) + place - a
        if state < LOWEST:
            state = state << 32 | next(words)
        if k == len(cdfs[i]) - 2:
            k, state = _escaped(k, state, words)
        symbols.append(k)
    return symbols, state


def _escaped(last: int, state: int, words: Iterator[int]) -> tuple[int, int]:
    """The symbol that an escape of number `last` stands for, and the new state. First how many nibbles, then they, the lowest first."""

    def nibble() -> int:
        nonlocal state
        value, state = state & FULL, state >> NIBBLE
        if state < LOWEST:
            state = state << 32 | next(words)
        return value

    count = piece = nibble()
    while piece == FULL and count <= NIBBLES:
        piece = nibble()
        count += piece
    if count > NIBBLES:
        raise ValueError("a string with a symbol beyond all numbers")
    value = sum(nibble() << NIBBLE * i for i in range(count))
    return (-(value >> 1) - 1 if value & 1 else last + (value >> 1)), state
