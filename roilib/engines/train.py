"""Training and testing a run: from its folder to its results.

    train_or_test ──► one device: train or test, in this process
                  └─► several: launch, which calls train_or_test in one process per device

A run can be killed at any moment: the same call goes on from its newest checkpoint, to the same
result. On several machines, start this on each of them:

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-endpoint=HOST:PORT -m roilib train --name=value …
"""

import math
import warnings
from contextlib import nullcontext

import torch
from torch.utils.tensorboard import SummaryWriter

from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.engines.checkpoints import Interrupt, locked
from roilib.engines.distributed import (
    launch,
    make_fabric,
    process_count,
    rank,
    started_by_torchrun,
)
from roilib.engines.runs import (
    Run,
    begin_anew,
    check_pictures,
    data_change,
    data_splits,
    discard,
    open_run,
    removed_pictures,
    shorter_run,
)
from roilib.engines.step import Session, start
from roilib.engines.trainer import Trainer, make_tables
from roilib.models.weights import detector_hash, save_weights
from roilib.parameters import Parameters
from roilib.utils.device import out_of_memory
from roilib.utils.files import write_json

MOST_LIKELY_LMBDA = 1.0  # with mse; CompressAI's models have at most 0.18


def run(p: Parameters) -> tuple[Run, dict]:
    """Load the data, train or test, and return the run and its metrics.

    Raises what `load_splits`, `open_run` and `train_or_test` raise.
    """
    data = load_splits(p)
    run = open_run(p) if rank() == 0 else Run(p.folder, p)
    return run, train_or_test(run, *data)


def train_or_test(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """Do what `run.parameters.what` says, on all its devices; returns the run's metrics.

    A run that is refused before it begins leaves nothing behind. Raises what `train` raises, and
    ValueError with advice when memory does not suffice.
    """
    p = run.parameters
    try:
        processes = 1 if started_by_torchrun() or _finished(run) else process_count(p)
        if processes > 1:
            launch(p, processes)
            return run.metrics
        return train(run, train_data, test_data) if p.what == "train" else test(run, test_data)
    except ValueError:
        if rank() == 0:
            discard(run)
        raise
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        names = ("device", "batch_size", "compr_img_size", "N", "M")
        settings = ", ".join(f"{name}={getattr(p, name)}" for name in names)
        raise ValueError(
            f"{run.folder}: not enough memory for {settings}; take a smaller batch_size, or more "
            "devices"
        ) from None


def train(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """Train, from the newest checkpoint where there is one, and write the run's files.

    A run whose `max_steps` was raised goes on from the finished shorter one. Returns the run's
    metrics; of a finished run at once.

    Raises ValueError with one line when there are no training pictures or unreadable ones, another
    process trains this run, its data has changed, it diverges or its files cannot be written;
    KeyboardInterrupt with one line after Ctrl-C or SIGTERM. The same call then goes on.
    """
    p = run.parameters
    fabric = make_fabric(p)
    first = fabric.is_global_zero
    splits = _checked_splits(run, train_data, test_data) if first else {}
    if (finished := fabric.broadcast(_finished(run))) is not None:  # as process 0 sees it
        return finished
    if first and p.metric == "mse" and p.lmbda > MOST_LIKELY_LMBDA:
        warnings.warn(
            f"lmbda={p.lmbda:g}: the loss has lmbda * 255² * mse, so the paper's 240 is 0.0037",
            stacklevel=2,
        )
    if not len(train_data):
        raise ValueError(f"{p.data_root}: no training pictures (train_size_p1={p.train_size_p1})")
    session = start(p, math.ceil(len(train_data) / p.batch_size), fabric)
    with locked(run.folder) if first else nullcontext():
        _resume(run, session, splits)
        try:
            if first and not p.resume:
                begin_anew(run)
            if first:
                write_json(run.splits, splits)
            log = SummaryWriter(run.folder, purge_step=session.step + 1) if first else nullcontext()
            with Interrupt() as stop, log as writer:
                Trainer(run, session, train_data, test_data, writer).fit(stop)
            if not all(weight.isfinite().all() for weight in session.trained.parameters()):
                raise ValueError(
                    f"{run.folder}: diverged, its weights are not finite; resume=false with a "
                    "lower max_lr starts anew"
                )
            make_tables(session.trained, p, train_data, fabric.device)
            return _finish(run, session)
        except OSError as error:
            raise ValueError(
                f"{run.folder}: cannot be written ({error.strerror or error}); make room, then "
                "the same command goes on"
            ) from None


def test(run: Run, test_data: RoiDataset) -> dict:
    """One test epoch with the weights of `model_load_file`; writes and returns the run's metrics.

    A finished run returns at once.
    """
    p = run.parameters
    fabric = make_fabric(p)
    splits = _checked_splits(run, RoiDataset([]), test_data) if fabric.is_global_zero else {}
    if (finished := fabric.broadcast(_finished(run))) is not None:
        return finished
    if not len(test_data):
        raise ValueError(f"{p.data_root}: no test pictures (train_size_p1={p.train_size_p1})")
    session = start(p, 1, fabric)
    if fabric.is_global_zero:
        if not p.resume:
            begin_anew(run)
        write_json(run.splits, splits)
    means = Trainer(run, session, None, test_data).val_loop()
    session.clock()
    session.history.append({"epoch": 0, "step": 0, "test": means, "seconds": session.seconds})
    return _finish(run, session)


def _finished(run: Run) -> dict | None:
    """The metrics of a finished run that is not to begin anew."""
    return run.metrics if run.parameters.resume else None


def _checked_splits(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """The run's data: what it began with, or else readable pictures.

    While it trains, a few training pictures may be removed, as unreadable ones: it goes on without
    them, and its splits.json says so.
    """
    splits = data_splits(run.parameters, train_data, test_data)
    if not (run.begun and run.parameters.resume):
        check_pictures(train_data, test_data)
        return splits
    earlier = run.noted.get("removed", {})
    change = data_change(run, splits)
    if change:
        check_pictures(train_data, test_data)
        removed = removed_pictures(run, splits) if run.metrics is None else {}
        if removed:
            warnings.warn(
                f"{run.folder}: goes on without {', '.join(removed)}, which trained it before and "
                "is gone",
                stacklevel=2,
            )
            return splits | {"removed": earlier | removed}
        raise ValueError(
            f"{run.splits}: the data set is another than the one that the run began with "
            f"({change}); resume=false starts anew, another logdir keeps both"
        )
    return splits | {"removed": earlier} if earlier else splits


def _resume(run: Run, session: Session, splits: dict) -> None:
    """Load the run's newest checkpoint, or that of a shorter run on the same data, if any.

    Raises ValueError for a checkpoint of another model.
    """
    fabric, source, state = session.fabric, run, None
    if session.p.resume and fabric.is_global_zero:
        state = run.checkpoints.newest()
        shorter = shorter_run(run) if state is None else None
        if shorter and data_change(shorter, splits) is None:
            source, state = shorter, shorter.checkpoints.newest()
            if state is not None:
                state["continues"] = {"run": shorter.folder.name, "step": state["step"]}
    if (state := fabric.broadcast(state)) is None:
        return
    try:
        session.load(state)
    except (RuntimeError, KeyError, ValueError) as error:
        why = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{source.folder}: its checkpoint is of a model that is built otherwise now ({why}); "
            "resume=false starts anew"
        ) from None
    fabric.print(f"resumed {source.folder.name} at epoch {session.epoch}, step {session.step}")


def _finish(run: Run, session: Session) -> dict:
    """Write weights, timing.json and metrics.json; returns the metrics."""
    p, fabric = run.parameters, session.fabric
    history = [{k: v for k, v in e.items() if k != "seconds"} for e in session.history]
    metrics = {
        "parameters": p.model_dump(),
        "steps": session.step,
        "history": history,
        "train": history[-1].get("train"),
        "test": history[-1].get("test"),
        "best": session.best,
        "skipped_steps": session.health.skipped,
    }
    if session.continues:
        metrics["continues"] = session.continues
    if fabric.is_global_zero:
        if p.what == "train":
            save_weights(run.weights, session.trained, p, session.step, **detector_hash(p))
        timing = {
            "seconds": session.seconds,
            "seconds_per_step": session.seconds / max(session.step, 1),
            "seconds_of_epochs": [entry.get("seconds") for entry in session.history],
            "peak_memory_mb": session.peak_memory_mb,
            "device": str(fabric.device),
            "processes": fabric.world_size,
            "threads": torch.get_num_threads(),
            "precision": fabric.strategy.precision.precision,
        }
        write_json(run.folder / "timing.json", timing)
        write_json(run.folder / "metrics.json", metrics)
    fabric.barrier()
    return metrics
