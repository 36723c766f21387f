"""roilib.engine, roilib.runs and roilib.train: real runs of a few steps."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roilib import engine, train
from roilib.datasets import RoiDataset, batches, load_splits
from roilib.engine import Means
from roilib.models import read_weights
from roilib.runs import open_run

ENGINES = [
    {"which": "hyperprior"},
    {"which": "hyperprior_eval_with_objs"},
    {"which": "hyperprior_with_obj_features", "alpha": 0.9},
    {"which": "hyperprior_with_obj_features", "zero_hooks": True},
    {"which": "hyperprior_with_obj_features", "mask_hooks": True},
]


def trained(p):
    """The run of `p` and its metrics."""
    run = open_run(p)
    return run, engine.train(run, *load_splits(p))


def events(run):
    accumulator = EventAccumulator(str(run.folder))
    accumulator.Reload()
    return accumulator


def numbers(content):
    """All numbers of nested dicts and lists."""
    if isinstance(content, dict):
        content = list(content.values())
    return [n for part in content for n in numbers(part)] if isinstance(content, list) else [content] if isinstance(content, int | float) else []


@pytest.mark.parametrize("options", ENGINES)
def test_each_engine_trains_and_writes_its_files(tiny_parameters, options):
    run, metrics = trained(p := tiny_parameters(**options))
    assert metrics == run.metrics
    assert metrics["parameters"] == p.model_dump()
    assert metrics["steps"] == 3
    assert [entry["epoch"] for entry in metrics["history"]] == [1, 2]  # two steps an epoch
    assert all(set(entry) == {"epoch", "step", "train", "test"} for entry in metrics["history"])
    assert len(numbers(metrics["history"])) > 20
    assert all(math.isfinite(n) for n in numbers(metrics["history"]))
    names = set(metrics["test"])
    assert {"loss", "bpp_loss", "bpp_y", "bpp_z", "mse_loss", "psnr"} <= names
    assert ({"roi_psnr", "bg_psnr", "roi_mse_loss"} <= names) == (p.which != "hyperprior")
    assert ("bpp_w" in names) == (p.which == "hyperprior_with_obj_features")
    hparams = json.loads((run.folder / "hparams.json").read_text())
    assert hparams["parameters"] == p.model_dump()
    assert {"python", "packages", "commit"} <= set(hparams["environment"])
    timing = json.loads((run.folder / "timing.json").read_text())
    assert timing["seconds_per_step"] > 0
    assert timing["peak_memory_mb"]["process"] > 50
    assert read_weights(run.weights)[1] == p.model_dump()
    assert run.checkpoint.exists()
    assert not list(run.folder.rglob("*.tmp"))


def test_tensorboard_has_every_step_every_epoch_and_pictures(tiny_parameters):
    run, metrics = trained(tiny_parameters(which="hyperprior_eval_with_objs", max_steps=4))
    log = events(run)
    for name in ("loss", "bpp_loss", "bpp_y", "bpp_z", "mse_loss", "roi_mse_loss", "bg_mse_loss", "aux_loss", "lr"):
        assert [event.step for event in log.Scalars(f"batch/{name}")] == [1, 2, 3, 4]
    for part in ("train", "test"):
        for name, value in metrics[part].items():
            seen = log.Scalars(f"epoch/{part}/{name}")
            assert [event.step for event in seen] == [2, 4]
            assert seen[-1].value == pytest.approx(value)
    image = log.Images("test pictures")[-1]
    assert (image.width, image.height) == (2 * 66 + 2, 2 * 66 + 2)  # two originals above two reconstructions


def test_a_finished_run_returns_at_once(tiny_parameters):
    p = tiny_parameters()
    run, metrics = trained(p)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}
    again = open_run(p.model_copy(update={"num_workers": 5}))  # hparams.json keeps what made the result
    assert engine.train(again, None, None) == metrics  # it does not even look at the data
    assert {path: path.stat().st_mtime_ns for path in before} == before


class Unplugged(RoiDataset):
    """A data set that dies after so many pictures."""

    left = 7

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def test_an_interrupted_run_goes_on_exactly(tiny_parameters, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "CHECKPOINT_SECONDS", 0)  # after every epoch
    p = tiny_parameters(which="hyperprior_eval_with_objs", max_steps=6)
    _, expected = trained(p)
    p = p.model_copy(update={"logdir": str(tmp_path / "again")})
    run, (train_data, test_data) = open_run(p), load_splits(p)
    with pytest.raises(KeyboardInterrupt):  # in the second epoch
        engine.train(run, Unplugged(train_data.samples), test_data)
    assert run.metrics is None
    assert torch.load(run.checkpoint, weights_only=True)["step"] == 2
    _, metrics = trained(p)
    assert metrics["history"] == expected["history"]
    assert [event.step for event in events(run).Scalars("batch/loss")] == [1, 2, 3, 4, 5, 6]


def test_interrupted_before_its_last_file(tiny_parameters):
    p = tiny_parameters()
    run, metrics = trained(p)
    (run.folder / "metrics.json").unlink()
    run.weights.unlink()
    assert trained(p)[1] == metrics
    assert run.weights.exists()


def test_a_checkpoint_every_fifty_epochs(tiny_parameters):
    p = tiny_parameters(max_steps=51)
    run, (train_data, _) = open_run(p), load_splits(p)
    metrics = engine.train(run, RoiDataset(train_data.samples[:1]), RoiDataset([]))
    assert (len(metrics["history"]), metrics["test"]) == (51, None)
    milestone = torch.load(run.checkpoint.with_name("epoch-0050.pt"), weights_only=True)
    assert (milestone["step"], milestone["epoch"]) == (50, 50)
    assert sorted(path.name for path in run.checkpoint.parent.iterdir()) == ["epoch-0050.pt", "last.pt"]
    assert [event.step for event in events(run).Images("test pictures")] == [50, 51]
    assert metrics["history"][-1]["train"]["loss"] < metrics["history"][0]["train"]["loss"]


@pytest.mark.parametrize("options", [ENGINES[0], ENGINES[2]])
def test_testing_the_weights_gives_the_trainings_last_test(tiny_parameters, options):
    run, metrics = trained(tiny_parameters(**options))
    p = tiny_parameters(what="test", model_load_file=str(run.weights), **options)
    tested = engine.test(open_run(p), load_splits(p)[1])
    assert tested["train"] is None
    assert tested["test"] == pytest.approx(metrics["test"], rel=1e-5)


def test_weights_of_another_model_are_refused(tiny_parameters):
    run, _ = trained(tiny_parameters())
    for change in ({"N": 16}, {"which": "hyperprior_with_obj_features", "zero_hooks": True}):
        p = tiny_parameters(what="test", model_load_file=str(run.weights), **change)
        with pytest.raises(ValueError, match=rf"^[^\n]*safetensors[^\n]*{next(iter(change))}[^\n]*$"):
            engine.test(open_run(p), load_splits(p)[1])


def test_no_pictures_to_work_on(tiny_parameters, tmp_path):
    with pytest.raises(ValueError, match="no training pictures"):
        trained(tiny_parameters(train_size_p1=0.0))
    p = tiny_parameters(what="test", model_load_file="w", train_size_p1=1.0)
    with pytest.raises(ValueError, match="no test pictures"):
        engine.test(open_run(p), load_splits(p)[1])


def test_aux_loss_moves_the_quantiles_and_nothing_else(tiny_parameters):
    p = tiny_parameters(which="hyperprior_with_obj_features", zero_hooks=True, max_steps=20)
    batch = next(iter(batches(load_splits(p)[0], p, train=True)))
    session = engine.start(p, steps_per_epoch=20)
    quantiles = {name: v for name, v in session.codec.named_parameters() if name.endswith(".quantiles")}
    assert len(quantiles) == 2
    optimised = {id(v) for group in session.optimizer.param_groups for v in group["params"]}
    assert optimised == {id(v) for v in session.codec.parameters()} - {id(v) for v in quantiles.values()}
    before = {name: v.detach().clone() for name, v in quantiles.items()}
    losses = [float(engine.train_step(session, batch)[0]["aux_loss"].detach()) for _ in range(20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], v) for name, v in quantiles.items())


def test_gradients_are_clipped(tiny_parameters):
    p = tiny_parameters(lmbda=100.0)
    session = engine.start(p, steps_per_epoch=3)
    engine.train_step(session, next(iter(batches(load_splits(p)[0], p, train=True))))
    norm = torch.stack([v.grad.norm() for group in session.optimizer.param_groups for v in group["params"]]).norm()
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_the_detector_is_no_part_of_what_is_trained(tiny_parameters):
    p = tiny_parameters(which="hyperprior_with_obj_features")
    session = engine.start(p, steps_per_epoch=3)
    session.model.train()
    before = [v.clone() for v in session.detector.state_dict().values()]
    engine.train_step(session, next(iter(batches(load_splits(p)[0], p, train=True))))
    assert all(torch.equal(a, b) for a, b in zip(before, session.detector.state_dict().values(), strict=True))
    assert not any("yolo" in name for name in session.state()["codec"])


def test_means_are_over_the_true_pixels():
    means = Means()
    means.add({"loss": 1.0, "mse_loss": 0.5, "roi_mse_loss": 0.1, "bg_mse_loss": 0.9}, pictures=3, roi_share=0.5)
    means.add({"loss": 5.0, "mse_loss": 0.2, "roi_mse_loss": 0.0, "bg_mse_loss": 0.2}, pictures=1, roi_share=0.0)
    result = means.result()
    assert result["loss"] == pytest.approx(2.0)
    assert result["roi_mse_loss"] == pytest.approx(0.1)  # the picture without objects says nothing
    assert result["bg_mse_loss"] == pytest.approx((3 * 0.5 * 0.9 + 0.2) / 2.5)
    assert result["psnr"] == pytest.approx(10 * math.log10(1 / result["mse_loss"]))
    empty = Means()
    empty.add({"loss": 1.0, "roi_mse_loss": 0.0}, pictures=2, roi_share=0.0)
    assert empty.result() == {"loss": 1.0}


def test_a_logdir_that_cannot_be(tiny_parameters, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^[^\n]*file[^\n]*logdir$"):
        open_run(tiny_parameters(logdir=str(tmp_path / "file")))


def test_the_command_line_trains_and_reports(tiny_parameters, capsys):
    p = tiny_parameters(max_steps=1)
    assert train.main([f"--{name}={value}" for name, value in p.model_dump().items()]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(str(p.folder))
    assert "bpp" in last
    assert (p.folder / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lambda=0.1"], "lambda"),
        (["--lmbda=x"], "lmbda"),
        (["--data_root=/nowhere"], "/nowhere"),
        (["--which=hyperprior", "--what=test", "--train_size_p1=0.5", "--model_load_file=/nowhere.safetensors"], "/nowhere.safetensors"),
    ],
)
def test_the_command_line_refuses_in_one_line(tiny_parameters, capsys, arguments, named):
    tiny = tiny_parameters().model_dump(include={"logdir", "data_root", "N", "M", "num_workers", "device"})
    assert train.main([f"--{name}={value}" for name, value in tiny.items()] + arguments) == 2
    shown = capsys.readouterr()
    assert named in shown.err
    assert len(shown.err.splitlines()) == 1
