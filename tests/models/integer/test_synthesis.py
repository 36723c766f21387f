"""roilib.models.integer.synthesis: near the float networks, and exact however it is computed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from roilib.models.context import MEAN_UNIT
from roilib.models.integer import synthesis
from roilib.models.integer.synthesis import (
    EXACT,
    LINEAR_MAX,
    LINEAR_SHIFT,
    RANGES,
    WEIGHT_MAX,
    IntegerLayer,
    carrier,
    exact_product,
    extremes,
    integers,
    stored,
    trained_layer,
)
from roilib.models.roi_vbr import RoiVbr
from roilib.roi import Q_MAX


def smooth(count, height, width):
    """Pictures (count, 3, height, width) in [0, 1]."""
    g = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=g)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@pytest.fixture(scope="module")
def model():
    """An untrained model whose g_s does something, and its integers."""
    torch.manual_seed(0)
    model = RoiVbr(16, 768).eval()
    with torch.no_grad():
        for weight in model.g_s.parameters():
            weight.mul_(1.5)
        x = smooth(8, 64, 64)
        pictures = [(x, torch.full((8, 1, 4, 4), q)) for q in (0.0, 300.0, float(Q_MAX))]
        model.synthesis_integer.measure(model, pictures)
        model.synthesis_integer.quantise(model)
    return model


@pytest.fixture(scope="module")
def latent(model):
    """y_hat (8, 4, 768) in units of MEAN_UNIT, of a picture, and q (8, 4)."""
    g = torch.Generator().manual_seed(1)
    q = torch.randint(0, Q_MAX + 1, (1, 1, 8, 4), generator=g).float()
    with torch.no_grad():
        y_hat, _ = model.quantised(smooth(1, 128, 64), q)
    return (y_hat[0] / MEAN_UNIT).round().int().movedim(0, -1).contiguous(), q[0, 0]


def float_picture(model, y_hat, q):
    with torch.no_grad():
        y, q = (y_hat * MEAN_UNIT).movedim(-1, 0)[None], q[None, None]
        return model.synthesis(y * model.gain_s(q), q).clamp(0, 1)[0] * 255


def test_the_picture_is_near_that_of_the_float_networks(model, latent):
    picture, wanted = model.synthesis_integer(*latent), float_picture(model, *latent)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 128, 64)
    assert wanted.std() > 20
    error = picture - wanted
    assert error.square().mean() < 1  # rounding to whole grey levels alone is 0.08
    zero = copy.deepcopy(model)
    for weight in zero.g_s[-2].parameters():
        weight.data.zero_()
    assert (float_picture(zero, *latent) - wanted).square().mean() > 10 * error.square().mean()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("onednn", [True, False])
def test_every_way_to_compute_a_layer_gives_whole_sums(kind, onednn):
    if kind == torch.uint8 and not onednn:
        pytest.skip("the int8 kernel is oneDNN's")
    # Larger int8 weights saturate on processors without VNNI.
    for layer, a in extremes(WEIGHT_MAX if kind != torch.uint8 else WEIGHT_MAX // 2):
        weight, bias = layer.weight.long().double(), layer.bias.double()
        sums = nn.functional.conv2d(a.double(), weight, bias, padding=weight.shape[-1] // 2)
        wanted = np.rint(sums.numpy() / 2.0 ** layer.shift.numpy()[:, None, None])
        wanted = wanted if layer.wide else wanted.clip(0, 255)
        given = stored(a, layer.takes, kind)
        with torch.backends.mkldnn.flags(enabled=onednn):
            assert np.array_equal(layer(given).double().numpy(), wanted)


def test_pictures_do_not_depend_on_the_way_to_compute(model, latent, monkeypatch):
    pictures = [model.synthesis_integer(*latent)]
    monkeypatch.setattr(synthesis, "carrier", lambda _: torch.float64)
    pictures.append(model.synthesis_integer(*latent))
    monkeypatch.undo()
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        pictures.append(copy.deepcopy(model).synthesis_integer(*latent))
    monkeypatch.setattr(synthesis, "CHUNK_CELLS", 7)
    pictures.append(model.synthesis_integer(*latent))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_the_fastest_exact_way_is_taken():
    assert carrier("cuda") == torch.float64
    assert carrier("cpu") in (torch.uint8, torch.float32)
    assert (carrier("cpu") == torch.uint8) <= torch.cpu._is_vnni_supported()


def test_training_rounds_as_decoders_do(model, latent):
    own, (_, q) = copy.deepcopy(model), latent
    grey = own.synthesis_integer._linear(*latent) * 2.0**-LINEAR_SHIFT
    x = (grey / 255).requires_grad_()
    correction = own.synthesis_integer.trained(own.g_s, x, q[None, None])
    picture = (correction[0] * 255 + grey[0] + 127.5).round().clamp(0, 255).byte()
    assert (picture == own.synthesis_integer(*latent)).float().mean() > 0.999  # but for halves
    correction.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in (x, *own.g_s.parameters()))


def test_synthesis_rounds_where_told(model, latent):
    own = copy.deepcopy(model)
    plain = float_picture(own, *latent)
    own.rounded = True
    assert 0 < (float_picture(own, *latent) - plain).abs().mean() < 0.5


def test_gradients_pass_through_the_rounding():
    torch.manual_seed(0)
    conv, a = nn.Conv2d(4, 3, 3, padding=1), torch.randint(-128, 128, (1, 4, 5, 5)).float()
    units = torch.full((4,), 0.02), torch.full((3,), 0.01)
    trained_layer(conv, "signed", a, *units).sum().backward()
    wanted = torch.autograd.grad(
        (conv(a * 0.02) / 0.01).sum(), (conv.weight, conv.bias), retain_graph=False
    )
    for weight, gradient in zip((conv.weight, conv.bias), wanted, strict=True):
        assert torch.allclose(weight.grad, gradient, rtol=1e-4)
    layer = IntegerLayer(conv, "signed", wide=True)
    layer.quantise(conv, *units)
    assert torch.equal(layer(a), trained_layer(conv, "signed", a, *units))


@pytest.mark.parametrize("takes", RANGES)
def test_no_layer_can_make_a_sum_that_fp32_rounds(takes):
    torch.manual_seed(0)
    conv = nn.Conv2d(300, 2, 3, padding=1)
    units = torch.full((300,), 0.1), torch.full((2,), 1e-5)
    for unit in (1e-12, 1e-5, 1):
        weight, bias, shift = integers(conv, takes, units[0], torch.full((2,), unit))
        largest = 1024 if takes == "deep" else 255
        assert (largest * weight.abs().sum((1, 2, 3)) + bias.abs()).max() <= EXACT
        assert (shift.max() > 9) == (unit == 1)
    layer = IntegerLayer(conv, takes, wide=True)
    layer.quantise(conv, *units)
    layer.weight.fill_(WEIGHT_MAX)
    with pytest.raises(ValueError, match="sums are not exact"):
        layer.check()


def test_new_weights_are_used_at_once():
    torch.manual_seed(0)
    a, layers = torch.randint(-128, 128, (1, 4, 5, 5)).float(), []
    for _ in range(2):
        conv = nn.Conv2d(4, 3, 3, padding=1)
        layers.append(IntegerLayer(conv, "signed", wide=True))
        layers[-1].quantise(conv, torch.full((4,), 0.02), torch.full((3,), 0.01))
    one, other = (layer(a) for layer in layers)
    assert not torch.equal(one, other)
    layers[0].load_state_dict(layers[1].state_dict())
    assert torch.equal(layers[0](a), other)
    assert torch.equal(layers[0](a.double()), other.double())


def test_products_beyond_fp32_are_exact_too():
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-LINEAR_MAX, LINEAR_MAX + 1, (50, 8), generator=g).to(torch.int8)
    v = torch.randint(-(2**20), 2**20, (9, 50), generator=g).double()
    v[::2] = (v[::2] / 2**12).round()
    wanted = (v.long() @ weight.long()).clamp(-EXACT, EXACT)
    assert wanted.abs().max() == EXACT
    assert torch.equal(exact_product(v, weight).long(), wanted)


def test_a_damaged_linear_synthesis_is_refused(model):
    for name, value in (("linear", -128), ("gain", -1), ("gain", 2**30)):
        damaged = copy.deepcopy(model.synthesis_integer)
        getattr(damaged, name)[0, 0] = value
        with pytest.raises(ValueError, match="sums are not exact"):
            damaged.check()
