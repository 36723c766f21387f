"""roilib.entropy_models.gaussian: tables, likelihoods and RDOQ agree with each other."""

import numpy as np
import pytest
import torch

from roilib.entropy_models import gaussian
from roilib.entropy_models.gaussian import (
    BIT_WORTH,
    COMPONENTS,
    SCALE_COUNT,
    SCALE_MIN,
    SKIPPED,
    TOTAL,
    TailedGaussian,
    frequencies,
    rdoq,
    reach,
    scale_index_of,
    scale_of,
    thresholds,
)

SCALES = [0.1, 0.5, 3.0, 60.0]


@pytest.mark.parametrize("scale", SCALES)
def test_a_table_is_gaussians_with_a_tail(scale):
    half = frequencies(scale).astype(np.int64)
    assert half[0] + 2 * half[1:].sum() == TOTAL
    assert half.min() >= 1
    assert len(half) == reach(scale) + 1
    k = np.arange(-len(half) + 1, len(half))
    p = np.concatenate([half[:0:-1], half]) / TOTAL
    if scale >= 0.5:  # a finer Gaussian falls into one bin
        variance = sum(weight * (scale * 2**octaves) ** 2 for weight, octaves in COMPONENTS)
        assert (p * k**2).sum() == pytest.approx(variance + 1 / 12, rel=0.1)
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


def test_likelihoods_are_those_of_the_coders_tables():
    k, scales = torch.arange(-40.0, 41.0), torch.tensor([0.1, 0.4, 1.0, 4.0])
    p = TailedGaussian(None, scale_bound=SCALE_MIN)._likelihood(
        k[:, None].expand(-1, 4), scales.expand(81, 4)
    )
    assert torch.allclose(p.sum(0), torch.ones(4), atol=2e-3)
    for i, scale in enumerate(scales.tolist()):
        wanted = torch.from_numpy(frequencies(scale)[:7] / TOTAL)
        assert torch.allclose(p[40:47, i].log2(), wanted.float().log2(), atol=0.15)


def test_scales_learn_from_symbols_and_the_rest_from_noise():
    torch.manual_seed(0)
    y, means, scales = torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    y_hat = y.round()
    model = TailedGaussian(None, scale_bound=SCALE_MIN).train()
    for tensor in (y, means, scales):
        tensor.requires_grad_()
    likelihoods = model.of_symbols(y, y_hat, scales, means)
    exact = model._likelihood(y_hat, scales, means)
    assert torch.allclose(likelihoods, exact)
    (wanted,) = torch.autograd.grad(exact.log().sum(), scales, retain_graph=True)
    likelihoods.log().sum().backward()
    assert torch.allclose(scales.grad, wanted)
    assert torch.allclose(y.grad, -means.grad)
    assert y.grad.abs().min() > 0
    assert torch.equal(
        model.eval().of_symbols(y, y_hat, scales, means),
        model._likelihood(y_hat, scales, means),
    )


@pytest.mark.parametrize("index", range(SKIPPED + 1, SCALE_COUNT, 7))
def test_the_symbol_with_the_least_cost_is_taken(index):
    half = frequencies(gaussian.SCALES[index]) / TOTAL
    distance = torch.linspace(-8 * gaussian.SCALES[index] - 3, 8 * gaussian.SCALES[index] + 3, 2001)
    symbols = torch.arange(len(half))
    costs = (distance.abs()[:, None] - symbols) ** 2 - BIT_WORTH * torch.from_numpy(half).log2()
    taken = rdoq(distance, torch.full((2001,), index))
    assert torch.equal(taken.sign().abs() * distance.sign(), taken.sign())
    assert (costs[torch.arange(2001), taken.abs().long()] - costs.amin(1)).max() < 1e-4
    if gaussian.SCALES[index] < 4:  # of wider Gaussians the next symbol costs hardly more
        assert (taken != distance.round()).any()


def test_symbols_that_are_no_part_of_a_stream_are_0():
    distance = torch.linspace(-9, 9, 100)
    assert not rdoq(distance, torch.full((100,), SKIPPED)).any()
    assert rdoq(distance, torch.full((100,), SKIPPED + 1)).abs().max() == 9


def test_symbols_that_are_no_part_of_a_stream_cost_nothing():
    octaves = torch.linspace(0, 2, 101)
    y, model = torch.zeros(101), TailedGaussian(None, scale_bound=SCALE_MIN).eval()
    likelihoods = model.of_symbols(y, y, scale_of(octaves), y)
    assert torch.equal(likelihoods == 1, scale_index_of(octaves) <= SKIPPED)
