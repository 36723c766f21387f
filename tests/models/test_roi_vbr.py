"""roilib.models.roi_vbr: one model, knobs at run time, the same symbols everywhere."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import VBR

from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.engines.step import knobs
from roilib.entropy_models.gaussian import (
    LEVELS_PER_OCTAVE,
    SCALE_LEVELS,
    SCALE_MIN,
    SCALES,
    TailedGaussian,
    round_to_cheap,
)
from roilib.entropy_models.range_coder import BIT_WORTH, TOTAL, frequencies
from roilib.losses import RoiRateDistortionLoss, VariableRateLoss
from roilib.models.build import build_model
from roilib.models.context import (
    CONTEXT_UNIT,
    MEAN_UNIT,
    PATTERNS,
    VALUE_SCALE,
    magnitude_table,
    passes_of,
    stored_magnitudes,
    stored_values,
    values,
)
from roilib.models.dct import dct_basis, spectrum
from roilib.models.integer import MAX, ZERO
from roilib.models.roi_vbr import OCTAVES, Q_MIDDLE, Block, RoiVbr
from roilib.models.weights import read_weights
from roilib.roi import Q_MAX, STEPS_PER_OCTAVE, quality_index


@pytest.fixture(scope="module")
def trained(vbr_run):
    """The small trained run and its model."""
    model = build_model(vbr_run.parameters).eval()
    model.load_state_dict(read_weights(vbr_run.weights)[0])
    return vbr_run, model


@pytest.fixture(scope="module")
def frame(tiny_kitti):
    """A picture (1, 3, 64, 128) in [0, 1]."""
    image, _, _ = RoiDataset(kitti_samples(tiny_kitti))[0]
    return image[None, :, :64, :128].float() / 255


def uniform(quality, x):
    return torch.full((1, 1, x.shape[-2] // 16, x.shape[-1] // 16), float(quality))


def psnr(a, b):
    return -10 * math.log10((a - b).pow(2).mean())


def test_the_basis_is_orthonormal():
    basis = dct_basis(768).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(768), atol=1e-5)
    assert torch.equal(dct_basis(48), dct_basis(768)[:48])
    scales = [scale for scale, *_ in spectrum(768)]
    assert scales == sorted(scales, reverse=True)
    assert spectrum(1)[0][1:] == (0, 0, 0)  # luma's mean


def test_an_untrained_model_is_a_dct_codec(frame):
    torch.manual_seed(0)
    model = RoiVbr(16, 768).eval()
    with torch.no_grad():
        x_hat = [model(frame, uniform(q, frame))["x_hat"] for q in (228, 442, 628)]
    assert psnr(x_hat[0], frame) < psnr(x_hat[1], frame) < psnr(x_hat[2], frame)
    assert psnr(x_hat[1], frame) > 26


def test_training_lowers_the_loss_and_saves_what_coding_needs(trained):
    run, model = trained
    history = run.metrics["history"]
    assert history[-1]["test"]["loss"] < 0.8 * history[4]["test"]["loss"]
    assert model.h_s_integer.layers[0].weight.abs().max() > 1
    assert len(model.entropy_bottleneck._quantized_cdf) == 8


def test_exact_blocks_round_less():
    torch.manual_seed(0)
    x = (4 * torch.randn(1, 48, 8, 8)).bfloat16()
    plain, exact = (
        torch.nn.Sequential(*(Block(48, kind) for _ in range(4))).eval() for kind in (False, True)
    )
    exact.load_state_dict(plain.state_dict())
    with torch.no_grad():
        wanted = plain(x.float())
        assert torch.equal(exact(x.float()), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(net(x) - wanted).abs().mean() for net in (plain, exact)]
            assert torch.equal(exact.train()(x), plain.train()(x))
    assert errors[1] < 0.7 * errors[0]


def test_bytes_decode_to_the_symbols_that_were_written(trained, frame):
    _, model = trained
    for quality in (0, 250, Q_MAX):
        q = uniform(quality, frame)
        packed = model.compress(frame, q)
        (y, z), _ = model.decode_symbols(packed["strings"], packed["shape"], q)
        assert np.array_equal(y, packed["symbols"][0])
        assert np.array_equal(z, packed["symbols"][1])
        x_hat = model.decompress(packed["strings"], packed["shape"], q)["x_hat"]
        with torch.no_grad():
            wanted = model(frame, q)["x_hat"].clamp(0, 1)
        assert psnr(x_hat, frame) > psnr(wanted, frame) - 0.5


def test_more_lambda_is_more_bytes_and_a_better_picture(trained, frame):
    _, model = trained
    sizes, qualities = [], []
    for quality in range(0, Q_MAX + 1, 105):
        packed = model.compress(frame, uniform(quality, frame))
        sizes.append(sum(len(s[0]) for s in packed["strings"]))
        qualities.append(
            psnr(
                model.decompress(packed["strings"], packed["shape"], uniform(quality, frame))[
                    "x_hat"
                ],
                frame,
            )
        )
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * sizes[0]
    assert qualities == sorted(qualities)


def test_a_region_of_higher_quality_is_better_where_it_is(trained, frame):
    _, model = trained
    q = uniform(100, frame)
    q[..., 2:, 4:] = 450
    mask = torch.zeros(frame.shape[-2:], dtype=torch.bool)
    mask[32:, 64:] = True
    pictures = {}
    for name, quality in (("roi", q), ("uniform", uniform(100, frame))):
        packed = model.compress(frame, quality)
        pictures[name] = model.decompress(packed["strings"], packed["shape"], quality)["x_hat"]
    assert (
        psnr(pictures["roi"][..., mask], frame[..., mask])
        > psnr(pictures["uniform"][..., mask], frame[..., mask]) + 2
    )
    assert (
        psnr(pictures["roi"][..., ~mask], frame[..., ~mask])
        > psnr(pictures["uniform"][..., ~mask], frame[..., ~mask]) - 0.5
    )


def test_symbols_do_not_depend_on_how_the_decoder_computes(trained, frame):
    _, model = trained
    q = uniform(300, frame)
    packed = model.compress(frame, q)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, torch.channels_last):
                for mkldnn in (True, False):
                    with (
                        torch.backends.mkldnn.flags(enabled=mkldnn),
                        torch.autocast("cpu", torch.bfloat16),
                    ):
                        (y, _), _ = model.to(memory_format=layout).decode_symbols(
                            packed["strings"], packed["shape"], q
                        )
                    assert np.array_equal(y, packed["symbols"][0]), (count, layout, mkldnn)
    finally:
        torch.set_num_threads(threads)
        model.to(memory_format=torch.contiguous_format)


def test_pictures_differ_by_at_most_two_grey_levels_in_bf16(trained, frame):
    _, model = trained
    for quality in (200, 400, Q_MAX):
        packed = model.compress(frame, uniform(quality, frame))
        plain = model.decompress(packed["strings"], packed["shape"], uniform(quality, frame))[
            "x_hat"
        ]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.decompress(packed["strings"], packed["shape"], uniform(quality, frame))[
                "x_hat"
            ]
        assert not torch.equal(plain, rough)
        assert (plain - rough).abs().max() <= 2 / 255


def test_the_loss_is_the_corrected_one_where_it_is_not_balanced(frame):
    m = torch.zeros(1, 1, *frame.shape[-2:])
    m[..., 10:50, 20:90] = 1
    output = {
        "x_hat": frame * 0.9,
        "likelihoods": {"y": torch.full((1, 4, 4, 8), 0.3), "z": torch.full((1, 2, 1, 2), 0.6)},
    }
    output["lmbda_map"] = 0.01 * 2 * (0.9 * m + 0.1 * (1 - m))
    ours, theirs = (
        VariableRateLoss(balanced=False)(output, frame, m),
        RoiRateDistortionLoss(0.01, 0.9)(output, frame, m),
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-5)
    output["lmbda_map"] = torch.full_like(m, 0.048)
    balanced, plain = (
        VariableRateLoss(balanced)(output, frame, m)["loss"] for balanced in (True, False)
    )
    assert float(balanced) == pytest.approx(float(plain) / 4**0.5)


def test_knobs_are_drawn_by_seed_step_and_place(tiny_parameters):
    p, boxes = tiny_parameters(**VBR), [torch.tensor([[10.0, 10, 40, 50]])] * 4
    whole = knobs(p, boxes, 64, range(4), step=3)
    for rank in (0, 1):
        assert all(
            torch.equal(a[rank::2], b)
            for a, b in zip(whole, knobs(p, boxes[:2], 64, range(rank, 4, 2), step=3), strict=True)
        )
    assert not torch.equal(whole[0], knobs(p, boxes, 64, range(4), step=4)[0])
    q, lmbda_map, mask = knobs(p, boxes, 64, range(4), step=None)  # a test: the run's own
    assert mask.mean() == pytest.approx(30 * 40 / 64**2)
    for part, weight in ((mask > 0, 1.8), (mask == 0, 0.2)):
        assert torch.allclose(lmbda_map[part], torch.tensor(0.012 * weight), rtol=0.03)
    assert abs(int(q.max()) - quality_index(0.012 * 1.8)) <= 1


def test_likelihoods_are_those_of_the_coders_tables():
    k, scales = torch.arange(-40.0, 41.0), torch.tensor([0.1, 0.4, 1.0, 4.0])
    p = TailedGaussian(None, scale_bound=SCALE_MIN)._likelihood(
        k[:, None].expand(-1, 4), scales.expand(81, 4)
    )
    assert torch.allclose(p.sum(0), torch.ones(4), atol=2e-3)
    for i, scale in enumerate(scales.tolist()):
        wanted = torch.from_numpy(frequencies(scale)[:7] / TOTAL)
        assert torch.allclose(p[40:47, i].log2(), wanted.float().log2(), atol=0.15)


def test_magnitudes_are_exact_logarithms():
    table, one = magnitude_table(), round(1 / MEAN_UNIT)
    exact = torch.log2(1 + torch.arange(len(table), dtype=torch.float64) / one) / CONTEXT_UNIT
    assert (exact - (table.double() - ZERO)).abs().max() <= 0.5
    assert table.max() <= MAX
    y_hat = torch.tensor(
        [0, -1, 640, -640, len(table) - 1, len(table), -(2**30)], dtype=torch.int32
    )
    assert stored_magnitudes(y_hat).tolist() == table[[0, 1, 640, 640, -1, -1, -1]].tolist()


def test_integer_networks_say_what_the_float_ones_do_in_every_pass(trained, frame):
    """Also where the quality is no whole number of levels: its rounding must not add to the network's."""
    _, model = trained
    for quality in (300, 307, 308, 313):
        q, asked = uniform(quality, frame), []
        y, z = model.compress(frame, q)["symbols"]
        rows = y.reshape(-1, model.M)

        def same(part, cells, levels, means, asked=asked, rows=rows):
            asked.append((cells, levels.astype(np.float32), means * MEAN_UNIT))
            return rows[cells, part]

        y_hat = (model.scan(z, q, same)[1] * MEAN_UNIT).movedim(-1, 0)[None]
        with torch.no_grad():
            contexts = model._contexts(
                model.h_s(torch.from_numpy(z).float().movedim(-1, 0)[None]), q, y_hat
            )
            pairs = [
                pair
                for nets, seen in zip(model.e, contexts, strict=True)
                for pair in zip(nets, seen, strict=True)
            ]
            outputs = [net(context)[0].flatten(1).T for net, context in pairs]
        assert len(outputs) == len(asked) == 7
        for (cells, levels, means), output in zip(asked, outputs, strict=True):
            octaves, wanted = output[cells].chunk(2, 1)
            exact = (
                (
                    (OCTAVES * octaves + (quality - Q_MIDDLE) / (2 * STEPS_PER_OCTAVE))
                    * LEVELS_PER_OCTAVE
                )
                .clamp(0, SCALE_LEVELS - 1)
                .numpy()
            )
            assert np.abs(levels - exact).mean() < 0.5, (quality, len(cells))
            assert np.abs(means - wanted.numpy()).mean() < 0.02, (quality, len(cells))


def test_a_pass_does_not_know_what_it_or_later_ones_code(trained, frame):
    _, model = trained
    q, y_hat = uniform(300, frame), torch.randn(1, model.M, 4, 8)
    with torch.no_grad():
        h = model.h_s(torch.zeros(1, model.N // 2, 1, 2))
        for k, (start, end) in enumerate(model.slices):
            turns = passes_of(len(model.e[k]), 4, 8)
            for turn in range(len(model.e[k])):
                other = y_hat.clone()
                other[:, start:end, turns >= turn] += 1
                other[:, end:] += 1
                assert torch.equal(*(model._contexts(h, q, y)[k][turn] for y in (y_hat, other)))
                if turn:
                    other[:, start:end, turns < turn] += 1
                    assert not torch.equal(
                        *(model._contexts(h, q, y)[k][turn] for y in (y_hat, other))
                    )


def test_scales_learn_from_symbols_and_the_rest_from_noise():
    torch.manual_seed(0)
    y, means, scales = torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    y_hat = y.round()
    gaussian = TailedGaussian(None, scale_bound=SCALE_MIN).train()
    for tensor in (y, means, scales):
        tensor.requires_grad_()
    likelihoods = gaussian.of_symbols(y, y_hat, scales, means)
    exact = gaussian._likelihood(y_hat, scales, means)
    assert torch.allclose(likelihoods, exact)
    (wanted,) = torch.autograd.grad(exact.log().sum(), scales, retain_graph=True)
    likelihoods.log().sum().backward()
    assert torch.allclose(scales.grad, wanted)
    assert torch.allclose(y.grad, -means.grad)
    assert y.grad.abs().min() > 0
    assert torch.equal(
        gaussian.eval().of_symbols(y, y_hat, scales, means),
        gaussian._likelihood(y_hat, scales, means),
    )


def test_activations_that_are_not_finite_are_a_loss_that_is_not(frame):
    model = RoiVbr(16, 48).train()
    torch.nn.init.constant_(model.e[0][0][0].bias, math.nan)
    output = model(frame, uniform(300, frame))
    assert not output["likelihoods"]["y"].log().sum().isfinite()


@pytest.mark.parametrize("count", PATTERNS)
def test_passes_code_every_cell_once_beside_known_ones(count):
    turns = passes_of(count, 5, 7)
    assert turns.shape == (5, 7)
    assert turns.unique().tolist() == list(range(count))
    padded = torch.nn.functional.pad(turns, (1, 1, 1, 1), value=count)
    sides = torch.stack([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])
    corners = torch.stack([padded[:-2, :-2], padded[:-2, 2:], padded[2:, :-2], padded[2:, 2:]])
    for turn in range(1, count):
        neighbours = corners if count == 3 and turn == 1 else sides
        assert (neighbours[:, turns == turn].clamp(max=count) != turn).all()
        inside = (neighbours[:, turns == turn] < count).all(0)
        assert (neighbours[:, turns == turn][:, inside] < turn).all(), (
            "a pass knows all its neighbours from earlier ones"
        )


def test_stored_values_are_to_the_nearest_and_keep_their_sign():
    y_hat = torch.tensor([0.0, 0.125, 1.0, 1.1, 31.75, 33.0, 100.0, 253.0, 1e4])
    for sign in (1, -1):
        small, rest = stored_values((sign * y_hat / MEAN_UNIT).int()[:, None]).int().T * sign
        assert small.tolist() == [0, 1, 4, 4, 127, 127, 127, 127, 127]
        assert rest.tolist() == [0, 0, 0, 0, 0, 1, 34, 111, 127]
    assert torch.allclose(sum(values(y_hat[None]).chunk(2, 1)) * VALUE_SCALE, y_hat)


@pytest.mark.parametrize("level", range(0, SCALE_LEVELS, 7))
def test_the_symbol_with_the_least_cost_is_taken(level):
    half = frequencies(SCALES[level]) / TOTAL
    distance = torch.linspace(-8 * SCALES[level] - 3, 8 * SCALES[level] + 3, 2001)
    symbols = torch.arange(len(half))
    costs = (distance.abs()[:, None] - symbols) ** 2 - BIT_WORTH * torch.from_numpy(half).log2()
    taken = round_to_cheap(distance, torch.full((2001,), level))
    assert torch.equal(taken.sign().abs() * distance.sign(), taken.sign())
    assert (costs[torch.arange(2001), taken.abs().long()] - costs.amin(1)).max() < 1e-4
    if SCALES[level] < 4:  # of wider Gaussians the next symbol costs hardly more
        assert (taken != distance.round()).any()


def test_a_map_may_be_part_of_a_larger_one(trained, frame):
    model, x = trained[1], frame[..., :64, :128]
    q = torch.arange(300.0, 300 + 8 * 16).view(1, 1, 8, 16)[..., 2:6, 3:11]
    assert model.compress(x, q)["strings"] == model.compress(x, q.contiguous())["strings"]


def test_tables_are_made_once_and_again_for_other_weights(trained):
    model = copy.deepcopy(trained[1])
    before = model.tables()
    assert model.tables() == before  # the same objects: to make them takes as long as a network
    model.y_counts[:2] += torch.tensor([-1, 1], dtype=torch.int32)
    model.entropy_bottleneck._offset[0] += 1
    y, z = model.tables()
    assert not np.array_equal(y.bits[0], before[0].bits[0])
    assert (z.low - before[1].low).tolist() == [1, *[0] * (len(z.low) - 1)]
