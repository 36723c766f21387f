"""One training's state, and one step of it.

    batch ──► detector (frozen) ──► model ──► loss ──► AdamW + OneCycleLR, clipped at 1
                                      └──► aux_loss ──► Adam on the entropy bottlenecks' quantiles

The same on one process or on many: each codes its share of a step's global batch, gradients and terms are means over the whole batch.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from compressai.models import CompressionModel
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from roilib import roi
from roilib.engines.distributed import make_fabric
from roilib.engines.meters import Health, Means, term_share
from roilib.engines.optimizers import MuonAdamW, takes_muon
from roilib.entropy_models.noise import QuantisationNoise
from roilib.losses import RoiRateDistortionLoss, VariableRateLoss
from roilib.models.build import build_model
from roilib.models.detector import HookedDetector
from roilib.models.hyperprior import HyperpriorWithObjFeatures, keep_entropy_models_in_fp32
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import load_weights
from roilib.parameters import Parameters
from roilib.utils.device import peak_memory_mb

CLIP_NORM, AUX_LR, MUON_LR, LINEAR_LR = 1.0, 1e-3, 2.5, 0.25  # the latter two as shares of max_lr
PROGRESS = ("step", "epoch", "position", "seconds", "peak_memory_mb", "history", "best")


@dataclass
class Session:
    """Everything that a run changes while it trains. `codec` is the bare model behind Fabric's `model`; `position` counts this epoch's batches."""

    p: Parameters
    fabric: Fabric
    codec: CompressionModel
    model: nn.Module
    detector: HookedDetector | None
    loss: RoiRateDistortionLoss | VariableRateLoss
    noise: QuantisationNoise
    optimizer: torch.optim.Optimizer
    aux_optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    total_steps: int
    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    means: Means = field(default_factory=Means)
    health: Health = field(default_factory=Health)
    ema: AveragedModel | None = None

    @property
    def trained(self) -> CompressionModel:
        """The model that is tested and saved: the moving average where there is one."""
        return self.ema.module if self.ema else self.codec

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here, also in the middle of an epoch."""
        parts = {
            name: getattr(self, name).state_dict()
            for name in ("codec", "optimizer", "aux_optimizer", "scheduler", "means")
        }
        progress = {name: getattr(self, name) for name in PROGRESS} | {"health": vars(self.health)}
        rng = {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
        if self.ema:
            parts["ema"] = self.ema.state_dict()
        return (
            parts
            | progress
            | rng
            | {
                "precision": self.fabric.strategy.precision.state_dict(),
                "parameters": self.p.model_dump(),
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned."""
        for name in ("codec", "optimizer", "aux_optimizer", "scheduler", "means"):
            getattr(self, name).load_state_dict(state[name])
        for name in PROGRESS:
            setattr(self, name, state[name])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.health = Health(**state["health"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])

    def clock(self, started: float) -> float:
        """Add the time since `started` and this process's peak memory to the run's; returns the time now."""
        now = time.perf_counter()
        self.seconds += now - started
        self.peak_memory_mb = {
            name: max(mb, self.peak_memory_mb.get(name, 0)) for name, mb in peak_memory_mb().items()
        }
        return now


def start(p: Parameters, steps_per_epoch: int, fabric: Fabric | None = None) -> Session:
    """A session at step 0, with the weights of `model_load_file` where given."""
    fabric = fabric or make_fabric(p)
    fabric.seed_everything(p.seed, verbose=False)
    codec = keep_entropy_models_in_fp32(build_model(p)).to(
        fabric.device, memory_format=torch.channels_last
    )
    if p.model_load_file is not None:
        load_weights(p.model_load_file, codec, p)
    noise = QuantisationNoise(codec, p.seed)
    quantiles = {name: v for name, v in codec.named_parameters() if name.endswith(".quantiles")}
    # The quantiles' loss is the same on every process, so their gradients need no exchange; the models' forward does not use them.
    # Nor do the integer networks, which stay on the CPU and are empty until training has ended.
    ignored = [*quantiles, *(name for name, _ in codec.named_buffers() if "_integer." in name)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(codec, ignored)
    optimizer = make_optimizer(
        p, {name: v for name, v in codec.named_parameters() if name not in quantiles}
    )
    aux_optimizer = torch.optim.Adam(quantiles.values(), lr=AUX_LR)
    total = min(p.max_epochs * steps_per_epoch, p.max_steps or sys.maxsize)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=max(total, 1), pct_start=p.warmup
    )
    model, optimizer, aux_optimizer = fabric.setup(
        compiled(codec) if p.compile else codec, optimizer, aux_optimizer
    )
    detector = (
        HookedDetector(p.detector_weights).to(fabric.device, memory_format=torch.channels_last)
        if p.uses_detector
        else None
    )
    alpha, form = (
        (p.alpha, p.loss_form) if p.which == "hyperprior_with_obj_features" else (0.5, "corrected")
    )  # the baselines' loss is the plain one
    loss = (
        VariableRateLoss()
        if p.which == "roi_vbr"
        else RoiRateDistortionLoss(p.lmbda, alpha, p.metric, form)
    )
    ema = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(p.ema)) if p.ema else None
    return Session(
        p,
        fabric,
        codec,
        model,
        detector,
        loss,
        noise,
        optimizer,
        aux_optimizer,
        scheduler,
        total,
        ema=ema,
    )


def compiled(codec: CompressionModel) -> nn.Module:
    """torch.compile of a model; of a RoiVbr, whose gains depend on which quality indices there are, of its networks one by one, in place."""
    if not isinstance(codec, RoiVbr):
        return torch.compile(codec)
    for network in (
        codec.g_a,
        codec.g_s,
        codec.h_a,
        codec.h_s,
        *(net for nets in codec.e for net in nets),
    ):
        network.compile()
    return codec


def make_optimizer(p: Parameters, weights: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """What trains these weights; its groups' learning rates are their peaks."""
    settings = {"lr": p.max_lr, "fused": p.precision != "16"}
    if p.optimizer == "adamw":
        return torch.optim.AdamW(weights.values(), **settings)
    transforms = {
        name for name in weights if name.startswith(("a_lin", "s_lin"))
    }  # a DCT at first, to be changed with care
    matrices = {name for name, v in weights.items() if takes_muon(v)} - transforms
    rest = weights.keys() - transforms - matrices
    kinds = (
        (matrices, {"lr": MUON_LR * p.max_lr, "muon": True}),
        (transforms, {"lr": LINEAR_LR * p.max_lr}),
        (rest, {}),
    )
    return MuonAdamW(
        [
            {"params": [v for name, v in weights.items() if name in names]} | kind
            for names, kind in kinds
            if names
        ],
        **settings,
    )


def knobs(
    p: Parameters, boxes: list[Tensor], side: int, places: Iterable[int], step: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of roi_vbr's pictures: quality indices (B, 1, side/16, side/16), λ of each pixel and ROI mask (B, 1, side, side).

    Drawn anew for each picture of a training step, by seed, step and place. With step None (a test), and always with p.fixed_rate, the run's own λ
    and α, with the labelled boxes.
    """
    cells, pixels, masks = [], [], []
    parts = np.random.default_rng((p.seed, step or 0)).permutation(
        p.batch_size
    )  # of the range of rates; a short batch has others at each step
    for own, place in zip(boxes, places, strict=True):
        if step is None or p.fixed_rate:
            drawn, lmbda, alpha = (
                roi.integer_boxes(own.numpy(), side, side),
                roi.quality_index(p.lmbda),
                roi.alpha_index(p.alpha),
            )
        else:
            random = np.random.default_rng((p.seed, step, place + 1))
            drawn, lmbda, alpha = roi.draw(
                random, own.numpy(), side, int(parts[place % p.batch_size]), p.batch_size
            )
        importance = roi.importance_map(drawn, side, side)
        table = (
            roi.quality_table(lmbda, alpha)
            if len(drawn)
            else np.full(roi.FULL + 1, lmbda, np.int16)
        )
        cells.append(table[roi.cell_means(importance)])
        pixels.append(roi.lmbda_of(table[importance]))
        masks.append(importance > 0)
    return tuple(
        torch.from_numpy(np.stack(maps)[:, None]).float() for maps in (cells, pixels, masks)
    )


def forward(
    session: Session, batch: dict, places: Iterable[int] | None = None
) -> tuple[dict, Tensor, Tensor | None]:
    """The model's output for a batch of `batches`, with the target x and the ROI mask (None for the plain baseline).

    In a test it is the output of the moving average of the weights, where there is one. places: the pictures' places in the step's global
    batch, which choose their noise and, for roi_vbr, their λ and α; None: this batch is all of it.
    """
    device, training, p = session.fabric.device, session.model.training, session.p
    places = range(len(batch["x"])) if places is None else places
    session.noise.at(session.step, places)
    x = (batch["x"].to(device, non_blocking=True).float() / 255).contiguous(
        memory_format=torch.channels_last
    )
    roi_mask = batch["roi_mask"].to(device, non_blocking=True) if p.uses_objects else None
    inputs, more = (x,), {}
    if isinstance(session.codec, RoiVbr):
        maps = knobs(p, batch["boxes"], x.shape[-1], places, session.step if training else None)
        q, more["lmbda_map"], roi_mask = (v.to(device, non_blocking=True) for v in maps)
        inputs = (x, q)
    elif isinstance(session.codec, HyperpriorWithObjFeatures):
        inputs = (x, features(session, batch), roi_mask)
    if training or not session.ema:
        return session.model(*inputs) | more, x, roi_mask
    with session.fabric.autocast():
        return session.trained.eval()(*inputs) | more, x, roi_mask


def features(session: Session, batch: dict) -> list[Tensor] | None:
    """What the extended model hears from the detector; None where it has none."""
    if not session.detector:
        return None
    with session.fabric.autocast():
        return session.detector.codec_features(
            batch["detector_x"].to(session.fabric.device, non_blocking=True).float() / 255
        )


def train_step(
    session: Session, batch: dict, places: range | None = None, size: int | None = None
) -> tuple[dict[str, Tensor], Tensor | None, bool]:
    """One update of the model and of the quantiles; the loss terms (with `aux_loss`), the mask, and whether the gradients were finite (else it is
    no update).

    places: which pictures of the step's global batch of `size` this process codes; none when it only stands in for a missing one.
    """
    places = range(len(batch["x"])) if places is None else places
    output, x, roi_mask = forward(session, batch, places or [-1])
    terms = session.loss(output, x, roi_mask)
    session.optimizer.zero_grad()
    share = (
        len(places) * session.fabric.world_size / (size or len(places))
    )  # of the mean that the processes' gradients are averaged to
    session.fabric.backward(terms["loss"] * share)
    norm = session.fabric.clip_gradients(
        session.model, session.optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False
    )
    finite = bool(norm.isfinite())
    if (
        finite or session.p.precision == "16"
    ):  # fp16's gradient scaler skips by itself, and learns from it
        session.optimizer.step()
        if session.ema:
            session.ema.update_parameters(session.codec)
    session.scheduler.step()
    aux = session.codec.aux_loss()
    session.aux_optimizer.zero_grad()
    session.fabric.backward(aux)
    session.aux_optimizer.step()
    session.step += 1
    return terms | {"aux_loss": aux}, roi_mask, finite


def over_processes(
    fabric: Fabric, terms: dict[str, Tensor], pictures: int, roi_mask: Tensor | None
) -> tuple[dict[str, float], int, float | None]:
    """Terms of the global batch as numbers, its pictures and its ROI share, from each process's terms of its `pictures`."""
    roi_share = 0.0 if roi_mask is None else roi_mask.mean()
    values = torch.stack(
        [v.detach().double() for v in terms.values()]
        + [torch.as_tensor(roi_share, device=fabric.device).double()]
    )
    *values, roi_share = values.tolist()
    has_roi = roi_mask is not None
    if fabric.world_size > 1:
        weights = [pictures * term_share(name, roi_share if has_roi else None) for name in terms]
        sums = [v * w for v, w in zip(values, weights, strict=True)]
        local = torch.tensor(
            [pictures, pictures * roi_share, *weights, *sums],
            dtype=torch.float64,
            device=fabric.device,
        )
        pictures, roi_share, *rest = fabric.all_reduce(local, reduce_op="sum").tolist()
        pictures, roi_share = round(pictures), roi_share / pictures
        values = [
            s / w if w else 0.0 for w, s in zip(rest[: len(terms)], rest[len(terms) :], strict=True)
        ]
    return dict(zip(terms, values, strict=True)), pictures, roi_share if has_roi else None
