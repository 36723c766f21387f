"""roilib.models.integer.layers: whole sums, however they are computed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from roilib.models.integer import layers
from roilib.models.integer.layers import (
    EXACT,
    OUTPUT_MAX,
    RANGES,
    WEIGHT_MAX,
    ByteConv,
    bound,
    exact_dtype,
    integers,
    rounded_conv,
    settings,
    stored,
    stress_layers,
)

DTYPES = (torch.float32, torch.float64, torch.uint8)
UNITS = torch.full((4,), 0.02), torch.full((3,), 0.01)


def small(takes="signed", wide=True):
    """A convolution, its integers, and inputs."""
    conv, (low, high) = nn.Conv2d(4, 3, 3, padding=1), RANGES[takes]
    layer = ByteConv(conv, takes, wide)
    layer.quantise(conv, *UNITS)
    a = torch.randint(low, high + 1, (1, 4, 5, 5)).float()
    return conv, layer, a.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("onednn", [True, False])
def test_every_way_to_compute_a_layer_gives_whole_sums(dtype, onednn):
    if dtype == torch.uint8 and not onednn:
        pytest.skip("the int8 kernel is oneDNN's")
    # Larger int8 weights saturate on processors without VNNI.
    whole = dtype != torch.uint8 or torch.cpu._is_vnni_supported()
    for layer, a in stress_layers(WEIGHT_MAX if whole else WEIGHT_MAX // 2):
        weight, bias = layer.weight.long().double(), layer.bias.double()
        sums = nn.functional.conv2d(a.double(), weight, bias, padding=weight.shape[-1] // 2)
        wanted = np.rint(sums.numpy() / 2.0 ** layer.shift.numpy()[:, None, None])
        wanted = wanted if layer.wide else wanted.clip(0, 255)
        given = stored(a, layer.takes, dtype)
        with torch.backends.mkldnn.flags(enabled=onednn):
            assert np.array_equal(layer(given).double().numpy(), wanted)


def test_the_fastest_exact_type_is_taken():
    assert exact_dtype("cuda") == torch.float64
    assert exact_dtype("cpu") == (torch.uint8 if torch.cpu._is_vnni_supported() else torch.float32)
    with torch.backends.mkldnn.flags(enabled=False):
        assert exact_dtype("cpu") == torch.float32


def test_a_type_whose_sums_are_rounded_is_not_taken(monkeypatch):
    forward, monkey = ByteConv.forward, layers._is_exact.__wrapped__
    monkeypatch.setattr(layers, "_is_exact", monkey)

    def like_bf16(self, a):
        out = forward(self, a)
        return out.bfloat16().float() if a.dtype == torch.float32 else out

    monkeypatch.setattr(ByteConv, "forward", like_bf16)
    with torch.backends.mkldnn.flags(enabled=False):
        assert exact_dtype("cpu") == torch.float64


def test_settings_know_what_allows_fp32_fewer_bits():
    before = settings()
    torch.set_float32_matmul_precision("medium")
    try:
        assert settings() != before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert settings() == before


@pytest.mark.parametrize("takes", RANGES)
def test_training_rounds_alike(takes):
    torch.manual_seed(0)
    conv, layer, a = small(takes)
    assert torch.equal(layer(a), rounded_conv(conv, takes, a, *UNITS))


def test_gradients_pass_through_the_rounding():
    torch.manual_seed(0)
    conv, _, a = small()
    rounded_conv(conv, "signed", a, *UNITS).sum().backward()
    plain = (conv(a * 0.02) / 0.01).sum()
    wanted = torch.autograd.grad(plain, (conv.weight, conv.bias))
    for weight, gradient in zip((conv.weight, conv.bias), wanted, strict=True):
        assert torch.allclose(weight.grad, gradient, rtol=1e-4)


@pytest.mark.parametrize("takes", RANGES)
def test_no_layer_can_make_a_sum_that_fp32_rounds(takes):
    torch.manual_seed(0)
    conv, unit_in = nn.Conv2d(300, 2, 3, padding=1), torch.full((300,), 0.1)
    layer = ByteConv(conv, takes, wide=True)
    for unit in (1e-12, 1e-5, 1):
        weight, bias, shift = integers(conv, takes, unit_in, torch.full((2,), unit))
        sums = bound(takes) * weight.abs().sum((1, 2, 3)) + bias.abs()
        assert sums.max() <= EXACT
        assert (sums * 2**-shift).max() <= OUTPUT_MAX
        assert (shift.max() > 8) == (unit == 1)
        layer.quantise(conv, unit_in, torch.full((2,), unit))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("weight", WEIGHT_MAX, "sums are not exact"),
        ("bias", EXACT, "sums are not exact"),
        ("shift", 24, "sums are not exact"),
        ("shift", -1, "sums are not exact"),
        ("shift", 0, "outputs are too large"),
    ],
)
def test_damaged_layers_are_refused(name, value, text):
    torch.manual_seed(0)
    conv = nn.Conv2d(300, 2, 3, padding=1)
    layer = ByteConv(conv, "deep", wide=True)
    layer.quantise(conv, torch.full((300,), 0.1), torch.ones(2))
    getattr(layer, name).fill_(value)
    with pytest.raises(ValueError, match=text):
        layer.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("takes", RANGES)
def test_new_weights_are_used_at_once(takes, dtype):
    torch.manual_seed(0)
    conv, layer, a = small(takes)
    if dtype == torch.uint8:
        layer.weight.div_(2, rounding_mode="trunc")  # too large ones saturate without VNNI
    a = stored(a, takes, dtype)
    other, another = (copy.deepcopy(layer) for _ in range(2))
    before = layer(a)
    other.weight.neg_()
    wanted = other(a)
    assert not torch.equal(before, wanted)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(a), wanted)
    assert torch.equal(copy.deepcopy(other)(a), wanted)
    conv.weight.data.mul_(0.5)
    another(a), another.quantise(conv, *UNITS), other.quantise(conv, *UNITS)
    assert torch.equal(another(a), other(a))
    assert not torch.equal(another(a), before)
