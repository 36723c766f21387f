"""roilib.entropy_models.range_coder: symbols come back, in about as many bytes as their tables say."""

import contextlib

import numpy as np
import pytest

from roilib.entropy_models.range_coder import (
    BIT_WORTH,
    TOTAL,
    Decoder,
    Encoder,
    Tables,
    frequencies,
    reach,
    thresholds,
)

SCALES = [0.1, 0.5, 3.0, 60.0]


@pytest.fixture(scope="module")
def tables():
    return Tables.symmetric([frequencies(scale) for scale in SCALES])


def drawn(count, seed=0):
    random = np.random.default_rng(seed)
    levels = random.integers(0, len(SCALES), count).astype(np.uint8)
    return np.rint(random.normal(size=count) * np.array(SCALES)[levels]).astype(np.int32), levels


@pytest.mark.parametrize("scale", SCALES)
def test_a_table_is_a_gaussian_with_a_tail(scale):
    half = frequencies(scale).astype(np.int64)
    assert half[0] + 2 * half[1:].sum() == TOTAL
    assert half.min() >= 1
    assert len(half) == reach(scale) + 1
    k = np.arange(-len(half) + 1, len(half))
    p = np.concatenate([half[:0:-1], half]) / TOTAL
    if scale >= 0.5:  # a finer Gaussian falls into one bin
        assert (p * k**2).sum() == pytest.approx(scale**2 + 1 / 12, rel=0.1)
    assert half[-1] / TOTAL > 1e-8  # far symbols cost bits, not the picture


@pytest.mark.parametrize("scale", SCALES)
def test_a_threshold_is_where_the_error_saved_is_worth_the_bits(scale):
    bits, limits = -np.log2(frequencies(scale) / TOTAL), thresholds(scale).astype(float)
    assert limits[0] == 0
    for k in range(1, len(bits)):
        larger, smaller = (
            (limits[k] - symbol) ** 2 + BIT_WORTH * bits[symbol] for symbol in (k, k - 1)
        )
        assert larger == pytest.approx(smaller, abs=1e-4 * k)
    assert (limits[1:] >= np.arange(1, len(bits)) - 0.5 - 1e-3).all(), "never away from the mean"


def test_symbols_come_back_in_the_bytes_that_their_tables_say(tables):
    symbols, levels = drawn(50_000)
    coder = Encoder()
    coder.put(symbols, levels, tables)
    assert len(coder.data()) * 8 == pytest.approx(tables.cost(symbols, levels), rel=1e-3)
    assert np.array_equal(Decoder(coder.data()).get(levels, tables), symbols)


def test_parts_are_read_in_the_order_they_were_written(tables):
    parts = [drawn(count, seed) for seed, count in enumerate((7, 0, 1, 300))]
    coder = Encoder()
    for symbols, levels in parts:
        coder.put(symbols, levels, tables)
    decoder = Decoder(coder.data())
    for symbols, levels in parts:
        assert np.array_equal(decoder.get(levels, tables), symbols)


def test_the_ends_of_a_table_can_be_coded(tables):
    levels = np.repeat(np.arange(len(SCALES), dtype=np.uint8), 2)
    symbols = np.where(np.arange(len(levels)) % 2, tables.high[levels], tables.low[levels]).astype(
        np.int32
    )
    coder = Encoder()
    coder.put(symbols, levels, tables)
    assert np.array_equal(Decoder(coder.data()).get(levels, tables), symbols)


def test_other_bytes_are_refused_or_give_other_symbols_within_the_tables(tables):
    levels = drawn(500)[1]
    with pytest.raises(ValueError, match="multiple of 4"):
        Decoder(b"abc")
    for seed in range(20):
        data = np.random.default_rng(seed).bytes(400)
        with contextlib.suppress(ValueError):
            found = Decoder(data).get(levels, tables)
            assert ((tables.low[levels] <= found) & (found <= tables.high[levels])).all()


def test_a_stream_is_not_read_beyond_its_end(tables):
    symbols, levels = drawn(20_000)
    coder = Encoder()
    coder.put(symbols, levels, tables)
    data = coder.data()
    for words in (0, 1, len(data) // 8, len(data) // 4 - 8):
        decoder = Decoder(data[: 4 * words])
        with pytest.raises(ValueError, match="stream"):
            all(len(decoder.get(part, tables)) for part in np.array_split(levels, 100))


def test_sure_symbols_need_few_bytes():
    tables = Tables([np.array([1, 2**24 - 1])], [0])
    for count in (1, 100_000):
        coder, levels = Encoder(), np.zeros(count, np.uint8)
        coder.put(np.ones(count, np.int32), levels, tables)
        decoder = Decoder(coder.data())
        for part in np.array_split(levels, 10):
            assert (decoder.get(part, tables) == 1).all()
