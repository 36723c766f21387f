"""Symbols to bytes and back, by constriction's range coder.

Symbols are coded in groups of one and the same probability table, so that the coder works on whole arrays. Tables are integers which the
weights file carries: computed anew, a differently rounded exponential somewhere could make two machines disagree. An encoder's `thresholds` are
its own affair.
"""

import itertools
import math
from collections.abc import Sequence

import constriction
import numpy as np
from scipy.special import erf

TOTAL = 1 << 24  # of a table's frequencies
CODER_BITS = 128  # that a decoder may still give when it has read its last byte: twice its state
TAIL_SHARE = (
    2.0**-11
)  # of the probability that goes to far symbols, beyond what a Gaussian gives them; less for scales below 1
BIT_WORTH = 0.055  # squared error, in quantiser steps, that an encoder gives for a bit; the best of a few on KITTI's train split


def reach(scale: float) -> int:
    """Largest magnitude of a symbol in the table of this scale."""
    return 15 + math.ceil(8 * scale)


def frequencies(scale: float) -> np.ndarray:
    """(reach + 1,) int32 frequencies of symbols 0, ±1, ±2, … (of each sign alone): a rounded Gaussian with a geometric tail; all together TOTAL."""
    k = np.arange(reach(scale) + 1)
    gauss = 0.5 * (erf((k + 0.5) / scale / math.sqrt(2)) - erf((k - 0.5) / scale / math.sqrt(2)))
    tail = 2.0 ** (-k / (1 + scale))
    sides = np.where(k == 0, 1, 2)
    share = TAIL_SHARE * min(scale, 1)
    p = (1 - share) * gauss / (gauss * sides).sum() + share * tail / (tail * sides).sum()
    counts = np.maximum(np.round(p * TOTAL), 1).astype(np.int64)
    counts[0] += TOTAL - (counts * sides).sum()
    return counts.astype(np.int32)


def thresholds(scale: float) -> np.ndarray:
    """(reach + 1,) float32: the least distance from the mean, in quantiser steps, that is worth symbol 0, ±1, ±2, … of this scale's table.

    Between k - 1 and k it is where the error that k saves is worth the bits that it costs more, at BIT_WORTH a bit; without bits, k - 1/2.
    """
    bits = -np.log2(frequencies(scale) / TOTAL)
    return np.concatenate(
        [[0], np.arange(1, len(bits)) - 0.5 + BIT_WORTH / 2 * np.diff(bits)]
    ).astype(np.float32)


class Tables:
    """Probability tables of numbered levels; a symbol of level i lies in `low[i]` … `high[i]`."""

    def __init__(self, counts: Sequence[np.ndarray], low: Sequence[int]):
        self.models = [
            constriction.stream.model.Categorical(c / c.sum(), perfect=False) for c in counts
        ]
        self.low = np.array(low, np.int32)
        self.high = self.low + np.array([len(c) - 1 for c in counts], np.int32)
        self.bits = [np.log2(c.sum()) - np.log2(c) for c in counts]
        self.least_bits = np.array([bits.min() for bits in self.bits])

    @classmethod
    def symmetric(cls, halves: Sequence[np.ndarray]) -> "Tables":
        """From the output of `frequencies`, one a level."""
        return cls(
            [np.concatenate([half[:0:-1], half]) for half in halves],
            [1 - len(half) for half in halves],
        )

    def cost(self, symbols: np.ndarray, levels: np.ndarray) -> float:
        """Bits that these symbols will take, by their tables."""
        order, groups = _groups(levels)
        places = (symbols - self.low[levels])[order]
        return float(sum(self.bits[level][places[group]].sum() for level, group in groups))


def _groups(levels: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Order that sorts symbols by their level (uint8), and where the symbols of each level that there is are then."""
    ends = np.cumsum(np.bincount(levels)).tolist()
    return np.argsort(levels, kind="stable"), [
        (i, slice(a, b)) for i, (a, b) in enumerate(itertools.pairwise([0, *ends])) if a < b
    ]


class Encoder:
    """Collects symbols; `data()` is their bytes."""

    def __init__(self):
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: np.ndarray, levels: np.ndarray, tables: Tables) -> None:
        """Add symbols (n,) int32, each within its level's table; levels (n,) uint8."""
        order, groups = _groups(levels)
        symbols = symbols[order].astype(np.int32, copy=False)
        for level, group in groups:
            self._coder.encode(symbols[group] - tables.low[level], tables.models[level])

    def data(self) -> bytes:
        """The stream so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Counter:
    """Counts the bits of symbols as an Encoder would write them, in less time."""

    def __init__(self):
        self.bits = 0.0

    def put(self, symbols: np.ndarray, levels: np.ndarray, tables: Tables) -> None:
        """As `Encoder.put`."""
        self.bits += tables.cost(symbols, levels)


class Decoder:
    """Reads what an Encoder wrote, given the same levels and tables in the same order. Raises ValueError for data that no Encoder wrote."""

    def __init__(self, data: bytes):
        if len(data) % 4:
            raise ValueError(f"a stream of {len(data)} bytes, not a multiple of 4")
        self._bits = 8 * len(data) + CODER_BITS  # that may still be read
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(data, "<u4").astype(np.uint32)
        )

    def get(self, levels: np.ndarray, tables: Tables) -> np.ndarray:
        """The next len(levels) symbols, int32."""
        order, groups = _groups(levels)
        if (
            sum(tables.least_bits[level] * (group.stop - group.start) for level, group in groups)
            > self._bits
        ):
            raise ValueError("a stream too short for its symbols")
        found, symbols = np.empty(len(levels), np.int32), np.empty(len(levels), np.int32)
        for level, group in groups:
            ended = self._coder.maybe_exhausted()
            try:
                places = self._coder.decode(tables.models[level], group.stop - group.start)
            except (AssertionError, ValueError) as error:
                raise ValueError(f"not a stream of these symbols ({error})") from None
            if ended:
                self._spend(tables.bits[level][places].sum())
            np.add(places, tables.low[level], out=found[group])
        symbols[order] = found
        return symbols

    def _spend(self, bits: float) -> None:
        """Count what is read after the last byte has been: the coder's state holds some more, and would then go on with zeros for ever."""
        self._bits = min(self._bits, CODER_BITS) - bits
        if self._bits < 0:
            raise ValueError("a stream that ends before its last symbol")
