"""roilib.engines.runs: what a run's folder says, and the training table."""

import json
import math

import numpy as np
import pytest
from conftest import strictly

from roilib.datasets.dataset import load_splits
from roilib.engines import train
from roilib.engines.runs import MAX_ROWS, TRAINING_COLUMNS, open_run, run_labels, training_table
from roilib.utils.files import read_json, write_json


def test_numbers_that_json_lacks_become_null(tmp_path):
    content = {
        "a": [math.inf, 1.5, (math.nan, np.float64(-math.inf))],
        "b": {"c": math.nan, "d": "NaN"},
        "e": None,
    }
    write_json(tmp_path / "x.json", content)
    assert strictly(tmp_path / "x.json") == {
        "a": [None, 1.5, [None, None]],
        "b": {"c": None, "d": "NaN"},
        "e": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def write_run(run, seconds, part="test"):
    """The results of a finished run of one epoch per entry of `seconds`."""
    history = [
        {"epoch": i, "step": 10 * i, part: {"loss": 10 / i, "psnr": 20.0 + i}}
        for i in range(1, len(seconds) + 1)
    ]
    write_json(run.folder / "timing.json", {"seconds_of_epochs": seconds})
    write_json(run.folder / "metrics.json", {"history": history})


def test_the_training_table_is_what_the_run_measured(tiny_parameters):
    p = tiny_parameters(max_steps=None, max_epochs=3, which="hyperprior_eval_with_objs")
    run = open_run(p)
    metrics = train.train(run, *load_splits(p))
    table = training_table([run])
    assert tuple(table.columns) == TRAINING_COLUMNS
    assert table["step"].tolist() == [2, 4, 6]
    for name in ("loss", "roi_psnr"):
        measured = [entry["test"][name] for entry in metrics["history"]]
        assert table[name].tolist() == pytest.approx(measured, rel=1e-4)
    assert set(table["label"]) == {f"baseline, λ {p.lmbda:g}"}
    timing = read_json(run.folder / "timing.json")
    assert all(seconds > 0 for seconds in timing["seconds_of_epochs"])
    assert sum(timing["seconds_of_epochs"]) == pytest.approx(timing["seconds"], rel=0.1)
    assert table["hours"].iloc[-1] == pytest.approx(timing["seconds"] / 3600, rel=0.1)
    assert "seconds" not in json.dumps(metrics["history"])  # metrics.json is deterministic


def test_hours_are_counted_epoch_by_epoch(tiny_parameters):
    run = open_run(tiny_parameters())
    write_run(run, [360, 360, 3600])
    assert training_table([run])["hours"].tolist() == [0.1, 0.2, 1.2]
    write_run(run, [360, 360], part="train")
    assert training_table([run])["part"].tolist() == ["train", "train"]
    write_json(run.folder / "timing.json", {"seconds": 9})  # of an earlier version
    assert training_table([run])["hours"].isna().all()


def test_long_runs_are_thinned_to_their_ends(tiny_parameters):
    run = open_run(tiny_parameters())
    write_run(run, [1] * 4 * MAX_ROWS)
    table = training_table([run])
    assert len(table) == MAX_ROWS
    assert table["step"].tolist()[:: MAX_ROWS - 1] == [10, 40 * MAX_ROWS]
    assert training_table([]).empty


def test_a_run_that_is_not_finished_has_no_training_table(tiny_parameters):
    run = open_run(tiny_parameters())
    with pytest.raises(ValueError, match=rf"{run.folder.name}: not a finished run"):
        training_table([run])


@pytest.mark.parametrize(
    "values",
    [
        {"decoder_roi": True},
        {"crop": "native", "obj_det_img_size": 416},
        {"zero_hooks": True, "conditioning": "sft"},
        {"zero_hooks": True, "decoder_roi": True},
        {"mask_hooks": True, "conditioning": "sft"},
    ],
)
def test_every_model_that_can_be_trained_has_a_label(tiny_parameters, values):
    run = open_run(tiny_parameters(which="hyperprior_with_obj_features", **values))
    (label,) = run_labels([run])
    assert "hyperprior" not in label


def test_runs_of_one_label_are_distinguished_by_their_folders(tiny_parameters):
    runs = [open_run(tiny_parameters(seed=seed)) for seed in (1, 2)]
    labels = run_labels(runs)
    assert len(set(labels)) == 2
    for label, run in zip(labels, runs, strict=True):
        assert label.endswith(run.folder.name[-4:])
