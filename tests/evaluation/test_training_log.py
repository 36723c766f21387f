"""roilib.evaluation.training_log: training curves from TensorBoard events."""

import sys

import pandas as pd
import pytest
from torch.utils.tensorboard import SummaryWriter

from roilib.datasets.dataset import load_splits
from roilib.engines import trainer
from roilib.engines.runs import open_run
from roilib.evaluation import training_log
from roilib.evaluation.training_log import MAX_ROWS, run_labels, training_table


def write_epochs(folder, clock, step=10):
    """Events of a test epoch at each time (seconds)."""
    with SummaryWriter(folder) as writer:
        for i, seconds in enumerate(clock, 1):
            for name, value in (("loss", 10 / i), ("psnr", 20 + i)):
                writer.add_scalar(f"epoch/test/{name}", value, step * i, walltime=1e9 + seconds)


def test_the_table_is_what_the_run_logged(tiny_parameters):
    run = open_run(
        tiny_parameters(max_steps=None, max_epochs=3, alpha=0.9, which="hyperprior_eval_with_objs")
    )
    metrics = trainer.train(run, *load_splits(run.parameters))
    table = training_table([run])
    assert table["step"].tolist() == [2, 4, 6]
    assert table["loss"].tolist() == pytest.approx(
        [e["test"]["loss"] for e in metrics["history"]], rel=1e-4
    )
    assert table["roi_psnr"].tolist() == pytest.approx(
        [e["test"]["roi_psnr"] for e in metrics["history"]], rel=1e-4
    )
    assert set(table["label"]) == {f"baseline, λ {run.parameters.lmbda:g}"}
    assert table["hours"].is_monotonic_increasing
    assert (table["hours"] < 0.1).all()


def test_a_pause_is_no_training(tiny_parameters):
    run = open_run(tiny_parameters())
    write_epochs(run.folder, [100, 200, 300, 300 + 36000, 400 + 36000])
    assert training_table([run])["hours"].tolist() == pytest.approx(
        [t / 3600 for t in (100, 200, 300, 400, 500)], rel=1e-3
    )


def test_long_runs_are_thinned_to_their_ends(tiny_parameters):
    run = open_run(tiny_parameters())
    write_epochs(run.folder, range(0, 4 * MAX_ROWS))
    table = training_table([run])
    assert len(table) == MAX_ROWS
    assert table["step"].tolist()[:: MAX_ROWS - 1] == [10, 40 * MAX_ROWS]
    assert training_table([]).empty


def test_runs_that_differ_in_nothing_shown_are_told_apart(tiny_parameters):
    runs = [open_run(tiny_parameters(seed=seed)) for seed in (1, 2)]
    labels = run_labels(runs)
    assert len(set(labels)) == 2
    assert all(
        label.endswith(run.folder.name[-4:]) for label, run in zip(labels, runs, strict=True)
    )


def test_command_line_writes_the_table_and_names_what_is_no_run(
    tiny_parameters, tmp_path, monkeypatch, capsys
):
    run = open_run(tiny_parameters())

    def main(folder):
        monkeypatch.setattr(sys, "argv", ["training_log", str(tmp_path / "out.csv"), str(folder)])
        return training_log.main()

    for folder, message in (
        (run.folder, "no TensorBoard events"),
        (tmp_path, "hparams.json: not a run's parameters"),
    ):
        assert main(folder) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    write_epochs(run.folder, [1, 2])
    assert main(run.folder) == 0
    assert pd.read_csv(tmp_path / "out.csv")["step"].tolist() == [10, 20]
