"""roilib.entropy_models.range_coder: symbols come back, in the bytes that their tables say."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional

from roilib.entropy_models.gaussian import frequencies
from roilib.entropy_models.range_coder import (
    Decoder,
    Encoder,
    Tables,
    get_unbounded,
    joint_checksum,
    put_unbounded,
    tables_of,
)

SCALES = [0.1, 0.5, 3.0, 60.0]


@pytest.fixture(scope="module")
def tables():
    return Tables.symmetric([frequencies(scale) for scale in SCALES])


def random_symbols(count, seed=0):
    """Symbols of Gaussians of these scales, and the index of each one's table."""
    random = np.random.default_rng(seed)
    indices = random.integers(0, len(SCALES), count).astype(np.uint8)
    return np.rint(random.normal(size=count) * np.array(SCALES)[indices]).astype(np.int32), indices


def test_symbols_come_back_in_the_bytes_that_their_tables_say(tables):
    symbols, indices = random_symbols(50_000)
    coder = Encoder()
    coder.put(symbols, indices, tables)
    assert len(coder.data()) * 8 == pytest.approx(tables.cost(symbols, indices), rel=1e-3)
    assert np.array_equal(Decoder(coder.data()).get(indices, tables), symbols)


def test_parts_are_read_in_the_order_they_were_written(tables):
    parts = [random_symbols(count, seed) for seed, count in enumerate((7, 0, 1, 300))]
    coder = Encoder()
    for symbols, indices in parts:
        coder.put(symbols, indices, tables)
    decoder = Decoder(coder.data())
    for symbols, indices in parts:
        assert np.array_equal(decoder.get(indices, tables), symbols)


def test_a_decoder_with_other_tables_or_indices_has_another_checksum(tables):
    symbols, indices = random_symbols(300)
    coder = Encoder()
    coder.put(symbols, indices, tables)
    same = Decoder(coder.data())
    same.get(indices, tables)
    assert same.checksum == coder.checksum
    shifted = Tables.symmetric([frequencies(scale * 1.01) for scale in SCALES])
    for other, table in ((np.roll(indices, 1), tables), (indices, shifted)):
        decoder = Decoder(coder.data())
        with contextlib.suppress(ValueError):
            decoder.get(other, table)
        assert decoder.checksum != coder.checksum


def test_the_joint_checksum_depends_on_each_coder():
    coders = [SimpleNamespace(checksum=n) for n in (1, 2)]
    assert len({joint_checksum(c) for c in (coders, coders[:1], coders[::-1])}) == 3


def test_the_ends_of_a_table_can_be_coded(tables):
    indices = np.repeat(np.arange(len(SCALES), dtype=np.uint8), 2)
    symbols = np.where(
        np.arange(len(indices)) % 2, tables.high[indices], tables.low[indices]
    ).astype(np.int32)
    coder = Encoder()
    coder.put(symbols, indices, tables)
    assert np.array_equal(Decoder(coder.data()).get(indices, tables), symbols)


def test_other_bytes_are_refused_or_give_other_symbols_within_the_tables(tables):
    indices = random_symbols(500)[1]
    with pytest.raises(ValueError, match="multiple of 4"):
        Decoder(b"abc")
    for seed in range(20):
        data = np.random.default_rng(seed).bytes(400)
        with contextlib.suppress(ValueError):
            found = Decoder(data).get(indices, tables)
            assert ((tables.low[indices] <= found) & (found <= tables.high[indices])).all()


def test_a_stream_is_not_read_beyond_its_end(tables):
    symbols, indices = random_symbols(20_000)
    coder = Encoder()
    coder.put(symbols, indices, tables)
    data = coder.data()
    for words in (0, 1, len(data) // 8, len(data) // 4 - 8):
        decoder = Decoder(data[: 4 * words])
        with pytest.raises(ValueError, match="stream"):
            all(len(decoder.get(part, tables)) for part in np.array_split(indices, 100))


def test_sure_symbols_need_few_bytes():
    tables = Tables([np.array([1, 2**24 - 1])], [0])
    for count in (1, 100_000):
        coder, indices = Encoder(), np.zeros(count, np.uint8)
        coder.put(np.ones(count, np.int32), indices, tables)
        decoder = Decoder(coder.data())
        for part in np.array_split(indices, 10):
            assert (decoder.get(part, tables) == 1).all()


@pytest.fixture(scope="module")
def compressai_tables():
    """Tables of a GaussianConditional, of a few scales, with their escapes."""
    model = GaussianConditional(torch.logspace(-1, 1.5, 20).tolist())
    model.update()
    return tables_of(model, escape=True)


def unbounded(tables, spread, count=4000, seed=0):
    """Symbols and table indices; with a large spread many symbols lie beyond their tables."""
    random = np.random.default_rng(seed)
    indices = random.integers(0, 20, count).astype(np.uint16)
    symbols = random.normal(size=count) * spread * np.logspace(-1, 1.5, 20)[indices]
    return np.rint(symbols).astype(np.int32), indices


def unbounded_bytes(symbols, indices, tables):
    coder = Encoder()
    put_unbounded(coder, symbols, indices, tables)
    return coder.data()


@pytest.mark.parametrize("spread", [0, 0.5, 3, 300, 3e5, 3e6])
def test_symbols_beyond_their_tables_come_back(compressai_tables, spread):
    symbols, indices = unbounded(compressai_tables, spread)
    data = unbounded_bytes(symbols, indices, compressai_tables)
    assert np.array_equal(get_unbounded(Decoder(data), indices, compressai_tables), symbols)


def test_the_largest_and_smallest_symbols_come_back(compressai_tables):
    ends = [-(2**31) + 1, 2**31 - 1, *compressai_tables.low[:3], *compressai_tables.high[:3]]
    symbols = np.array([*ends, *(end + 1 for end in ends[2:]), *(end - 1 for end in ends[2:])])
    indices = np.array([0, 0, *[0, 1, 2] * 6], np.uint16)
    data = unbounded_bytes(symbols.astype(np.int32), indices, compressai_tables)
    assert np.array_equal(get_unbounded(Decoder(data), indices, compressai_tables), symbols)


@pytest.mark.parametrize("spread", [1, 30])
def test_unbounded_symbols_take_as_many_bytes_as_compressais_coder(spread):
    model = GaussianConditional(torch.logspace(-1, 1.5, 20).tolist())
    model.update()
    symbols, indices = unbounded(tables_of(model, escape=True), spread)
    (theirs,) = model.compress(
        torch.from_numpy(symbols)[None, None].float(),
        torch.from_numpy(indices.astype(np.int32))[None, None],
    )
    ours = unbounded_bytes(symbols, indices, tables_of(model, escape=True))
    assert abs(len(ours) - len(theirs)) <= 8


def test_tables_are_made_once_and_the_escape_can_be_left_out():
    torch.manual_seed(0)
    model = EntropyBottleneck(6)
    model.update()
    with_escape, without = tables_of(model, escape=True), tables_of(model, escape=False)
    assert tables_of(model, escape=True) is with_escape
    assert np.array_equal(with_escape.high, without.high + 1)
    assert np.array_equal(with_escape.low, without.low)


def test_streams_of_unbounded_symbols_that_are_cut_off_do_not_decode_to_them(compressai_tables):
    symbols, indices = unbounded(compressai_tables, 30, count=2000)
    data = unbounded_bytes(symbols, indices, compressai_tables)
    for words in range(0, len(data) // 4 - 8, 40):
        with contextlib.suppress(ValueError):
            found = get_unbounded(Decoder(data[: 4 * words]), indices, compressai_tables)
            assert not np.array_equal(found, symbols)


def test_no_bytes_do_more_than_be_refused_or_read(compressai_tables):
    random = np.random.default_rng(0)
    for seed in range(300):
        data = random.bytes(4 * int(random.integers(2, 60))) if seed % 3 else b"\xff" * 400
        indices = random.integers(0, 20, 60).astype(np.uint16)
        with contextlib.suppress(ValueError):
            assert get_unbounded(Decoder(data), indices, compressai_tables).shape == (60,)
