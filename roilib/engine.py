"""Training and testing for every `which`, on any device, with Lightning Fabric.

    batches ──► detector (frozen) ──► model ──► loss ──► AdamW + OneCycleLR, clipped at 1
                                        └──► aux_loss ──► Adam on the entropy bottlenecks' quantiles

Every training epoch is followed by a test epoch. Terms of every batch and means of every epoch go to TensorBoard.
"""

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from compressai.models import CompressionModel
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import draw_bounding_boxes, make_grid
from tqdm import tqdm

from roilib.datasets import RoiDataset, batches
from roilib.detector import HookedDetector
from roilib.losses import RoiRateDistortionLoss
from roilib.metrics import psnr_from_mse
from roilib.models import HyperpriorWithObjFeatures, build_model, keep_entropy_models_in_fp32, load_weights, save_weights, update_tables
from roilib.parameters import Parameters
from roilib.runs import Run, peak_memory_mb, save_checkpoint, write_json

CLIP_NORM, AUX_LR, MILESTONE_EPOCHS, CHECKPOINT_SECONDS = 1.0, 1e-3, 50, 120
PROGRESS = ("step", "epoch", "seconds", "peak_memory_mb", "history")


@dataclass
class Session:
    """Everything that a run changes while it trains. `codec` is the bare model behind Fabric's `model`."""

    p: Parameters
    fabric: Fabric
    codec: CompressionModel
    model: nn.Module
    detector: HookedDetector | None
    loss: RoiRateDistortionLoss
    optimizer: torch.optim.Optimizer
    aux_optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    total_steps: int
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here."""
        parts = {name: getattr(self, name).state_dict() for name in ("codec", "optimizer", "aux_optimizer", "scheduler")}
        progress = {name: getattr(self, name) for name in PROGRESS}
        rng = {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
        return parts | progress | rng | {"precision": self.fabric.strategy.precision.state_dict(), "parameters": self.p.model_dump()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned."""
        for name in ("codec", "optimizer", "aux_optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])

    def clock(self, started: float) -> float:
        """Add the time since `started` and this process's peak memory to the run's; returns the time now."""
        now = time.perf_counter()
        self.seconds += now - started
        self.peak_memory_mb = {name: max(mb, self.peak_memory_mb.get(name, 0)) for name, mb in peak_memory_mb().items()}
        return now


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises ValueError for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    return chosen


def resolve_precision(precision: str, device: torch.device) -> str:
    """Fabric's name of a precision; `auto` is bf16 mixed where the hardware multiplies bf16 itself, else fp32."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision == "auto":
        precision = "bf16" if native else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def make_fabric(p: Parameters) -> Fabric:
    """Fabric on one device of the asked kind and precision."""
    device = resolve_device(p.device)
    devices = [device.index or 0] if device.type == "cuda" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=resolve_precision(p.precision, device))


def start(p: Parameters, steps_per_epoch: int) -> Session:
    """A session at step 0, with the weights of `model_load_file` where given."""
    fabric = make_fabric(p)
    fabric.seed_everything(p.seed, verbose=False)
    codec = keep_entropy_models_in_fp32(build_model(p)).to(fabric.device, memory_format=torch.channels_last)
    if p.model_load_file:
        load_weights(p.model_load_file, codec, p)
    named = dict(codec.named_parameters())
    quantiles = [v for name, v in named.items() if name.endswith(".quantiles")]
    optimizer = torch.optim.AdamW([v for name, v in named.items() if not name.endswith(".quantiles")], lr=p.max_lr)
    aux_optimizer = torch.optim.Adam(quantiles, lr=AUX_LR)
    total = min(p.max_epochs * steps_per_epoch, p.max_steps or sys.maxsize)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, p.max_lr, total_steps=max(total, 1))
    model, optimizer, aux_optimizer = fabric.setup(torch.compile(codec) if p.compile else codec, optimizer, aux_optimizer)
    detector = HookedDetector(p.detector_weights).to(fabric.device) if p.uses_detector else None
    alpha, form = (p.alpha, p.loss_form) if p.which == "hyperprior_with_obj_features" else (0.5, "corrected")  # the baselines' loss is the plain one
    loss = RoiRateDistortionLoss(p.lmbda, alpha, p.metric, form)
    return Session(p, fabric, codec, model, detector, loss, optimizer, aux_optimizer, scheduler, total)


def forward(session: Session, batch: dict) -> tuple[dict, Tensor, Tensor | None]:
    """The model's output for a batch of `batches`, with the target x and the ROI mask (None for the plain baseline)."""
    device = session.fabric.device
    x = (batch["x"].to(device, non_blocking=True).float() / 255).contiguous(memory_format=torch.channels_last)
    roi_mask = batch["roi_mask"].to(device, non_blocking=True) if session.p.uses_objects else None
    if not isinstance(session.codec, HyperpriorWithObjFeatures):
        return session.model(x), x, roi_mask
    features = session.detector.codec_features(batch["detector_x"].to(device).float() / 255) if session.detector else None
    return session.model(x, features, roi_mask), x, roi_mask


def train_step(session: Session, batch: dict) -> tuple[dict[str, Tensor], Tensor | None]:
    """One update of the model and of the quantiles; the loss terms (with `aux_loss`) and the mask."""
    output, x, roi_mask = forward(session, batch)
    terms = session.loss(output, x, roi_mask)
    session.optimizer.zero_grad()
    session.fabric.backward(terms["loss"])
    session.fabric.clip_gradients(session.model, session.optimizer, max_norm=CLIP_NORM, error_if_nonfinite=session.p.precision != "16")
    session.optimizer.step()
    session.scheduler.step()
    aux = session.codec.aux_loss()
    session.aux_optimizer.zero_grad()
    session.fabric.backward(aux)
    session.aux_optimizer.step()
    session.step += 1
    return terms | {"aux_loss": aux}, roi_mask


class Means:
    """Means of named terms over batches, each over the pixels it is a mean of: ROI MSEs by the ROI's share, the rest by pictures."""

    def __init__(self):
        self.sums, self.weights = defaultdict(float), defaultdict(float)

    def add(self, terms: dict[str, float], pictures: int, roi_share: float | None) -> None:
        """Add one batch's terms; roi_share is the mean of its mask."""
        for name, value in terms.items():
            share = 1.0 if roi_share is None else {"roi_mse_loss": roi_share, "bg_mse_loss": 1 - roi_share}.get(name, 1.0)
            self.sums[name] += value * pictures * share
            self.weights[name] += pictures * share

    def result(self) -> dict[str, float]:
        """The means, with PSNR in dB beside every MSE; a term that no pixel had is left out."""
        means = {name: self.sums[name] / weight for name, weight in self.weights.items() if weight > 0}
        return means | {name.replace("mse_loss", "psnr"): psnr_from_mse(v) for name, v in means.items() if name.endswith("mse_loss")}


def train_epoch(session: Session, loader: DataLoader, writer: SummaryWriter, bar: tqdm) -> dict[str, float]:
    """One pass over the training pictures (or up to `max_steps`); epoch means."""
    session.model.train()
    loader.batch_sampler.epoch = session.epoch + 1
    means = Means()
    for batch in loader:
        if session.step >= session.total_steps:
            break
        terms, roi_mask = train_step(session, batch)
        values = {name: float(v.detach()) for name, v in terms.items()}
        means.add(values, len(batch["x"]), None if roi_mask is None else float(roi_mask.mean()))
        for name, value in values.items():
            writer.add_scalar(f"batch/{name}", value, session.step)
        writer.add_scalar("batch/lr", session.scheduler.get_last_lr()[0], session.step)
        bar.update()
    return means.result()


@torch.no_grad()
def test_epoch(session: Session, loader: DataLoader) -> dict[str, float]:
    """Means over the fixed test crops, quantised as at test time."""
    session.model.eval()
    means = Means()
    for batch in loader:
        output, x, roi_mask = forward(session, batch)
        terms = {name: float(v) for name, v in session.loss(output, x, roi_mask).items()}
        means.add(terms, len(x), None if roi_mask is None else float(roi_mask.mean()))
    return means.result()


@torch.no_grad()
def reconstruct(session: Session, batch: dict) -> Tensor:
    """The batch's decoded crops, uint8 (B, 3, S, S)."""
    session.model.eval()
    return forward(session, batch)[0]["x_hat"].float().clamp(0, 1).mul(255).round().byte().cpu()


def log_pictures(session: Session, loader: DataLoader, writer: SummaryWriter, count: int = 4) -> None:
    """Originals with their boxes above reconstructions, to TensorBoard."""
    batch = next(iter(loader))
    x_hat = reconstruct(session, batch)
    boxed = [
        draw_bounding_boxes(x, boxes, colors="yellow") if len(boxes) else x for x, boxes in zip(batch["x"][:count], batch["boxes"], strict=False)
    ]
    writer.add_image("test pictures", make_grid(torch.stack([*boxed, *x_hat[:count]]), nrow=len(boxed)), session.step)


def train(run: Run, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """Train to the end (from the newest checkpoint where there is one) and write the run's files; returns its metrics.

    A finished run returns what it measured at once. Raises ValueError when there is nothing to train on.
    """
    p = run.parameters
    if run.metrics is not None:
        return run.metrics
    if not len(train_data):
        raise ValueError(f"{p.data_root}: no training pictures (train_size_p1={p.train_size_p1})")
    write_json(run.splits, {"dataset": p.dataset, "train": train_data.ids, "test": test_data.ids})
    train_loader, test_loader = batches(train_data, p, train=True), batches(test_data, p, train=False)
    session = start(p, len(train_loader))
    if p.resume and run.checkpoint.exists():
        session.load(torch.load(run.checkpoint, map_location="cpu", weights_only=True))
        print(f"resumed {run.folder.name} at epoch {session.epoch}, step {session.step}")
    with SummaryWriter(run.folder, purge_step=session.step + 1) as writer:
        _epochs(run, session, train_loader, test_loader, writer)
    update_tables(session.codec)
    save_weights(run.weights, session.codec, p, session.step)
    return _finish(run, session)


def _epochs(run: Run, session: Session, train_loader: DataLoader, test_loader: DataLoader, writer: SummaryWriter) -> None:
    started = saved = time.perf_counter()
    with progress(session.total_steps, session.step, session.p.which) as bar:
        while session.step < session.total_steps:
            entry = {"train": train_epoch(session, train_loader, writer, bar)}
            if len(test_loader):
                entry["test"] = test_epoch(session, test_loader)
            session.epoch += 1
            session.history.append({"epoch": session.epoch, "step": session.step} | entry)
            started = session.clock(started)
            for part, means in entry.items():
                for name, value in means.items():
                    writer.add_scalar(f"epoch/{part}/{name}", value, session.step)
            bar.set_postfix_str(summary(entry), refresh=False)
            if session.epoch % MILESTONE_EPOCHS == 0:
                save_checkpoint(run.checkpoint.with_name(f"epoch-{session.epoch:04d}.pt"), session.state())
            if session.epoch % MILESTONE_EPOCHS == 0 or session.step >= session.total_steps:
                log_pictures(session, test_loader if len(test_loader) else train_loader, writer)
            if session.step >= session.total_steps or started - saved > CHECKPOINT_SECONDS:
                save_checkpoint(run.checkpoint, session.state())
                saved = started


def test(run: Run, test_data: RoiDataset) -> dict:
    """One test epoch with the weights of `model_load_file`; writes and returns the run's metrics, at once where it was done before."""
    if run.metrics is not None:
        return run.metrics
    if not len(test_data):
        raise ValueError(f"{run.parameters.data_root}: no test pictures (train_size_p1={run.parameters.train_size_p1})")
    session = start(run.parameters, steps_per_epoch=1)
    started = time.perf_counter()
    session.history.append({"epoch": 0, "step": 0, "test": test_epoch(session, batches(test_data, run.parameters, train=False))})
    session.clock(started)
    return _finish(run, session)


def restore(run: Run) -> Session:
    """A session with a run's trained weights (the tested ones of a test run), to look at what they do."""
    weights = run.parameters.model_load_file if run.parameters.what == "test" else str(run.weights)
    return start(run.parameters.model_copy(update={"model_load_file": weights}), steps_per_epoch=1)


def _finish(run: Run, session: Session) -> dict:
    last = {part: session.history[-1].get(part) for part in ("train", "test")}
    metrics = {"parameters": run.parameters.model_dump(), "steps": session.step, "history": session.history} | last
    timing = {"seconds": session.seconds, "seconds_per_step": session.seconds / max(session.step, 1), "peak_memory_mb": session.peak_memory_mb}
    where = {"device": str(session.fabric.device), "precision": session.fabric.strategy.precision.precision, "threads": torch.get_num_threads()}
    write_json(run.folder / "timing.json", timing | where)
    write_json(run.folder / "metrics.json", metrics)
    return metrics


def progress(total: int, done: int, title: str) -> tqdm:
    """A bar of text, which terminals, JupyterLab and papermill's logs all show; TQDM_MININTERVAL sets how often."""
    return tqdm(total=total, initial=done, desc=title, unit="step", file=sys.stdout, ascii=" █")


def summary(entry: dict[str, dict[str, float]]) -> str:
    """The latest epoch's figures in a few words."""
    means = entry.get("test") or entry["train"]
    shown = {"loss": "loss {:.3f}", "bpp_loss": "{:.3f} bpp", "psnr": "{:.2f} dB", "roi_psnr": "ROI {:.2f} dB", "bg_psnr": "bg {:.2f} dB"}
    return ", ".join(text.format(means[name]) for name, text in shown.items() if name in means)
