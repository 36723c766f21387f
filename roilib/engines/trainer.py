"""The training loop, the same for every `which`.

    Trainer.fit ──► train_loop ──► training_step, for every batch
                └─► val_loop, after every epoch

TensorBoard gets the terms of every batch, the means of every epoch, and some pictures.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from compressai.models import CompressionModel
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import draw_bounding_boxes, make_grid
from tqdm import tqdm

from roilib.datasets.dataset import RoiDataset, batches
from roilib.engines.checkpoints import Interrupt
from roilib.engines.distributed import any_process, over_processes
from roilib.engines.meters import Means, Speed, progress_bar, summary
from roilib.engines.runs import Run
from roilib.engines.step import Session, forward, knobs, train_step
from roilib.models.range_coded import update_tables
from roilib.parameters import Parameters
from roilib.roi import Q_MAX

MILESTONE_EPOCHS = 50  # between checkpoints that are kept
SPEED_STEPS = 20  # between reports of speed and memory
LOADER_ERRORS = ("shared memory", "shm", "DataLoader worker")  # of torch's loader processes


class Trainer:
    """Trains a session's model. Only process 0 has a `writer`, and only process 0 writes files."""

    def __init__(
        self,
        run: Run,
        session: Session,
        train_data: RoiDataset | None,
        test_data: RoiDataset,
        writer: SummaryWriter | None = None,
    ):
        self.run, self.session, self.writer = run, session, writer
        group = {"rank": session.fabric.global_rank, "world_size": session.fabric.world_size}
        if train_data is not None:
            self.train_loader = batches(train_data, session.p, train=True, **group)
        self.test_loader = batches(test_data, session.p, train=False, **group)
        self.speed = Speed()
        self.saved = time.perf_counter()

    def fit(self, stop: Interrupt) -> None:
        """Train to the last step.

        Raises KeyboardInterrupt, with the state saved, once `stop` is requested.
        """
        session = self.session
        shown = self.writer is not None
        with progress_bar(session.total_steps, session.step, session.p.which, shown) as bar:
            # A run that was stopped after its last step has an epoch to end (position > 0).
            while session.step < session.total_steps or session.position:
                entry = {"train": self.train_loop(bar, stop)}
                if len(self.test_loader):
                    entry["test"] = self.val_loop()
                self.end_epoch(entry)
                bar.set_postfix_str(summary(entry), refresh=False)

    def train_loop(self, bar: tqdm, stop: Interrupt) -> dict[str, float]:
        """The rest of an epoch, up to the last step; returns the epoch's means."""
        session, sampler = self.session, self.train_loader.batch_sampler
        session.model.train()
        sampler.epoch, sampler.first = session.epoch + 1, session.position
        for batch in self.speed.waiting(prefetched(self.train_loader)):
            if session.step >= session.total_steps:
                break
            self.training_step(batch)
            bar.update()
            self.save_when_due(any_process(session.fabric, stop.requested))
        means, session.means = session.means.result(), Means()
        session.position = sampler.first = 0
        return means

    def training_step(self, batch: dict) -> None:
        """One update; its loss terms go to the epoch's means and to TensorBoard."""
        session = self.session
        places, size = self.train_loader.batch_sampler.places(session.position)
        terms, roi_mask, finite = train_step(session, batch, places, size)
        terms, pictures, roi_share = over_processes(session.fabric, terms, len(places), roi_mask)
        session.health.check(terms["loss"], finite, f"{self.run.folder}: step {session.step}")
        if finite:
            session.means.add(terms, pictures, roi_share)
        session.position += 1
        self.speed.pictures += pictures
        self.log("batch", terms | {"lr": session.scheduler.get_last_lr()[0]})
        if self.writer and session.step % SPEED_STEPS == 0:
            self.log("speed", self.speed.report() | {"skipped_steps": session.health.skipped})

    @torch.no_grad()
    def val_loop(self) -> dict[str, float]:
        """Means over the fixed test crops, quantised as at test time."""
        session, means = self.session, Means()
        session.model.eval()
        for number, batch in enumerate(prefetched(self.test_loader)):
            output, x, roi_mask = forward(session, batch)
            places, _ = self.test_loader.batch_sampler.places(number)
            terms = session.loss(output, x, roi_mask)
            means.add(*over_processes(session.fabric, terms, len(places), roi_mask))
        return means.result()

    def end_epoch(self, entry: dict[str, dict[str, float]]) -> None:
        """Add an epoch to the history and to TensorBoard; save what is due."""
        session = self.session
        session.epoch += 1
        place = {"epoch": session.epoch, "step": session.step}
        loss = entry.get("test", entry["train"]).get("loss", math.inf)
        if session.best is None or loss < session.best["loss"]:
            session.best = place | {"loss": loss}
        session.clock()
        seconds = session.seconds - sum(e.get("seconds", 0) for e in session.history)
        session.history.append(place | entry | {"seconds": seconds})
        for part, means in entry.items():
            self.log(f"epoch/{part}", means)
        done = session.step >= session.total_steps
        milestone = session.epoch % MILESTONE_EPOCHS == 0
        if done:
            self.save()
        if milestone and self.writer:
            self.run.checkpoints.save_milestone(session.state(), session.epoch)
        if (milestone or done) and self.writer:
            self.log_pictures(self.test_loader if len(self.test_loader) else self.train_loader)

    def save_when_due(self, stop: bool) -> None:
        """Save when the newest checkpoint is `checkpoint_seconds` old, or to stop.

        Raises KeyboardInterrupt to stop.
        """
        session = self.session
        late = time.perf_counter() - self.saved > session.p.checkpoint_seconds
        if any_process(session.fabric, late) or stop:
            self.save()
        if stop:
            raise KeyboardInterrupt(
                f"{self.run.folder}: stopped at step {session.step}, saved; the same command goes "
                "on from there"
            )

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self.session.clock()
        self.saved = time.perf_counter()
        if self.session.fabric.is_global_zero:
            self.run.checkpoints.save(self.session.state(), self.session.step)
        self.session.fabric.barrier()  # no process ends before it is written

    def log(self, group: str, values: dict[str, float]) -> None:
        """Values of this step to TensorBoard."""
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{group}/{name}", value, self.session.step)

    def log_pictures(self, loader: DataLoader, count: int = 4) -> None:
        """Crops with their boxes above their reconstructions to TensorBoard."""
        batch = next(iter(loader))
        decoded = reconstruct(self.session, batch)[:count]
        boxed = [
            draw_bounding_boxes(x, boxes, colors="yellow") if len(boxes) else x
            for x, boxes in zip(batch["x"][:count], batch["boxes"], strict=False)
        ]
        grid = make_grid(torch.stack([*boxed, *decoded]), nrow=len(boxed))
        self.writer.add_image("test pictures", grid, self.session.step)


@torch.no_grad()
def reconstruct(session: Session, batch: dict) -> Tensor:
    """The batch's decoded crops, uint8 (B, 3, S, S)."""
    session.model.eval()
    return forward(session, batch)[0]["x_hat"].float().clamp(0, 1).mul(255).round().byte().cpu()


@torch.no_grad()
def make_tables(
    model: CompressionModel,
    p: Parameters,
    train_data: RoiDataset,
    device: torch.device | str = "cpu",
    batches_seen: int = 4,
) -> None:
    """Make what coding needs beyond the weights: probability tables and integer networks.

    The integer networks of a roi_vbr are calibrated on some training crops, always the same.
    """
    model.eval()
    if p.which != "roi_vbr":
        update_tables(model)
        return
    seen, ends = [], () if p.fixed_rate else (0, Q_MAX)
    loader = batches(train_data, p.model_copy(update={"num_workers": 0}), train=True)
    for step, batch in zip(range(batches_seen), loader, strict=False):
        q, _, _ = knobs(p, batch["boxes"], p.compr_img_size, range(len(batch["x"])), step)
        x, q = batch["x"].to(device).float() / 255, q.to(device)
        seen += [(x, quality) for quality in (q, *(torch.full_like(q, end) for end in ends))]
    model.quantise(seen)


def prefetched(loader: DataLoader) -> Iterator[dict]:
    """The loader's batches; a thread makes the next one while one is used.

    Loader processes, where there are some, work ahead by themselves.
    """
    if loader.num_workers:
        yield from _from_processes(loader)
        return
    source = iter(loader)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, source, None)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(next, source, None)
            yield batch


def _from_processes(loader: DataLoader) -> Iterator[dict]:
    """The batches of a loader with processes.

    Raises ValueError with the one line of what failed in a process, or with advice when the
    processes cannot work at all.
    """
    try:
        torch.multiprocessing.Queue()  # fails as the loader's own would, but without its traceback
        yield from loader
    except ValueError as error:  # its message is the whole traceback of the process
        line = str(error).rstrip().rpartition("\n")[2]
        raise ValueError(line.removeprefix("ValueError: ")) from None
    except (OSError, RuntimeError) as error:
        line = str(error).rstrip().rpartition("\n")[2]
        if isinstance(error, RuntimeError) and not any(word in line for word in LOADER_ERRORS):
            raise
        raise ValueError(
            f"the {loader.num_workers} processes that load pictures cannot work ({line}): they "
            "need memory and room in /dev/shm (Docker: --shm-size); num_workers=0 needs neither"
        ) from None
