"""Range coding: symbols to bytes and back, by constriction's range coder.

Symbols that share a probability table are coded together, so that the coder works on whole arrays.
Tables are integers that the weights file carries. If every machine computed its own tables, two
machines might round an exponential differently and disagree.

Encoder and Decoder keep a checksum of what passes through them, so that a decoder whose tables or
indices differ from the encoder's notices it.

A symbol is coded by the table of its index (`Encoder.put`). For latents with rare symbols beyond
their tables, `put_unbounded` codes the last symbol of the table, the escape, and then the distance
to the table in hexadecimal digits, as CompressAI's coder does.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence

import constriction
import numpy as np
from compressai.entropy_models import EntropyModel

CODER_STATE_BITS = 128  # a decoder can still return these after its last byte: twice its state
CDF_TOTAL = 1 << 16  # CompressAI's tables rise from 0 to this
DIGIT_BITS = 4  # of a distance beyond a table
MAX_DIGITS = 9  # enough for the distance of any int32 symbol


class Tables:
    """Probability tables. A symbol with table index i lies in `low[i]` … `high[i]`."""

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
        """Make tables from the counts of symbols 0, 1, 2, …; -1, -2, … have the same counts."""
        return cls(
            [np.concatenate([half[:0:-1], half]) for half in halves],
            [1 - len(half) for half in halves],
        )

    def cost(self, symbols: np.ndarray, indices: np.ndarray) -> float:
        """Return the bits that these symbols take."""
        order, groups = _groups(indices)
        places = (symbols - self.low[indices])[order]
        return float(sum(self.bits[index][places[group]].sum() for index, group in groups))

    def least_bytes(self, repeats: int) -> int:
        """Return a lower bound on the bytes of a stream with `repeats` symbols of every table."""
        return max(0, math.floor((repeats * self.least_bits.sum() - CODER_STATE_BITS) / 8))


def tables_of(entropy_model: EntropyModel, escape: bool) -> Tables:
    """Return the tables of a CompressAI entropy model; the same object for the same numbers.

    escape: keep CompressAI's escape as the last symbol of every table (see `put_unbounded`).
    """
    names = ("quantized_cdf", "cdf_length", "offset")
    cdfs, lengths, offsets = (getattr(entropy_model, name).cpu().numpy() for name in names)
    rows = tuple(cdf[:length].tobytes() for cdf, length in zip(cdfs, lengths, strict=True))
    return _cdf_tables(rows, tuple(offsets.tolist()), escape)


@functools.lru_cache(16)
def _cdf_tables(cdfs: tuple[bytes, ...], offsets: tuple[int, ...], escape: bool) -> Tables:
    counts = [np.diff(np.frombuffer(cdf, np.int32)) for cdf in cdfs]
    return Tables(counts if escape else [c[:-1] for c in counts], offsets)


def _groups(indices: np.ndarray) -> tuple[np.ndarray, list[tuple[int, slice]]]:
    """Return the order that sorts symbols by table, and the slice of each table that occurs."""
    ends = np.cumsum(np.bincount(indices)).tolist()
    return np.argsort(indices, kind="stable"), [
        (i, slice(a, b)) for i, (a, b) in enumerate(itertools.pairwise([0, *ends])) if a < b
    ]


def add_to_checksum(checksum: int, symbols: np.ndarray) -> int:
    """Extend a CRC-32 by symbols; all of them fit 16 bits."""
    return zlib.crc32(symbols.astype("<i2"), checksum)


class Encoder:
    """Collects symbols; `data()` returns their bytes. checksum: CRC-32 of the symbols so far."""

    def __init__(self):
        self._coder, self.checksum = constriction.stream.queue.RangeEncoder(), 0

    def put(self, symbols: np.ndarray, indices: np.ndarray, tables: Tables) -> None:
        """Add symbols (n,) int32, each within its table; indices (n,) uint8 or uint16."""
        self.checksum = add_to_checksum(self.checksum, symbols)
        order, groups = _groups(indices)
        symbols = symbols[order].astype(np.int32, copy=False)
        for index, group in groups:
            self._coder.encode(symbols[group] - tables.low[index], tables.models[index])

    def data(self) -> bytes:
        """Return the stream so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Counter:
    """Counts the bits that an Encoder would write for the same symbols, in less time."""

    def __init__(self):
        self.bits = 0.0

    def put(self, symbols: np.ndarray, indices: np.ndarray, tables: Tables) -> None:
        """Add symbols, as `Encoder.put`."""
        self.bits += tables.cost(symbols, indices)


class Decoder:
    """Reads what an Encoder wrote, given the same indices and tables in the same order.

    checksum: CRC-32 of the symbols so far, equal to the Encoder's. Raises ValueError for data that
    no Encoder wrote.
    """

    def __init__(self, data: bytes):
        if len(data) % 4:
            raise ValueError(f"a stream of {len(data)} bytes, not a multiple of 4")
        self._bits = 8 * len(data) + CODER_STATE_BITS  # bits that may still be read
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(data, "<u4").astype(np.uint32)
        )
        self.checksum = 0

    def get(self, indices: np.ndarray, tables: Tables) -> np.ndarray:
        """Return the next len(indices) symbols, int32."""
        order, groups = _groups(indices)
        least = (tables.least_bits[index] * (group.stop - group.start) for index, group in groups)
        if sum(least) > self._bits:
            raise ValueError("a stream too short for its symbols")
        found, symbols = np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
        for index, group in groups:
            ended = self._coder.maybe_exhausted()
            try:
                places = self._coder.decode(tables.models[index], group.stop - group.start)
            except (AssertionError, ValueError) as error:
                raise ValueError(f"not a stream of these symbols ({error})") from None
            if ended:
                self._spend(tables.bits[index][places].sum())
            np.add(places, tables.low[index], out=found[group])
        symbols[order] = found
        self.checksum = add_to_checksum(self.checksum, symbols)
        return symbols

    def _spend(self, bits: float) -> None:
        """Count the bits that are read after the last byte.

        The state of the coder still holds some bits. After them it returns zeros for ever.
        """
        self._bits = min(self._bits, CODER_STATE_BITS) - bits
        if self._bits < 0:
            raise ValueError("a stream that ends before its last symbol")


def joint_checksum(coders: Iterable[Encoder | Decoder]) -> int:
    """Return one CRC-32 of the checksums of several coders."""
    parts = (coder.checksum.to_bytes(4, "little") for coder in coders)
    return functools.reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)


@functools.cache
def _digit_table() -> Tables:
    return Tables([np.ones(1 << DIGIT_BITS, np.int64)], [0])


def put_unbounded(coder: Encoder, symbols: np.ndarray, indices: np.ndarray, tables: Tables) -> None:
    """Add int32 symbols of any size; the last symbol of each table is its escape."""
    low, escape = tables.low[indices].astype(np.int64), tables.high[indices]
    beyond = (symbols < low) | (symbols >= escape)
    coder.put(np.where(beyond, escape, symbols), indices, tables)
    below, above = low[beyond] - symbols[beyond], symbols[beyond].astype(np.int64) - escape[beyond]
    distances = np.where(below > 0, 2 * below - 1, 2 * above)
    places = np.arange(MAX_DIGITS)
    digits = distances[:, None] >> DIGIT_BITS * places
    counts = (digits > 0).sum(1)
    digits = digits[places < counts[:, None]] & (1 << DIGIT_BITS) - 1
    for values in (counts, digits):
        coder.put(values, np.zeros(len(values), np.uint8), _digit_table())


def get_unbounded(decoder: Decoder, indices: np.ndarray, tables: Tables) -> np.ndarray:
    """Return the next len(indices) symbols, int32, that `put_unbounded` wrote."""
    symbols, escape = decoder.get(indices, tables), tables.high[indices]
    beyond = symbols == escape
    counts = decoder.get(np.zeros(beyond.sum(), np.uint8), _digit_table())
    known = np.arange(MAX_DIGITS) < counts[:, None]
    digits = np.zeros(known.shape, np.int64)
    digits[known] = decoder.get(np.zeros(known.sum(), np.uint8), _digit_table())
    distances = (digits << DIGIT_BITS * np.arange(MAX_DIGITS)).sum(1)
    low, escape = tables.low[indices][beyond].astype(np.int64), escape[beyond]
    found = np.where(distances % 2, low - (distances + 1) // 2, escape + distances // 2)
    if counts.max(initial=0) > MAX_DIGITS or np.abs(found).max(initial=0) >= 1 << 31:
        raise ValueError("a stream with a symbol that is not an int32")
    symbols[beyond] = found
    return symbols
