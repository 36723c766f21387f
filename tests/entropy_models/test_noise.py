"""roilib.entropy_models.noise: the same noise for a sample, however its batch is cut."""

import pytest
import torch
from compressai.models import ScaleHyperprior

from roilib.entropy_models.noise import QuantisationNoise, generator
from roilib.models.hyperprior import Hyperprior

X = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def likelihoods(noise, model, x, step, samples):
    noise.at(step, samples)
    return model(x)["likelihoods"]


@pytest.fixture
def noisy():
    """An untrained model in training mode, and its noise."""
    torch.manual_seed(0)
    model = Hyperprior(8, 12).train()
    return QuantisationNoise(model, seed=5), model


def test_a_sample_keeps_its_noise_in_any_batch(noisy):
    whole = likelihoods(*noisy, X, 7, range(4))
    torch.manual_seed(99)  # nor does the global random state matter
    parts = [likelihoods(*noisy, X[rank::2], 7, range(rank, 4, 2)) for rank in (0, 1)]
    for name in ("y", "z"):
        for rank in (0, 1):
            assert torch.allclose(whole[name][rank::2], parts[rank][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("change", [{"step": 8}, {"samples": range(1, 5)}])
def test_steps_and_samples_have_noise_of_their_own(noisy, change):
    first = likelihoods(*noisy, X, 7, range(4))
    other = likelihoods(*noisy, X, **({"step": 7, "samples": range(4)} | change))
    assert all((first[name] != other[name]).float().mean() > 0.9 for name in ("y", "z"))


def test_seeds_and_entropy_models_have_noise_of_their_own():
    draws = [
        torch.rand(3, generator=generator("cpu", *key))
        for key in ((0, 1, 2, "y"), (1, 1, 2, "y"), (0, 1, 2, "z"), (0, 12, "y"))
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_an_entropy_model_asked_twice_draws_twice(noisy):
    noise, model = noisy
    noise.at(0, range(2))
    y = torch.zeros(2, 12, 4, 4)
    first, second = (model.gaussian_conditional.quantize(y, "noise") for _ in range(2))
    assert (first != second).float().mean() > 0.9
    noise.at(0, range(2))
    assert torch.equal(model.gaussian_conditional.quantize(y, "noise"), first)


def test_noise_is_uniform_over_one_step_of_the_quantiser(noisy):
    noise, model = noisy
    noise.at(0, range(4))
    y = torch.zeros(4, 12, 64, 64)
    noise_values = model.gaussian_conditional.quantize(y, "noise")
    assert noise_values.min() >= -0.5
    assert noise_values.max() < 0.5
    assert abs(noise_values.mean()) < 3e-3
    assert noise_values.var() == pytest.approx(1 / 12, rel=0.01)


def test_evaluation_rounds_as_before(noisy):
    _, model = noisy
    plain = ScaleHyperprior(8, 12)
    plain.load_state_dict(model.state_dict())
    for a, b in zip(
        model.eval()(X)["likelihoods"].values(),
        plain.eval()(X)["likelihoods"].values(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_likelihoods_are_in_fp32_under_autocast(noisy):
    noise, model = noisy
    noise.at(0, range(4))
    plain = model.gaussian_conditional(torch.ones(4, 12, 4, 4), torch.ones(4, 12, 4, 4))
    noise.at(0, range(4))
    with torch.autocast("cpu", torch.bfloat16):
        ones = torch.ones(4, 12, 4, 4, dtype=torch.bfloat16)
        rough = model.gaussian_conditional(ones, ones)
        assert model.entropy_bottleneck(torch.ones(4, 8, 2, 2))[1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(plain, rough, strict=True))
