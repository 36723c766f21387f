"""tune_for_yuv: weights on the axes of the metric yuv, whose linear picture stays what it was."""

import sys

import numpy as np
import pytest
import torch
from conftest import refusal
from scipy.fft import idctn
from tune_for_yuv import main, tuned, turn

from roilib.codecs.roic import load_codec
from roilib.losses import yuv_error
from roilib.models.layers import COLOUR_AXES
from roilib.models.weights import build_model, load_weights, trained_on
from roilib.parameters import Parameters
from roilib.roi import CELL
from roilib.utils.pretrained import PRETRAINED_BASELINE, PRETRAINED_CODECS, pretrained


def test_without_quantisation_the_linear_picture_stays_what_it_was():
    model = load_codec().model
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model.a_lin(x - 0.5)
        before = model.linear(y)
        model.load_state_dict(tuned(model.state_dict()))
        turned = model.a_lin(x - 0.5)
        assert torch.allclose(model.linear(turned), before, atol=1e-4)
    assert not torch.allclose(turned, y, atol=0.1)


@pytest.mark.parametrize("frequency", [(0, 0), (1, 3), (7, 2)])
def test_a_unit_of_each_channel_is_an_error_of_equal_size(frequency):
    spectrum = np.zeros((CELL, CELL))
    spectrum[frequency] = 1
    wave = torch.from_numpy(idctn(spectrum, norm="ortho"))
    axes = torch.tensor(COLOUR_AXES, dtype=torch.float64)
    axes /= axes.norm(dim=1, keepdim=True)
    colours = axes.T @ turn(*frequency).inverse()  # of a unit of each new channel
    patterns = colours.T[:, :, None, None] * wave
    # The mean over three colours of an RGB error is a third of its energy.
    sizes = yuv_error(patterns, torch.zeros_like(patterns)).sum((1, 2, 3))
    assert sizes.tolist() == pytest.approx([1 / 3] * 3, rel=1e-3)


def test_the_file_is_trained_on_from_and_codes_nothing_before(tmp_path, monkeypatch):
    weights, start = pretrained(PRETRAINED_CODECS["rgb"]), tmp_path / "start.safetensors"
    monkeypatch.setattr(sys, "argv", ["", str(weights), str(start)])
    assert main() == 0
    assert trained_on(start) == trained_on(weights)
    assert "without the integers of its synthesis" in refusal(lambda: load_codec(start))
    p = Parameters(which="roi_vbr", metric="yuv", N=96, M=768)
    model = build_model(p)
    load_weights(start, model, p)
    assert torch.equal(
        model.s_lin[0].weight, tuned(load_codec().model.state_dict())["s_lin.0.weight"]
    )


def test_other_weights_are_refused(tmp_path, monkeypatch, capsys):
    baseline = pretrained(PRETRAINED_BASELINE)
    monkeypatch.setattr(sys, "argv", ["", str(baseline), str(tmp_path / "out.safetensors")])
    assert main() == 2
    told = capsys.readouterr().err
    assert told == f"tune_for_yuv: {baseline}: not the weights of a roi_vbr for RGB\n"
    assert not list(tmp_path.iterdir())
