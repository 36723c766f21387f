"""export: a run's weights as a small file that codes as well as the run's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export import export, main
from safetensors import safe_open

from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.datasets.kitti import kitti_samples
from roilib.engines.checkpoints import Checkpoints
from roilib.models.weights import picture_hash, trained_on


@pytest.fixture(scope="module")
def exported(vbr_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "roi_vbr.safetensors"
    assert export(vbr_run.folder, out, "research") == 150
    return out


def test_the_file_is_small_and_says_where_it_comes_from(exported, vbr_run):
    assert exported.stat().st_size < 0.75 * vbr_run.weights.stat().st_size
    with safe_open(exported, "pt") as file:
        about = file.metadata()
    assert (about["step"], about["licence"]) == ("150", "research")
    assert float(about["hours"]) >= 0
    values = json.loads(about["parameters"])
    assert values["which"] == "roi_vbr"
    assert values["data_root"] == Path(vbr_run.parameters.data_root).name
    assert "/" not in values["data_root"] + values["logdir"]
    assert trained_on(exported) == {
        picture_hash(sample.path) for sample in load_splits(vbr_run.parameters)[0].samples
    }
    assert (
        json.loads(about["environment"])
        == json.loads((vbr_run.folder / "hparams.json").read_text())["environment"]
    )


def test_it_codes_like_the_run(exported, vbr_run, tiny_kitti):
    image = RoiDataset(kitti_samples(tiny_kitti))[0][0].permute(1, 2, 0).numpy()
    sizes, errors = [], []
    for path in (exported, vbr_run.weights):
        codec = load_codec(path)
        data = codec.encode(image, lmbda=0.01)
        sizes.append(len(data))
        errors.append(((codec.decode(data).astype(int) - image) ** 2).mean())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)
    assert errors[0] == pytest.approx(errors[1], rel=0.03)
    assert np.isfinite(errors).all()


def test_integer_networks_are_made_anew(exported, vbr_run, tmp_path, monkeypatch):
    """So that weights of an earlier version's run can be exported."""
    newest = Checkpoints.newest

    def from_before(self):
        state = newest(self)
        for part in ("codec", "ema") if "ema" in state else ("codec",):
            state[part] |= {name: torch.zeros(1) for name in state[part] if "_integer." in name}
        return state

    monkeypatch.setattr(Checkpoints, "newest", from_before)
    export(vbr_run.folder, tmp_path / "again.safetensors", "research")
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()


def test_a_folder_without_checkpoints_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path), str(tmp_path / "out.safetensors")])
    assert main() == 2
    assert capsys.readouterr().err == f"export: {tmp_path}: no checkpoint of a run\n"
    assert not (tmp_path / "out.safetensors").exists()
