"""Models from parameters, and weights files: safetensors with the parameters of their training.

Pickled weights are not read, because they can run code.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from compressai.entropy_models import EntropyModel
from compressai.models import CompressionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from roilib.entropy_models.gaussian import TOTAL, TailedGaussian
from roilib.entropy_models.range_coder import CDF_TOTAL
from roilib.models.hyperprior import Hyperprior, HyperpriorWithObjFeatures
from roilib.models.integer.layers import ExactConv
from roilib.models.integer.networks import IntegerConv
from roilib.models.integer.synthesis import IntegerSynthesis
from roilib.models.range_coded import update_tables
from roilib.models.roi_vbr import RoiVbr
from roilib.parameters import BASELINES, EXTENSIONS, Parameters
from roilib.utils.files import content_hash, replacing
from roilib.utils.pretrained import PRETRAINED_DETECTOR, pretrained

TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")  # made by update_tables
CONSTANTS = ("bound", "y_counts")  # bounds in fp16 were 0, which costs infinite bits
SYNTHESIS = "synthesis_integer."
PICKLED = (".pt", ".pth", ".ckpt", ".tar")
DETECTOR_HASH = "detector_sha256"  # of metadata, where the detector is not the pretrained one
QUIET = 0.05  # factor of the initial weights of new channels of y, which have no fitting scale yet
STRUCTURE = ("which", "N", "M", *EXTENSIONS)  # parameters that weights must match


def build_model(p: Parameters) -> CompressionModel:
    """Make the untrained model that `p.which` names."""
    if p.which == "roi_vbr":
        return RoiVbr(p.N, p.M)
    if p.which == "hyperprior_with_obj_features":
        return HyperpriorWithObjFeatures(
            p.N, p.M, p.zero_hooks, p.mask_hooks, p.conditioning, p.decoder_roi
        )
    return Hyperprior(p.N, p.M)


def save_weights(
    path: Path, model: CompressionModel, p: Parameters, step: int, half: bool = False, **more: str
) -> None:
    """Write a safetensors file, atomically, and the same bytes each time.

    Its metadata holds the parameters, the step and `more`. half: write the trained floats as fp16,
    but not the constants, such as the least likelihood of 1e-9, which would become 0.
    """
    metadata = {"parameters": json.dumps(p.model_dump(), sort_keys=True), "step": str(step)} | more
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    trained = {name for name, _ in model.named_parameters()} if half else set()
    state = {k: v.half() if k in trained else v for k, v in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(_in_order(save(state, metadata)))


def _in_order(file: bytes) -> bytes:
    """Sort the header of a safetensors file; safetensors writes its metadata in any order."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + file[end:]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Return the state dict and the training parameters of a weights file.

    Raises ValueError naming the file.
    """
    if Path(path).suffix in PICKLED:
        raise ValueError(
            f"{path}: pickled weights can run code and are not read; give a run's "
            "weights.safetensors, or export it from the run's newest checkpoint: "
            "python data/weights/export.py RUN_FOLDER OUT.safetensors"
        )
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder; the weights of a run are its weights.safetensors")
    try:
        with safe_open(path, "pt") as file:
            parameters = dict(json.loads(file.metadata()["parameters"]))
            names = file.keys()  # `file` itself is no dict
            return {name: file.get_tensor(name) for name in names}, parameters
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weights file") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _not_weights(path, error) from None


def _not_weights(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a roilib weights file ({type(error).__name__}: {error})")


def model_id(state: dict[str, Tensor]) -> bytes:
    """Return four bytes that identify these weights, from their names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].cpu().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.digest()[:4]


def training_of(path: str | Path) -> dict[str, float]:
    """Return `steps` and `hours` of the training of a weights file, as far as it holds them."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return {
        name: number(metadata[key])
        for name, key, number in (("steps", "step", int), ("hours", "hours", float))
        if key in metadata
    }


def picture_hash(path: Path) -> str:
    """Return the hash by which a weights file lists a picture that it was trained on."""
    return content_hash(path)[:16]


def trained_on(path: str | Path) -> set[str]:
    """Return `picture_hash` of the pictures that weights were trained on, as far as listed.

    Raises ValueError naming the file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {str(digest) for digest in json.loads(file.metadata().get("pictures", "[]"))}
    except (OSError, SafetensorError, AttributeError, TypeError, ValueError) as error:
        raise _not_weights(path, error) from None


def detector_hash(p: Parameters) -> dict[str, str]:
    """Return the metadata that identify the detector of `p`; none of the pretrained one."""
    own = p.own_detector
    return {DETECTOR_HASH: content_hash(own)} if own and own.is_file() else {}


def detector_of(path: Path, p: Parameters, given: str | Path | None = None) -> Path | None:
    """Return the file of the detector that weights were trained with; None: the pretrained one.

    p: the parameters in the weights' metadata. given: the file that the caller names. A detector's
    file can run code, so the file that metadata name is never opened. Raises ValueError where the
    caller has to name the file, or names another one.
    """
    if p.own_detector is None:
        return None
    with safe_open(path, "pt") as file:
        stored = file.metadata().get(DETECTOR_HASH)
    if given is None and stored == content_hash(pretrained(PRETRAINED_DETECTOR)):
        return None
    if given is None:
        raise ValueError(
            f"{path}: trained with the detector {p.detector_weights}, and a detector's file can "
            "run code; if you trust it, name it (encode --detector, load_codec's detector)"
        )
    if stored and Path(given).is_file() and content_hash(given) != stored:
        raise ValueError(f"{given}: not the detector that {path} was trained with")
    return Path(given)


def check_size(path: str | Path, state: dict[str, Tensor], p: Parameters) -> None:
    """Raise ValueError for a file too small for the model it claims, before that model is made.

    The paper's models have 5x5 convolutions from N to N and M channels. The parameters bound the N
    and M of roi_vbr.
    """
    if p.which != "roi_vbr" and 25 * p.N * max(p.N, p.M) > sum(v.numel() for v in state.values()):
        raise ValueError(
            f"{path}: too small for a {p.which} of N={p.N} and M={p.M}, which it says it is"
        )


def load_state(
    path: str | Path, model: CompressionModel, state: dict[str, Tensor], which: str
) -> None:
    """Give `model` the weights of a file.

    Raises ValueError if they belong to another model, are not finite, or are integers whose sums
    would not be exact.
    """
    missing = model.state_dict().keys() - state.keys()
    if missing and all(name.startswith(SYNTHESIS) for name in missing):
        raise ValueError(
            f"{path}: weights of an earlier version, without the integers of its synthesis; train "
            "on from them, or export their run again"
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path}: not weights of a {which} ({reason})") from None
    for name, value in model.state_dict().items():
        if value.is_floating_point() != state[name].is_floating_point():  # as quantised by others
            raise ValueError(f"{path}: {name} is {state[name].dtype}, not {value.dtype}")
        if not value.isfinite().all():
            raise ValueError(f"{path}: {name} has values that are not finite")
    try:
        for module in model.modules():
            if isinstance(module, IntegerConv | ExactConv | IntegerSynthesis):
                module.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tables(path: str | Path, model: CompressionModel) -> None:
    """Raise ValueError for invalid probability tables, which would crash the range coder."""
    coded = [
        module
        for module in model.modules()
        if isinstance(module, EntropyModel) and not isinstance(module, TailedGaussian)
    ]
    counts = model.y_counts if isinstance(model, RoiVbr) else torch.ones(1)
    if not (all(map(_is_valid, coded)) and ((counts > 0) & (counts <= TOTAL)).all()):
        raise ValueError(f"{path}: its probability tables are not valid")


def _is_valid(model: EntropyModel) -> bool:
    """Return whether each table of an entropy model rises from 0 to all of the coder's range."""
    cdfs, lengths = model.quantized_cdf.cpu().numpy(), model.cdf_length.cpu().numpy()
    if cdfs.ndim != 2 or not len(cdfs) == len(lengths) == model.offset.numel() > 0:
        return False
    return all(
        3 <= n <= len(cdf)
        and cdf[0] == 0
        and cdf[n - 1] == CDF_TOTAL
        and (np.diff(cdf[:n]) > 0).all()
        for cdf, n in zip(cdfs, lengths, strict=True)
    )


def load_weights(path: str | Path, model: CompressionModel, p: Parameters) -> None:
    """Load a weights file into `model`.

    Training of the extended model may start from a baseline of the same N and M. Raises ValueError
    if the weights were trained as another model than `p` describes.
    """
    state, trained = read_weights(path)
    from_baseline = (
        p.what == "train"
        and p.which == "hyperprior_with_obj_features"
        and trained.get("which") in BASELINES
    )
    for name in ("N", "M") if from_baseline else STRUCTURE:
        found = trained.get(name, Parameters.model_fields[name].default)
        wanted = getattr(p, name)
        if found != wanted and not (name == "which" and {found, wanted} <= set(BASELINES)):
            raise ValueError(
                f"{path}: trained with {name}={found}, but the parameters say {name}={wanted}"
            )
    if from_baseline:
        baseline = Hyperprior(p.N, p.M)
        load_state(path, baseline, state, trained["which"])
        start_from_baseline(model, baseline.state_dict())
    else:
        if p.what == "train":  # earlier files have other constants, and no integer synthesis
            own = model.state_dict().items()
            state |= {k: v for k, v in own if k.endswith(CONSTANTS)}
            state = {k: v for k, v in own if k.startswith(SYNTHESIS)} | state
        load_state(path, model, state, p.which)
    if not isinstance(model, RoiVbr):  # roi_vbr's tables are in the file
        update_tables(model)


@torch.no_grad()
def start_from_baseline(model: HyperpriorWithObjFeatures, baseline: dict[str, Tensor]) -> None:
    """Give the extended model the weights of a baseline.

    It then decodes to the baseline's pictures, at the baseline's rate, before its first step. w
    starts as a copy of z. The second M channels of y start so small that they are rounded to zero.
    All other parts that only the extended model has (hooks, the scales of those channels) keep
    their initial weights. The weights from new channels to old ones start at zero.
    """
    own = model.state_dict()
    for name, value in baseline.items():
        if name.endswith(TABLES):
            continue
        image = re.sub(r"^(h_a|h_s|entropy_bottleneck)\.", r"\1_image.", name)
        objects = re.sub(r"^(h_a|entropy_bottleneck)\.", r"\1_obj.", name)
        for mine in (own[name] for name in {image, objects} & own.keys()):
            if value.dim() == 4:
                inputs = 0 if name.startswith("g_s") else 1  # transposed convolutions: first
                added = mine.shape[inputs] - value.shape[inputs]
                mine.narrow(inputs, value.shape[inputs], added).zero_()
                mine.mul_(QUIET)  # the output channels that the baseline lacks
            mine[tuple(map(slice, value.shape))] = value
