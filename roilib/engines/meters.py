"""What a training is watched by: means over an epoch, speed, and whether it has diverged."""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil
import torch
from tqdm import tqdm

from roilib.metrics import psnr_from_mse

SMOOTHING = 0.98  # weight of the past in the smoothed loss, per step
SETTLED_STEPS = 200  # until then a rising loss is no divergence
DIVERGED = 10  # the smoothed loss over its minimum
MAX_SKIPPED = 50  # steps in a row without finite gradients


class Means:
    """Means of named loss terms over batches, each weighted by the pixels that it is a mean of.

    ROI and background terms are weighted by their share of the mask, the rest by pictures.
    """

    def __init__(self):
        self.sums, self.weights = defaultdict(float), defaultdict(float)

    def add(self, terms: dict[str, float], pictures: int, roi_share: float | None) -> None:
        """Add one batch's terms; `roi_share` is the mean of its mask."""
        for name, value in terms.items():
            weight = pictures * term_share(name, roi_share)
            self.sums[name] += value * weight
            self.weights[name] += weight

    def result(self) -> dict[str, float]:
        """The means, with a PSNR in dB beside every MSE but 0; none of terms without pixels."""
        means = {name: self.sums[name] / w for name, w in self.weights.items() if w > 0}
        errors = {name: v for name, v in means.items() if name.endswith("mse_loss") and v}
        return means | {n.replace("mse_loss", "psnr"): psnr_from_mse(v) for n, v in errors.items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint in the middle of an epoch."""
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from `state_dict()`."""
        self.sums, self.weights = (defaultdict(float, state[name]) for name in ("sums", "weights"))


def term_share(name: str, roi_share: float | None) -> float:
    """The share of a batch's pixels that a loss term is a mean of."""
    if roi_share is None:
        return 1.0
    return {"roi_mse_loss": roi_share, "bg_mse_loss": 1 - roi_share}.get(name, 1.0)


class Speed:
    """Pictures a second and the share of time spent waiting for data, since the last `report`."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.pictures, self.waited, self.started = 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterable) -> Iterator:
        """The same batches; measures how long each takes to come."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def report(self) -> dict[str, float]:
        """`pictures_per_second`, `data_wait_share`, and memory in use: `process_mb`, `gpu_mb`."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "pictures_per_second": self.pictures / seconds,
            "data_wait_share": self.waited / seconds,
            "process_mb": psutil.Process().memory_info().rss / 2**20,
        }
        self._restart()
        if torch.cuda.is_available():
            values["gpu_mb"] = torch.cuda.memory_allocated() / 2**20
        return values


@dataclass
class Health:
    """Counts skipped steps and smooths the loss; `check` raises when a training has diverged."""

    skipped: int = 0
    in_a_row: int = 0
    steps: int = 0
    smooth: float = math.nan
    best: float = math.inf

    def check(self, loss: float, finite: bool, where: str) -> None:
        """Take a step's loss, and whether its gradients were finite (else it was skipped).

        Raises ValueError, which begins with `where`, when the training has diverged.
        """
        self.steps += 1
        if not finite or not math.isfinite(loss):
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row >= MAX_SKIPPED:
                raise ValueError(
                    f"{where}: diverged, {self.in_a_row} steps in a row had gradients that are "
                    "not finite; lower max_lr"
                )
            return
        self.in_a_row = 0
        settling = math.isnan(self.smooth)
        self.smooth = loss if settling else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        if self.steps >= SETTLED_STEPS:
            self.best = min(self.best, self.smooth)
            if self.smooth > DIVERGED * self.best:
                raise ValueError(
                    f"{where}: diverged, its mean loss rose from {self.best:.3g} to "
                    f"{self.smooth:.3g}; lower max_lr"
                )


def progress_bar(total: int, done: int, title: str, shown: bool = True) -> tqdm:
    """A bar of text, for terminals, JupyterLab and papermill; TQDM_MININTERVAL sets how often."""
    options = {"unit": "step", "file": sys.stdout, "ascii": " █", "disable": not shown}
    return tqdm(total=total, initial=done, desc=title, **options)


def summary(entry: dict[str, dict[str, float]]) -> str:
    """An epoch's loss, rate and PSNRs in a few words."""
    means = entry.get("test") or entry["train"]
    shown = {
        "loss": "loss {:.3f}",
        "bpp_loss": "{:.3f} bpp",
        "psnr": "{:.2f} dB",
        "roi_psnr": "ROI {:.2f} dB",
        "bg_psnr": "bg {:.2f} dB",
    }
    return ", ".join(text.format(means[name]) for name, text in shown.items() if name in means)
