"""Weights files: safetensors that say what they were built and trained with. Pickled ones, which can run code, are not read."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from compressai.entropy_models import EntropyModel
from compressai.models import CompressionModel, ScaleHyperprior
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from roilib.entropy_models.gaussian import TailedGaussian
from roilib.entropy_models.range_coder import TOTAL
from roilib.models import rans
from roilib.models.hyperprior import HyperpriorWithObjFeatures, update_tables
from roilib.models.integer import IntegerConv
from roilib.models.roi_vbr import RoiVbr
from roilib.parameters import BASELINES, Parameters
from roilib.utils.files import replacing

TABLES = (
    "_offset",
    "_quantized_cdf",
    "_cdf_length",
    "scale_table",
)  # made from the weights by update_tables
PICKLED = (".pt", ".pth", ".ckpt", ".tar")
STRUCTURE = ("which", "N", "M", "zero_hooks", "mask_hooks")  # parameters that weights must agree on


def save_weights(
    path: Path, model: CompressionModel, p: Parameters, step: int, half: bool = False, **more: str
) -> None:
    """Write a safetensors file whose metadata holds the parameters, the step and `more`; atomically, and the same bytes each time.

    half: floats as fp16.
    """
    metadata = {"parameters": json.dumps(p.model_dump(), sort_keys=True), "step": str(step)} | more
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(_in_order(save(state, metadata)))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with its header's entries sorted: safetensors writes those of the metadata in another order each time."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + file[end:]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """State dict and training parameters of a weights file. Raises ValueError naming the file."""
    if Path(path).suffix in PICKLED:
        raise ValueError(
            f"{path}: pickled weights can run code and are not read; give a run's weights.safetensors, or make it of a run's newest checkpoint: "
            "python data/weights/export.py RUN_FOLDER OUT.safetensors"
        )
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder; the weights of a run are its weights.safetensors")
    try:
        with safe_open(path, "pt") as file:
            parameters = dict(json.loads(file.metadata()["parameters"]))
            return {name: file.get_tensor(name) for name in file.keys()}, parameters  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weights file") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a roilib weights file ({type(error).__name__}: {error})"
        ) from None


def training_of(path: str | Path) -> dict[str, float]:
    """What a weights file says of the training that made it, of `steps` and `hours`."""
    with safe_open(path, "pt") as file:
        said = file.metadata()
    return {
        name: float(said[key]) if name == "hours" else int(said[key])
        for name, key in (("steps", "step"), ("hours", "hours"))
        if key in said
    }


def picture_hash(path: Path) -> str:
    """What stands for a picture file in a weights file's list of those that it was trained on."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def trained_on(path: str | Path) -> set[str]:
    """`picture_hash` of the pictures that shipped weights were trained on; none where the file does not say. Raises ValueError naming the file."""
    try:
        with safe_open(path, "pt") as file:
            return {str(digest) for digest in json.loads(file.metadata().get("pictures", "[]"))}
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a roilib weights file ({type(error).__name__}: {error})"
        ) from None


def check_size(path: str | Path, state: dict[str, Tensor], p: Parameters) -> None:
    """Raise ValueError for a file that says of itself that its model is larger than what it holds, before such a model is made.

    The paper's models have 5x5 convolutions from N to N and M channels; roi_vbr's N and M are bounded by its parameters.
    """
    if p.which != "roi_vbr" and 25 * p.N * max(p.N, p.M) > sum(v.numel() for v in state.values()):
        raise ValueError(
            f"{path}: too small for a {p.which} of N={p.N} and M={p.M}, which it says it is"
        )


def load_state(
    path: str | Path, model: CompressionModel, state: dict[str, Tensor], which: str
) -> None:
    """Give `model` the weights of a file. Raises ValueError when they are another model's, not finite, or integers that would not be exact."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: not weights of a {which} ({str(error).splitlines()[-1].strip()})"
        ) from None
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} has values that are not finite")
    try:
        for module in model.modules():
            if isinstance(module, IntegerConv):
                module.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tables(path: str | Path, model: CompressionModel) -> None:
    """Raise ValueError unless the probability tables that came with a model's weights are some: the coder would not survive others."""
    for module in model.modules():
        if (
            isinstance(module, EntropyModel)
            and not isinstance(module, TailedGaussian)
            and not _are_tables(module)
        ):
            raise ValueError(f"{path}: its probability tables are none")
    if isinstance(model, RoiVbr) and not ((model.y_counts > 0) & (model.y_counts <= TOTAL)).all():
        raise ValueError(f"{path}: its probability tables are none")


def _are_tables(model: EntropyModel) -> bool:
    """Whether each of an entropy model's tables rises from 0 to all of the coder's range."""
    cdfs, lengths = model._quantized_cdf.cpu().numpy(), model._cdf_length.cpu().numpy()
    if cdfs.ndim != 2 or not len(cdfs) == len(lengths) == model._offset.numel() > 0:
        return False
    rows = zip(cdfs, lengths, strict=True)
    return all(
        3 <= n <= len(cdf)
        and cdf[0] == 0
        and cdf[n - 1] == 1 << rans.PRECISION
        and (np.diff(cdf[:n]) > 0).all()
        for cdf, n in rows
    )


def load_weights(path: str | Path, model: CompressionModel, p: Parameters) -> None:
    """Load a weights file into `model`. Raises ValueError when it was trained as another model than `p` describes.

    Training of the extended model may also start from a baseline of the same N and M.
    """
    state, trained = read_weights(path)
    from_baseline = (
        p.what == "train"
        and p.which == "hyperprior_with_obj_features"
        and trained.get("which") in BASELINES
    )
    for name in ("N", "M") if from_baseline else STRUCTURE:
        asked = getattr(p, name)
        if trained.get(name) != asked and not (
            name == "which" and {trained.get(name), asked} <= set(BASELINES)
        ):
            raise ValueError(
                f"{path}: trained with {name}={trained.get(name)}, but the parameters say {name}={asked}"
            )
    if from_baseline:
        baseline = ScaleHyperprior(p.N, p.M)
        load_state(path, baseline, state, trained["which"])
        start_from_baseline(model, baseline.state_dict())
    else:
        load_state(path, model, state, p.which)
    if not isinstance(model, RoiVbr):  # whose tables are in the file
        update_tables(model)


@torch.no_grad()
def start_from_baseline(model: HyperpriorWithObjFeatures, baseline: dict[str, Tensor]) -> None:
    """Give the extended model a ScaleHyperprior's weights, so that it decodes to the baseline's pictures before its first step.

    What only it has (hooks, the second M channels of y, the object hyperprior) keeps its initial weights, but nothing reads it yet: the weights by
    which the old channels depend on the new ones are zero, and grow in training.
    """
    own = model.state_dict()
    for name, value in baseline.items():
        if name.endswith(TABLES):
            continue
        mine = own[re.sub(r"^(h_a|h_s|entropy_bottleneck)\.", r"\1_image.", name)]
        if value.dim() == 4:
            inputs = (
                0 if name.startswith("g_s") else 1
            )  # of a transposed convolution they come first
            mine.narrow(
                inputs, value.shape[inputs], mine.shape[inputs] - value.shape[inputs]
            ).zero_()
        mine[tuple(map(slice, value.shape))] = value
