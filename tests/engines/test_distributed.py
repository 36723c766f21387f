"""roilib.engines.distributed: two processes train and test as one does."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, write_tiny_kitti
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roilib.cli import main
from roilib.datasets.dataset import EpochSampler
from roilib.engines.distributed import over_processes, process_count
from roilib.engines.runs import Run, open_run
from roilib.engines.step import start


def loss_curve(run):
    log = EventAccumulator(str(run.folder))
    log.Reload()
    return {
        name: [event.value for event in log.Scalars(f"batch/{name}")]
        for name in ("loss", "bpp_loss", "roi_mse_loss", "bg_mse_loss", "aux_loss")
    }


@pytest.fixture(scope="module")
def odd_kitti(tmp_path_factory):
    """Ten training and five test pictures: a batch of 9 is followed by one of a single picture."""
    return write_tiny_kitti(tmp_path_factory.mktemp("odd"), pictures=15)


@pytest.mark.slow
def test_two_processes_with_the_global_batch_are_one(tiny_parameters, odd_kitti, tmp_path):
    """One of them has no picture of its own in every second batch."""
    options = {
        "which": "hyperprior_with_obj_features",
        "mask_hooks": True,
        "alpha": 0.9,
        "data_root": str(odd_kitti),
        "batch_size": 9,
    }
    options |= {"train_size_p1": 0.67, "max_epochs": 12, "max_steps": None}
    p = tiny_parameters(**options)
    one, two = (
        p.model_copy(update={"logdir": str(tmp_path / str(n)), "devices": n}) for n in (1, 2)
    )
    assert [main(["train", *q.arguments()]) for q in (one, two)] == [0, 0]
    one, two = Run(one.folder, one), Run(two.folder, two)
    assert json.loads((two.folder / "timing.json").read_text())["processes"] == 2
    curves = loss_curve(one), loss_curve(two)
    assert len(curves[0]["loss"]) == 24
    for name, values in curves[0].items():
        assert curves[1][name] == pytest.approx(values, rel=1e-3, abs=1e-7), name
    for part in ("train", "test"):
        assert two.metrics[part] == pytest.approx(one.metrics[part], rel=1e-4)
    assert len(list(two.folder.glob("events.out.tfevents.*"))) == 1  # only process 0 writes
    assert not list(two.folder.rglob("*.tmp"))


def test_the_sampler_cuts_every_batch_among_the_processes():
    whole = EpochSampler(10, 4, seed=3, shuffle=True)
    parts = [
        EpochSampler(10, 4, seed=3, shuffle=True, rank=rank, world_size=3) for rank in range(3)
    ]
    for sampler in (whole, *parts):
        sampler.epoch, sampler.first = 5, 1
    batches = list(whole)
    assert [len(batch) for batch in batches] == [4, 2]
    for number, (batch, *cut) in enumerate(zip(batches, *parts, strict=True), start=1):
        together = {}
        for sampler, part in zip(parts, cut, strict=True):
            places, size = sampler.places(number)
            assert size == len(batch)
            assert part == [batch[i] for i in places or [0]]
            together |= dict(zip(places, part, strict=False))
        assert [together[i] for i in range(len(batch))] == batch


def test_more_gpus_than_there_are_is_an_error(tiny_parameters):
    count = torch.cuda.device_count()
    if not count:
        pytest.skip("no GPU here")
    assert process_count(tiny_parameters(device="cuda")) == count
    assert process_count(tiny_parameters(device="cuda:0")) == 1
    with pytest.raises(ValueError, match=rf"devices={count + 1}, but "):
        process_count(tiny_parameters(device="cuda", devices=count + 1))


def test_one_process_passes_terms_through(tiny_parameters):
    fabric = start(tiny_parameters(), 1).fabric
    mask = torch.tensor([1.0, 0, 0, 0])
    assert over_processes(fabric, {"loss": torch.tensor(2.5)}, 3, mask) == ({"loss": 2.5}, 3, 0.25)
    assert over_processes(fabric, {"loss": torch.tensor(2.5)}, 3, None) == ({"loss": 2.5}, 3, None)


@pytest.mark.slow
def test_a_failure_in_the_group_is_reported(tiny_parameters, capsys):
    p = tiny_parameters(devices=2, max_lr=1e30, max_epochs=100, max_steps=None)
    assert main(["train", *p.arguments()]) == 2
    shown = capsys.readouterr()
    assert "diverged" in shown.out
    assert (
        shown.err
        == f"roilib train: {p.folder}: one of its 2 processes failed; see the lines above\n"
    )


@pytest.mark.slow
def test_torchrun_is_the_entry_on_a_cluster(tiny_parameters):
    p = tiny_parameters(max_steps=2)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "roilib",
        "train",
        *p.arguments(),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert open_run(p).metrics["steps"] == 2
