"""roilib.models.hyperprior: the paper's extension keeps CompressAI's contracts."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compressai.models import ScaleHyperprior
from safetensors import safe_open

from roilib.engines.optimizers import CORRECTION_LR, GAIN_LR, make_optimizer
from roilib.entropy_models.range_coder import Encoder, put_unbounded, tables_of
from roilib.models.hyperprior import Hyperprior, HyperpriorWithObjFeatures
from roilib.models.layers import Projection, joined
from roilib.models.range_coded import update_tables
from roilib.models.weights import build_model, load_weights, save_weights
from roilib.parameters import Parameters


def randomise(model):
    """Move an untrained model's latents away from zero, so that something is coded."""
    torch.manual_seed(1)
    model.g_a[6].weight.data.mul_(40)
    update_tables(model)
    return model.eval()


def inputs(size=(128, 192), batch=1):
    torch.manual_seed(0)
    x = torch.rand(batch, 3, *size)
    features = [
        torch.randn(batch, c, size[0] // s, size[1] // s)
        for c, s in ((64, 8), (128, 16), (256, 32))
    ]
    mask = torch.zeros(batch, 1, *size)
    mask[..., 30:70, 40:90] = 1
    return x, features, mask


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"zero_hooks": True}, {"mask_hooks": True}])
@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
def test_decompress_gives_the_eval_forward(options, size):
    model = randomise(HyperpriorWithObjFeatures(16, 24, **options))
    x, features, mask = inputs(size)
    with torch.no_grad():
        forward = model(x, features, mask)
        packed = model.compress(x, features, mask)
        decoded = model.decompress(packed["strings"], packed["shape"])["x_hat"]
    assert set(forward["likelihoods"]) == {"y", "z", "w"}
    assert len(packed["strings"]) == 3
    torch.testing.assert_close(decoded, forward["x_hat"].clamp(0, 1), atol=1e-4, rtol=0)


def test_bytes_are_what_the_likelihoods_say():
    """Within 1 % for latents that follow the entropy model: the tables are fine enough."""
    gaussian = randomise(HyperpriorWithObjFeatures(16, 24)).gaussian_conditional
    generator = torch.Generator().manual_seed(0)
    scales = torch.exp(torch.empty(1, 48, 24, 80).uniform_(-1.6, -0.4, generator=generator))
    y = (
        0.8 * scales * torch.randn(scales.shape, generator=generator)
    )  # trained scales are a little too large for rounded latents
    indices = gaussian.build_indexes(scales).numpy().astype(np.uint16)
    coder = Encoder()
    put_unbounded(
        coder, y.round().int().numpy().ravel(), indices.ravel(), tables_of(gaussian, True)
    )
    assert 8 * len(coder.data()) == pytest.approx(
        -gaussian(y, scales)[1].log2().sum().item(), rel=0.01
    )


def test_each_hook_reaches_the_picture_and_the_rate():
    model = randomise(HyperpriorWithObjFeatures(16, 24))
    x, features, _ = inputs()
    with torch.no_grad():
        before = model.latents(x, features)
        for i in range(3):
            changed = [f + 1 if i == j else f for j, f in enumerate(features)]
            for a, b in zip(before, model.latents(x, changed), strict=True):
                assert not torch.allclose(a, b)


def test_zero_hooks_see_nothing_and_mask_hooks_only_the_mask():
    x, features, mask = inputs()
    with torch.no_grad():
        zero = randomise(HyperpriorWithObjFeatures(16, 24, zero_hooks=True))
        assert torch.equal(zero(x, features, mask)["x_hat"], zero(x)["x_hat"])
        masked = randomise(HyperpriorWithObjFeatures(16, 24, mask_hooks=True))
        assert torch.equal(masked(x, features, mask)["x_hat"], masked(x, None, mask)["x_hat"])
        assert not torch.equal(masked(x, None, mask)["x_hat"], masked(x, None, 1 - mask)["x_hat"])


def test_same_size_of_model_whatever_the_hooks():
    counts = {
        sum(p.numel() for p in HyperpriorWithObjFeatures(16, 24, **o).parameters())
        for o in ({}, {"zero_hooks": True})
    }
    assert len(counts) == 1


def test_missing_inputs_are_named():
    x, features, _ = inputs()
    with pytest.raises(ValueError, match="features"):
        HyperpriorWithObjFeatures(16, 24)(x)
    with pytest.raises(ValueError, match="roi_mask"):
        HyperpriorWithObjFeatures(16, 24, mask_hooks=True)(x, features)


def test_the_baseline_is_compressais():
    """The same initial weights from the same seed, in the same order, and the same pictures."""
    models = []
    for kind in (ScaleHyperprior, Hyperprior):
        torch.manual_seed(0)
        models.append((kind(16, 24).eval(), torch.rand(1)))
    (theirs, after), (ours, also_after) = models
    assert torch.equal(after, also_after)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert all(
        torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items()
    )
    with torch.no_grad():
        assert torch.equal(theirs(inputs()[0])["x_hat"], ours(inputs()[0])["x_hat"])


def test_symbols_come_back():
    model = randomise(HyperpriorWithObjFeatures(16, 24))
    packed = model.compress(*inputs()[:2])
    symbols, _, checksum = model.decode_symbols(packed["strings"], packed["shape"])
    assert checksum == packed["checksum"]
    assert len(symbols) == len(model.tables()) == 3
    for found, wanted in zip(symbols, packed["symbols"], strict=True):
        assert np.array_equal(found, wanted)
    assert np.abs(symbols[0]).max() > 5


def test_gradients_reach_every_parameter():
    model = HyperpriorWithObjFeatures(16, 24)
    output = model(*inputs()[:2])
    (output["x_hat"].sum() + sum(v.log().sum() for v in output["likelihoods"].values())).backward()
    model.aux_loss().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_weights_round_trip_and_mismatch(tmp_path):
    p = Parameters(which="hyperprior_with_obj_features", zero_hooks=True, N=16, M=24)
    model = build_model(p)
    update_tables(model)
    save_weights(tmp_path / "w.safetensors", model, p, step=7)
    again = build_model(p)
    load_weights(tmp_path / "w.safetensors", again, p)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    for change in ({"N": 32}, {"zero_hooks": False}, {"which": "hyperprior", "zero_hooks": False}):
        wrong = p.model_copy(update=change)
        with pytest.raises(ValueError, match=next(iter(change))):
            load_weights(tmp_path / "w.safetensors", build_model(wrong), wrong)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    p, path, found = Parameters(which="hyperprior", N=8, M=12), tmp_path / "w.safetensors", set()
    model = build_model(p)
    for _ in range(8):
        save_weights(path, model, p, step=7, licence="λ", hours="1")
        found.add(path.read_bytes())
    assert len(found) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "parameters": json.dumps(p.model_dump(), sort_keys=True),
            "step": "7",
            "licence": "λ",
            "hours": "1",
        }
        assert all(
            torch.equal(file.get_tensor(name), value) for name, value in model.state_dict().items()
        )


def test_both_plain_engines_share_weights(tmp_path):
    p = Parameters(which="hyperprior", N=16, M=24)
    model = build_model(p)
    assert isinstance(model, ScaleHyperprior)
    update_tables(model)
    save_weights(tmp_path / "w.safetensors", model, p, step=1)
    with_objs = p.model_copy(update={"which": "hyperprior_eval_with_objs"})
    load_weights(tmp_path / "w.safetensors", build_model(with_objs), with_objs)


def test_weights_files_that_are_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    for name in ("w.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_weights(tmp_path / name, None, Parameters())


# Ways of the ROI into the model

MASKED = {"mask_hooks": True}


def alike(model, other):
    """`model` with the weights of `other` where both have them."""
    model.load_state_dict(other.state_dict(), strict=False)
    return model.eval()


@torch.no_grad()
def test_gains_of_zero_change_nothing():
    plain = randomise(HyperpriorWithObjFeatures(16, 24, **MASKED))
    with_gains = alike(
        randomise(HyperpriorWithObjFeatures(16, 24, **MASKED, decoder_roi=True)), plain
    )
    x, _, mask = inputs()
    a, b = plain(x, None, mask), with_gains(x, None, mask)
    assert torch.equal(a["x_hat"], b["x_hat"])
    assert all(torch.equal(a["likelihoods"][name], b["likelihoods"][name]) for name in "yzw")


@torch.no_grad()
def test_a_gain_makes_the_roi_finer_and_leaves_the_rest():
    model = randomise(HyperpriorWithObjFeatures(16, 24, **MASKED, decoder_roi=True))
    x, _, mask = inputs()
    y, scales = model.latents(x, None, mask)[0], torch.full((1, 48, 8, 12), 2.0)
    share, bits, errors = F.avg_pool2d(mask, 16), [], []
    for gain in (0.0, 1.0):
        model.roi_gain[1].fill_(gain)
        g, inverse = model.gains(mask)
        y_hat, likelihoods = model.gaussian_conditional(y * g, scales * g)
        bits.append(-likelihoods.log2().sum(1, keepdim=True))
        errors.append((y_hat * inverse - y).square().sum(1, keepdim=True))
    inside, outside = share > 0.9, share == 0
    assert inside.any()
    assert (bits[1][inside] > bits[0][inside] + 30).all()  # of 48 · log2(e) = 69
    assert errors[1][inside].mean() < errors[0][inside].mean() / 4  # of e² = 7.4
    for values in (bits, errors):
        assert torch.equal(values[0][outside], values[1][outside])
    model.roi_gain[0].fill_(-1.0)
    g, inverse = model.gains(mask)
    assert torch.allclose(g[:, 0:1][outside], torch.tensor(-1.0).exp())
    assert torch.allclose((g * inverse).log(), torch.zeros(()), atol=1e-6)


@torch.no_grad()
def test_gains_come_through_the_bytes():
    model = randomise(HyperpriorWithObjFeatures(16, 24, **MASKED, decoder_roi=True))
    model.roi_gain.copy_(torch.linspace(-0.5, 1.5, 96).view(2, 48))
    model.roi_correction.copy_(torch.linspace(-0.2, 0.2, 96).view(2, 48))
    x, _, mask = inputs((64, 128))
    packed = model.compress(x, None, mask)
    decoded = model.decompress(packed["strings"], packed["shape"], mask)["x_hat"]
    torch.testing.assert_close(
        decoded, model(x, None, mask)["x_hat"].clamp(0, 1), atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="decoder_roi"):
        model.decompress(packed["strings"], packed["shape"])


@torch.no_grad()
def test_scale_and_shift_start_as_nothing_and_are_heard_afterwards():
    model = randomise(HyperpriorWithObjFeatures(16, 24, conditioning="sft"))
    x, features, _ = inputs()
    zeros = [torch.zeros_like(f) for f in features]
    assert torch.equal(model.latents(x, features)[0], model.latents(x, zeros)[0])
    for i, way in enumerate(model.g_a_hooks):
        way.scale_shift.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
        others = [f if j == i else z for j, (f, z) in enumerate(zip(features, zeros, strict=True))]
        assert not torch.allclose(model.latents(x, others)[0], model.latents(x, zeros)[0])
        way.scale_shift.weight.zero_()


@pytest.mark.parametrize("side", [16, 64])
def test_a_constant_hook_joins_as_any_other(side):
    torch.manual_seed(0)
    layer, projection = torch.nn.Conv2d(3 + 32, 16, 5, 2, 2), Projection(64, 32)
    y, mask = torch.rand(2, 3, side, side), torch.rand(2, 1, side // 8, side // 8)
    results = []
    for constant in (False, True):
        out = joined(layer, y, projection, mask.expand(-1, 64, -1, -1), constant)
        gradients = torch.autograd.grad(
            out.square().sum(), [*layer.parameters(), *projection.parameters()]
        )
        results.append((out, *gradients))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gains_have_a_learning_rate_of_their_own(optimizer):
    p = Parameters(
        which="hyperprior_with_obj_features",
        mask_hooks=True,
        decoder_roi=True,
        optimizer=optimizer,
        max_lr=1e-3,
    )
    model = HyperpriorWithObjFeatures(16, 24, mask_hooks=True, decoder_roi=True)
    groups = make_optimizer(p, dict(model.named_parameters())).param_groups
    found = {id(v): group["lr"] for group in groups for v in group["params"]}
    assert found[id(model.roi_gain)] == pytest.approx(GAIN_LR * 1e-3)
    assert found[id(model.roi_correction)] == pytest.approx(CORRECTION_LR * 1e-3)
    assert found[id(model.g_s[6].bias)] == pytest.approx(1e-3)
    assert len(found) == len(list(model.parameters()))
