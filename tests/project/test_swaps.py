"""benchmarks/swaps.py: what a model makes of hooks that are not its picture's own."""

import json

import pytest
import swaps
import torch
from conftest import untrained_codec

from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.models.weights import save_weights

SMALL = {"which": "hyperprior_with_obj_features", "N": 4, "M": 6}


@pytest.fixture
def two(tiny_kitti):
    return RoiDataset(kitti_samples(tiny_kitti)[:2])


def table(codec, data):
    return {row.pop("hooks"): row for row in swaps.swap_table(swaps.swap_records(codec, data))}


def test_a_model_that_sees_nothing_does_not_react(two):
    rows = table(untrained_codec(**SMALL, zero_hooks=True), two)
    assert set(rows) == {"own", "zeros", "ones", "inverted", "another"}
    for name in swaps.SWAPS:
        assert (rows[name]["bits"], rows[name]["roi"], rows[name]["bg"]) == (0, 0, 0)


@torch.no_grad()
def test_gains_follow_the_mask_that_is_told(two):
    codec = untrained_codec(**SMALL, zero_hooks=True, decoder_roi=True)
    assert table(codec, two)["ones"]["bits"] == 0  # gains of zero
    codec.model.roi_gain[1].fill_(1.0)
    rows = table(codec, two)
    assert rows["zeros"]["bits"] < -1
    assert rows["ones"]["bits"] > 1
    assert rows["ones"]["bg"] != 0 != rows["zeros"]["roi"]


def test_features_have_no_inverse(two):
    rows = table(untrained_codec(**SMALL), two)
    assert set(rows) == {"own", "zeros", "another"}
    assert rows["another"]["bits"] != 0 != rows["zeros"]["bits"]


def test_the_command_line(tmp_path, tiny_kitti, capsys):
    codec = untrained_codec(**SMALL, mask_hooks=True, train_size_p1=0.67)
    save_weights(tmp_path / "w.safetensors", codec.model, codec.parameters, step=1)
    words = [str(tmp_path / "w.safetensors"), "--data-root", str(tiny_kitti), "--pictures"]
    assert swaps.main([*words, "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["hooks"] for row in rows] == ["own", *swaps.SWAPS]
    assert rows[-1]["bits"] != 0
    assert swaps.main([*words, "1"]) == 2
    said = "swaps: the swap test needs 2 pictures or more, not 1\n"
    assert capsys.readouterr().err == said
    assert swaps.main([str(tmp_path / "none.safetensors"), "--data-root", str(tiny_kitti)]) == 2
