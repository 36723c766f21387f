"""roilib.models.rans: CompressAI's strings as CompressAI reads them, and nothing read that is not there."""

import contextlib

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional

from roilib.models import rans

COUNT = 4000


@pytest.fixture(scope="module")
def gaussian():
    model = GaussianConditional(torch.logspace(-1, 1.5, 20).tolist())
    model.update()
    return model


@pytest.fixture(scope="module")
def tables(gaussian):
    return rans.Tables(
        gaussian._quantized_cdf.numpy(), gaussian._cdf_length.numpy(), gaussian._offset.numpy()
    )


def coded(model, spread=1.0, seed=0, count=COUNT):
    """(string, symbols, indexes); with a large spread many symbols lie beyond their tables."""
    generator = torch.Generator().manual_seed(seed)
    indexes = torch.randint(0, len(model._offset), (1, 1, count), generator=generator).int()
    symbols = torch.round(
        torch.randn(1, 1, count, generator=generator) * spread * model.scale_table[indexes]
    )
    return (
        model.compress(symbols, indexes)[0],
        symbols.flatten().int().numpy(),
        indexes.flatten().numpy(),
    )


@pytest.mark.parametrize("spread", [0, 0.5, 3, 300, 3e5])
def test_it_reads_what_compressai_wrote(gaussian, tables, spread):
    data, symbols, indexes = coded(gaussian, spread)
    assert np.array_equal(tables.read(data, indexes), symbols)


def test_bottlenecks_too():
    torch.manual_seed(0)
    model = EntropyBottleneck(6).eval()
    model.update()
    z = torch.randn(2, 6, 5, 7) * 40  # far beyond the tables of an untrained one
    strings = model.compress(z)
    decoded = model.decompress(strings, (5, 7))
    tables = rans.Tables(
        model._quantized_cdf.numpy(), model._cdf_length.numpy(), model._offset.numpy()
    )
    indexes = np.repeat(np.arange(6), 35)
    for own, wanted in zip(strings, decoded, strict=True):
        assert np.array_equal(
            tables.read(own, indexes),
            (wanted - model.quantiles[:, 0, 1, None, None]).round().int().flatten().numpy(),
        )


def test_every_string_that_is_cut_off_or_goes_on_is_refused(gaussian, tables):
    data, _, indexes = coded(gaussian, 2, count=200)
    for other in (*(data[:n] for n in range(len(data))), data + bytes(4), data + data[:8], b""):
        with pytest.raises(ValueError, match="string"):
            tables.read(other, indexes)


def test_no_bytes_make_it_do_more_than_refuse_or_return(tables):
    random = np.random.default_rng(0)
    for seed in range(300):
        data = (
            random.bytes(4 * int(random.integers(2, 60))) if seed % 3 else b"\xff" * 400
        )  # an escape of endless length
        indexes = random.integers(0, 20, 60)
        with contextlib.suppress(ValueError):
            assert tables.read(data, indexes).shape == (60,)


def test_a_string_too_short_for_its_most_probable_symbols_is_refused_unread(tables, monkeypatch):
    monkeypatch.setattr(rans, "_read", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="a string of 8 bytes cannot hold 1000000"):
        tables.read(bytes(8), np.full(10**6, 19))
