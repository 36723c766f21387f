"""Training and testing for every `which`: epochs, TensorBoard, checkpoints, results.

Every training epoch is followed by a test epoch. Terms of every batch and means of every epoch go to TensorBoard. A run can be killed at any
moment: the same call goes on from its newest checkpoint, to the same result.
"""

import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from compressai.models import CompressionModel
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import draw_bounding_boxes, make_grid
from tqdm import tqdm

from roilib.datasets.dataset import RoiDataset, batches
from roilib.engines.checkpoints import Interrupt, alone
from roilib.engines.distributed import agree, make_fabric
from roilib.engines.meters import Means, Speed
from roilib.engines.runs import Run
from roilib.engines.step import Session, forward, knobs, over_processes, start, train_step
from roilib.models.hyperprior import update_tables
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import save_weights
from roilib.parameters import Parameters
from roilib.roi import Q_MAX
from roilib.utils.files import read_json, write_json

MILESTONE_EPOCHS, SPEED_STEPS = 50, 20


class Training:
    """One call of `train`: the session and what surrounds it. Only process 0 has a writer and writes files."""

    def __init__(
        self,
        run: Run,
        session: Session,
        train_data: RoiDataset,
        test_data: RoiDataset,
        writer: SummaryWriter | None,
    ):
        self.run, self.session, self.writer = run, session, writer
        places = {"rank": session.fabric.global_rank, "world_size": session.fabric.world_size}
        self.train_loader = batches(train_data, session.p, train=True, **places)
        self.test_loader = batches(test_data, session.p, train=False, **places)
        self.speed = Speed()
        self.saved = self.started = time.perf_counter()

    def go(self, stop: Interrupt) -> None:
        """Epochs up to the last step. Raises KeyboardInterrupt, its state saved, when `stop` was requested."""
        session = self.session
        with progress(
            session.total_steps, session.step, session.p.which, shown=self.writer is not None
        ) as bar:
            while (
                session.step < session.total_steps or session.position
            ):  # stopped after its last step, an epoch is still to be ended
                entry = {"train": self.train_epoch(bar, stop)}
                if len(self.test_loader):
                    entry["test"] = test_epoch(session, self.test_loader)
                self.end_epoch(entry)
                bar.set_postfix_str(summary(entry), refresh=False)

    def train_epoch(self, bar: tqdm, stop: Interrupt) -> dict[str, float]:
        """What is left of one pass over the training pictures (or up to `max_steps`); the epoch's means."""
        session, sampler = self.session, self.train_loader.batch_sampler
        session.model.train()
        sampler.epoch, sampler.first = session.epoch + 1, session.position
        for batch in self.speed.waiting(prefetched(self.train_loader)):
            if session.step >= session.total_steps:
                break
            places, size = sampler.places(session.position)
            terms, roi_mask, finite = train_step(session, batch, places, size)
            values, pictures, roi_share = over_processes(
                session.fabric, terms, len(places), roi_mask
            )
            session.health.check(values["loss"], finite, f"{self.run.folder}: step {session.step}")
            if finite:
                session.means.add(values, pictures, roi_share)
            session.position += 1
            self.log_step(values, pictures)
            bar.update()
            self.save_in_time(agree(session.fabric, stop.requested))
        means, session.means, session.position, sampler.first = (
            session.means.result(),
            Means(),
            0,
            0,
        )
        return means

    def log_step(self, values: dict[str, float], pictures: int) -> None:
        """A step's terms to TensorBoard, and every SPEED_STEPS steps speed and memory."""
        self.speed.pictures += pictures
        if self.writer is None:
            return
        step = self.session.step
        for name, value in (values | {"lr": self.session.scheduler.get_last_lr()[0]}).items():
            self.writer.add_scalar(f"batch/{name}", value, step)
        if step % SPEED_STEPS == 0:
            for name, value in (
                self.speed.report() | {"skipped_steps": self.session.health.skipped}
            ).items():
                self.writer.add_scalar(f"speed/{name}", value, step)

    def save_in_time(self, stop: bool) -> None:
        """A checkpoint when the last one is `checkpoint_seconds` old or the run is to stop; then KeyboardInterrupt."""
        due = agree(
            self.session.fabric,
            time.perf_counter() - self.saved > self.session.p.checkpoint_seconds,
        )
        if due or stop:
            self.save()
        if stop:
            raise KeyboardInterrupt(
                f"{self.run.folder}: stopped at step {self.session.step}, saved; the same command goes on from there"
            )

    def save(self) -> None:
        """A checkpoint of this moment."""
        self.started = self.saved = self.session.clock(self.started)
        if self.session.fabric.is_global_zero:
            self.run.checkpoints.save(self.session.state(), self.session.step)
        self.session.fabric.barrier()  # nobody ends before it is written

    def end_epoch(self, entry: dict[str, dict[str, float]]) -> None:
        """History, TensorBoard, milestone and, at the end, checkpoint."""
        session = self.session
        session.epoch += 1
        session.history.append({"epoch": session.epoch, "step": session.step} | entry)
        loss = entry.get("test", entry["train"]).get("loss", math.inf)
        if session.best is None or loss < session.best["loss"]:
            session.best = {"epoch": session.epoch, "step": session.step, "loss": loss}
        done, milestone = session.step >= session.total_steps, session.epoch % MILESTONE_EPOCHS == 0
        if done:
            self.save()
        if self.writer is None:
            return
        for part, means in entry.items():
            for name, value in means.items():
                self.writer.add_scalar(f"epoch/{part}/{name}", value, session.step)
        if milestone:
            self.run.checkpoints.save_milestone(session.state(), session.epoch)
        if milestone or done:
            log_pictures(
                session,
                self.test_loader if len(self.test_loader) else self.train_loader,
                self.writer,
            )


def train(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """Train to the end (from the newest checkpoint where there is one) and write the run's files; returns its metrics.

    A finished run returns what it measured at once. Raises ValueError with one line when there is nothing to train on, another process trains this
    run, its data set has changed, the training diverges or its files cannot be written, KeyboardInterrupt with one line after Ctrl-C or SIGTERM; the
    same call then goes on.
    """
    p = run.parameters
    fabric = make_fabric(p)
    if (finished := fabric.broadcast(run.metrics)) is not None:  # what process 0 sees
        return finished
    if not len(train_data):
        raise ValueError(f"{p.data_root}: no training pictures (train_size_p1={p.train_size_p1})")
    session = start(p, math.ceil(len(train_data) / p.batch_size), fabric)
    with alone(run.checkpoints.folder) if fabric.is_global_zero else nullcontext():
        resumed = _resume(run, session)
        try:
            if fabric.is_global_zero:
                _note_splits(
                    run,
                    {"dataset": p.dataset, "train": train_data.ids, "test": test_data.ids},
                    resumed,
                )
            with (
                Interrupt() as stop,
                SummaryWriter(run.folder, purge_step=session.step + 1)
                if fabric.is_global_zero
                else nullcontext() as writer,
            ):
                Training(run, session, train_data, test_data, writer).go(stop)
            if not all(weight.isfinite().all() for weight in session.trained.parameters()):
                raise ValueError(
                    f"{run.folder}: diverged, its weights are no numbers; resume=false with a lower max_lr starts anew"
                )
            make_tables(session.trained, p, train_data, fabric.device)
            return _finish(run, session)
        except OSError as error:
            raise ValueError(
                f"{run.folder}: cannot be written ({error.strerror or error}); make room, then the same command goes on"
            ) from None


def _resume(run: Run, session: Session) -> bool:
    """Go on from the run's newest checkpoint; whether there is one. Raises ValueError for one of another model."""
    fabric = session.fabric
    state = fabric.broadcast(
        run.checkpoints.newest() if session.p.resume and fabric.is_global_zero else None
    )
    if state is None:
        return False
    try:
        session.load(state)
    except (RuntimeError, KeyError, ValueError) as error:
        why = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{run.folder}: its checkpoint is of a model that is built otherwise now ({why}); resume=false starts anew"
        ) from None
    fabric.print(f"resumed {run.folder.name} at epoch {session.epoch}, step {session.step}")
    return True


def _note_splits(run: Run, splits: dict, resumed: bool) -> None:
    """Write what the run trains and tests on. Raises ValueError when it began with others: its metrics would be of neither."""
    if resumed and run.splits.exists() and read_json(run.splits) != splits:
        raise ValueError(
            f"{run.splits}: the data set is another than the one it began with; resume=false starts anew"
        )
    write_json(run.splits, splits)


@torch.no_grad()
def make_tables(
    model: CompressionModel,
    p: Parameters,
    train_data: RoiDataset,
    device: torch.device | str = "cpu",
    batches_seen: int = 4,
) -> None:
    """What real coding needs beyond the weights: probability tables, and roi_vbr's integer networks, for which it looks at some training crops."""
    model.eval()
    if not isinstance(model, RoiVbr):
        update_tables(model)
        return
    seen, ends = [], () if p.fixed_rate else (0, Q_MAX)
    loader = batches(
        train_data, p.model_copy(update={"num_workers": 0}), train=True
    )  # always the same crops
    for step, batch in zip(range(batches_seen), loader, strict=False):
        q, _, _ = knobs(p, batch["boxes"], p.compr_img_size, range(len(batch["x"])), step)
        x, q = batch["x"].to(device).float() / 255, q.to(device)
        seen += [(x, quality) for quality in (q, *(torch.full_like(q, end) for end in ends))]
    model.quantise(seen)


@torch.no_grad()
def test_epoch(session: Session, loader: DataLoader) -> dict[str, float]:
    """Means over the fixed test crops, quantised as at test time."""
    session.model.eval()
    means = Means()
    for i, batch in enumerate(prefetched(loader)):
        output, x, roi_mask = forward(session, batch)
        places, _ = loader.batch_sampler.places(i)
        means.add(
            *over_processes(
                session.fabric, session.loss(output, x, roi_mask), len(places), roi_mask
            )
        )
    return means.result()


@torch.no_grad()
def reconstruct(session: Session, batch: dict) -> Tensor:
    """The batch's decoded crops, uint8 (B, 3, S, S)."""
    session.model.eval()
    return forward(session, batch)[0]["x_hat"].float().clamp(0, 1).mul(255).round().byte().cpu()


def log_pictures(
    session: Session, loader: DataLoader, writer: SummaryWriter, count: int = 4
) -> None:
    """Originals with their boxes above reconstructions, to TensorBoard."""
    batch = next(iter(loader))
    x_hat = reconstruct(session, batch)
    boxed = [
        draw_bounding_boxes(x, boxes, colors="yellow") if len(boxes) else x
        for x, boxes in zip(batch["x"][:count], batch["boxes"], strict=False)
    ]
    writer.add_image(
        "test pictures",
        make_grid(torch.stack([*boxed, *x_hat[:count]]), nrow=len(boxed)),
        session.step,
    )


def prefetched(loader: DataLoader) -> Iterator[dict]:
    """The loader's batches, the next one made in a thread while one is used; with loader processes, those work ahead themselves."""
    if loader.num_workers:
        yield from from_processes(loader)
        return
    source = iter(loader)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, source, None)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(next, source, None)
            yield batch


def from_processes(loader: DataLoader) -> Iterator[dict]:
    """The batches of a loader with processes. Raises ValueError with the line that went wrong in one, or with advice when they cannot work."""
    try:
        torch.multiprocessing.Queue()  # fails as the loader's own would, but alone
        yield from loader
    except ValueError as error:  # its message is the process's whole traceback
        raise ValueError(
            str(error).rstrip().rpartition("\n")[2].removeprefix("ValueError: ")
        ) from None
    except (OSError, RuntimeError) as error:
        line = str(error).rstrip().rpartition("\n")[2]
        if isinstance(error, RuntimeError) and not any(
            word in line for word in ("shared memory", "shm", "DataLoader worker")
        ):
            raise
        advice = (
            "they need memory and room in /dev/shm (Docker: --shm-size); num_workers=0 does without"
        )
        raise ValueError(
            f"the {loader.num_workers} processes that load pictures cannot work ({line}): {advice}"
        ) from None


def test(run: Run, test_data: RoiDataset) -> dict:
    """One test epoch with the weights of `model_load_file`; writes and returns the run's metrics, at once where it was done before."""
    fabric = make_fabric(run.parameters)
    if (finished := fabric.broadcast(run.metrics)) is not None:
        return finished
    if not len(test_data):
        raise ValueError(
            f"{run.parameters.data_root}: no test pictures (train_size_p1={run.parameters.train_size_p1})"
        )
    session = start(run.parameters, 1, fabric)
    started = time.perf_counter()
    places = {"rank": session.fabric.global_rank, "world_size": session.fabric.world_size}
    loader = batches(test_data, run.parameters, train=False, **places)
    session.history.append({"epoch": 0, "step": 0, "test": test_epoch(session, loader)})
    session.clock(started)
    return _finish(run, session)


def restore(run: Run) -> Session:
    """A session with a run's trained weights (the tested ones of a test run), to look at what they do."""
    return start(
        run.parameters.model_copy(update={"model_load_file": str(run.model_file)}),
        steps_per_epoch=1,
    )


def _finish(run: Run, session: Session) -> dict:
    last = {part: session.history[-1].get(part) for part in ("train", "test")}
    metrics = {
        "parameters": run.parameters.model_dump(),
        "steps": session.step,
        "history": session.history,
    } | last
    metrics |= {"best": session.best, "skipped_steps": session.health.skipped}
    if session.fabric.is_global_zero:
        if run.parameters.what == "train":
            save_weights(run.weights, session.trained, run.parameters, session.step)
        timing = {
            "seconds": session.seconds,
            "seconds_per_step": session.seconds / max(session.step, 1),
            "peak_memory_mb": session.peak_memory_mb,
        }
        where = {
            "device": str(session.fabric.device),
            "processes": session.fabric.world_size,
            "threads": torch.get_num_threads(),
        }
        write_json(
            run.folder / "timing.json",
            timing | where | {"precision": session.fabric.strategy.precision.precision},
        )
        write_json(run.folder / "metrics.json", metrics)
    session.fabric.barrier()
    return metrics


def progress(total: int, done: int, title: str, shown: bool = True) -> tqdm:
    """A bar of text, which terminals, JupyterLab and papermill's logs all show; TQDM_MININTERVAL sets how often."""
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="step",
        file=sys.stdout,
        ascii=" █",
        disable=not shown,
    )


def summary(entry: dict[str, dict[str, float]]) -> str:
    """The latest epoch's figures in a few words."""
    means = entry.get("test") or entry["train"]
    shown = {
        "loss": "loss {:.3f}",
        "bpp_loss": "{:.3f} bpp",
        "psnr": "{:.2f} dB",
        "roi_psnr": "ROI {:.2f} dB",
        "bg_psnr": "bg {:.2f} dB",
    }
    return ", ".join(text.format(means[name]) for name, text in shown.items() if name in means)
