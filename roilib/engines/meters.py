"""What a training is watched by: means over an epoch, speed, and whether it still makes sense to go on."""

import math
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil
import torch

from roilib.metrics import psnr_from_mse

SMOOTHING, SETTLED_STEPS, FACTOR, SKIPPED_IN_A_ROW = 0.98, 200, 10, 50


class Means:
    """Means of named terms over batches, each over the pixels it is a mean of: ROI MSEs by the ROI's share, the rest by pictures."""

    def __init__(self):
        self.sums, self.weights = defaultdict(float), defaultdict(float)

    def add(self, terms: dict[str, float], pictures: int, roi_share: float | None) -> None:
        """Add one batch's terms; roi_share is the mean of its mask."""
        for name, value in terms.items():
            weight = pictures * term_share(name, roi_share)
            self.sums[name] += value * weight
            self.weights[name] += weight

    def result(self) -> dict[str, float]:
        """The means, with PSNR in dB beside every MSE but 0; a term that no pixel had is left out."""
        means = {
            name: self.sums[name] / weight for name, weight in self.weights.items() if weight > 0
        }
        return means | {
            name.replace("mse_loss", "psnr"): psnr_from_mse(v)
            for name, v in means.items()
            if name.endswith("mse_loss") and v
        }

    def state_dict(self) -> dict[str, dict[str, float]]:
        """For a checkpoint in the middle of an epoch."""
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from `state_dict()`."""
        self.sums, self.weights = (defaultdict(float, state[name]) for name in ("sums", "weights"))


def term_share(name: str, roi_share: float | None) -> float:
    """The share of a batch's pixels that a loss term is a mean over."""
    return (
        1.0
        if roi_share is None
        else {"roi_mse_loss": roi_share, "bg_mse_loss": 1 - roi_share}.get(name, 1.0)
    )


class Speed:
    """Pictures a second and the share of the time spent waiting for data, since the last `report`."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self.pictures, self.waited, self.started = 0, 0.0, time.perf_counter()

    def waiting(self, batches):
        """The same batches; the time that each takes to come counts as waiting."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def report(self) -> dict[str, float]:
        """`pictures_per_second`, `data_wait_share`, and the memory now in use in MB: `process_mb`, `gpu_mb`."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        values = {
            "pictures_per_second": self.pictures / seconds,
            "data_wait_share": self.waited / seconds,
        }
        self._restart()
        values["process_mb"] = psutil.Process().memory_info().rss / 2**20
        if torch.cuda.is_available():
            values["gpu_mb"] = torch.cuda.memory_allocated() / 2**20
        return values


@dataclass
class Health:
    """Counts skipped steps and follows the smoothed loss; `check` raises when a training has diverged."""

    skipped: int = 0
    in_a_row: int = 0
    steps: int = 0
    smooth: float = math.nan
    best: float = math.inf

    def check(self, loss: float, finite: bool, where: str) -> None:
        """After every step: its loss, and whether its gradients were finite (else it was skipped)."""
        self.steps += 1
        if not finite or not math.isfinite(loss):
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row >= SKIPPED_IN_A_ROW:
                raise ValueError(
                    f"{where}: diverged, {self.in_a_row} steps in a row had gradients that are not finite; lower max_lr"
                )
            return
        self.in_a_row = 0
        self.smooth = (
            loss if math.isnan(self.smooth) else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        )
        if self.steps >= SETTLED_STEPS:
            self.best = min(self.best, self.smooth)
            if self.smooth > FACTOR * self.best:
                raise ValueError(
                    f"{where}: diverged, its mean loss rose from {self.best:.3g} to {self.smooth:.3g}; lower max_lr"
                )
