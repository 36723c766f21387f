"""roilib.models.integer.synthesis: near the float networks, and exact however it is computed."""

import copy

import pytest
import torch
from torch import nn

from roilib.models.context import MEAN_UNIT
from roilib.models.integer import synthesis
from roilib.models.integer.layers import EXACT
from roilib.models.integer.synthesis import LINEAR_MAX, exact_product
from roilib.models.roi_vbr import RoiVbr
from roilib.roi import Q_MAX


def smooth(count, height, width):
    """Pictures (count, 3, height, width) in [0, 1]."""
    g = torch.Generator().manual_seed(height)
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=g)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def crops():
    """Pictures and quality indices, from the lowest to the highest."""
    return [(smooth(8, 64, 64), torch.full((8, 1, 4, 4), q)) for q in (0.0, 300.0, float(Q_MAX))]


@pytest.fixture(scope="module")
def model():
    """An untrained model whose g_s does something, and its integers."""
    torch.manual_seed(0)
    model = RoiVbr(16, 768).eval()
    for weight in model.g_s.parameters():
        weight.data.mul_(1.5)
    model.synthesis_integer.quantise(model, crops())
    return model


@pytest.fixture(scope="module")
def latent(model):
    """y_hat (8, 4, 768) in units of MEAN_UNIT, of a picture, and q (8, 4)."""
    g = torch.Generator().manual_seed(1)
    q = torch.randint(0, Q_MAX + 1, (1, 1, 8, 4), generator=g).float()
    with torch.no_grad():
        y_hat, _ = model.quantised(smooth(1, 128, 64), q)
    return (y_hat[0] / MEAN_UNIT).round().int().movedim(0, -1).contiguous(), q[0, 0]


def extreme():
    """A latent whose first cells saturate whatever can, and whose last ones are small."""
    g = torch.Generator().manual_seed(2)
    y_hat = torch.randint(-(2**20), 2**20, (4, 4, 768), generator=g, dtype=torch.int32)
    y_hat = y_hat >> torch.arange(16, dtype=torch.int32).view(4, 4, 1)
    return y_hat * (torch.rand(y_hat.shape, generator=g) < 0.1), torch.full((4, 4), 300.0)


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
    assert error.square().mean() < 0.2  # rounding to whole grey levels alone is 0.08
    zero = copy.deepcopy(model)
    for weight in zero.g_s[-2].parameters():
        weight.data.zero_()
    assert (float_picture(zero, *latent) - wanted).square().mean() > 10 * error.square().mean()


@pytest.mark.parametrize("large", [False, True])
def test_pictures_do_not_depend_on_the_way_to_compute(model, latent, large, monkeypatch):
    latent = extreme() if large else latent
    pictures = [model.synthesis_integer(*latent)]
    assert 20 < pictures[0].float().std() < 120
    monkeypatch.setattr(synthesis, "exact_dtype", lambda _: torch.float64)
    monkeypatch.setattr(synthesis, "_fp32_products_are_exact", lambda _: False)
    pictures.append(model.synthesis_integer(*latent))
    monkeypatch.undo()
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        pictures.append(copy.deepcopy(model).synthesis_integer(*latent))
    monkeypatch.setattr(synthesis, "CHUNK_CELLS", 7)
    pictures.append(model.synthesis_integer(*latent))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_compiled_networks_are_quantised_alike(model):
    compiled = copy.deepcopy(model)
    compiled.g_s.compile(backend="eager")
    with torch.no_grad():
        compiled(*crops()[0])
    compiled.synthesis_integer.quantise(compiled, crops())
    state = compiled.synthesis_integer.state_dict()
    for name, value in model.synthesis_integer.state_dict().items():
        assert torch.equal(state[name], value), name


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
