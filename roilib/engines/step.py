"""The state of a training, and one step of it.

    batch ──► detector (frozen) ──► model ──► loss ──► AdamW + OneCycleLR, clipped at 1
                                      └──► aux_loss ──► Adam on the entropy bottlenecks' quantiles

One process or many: each codes its share of a step's global batch; gradients and loss terms are
means over the whole batch.
"""

import functools
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
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from roilib import roi
from roilib.engines.distributed import make_fabric
from roilib.engines.meters import Health, Means
from roilib.engines.optimizers import make_optimizer
from roilib.entropy_models.noise import QuantisationNoise
from roilib.losses import RoiRateDistortionLoss, VariableRateLoss
from roilib.models.detector import FrameFeatures, HookedDetector
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import build_model, load_weights
from roilib.parameters import Parameters
from roilib.utils.device import peak_memory_mb

CLIP_NORM = 1.0  # of all gradients together
AUX_LR = 1e-3  # of the quantiles
STATES = ("codec", "optimizer", "aux_optimizer", "scheduler", "means")  # each has a state_dict
PROGRESS = ("step", "epoch", "position", "seconds", "peak_memory_mb", "history", "best")


@dataclass
class Session:
    """Everything that changes while a run trains.

    codec: the bare model; model: the same behind Fabric. position: batches of this epoch so far.
    history: an entry per epoch, with its means and its `seconds`. continues: the shorter run, and
    its step, that this one went on from.
    """

    p: Parameters
    fabric: Fabric
    codec: CompressionModel
    model: nn.Module
    detector: HookedDetector | None
    loss: RoiRateDistortionLoss | VariableRateLoss
    noise: QuantisationNoise
    optimizer: torch.optim.Optimizer
    aux_optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    total_steps: int
    ema: AveragedModel | None = None
    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    clocked: float = field(default_factory=time.perf_counter)
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    continues: dict | None = None
    means: Means = field(default_factory=Means)
    health: Health = field(default_factory=Health)

    @functools.cached_property
    def frame_features(self) -> FrameFeatures:
        """The detector's features of crops, cut from those of whole frames."""
        return FrameFeatures(self.detector)

    @property
    def trained(self) -> CompressionModel:
        """The model that is tested and saved: the moving average where there is one."""
        return self.ema.module if self.ema else self.codec

    def state(self) -> dict[str, Any]:
        """All that an exact resume needs, also in the middle of an epoch."""
        state = {name: getattr(self, name).state_dict() for name in STATES}
        state |= {name: getattr(self, name) for name in PROGRESS}
        if self.ema:
            state["ema"] = self.ema.state_dict()
        return state | {
            "continues": self.continues,
            "health": vars(self.health),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "parameters": self.p.model_dump(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` returned."""
        schedule = self.scheduler.state_dict()
        length = {name: schedule[name] for name in ("total_steps", "_schedule_phases")}
        for name in STATES:
            getattr(self, name).load_state_dict(state[name])
        self.scheduler.load_state_dict(state["scheduler"] | length)  # max_steps may be raised
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.continues = state.get("continues")
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.health = Health(**state["health"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        torch.set_rng_state(state["rng"])
        torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])

    def clock(self) -> None:
        """Add the time since the last call, and this process's peak memory, to the run's."""
        now = time.perf_counter()
        self.seconds, self.clocked = self.seconds + now - self.clocked, now
        peaks = self.peak_memory_mb
        peaks |= {name: max(mb, peaks.get(name, 0)) for name, mb in peak_memory_mb().items()}


def start(p: Parameters, steps_per_epoch: int, fabric: Fabric | None = None) -> Session:
    """A session at step 0, with the weights of `model_load_file` where given."""
    fabric = fabric or make_fabric(p)
    fabric.seed_everything(p.seed, verbose=False)
    codec = build_model(p).to(fabric.device, memory_format=torch.channels_last)
    if p.model_load_file is not None:
        load_weights(p.start_file, codec, p)
    noise = QuantisationNoise(codec, p.seed)
    quantiles = {name: v for name, v in codec.named_parameters() if name.endswith(".quantiles")}
    # Not exchanged between processes: the quantiles, whose loss is the same on all of them, and
    # the integers, which are empty until training has ended.
    ignored = [*quantiles, *(name for name, _ in codec.named_buffers() if "_integer." in name)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(codec, ignored)
    weights = {name: v for name, v in codec.named_parameters() if name not in quantiles}
    optimizer = make_optimizer(p, weights)
    aux_optimizer = torch.optim.Adam(quantiles.values(), lr=AUX_LR)
    total = min(p.max_epochs * steps_per_epoch, p.max_steps or sys.maxsize)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = OneCycleLR(optimizer, peaks, total_steps=max(total, 1), pct_start=p.warmup)
    model = compiled(codec) if p.compile else codec
    model, optimizer, aux_optimizer = fabric.setup(model, optimizer, aux_optimizer)
    detector = None
    if p.uses_detector:
        detector = HookedDetector(p.detector_weights)
        detector.to(fabric.device, memory_format=torch.channels_last)
    ema = AveragedModel(codec, multi_avg_fn=get_ema_multi_avg_fn(p.ema)) if p.ema else None
    return Session(
        p,
        fabric,
        codec,
        model,
        detector,
        make_loss(p),
        noise,
        optimizer,
        aux_optimizer,
        scheduler,
        total,
        ema,
    )


def make_loss(p: Parameters) -> RoiRateDistortionLoss | VariableRateLoss:
    """The loss of an engine; the baselines' is the plain one, whatever alpha says."""
    if p.which == "roi_vbr":
        return VariableRateLoss(metric=p.metric)
    if p.which == "hyperprior_with_obj_features":
        return RoiRateDistortionLoss(p.lmbda, p.alpha, p.metric, p.loss_form)
    return RoiRateDistortionLoss(p.lmbda, metric=p.metric)


def compiled(codec: CompressionModel) -> nn.Module:
    """torch.compile of a model.

    A RoiVbr's networks are compiled one by one, in place: its gains depend on the quality indices
    at hand.
    """
    if not isinstance(codec, RoiVbr):
        return torch.compile(codec)
    entropy_parameters = [network for networks in codec.e for network in networks]
    for network in (codec.g_a, codec.g_s, codec.h_a, codec.h_s, *entropy_parameters):
        network.compile()
    return codec


def knobs(
    p: Parameters, boxes: list[Tensor], side: int, places: Iterable[int], step: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What roi_vbr's pictures are coded with.

    Returns quality indices (B, 1, side/16, side/16), λ of each pixel and the ROI mask, both
    (B, 1, side, side). A training step draws λ, α and boxes for each picture, from the seed, the
    step and the picture's place. A test (step None), and any step of a run with `fixed_rate`, has
    the run's λ and α and the labelled boxes.
    """
    cells, pixels, masks = [], [], []
    # Each picture of a batch draws λ from its own part of the range. The parts are shuffled, so
    # that a short last batch has other parts each time.
    parts = np.random.default_rng((p.seed, step or 0)).permutation(p.batch_size)
    for labelled, place in zip(boxes, places, strict=True):
        if step is None or p.fixed_rate:
            regions = roi.integer_boxes(labelled.numpy(), side, side)
            lmbda, alpha = roi.quality_index(p.lmbda), roi.alpha_index(p.alpha)
        else:
            random = np.random.default_rng((p.seed, step, place + 1))
            part = int(parts[place % p.batch_size])
            regions, lmbda, alpha = roi.draw(random, labelled.numpy(), side, part, p.batch_size)
        importance = roi.importance_map(regions, side, side)
        table = np.full(roi.FULL + 1, lmbda, np.int16)
        if len(regions):
            table = roi.quality_table(lmbda, alpha)
        cells.append(table[roi.cell_means(importance)])
        pixels.append(roi.lmbda_of(table[importance]))
        masks.append(importance > 0)
    maps = (torch.from_numpy(np.stack(arrays)[:, None]) for arrays in (cells, pixels, masks))
    return tuple(v.float() for v in maps)


def forward(
    session: Session, batch: dict, places: Iterable[int] | None = None
) -> tuple[dict, Tensor, Tensor | None]:
    """Output of the model for a batch of `batches`, its target x, and the ROI mask.

    The plain baseline has no mask (None). Outside of training the model is the moving average of
    the weights, where there is one.

    places: of the pictures in the step's global batch; they key the pictures' noise and, for
    roi_vbr, their λ and α. None: this batch is the global one.
    """
    p, training, device = session.p, session.model.training, session.fabric.device
    places = range(len(batch["x"])) if places is None else places
    session.noise.at(session.step, places)
    x = batch["x"].to(device, non_blocking=True).float() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    roi_mask, quality, more = None, None, {}
    if p.which == "roi_vbr":
        maps = knobs(p, batch["boxes"], x.shape[-1], places, session.step if training else None)
        quality, more["lmbda_map"], roi_mask = (v.to(device, non_blocking=True) for v in maps)
    elif p.uses_objects:
        roi_mask = batch["roi_mask"].to(device, non_blocking=True)
    inputs = session.codec.inputs(
        x, lambda: quality, lambda: roi_mask, lambda: features(session, batch)
    )
    if training or not session.ema:
        return session.model(*inputs) | more, x, roi_mask
    with session.fabric.autocast():
        return session.trained.eval()(*inputs) | more, x, roi_mask


def features(session: Session, batch: dict) -> list[Tensor]:
    """The detector's features of the batch's larger crops, or cut from those of whole frames."""
    with session.fabric.autocast():
        if "frame" in batch:
            return session.frame_features(batch["frame"], batch["place"], batch["x"].shape[-1])
        seen = batch["detector_x"].to(session.fabric.device, non_blocking=True)
        return session.detector.codec_features(seen.float() / 255)


def train_step(
    session: Session, batch: dict, places: range | None = None, size: int | None = None
) -> tuple[dict[str, Tensor], Tensor | None, bool]:
    """Update the model and the quantiles once.

    places: which pictures of the step's global batch of `size` this process has; an empty range
    when it repeats another's picture, which then does not count.

    Returns the loss terms (with `aux_loss`), the ROI mask, and whether the gradients were finite;
    if not, the model is left as it was.
    """
    fabric, places = session.fabric, range(len(batch["x"])) if places is None else places
    output, x, roi_mask = forward(session, batch, places or [-1])
    terms = session.loss(output, x, roi_mask)

    # Fabric averages gradients over processes: weight each process by its pictures.
    weight = len(places) * fabric.world_size / (size or len(places))
    session.optimizer.zero_grad()
    fabric.backward(terms["loss"] * weight)
    norm = fabric.clip_gradients(
        session.model, session.optimizer, max_norm=CLIP_NORM, error_if_nonfinite=False
    )
    finite = bool(norm.isfinite())
    if finite or session.p.precision == "16":  # fp16's gradient scaler skips steps by itself
        session.optimizer.step()
        if session.ema:
            session.ema.update_parameters(session.codec)
    session.scheduler.step()

    aux_loss = session.codec.aux_loss()
    session.aux_optimizer.zero_grad()
    fabric.backward(aux_loss)
    session.aux_optimizer.step()

    session.step += 1
    return terms | {"aux_loss": aux_loss}, roi_mask, finite
