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
    SCALE_COUNT,
    SCALES_PER_OCTAVE,
)
from roilib.losses import RoiRateDistortionLoss, VariableRateLoss
from roilib.models.context import (
    MEAN_UNIT,
    Q_MIDDLE,
    pass_map,
)
from roilib.models.integer.coding import OCTAVES, code_slices
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import build_model, read_weights
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


def test_bytes_decode_to_the_symbols_that_were_written(trained, frame):
    _, model = trained
    for quality in (0, 250, Q_MAX):
        q = uniform(quality, frame)
        packed = model.compress(frame, q)
        (y, z), _, checksum = model.decode_symbols(packed["strings"], packed["shape"], q)
        assert checksum == packed["checksum"]
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


@pytest.mark.slow
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
                        (y, _), *_ = model.to(memory_format=layout).decode_symbols(
                            packed["strings"], packed["shape"], q
                        )
                    assert np.array_equal(y, packed["symbols"][0]), (count, layout, mkldnn)
    finally:
        torch.set_num_threads(threads)
        model.to(memory_format=torch.contiguous_format)


def test_pictures_do_not_depend_on_how_the_decoder_computes(trained, frame):
    _, model = trained
    for quality in (200, 400, Q_MAX):
        q = uniform(quality, frame)
        packed = model.compress(frame, q)
        strings = packed["strings"], packed["shape"], q
        plain = model.decompress(*strings)["x_hat"]
        with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(model.decompress(*strings)["x_hat"], plain)


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


def test_integer_networks_say_what_the_float_ones_do_in_every_pass(trained, frame):
    """Also for q between two scale indices: its rounding must not add to the network's."""
    _, model = trained
    for quality in (300, 307, 308, 313):
        q, asked = uniform(quality, frame), []
        y, z = model.compress(frame, q)["symbols"]
        rows = y.reshape(-1, model.M)

        def same(part, cells, scale_indices, means, asked=asked, rows=rows):
            asked.append((cells, scale_indices.astype(np.float32), means * MEAN_UNIT))
            return rows[cells, part]

        y_hat = (code_slices(model, z, q, same)[1] * MEAN_UNIT).movedim(-1, 0)[None]
        with torch.no_grad():
            contexts = model.contexts(
                model.h_s(torch.from_numpy(z).float().movedim(-1, 0)[None]), q, y_hat
            )
            pairs = [
                pair
                for nets, seen in zip(model.e, contexts, strict=True)
                for pair in zip(nets, seen, strict=True)
            ]
            outputs = [net(context)[0].flatten(1).T for net, context in pairs]
        assert len(outputs) == len(asked) == 7
        for (cells, scale_indices, means), output in zip(asked, outputs, strict=True):
            octaves, wanted = output[cells].chunk(2, 1)
            exact = (
                (
                    (OCTAVES * octaves + (quality - Q_MIDDLE) / (2 * STEPS_PER_OCTAVE))
                    * SCALES_PER_OCTAVE
                )
                .clamp(0, SCALE_COUNT - 1)
                .numpy()
            )
            assert np.abs(scale_indices - exact).mean() < 0.5, (quality, len(cells))
            assert np.abs(means - wanted.numpy()).mean() < 0.02, (quality, len(cells))


def test_a_pass_does_not_know_what_it_or_later_ones_code(trained, frame):
    _, model = trained
    q, y_hat = uniform(300, frame), torch.randn(1, model.M, 4, 8)
    with torch.no_grad():
        h = model.h_s(torch.zeros(1, model.N // 2, 1, 2))
        for k, (start, end) in enumerate(model.slices):
            numbers = pass_map(len(model.e[k]), 4, 8)
            for number in range(len(model.e[k])):
                other = y_hat.clone()
                other[:, start:end, numbers >= number] += 1
                other[:, end:] += 1
                assert torch.equal(*(model.contexts(h, q, y)[k][number] for y in (y_hat, other)))
                if number:
                    other[:, start:end, numbers < number] += 1
                    assert not torch.equal(
                        *(model.contexts(h, q, y)[k][number] for y in (y_hat, other))
                    )


def test_activations_that_are_not_finite_are_a_loss_that_is_not(frame):
    model = RoiVbr(16, 48).train()
    torch.nn.init.constant_(model.e[0][0][0].bias, math.nan)
    output = model(frame, uniform(300, frame))
    assert not output["likelihoods"]["y"].log().sum().isfinite()


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
