"""roilib.models.integer.layers: whole sums, however they are computed."""

import numpy as np
import pytest
import torch
from torch import nn

from roilib.models.integer import layers
from roilib.models.integer.layers import (
    EXACT,
    OUTPUT_MAX,
    ExactConv,
    exact_dtype,
    settings,
    stress_layers,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("onednn", [True, False])
def test_every_way_to_compute_a_layer_gives_whole_sums(dtype, onednn):
    for layer, a in stress_layers():
        weight, bias = layer.weight.long().double(), layer.bias.double()
        sums = nn.functional.conv2d(a, weight, bias, padding=weight.shape[-1] // 2)
        assert sums.abs().max() > EXACT / 4
        wanted = np.rint(sums.numpy() / 2.0 ** layer.shift.numpy()[:, None, None])
        wanted = wanted if layer.gives is None else wanted.clip(0, layer.gives)
        with torch.backends.mkldnn.flags(enabled=onednn):
            assert np.array_equal(layer(a.to(dtype)).double().numpy(), wanted)


def test_fp32_is_taken_where_it_is_exact(monkeypatch):
    assert exact_dtype("cuda") == torch.float64
    for onednn in (True, False):
        with torch.backends.mkldnn.flags(enabled=onednn):
            assert exact_dtype("cpu") == torch.float32
    forward = ExactConv.forward

    def like_tf32(self, a):
        out = forward(self, a)
        return out.bfloat16().float() if a.dtype == torch.float32 else out

    monkeypatch.setattr(ExactConv, "forward", like_tf32)
    monkeypatch.setattr(layers, "_fp32_is_exact", layers._fp32_is_exact.__wrapped__)
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


@pytest.mark.parametrize("unit", [1e-12, 1e-5, 1, 100])
def test_layers_follow_the_float_convolution_and_never_exceed_fp32(unit):
    torch.manual_seed(0)
    conv = nn.Conv2d(20, 2, 3, padding=1)
    layer = ExactConv(conv, 1024, None, 2047)
    layer.quantise(conv, torch.full((20,), 0.1), torch.full((2,), float(unit)))
    sums = 1024 * layer.weight.double().abs().sum((1, 2, 3)) + layer.bias.double().abs()
    assert sums.max() <= EXACT
    assert (sums * 2.0**-layer.shift).max() <= OUTPUT_MAX
    if unit >= 1:
        a = torch.randint(-1024, 1024, (1, 20, 6, 6)).float()
        with torch.no_grad():
            wanted = conv(0.1 * a) / unit
        assert (layer(a) - wanted).abs().max() < 0.6 + 0.02 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("weight", 2047, "sums are not exact"),
        ("bias", EXACT, "sums are not exact"),
        ("shift", 24, "sums are not exact"),
        ("shift", -1, "sums are not exact"),
        ("shift", 0, "outputs are too large"),
    ],
)
def test_damaged_layers_are_refused(name, value, text):
    torch.manual_seed(0)
    conv = nn.Conv2d(300, 2, 3, padding=1)
    layer = ExactConv(conv, 1024, None, 2047)
    layer.quantise(conv, torch.full((300,), 0.1), torch.ones(2))
    getattr(layer, name).fill_(value)
    with pytest.raises(ValueError, match=text):
        layer.check()
