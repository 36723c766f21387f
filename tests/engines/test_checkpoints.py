"""roilib.engines.checkpoints: whole files or none, and graceful interruption of real processes."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY

from roilib.cli import main
from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.engines import train
from roilib.engines.checkpoints import Checkpoints, Interrupt, load_checkpoint, save_checkpoint
from roilib.engines.runs import Run, open_run
from roilib.models.weights import read_weights


def begin(p, **options):
    """`python -m roilib train` with these parameters, on one thread."""
    command = [sys.executable, "-m", "roilib", "train", *p.arguments()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_step(p, step, process):
    """Return once the run has a checkpoint of `step` or later, or the process has ended."""
    while process.poll() is None:
        recent = Run(p.folder, p).checkpoints.recent()
        if recent and int(recent[0].stem.removeprefix("step-")) >= step:
            return
        time.sleep(0.01)


@pytest.fixture
def long_run(tiny_parameters):
    """A run of 60 steps with a checkpoint after each."""
    return tiny_parameters(
        which="hyperprior_eval_with_objs",
        batch_size=3,
        max_epochs=30,
        max_steps=None,
        checkpoint_seconds=0,
    )


@pytest.mark.slow
def test_resume_bit_identical_after_kill(long_run, tmp_path):
    torch.set_num_threads(1)
    expected = long_run.model_copy(
        update={"logdir": str(tmp_path / "uninterrupted"), "checkpoint_seconds": 1e9}
    )
    assert main(["train", *expected.arguments()]) == 0
    moments = sorted(random.sample(range(1, 55), 2))
    print("killed at about steps", moments)
    for moment in moments:
        process = begin(long_run)
        wait_for_step(long_run, moment, process)
        process.kill()
        process.communicate()
    assert Run(long_run.folder, long_run).metrics is None
    _, errors = (process := begin(long_run)).communicate()
    assert process.returncode == 0, errors
    first, second = (Run(p.folder, p) for p in (expected, long_run))
    assert first.metrics["history"] == second.metrics["history"]
    weights, again = read_weights(first.weights)[0], read_weights(second.weights)[0]
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
def test_a_run_that_ends_between_its_last_step_and_its_last_test_is_ended_by_the_next_call(
    tiny_parameters, tmp_path, monkeypatch
):
    p = tiny_parameters(
        checkpoint_seconds=0, max_steps=4, max_epochs=2, which="roi_vbr", M=48, lmbda=0.012
    )
    expected = p.model_copy(update={"logdir": str(tmp_path / "whole")})
    assert main(["train", *expected.arguments()]) == 0
    train_data, test_data = load_splits(p)
    run = open_run(p)

    class Gone(RoiDataset):
        """Test pictures that end the process in the second test epoch."""

        def __getitem__(self, i):
            if run.checkpoints.recent()[0].stem.endswith("4"):
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        train.train(run, train_data, Gone(test_data.samples))
    assert run.metrics is None
    assert run.checkpoints.newest()["step"] == 4
    assert main(["train", *p.arguments()]) == 0
    whole = Run(expected.folder, expected)
    assert run.metrics["history"] == whole.metrics["history"]
    (a, _), (b, _) = (read_weights(r.weights) for r in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)  # the integer networks too


@pytest.mark.slow
def test_an_interrupt_stops_all_processes_together(long_run):
    p = long_run.model_copy(update={"devices": 2})
    process = begin(p)
    wait_for_step(p, 3, process)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate()
    assert process.returncode == 130
    step = Run(p.folder, p).checkpoints.newest()["step"]
    assert f"{p.folder}: stopped at step {step}, saved" in said
    assert errors == f"roilib train: {p.folder}: stopped; see the lines above\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_so_in_one_line(long_run, number):
    process = begin(long_run)
    wait_for_step(long_run, 3, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    step = load_checkpoint(Run(long_run.folder, long_run).checkpoints.recent()[0])["step"]
    assert errors.splitlines() == [
        f"roilib train: {long_run.folder}: stopped at step {step}, saved; the same command goes "
        "on from there"
    ]


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_loses_nothing(tiny_parameters):
    p = tiny_parameters(checkpoint_seconds=0, max_steps=6, max_epochs=3)
    limit = 100_000  # bytes a file may have: less than a checkpoint, more than any other file
    process = begin(p, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = process.communicate()
    checkpoint = p.folder / "checkpoints" / "step-00000001.pt"
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1
    assert f"{checkpoint}: cannot be written (" in errors
    assert list(checkpoint.parent.iterdir()) == []
    assert main(["train", *p.arguments()]) == 0
    assert checkpoint.parent.joinpath("step-00000006.pt").stat().st_size > limit


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_it_used(tiny_parameters, capsys):
    p = tiny_parameters(checkpoint_seconds=0, max_steps=6, max_epochs=3)
    assert main(["train", *p.arguments()]) == 0
    run = Run(p.folder, p)
    metrics = run.metrics
    newest, before = run.checkpoints.recent()
    newest.write_bytes(newest.read_bytes()[:-1000])
    (p.folder / "metrics.json").unlink()
    capsys.readouterr()
    assert main(["train", *p.arguments()]) == 0
    said = capsys.readouterr().out
    assert f"{newest}: a damaged checkpoint" in said
    assert "resumed" in said
    assert "step 5" in said
    assert before.exists()
    assert newest.with_suffix(".pt.damaged").exists()
    assert run.metrics == metrics


@pytest.fixture
def state():
    return {"weights": torch.arange(1000.0), "step": 3, "history": [{"loss": 0.5}]}


def test_any_flipped_bit_is_found(tmp_path, state):
    path = tmp_path / "step-00000003.pt"
    save_checkpoint(path, state)
    assert load_checkpoint(path)["step"] == 3
    content = path.read_bytes()
    at = content.index(state["weights"].numpy().tobytes()[400:440])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"^[^\n]*step-00000003\.pt: a damaged checkpoint[^\n]*$"):
        load_checkpoint(path)


def test_the_newest_two_and_all_milestones_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_milestone(state, epoch=50)
    for step in (9, 10, 11, 100):
        checkpoints.save(state | {"step": step}, step)
    assert [path.name for path in checkpoints.all()] == [
        "step-00000100.pt",
        "step-00000011.pt",
        "epoch-0050.pt",
    ]
    assert checkpoints.newest()["step"] == 100
    for path in checkpoints.recent():
        path.write_bytes(b"")
    assert checkpoints.newest()["step"] == 3
    assert Checkpoints(tmp_path / "none").newest() is None


def test_a_second_signal_acts_as_usual():
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs start with it ignored
    try:
        with Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_loader_processes_leave_signals_to_their_parent(long_run):
    process = begin(long_run.model_copy(update={"num_workers": 2}), start_new_session=True)
    wait_for_step(long_run, 3, process)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, errors = process.communicate()
    assert process.returncode == 130
    assert len(errors.splitlines()) == 1


def test_resume_false_clears_every_checkpoint(tiny_parameters):
    p = tiny_parameters()
    run = open_run(p)
    (run.checkpoints.folder / "step-00000001.pt.damaged").write_bytes(b"")
    train.run(p.model_copy(update={"resume": False}))
    assert [path.suffix for path in run.checkpoints.folder.iterdir()] == [".pt"]


def test_a_checkpoint_of_a_model_built_otherwise_is_one_line(tiny_parameters):
    p = tiny_parameters()
    run, data = open_run(p), load_splits(p)
    train.train(run, *data)
    (run.folder / "metrics.json").unlink()  # as if it had not ended
    path = run.checkpoints.recent()[0]
    state = load_checkpoint(path)
    name, weight = next(iter(state["codec"].items()))
    state["codec"][name] = torch.zeros(2, *weight.shape)
    save_checkpoint(path, state)
    with pytest.raises(
        ValueError, match=r"^[^\n]*built otherwise now[^\n]*resume=false starts anew$"
    ) as error:
        train.train(run, *data)
    assert str(run.folder) in str(error.value)
