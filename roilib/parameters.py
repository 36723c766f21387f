"""The parameters of a run: one typed definition for notebooks, `roilib train` and the Snakefile.

Unknown names, wrong types and values that exclude each other raise a ValueError of one line, before
anything runs. Nothing heavy is imported here: Snakemake reads this module for every job.
"""

import ast
import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from roilib.roi import LMBDA_MAX, LMBDA_MIN
from roilib.utils.files import content_hash
from roilib.utils.pretrained import PRETRAINED_BASELINE, PRETRAINED_CODECS, pretrained

SHIPPED = "shipped"  # names our weights and our detector in parameters
SHIPPED_YUV = "shipped_yuv"  # names our weights that are tuned for YUV

BASELINES = ("hyperprior", "hyperprior_eval_with_objs")  # one model, which knows no ROI
EXTENSIONS = ("zero_hooks", "mask_hooks", "conditioning", "decoder_roi")  # of the extended model
WITHOUT_EFFECT = {  # on the result, hence no part of a run's name
    "device",
    "devices",
    "num_workers",
    "compile",
    "resume",
    "checkpoint_seconds",
    "logdir",
}
SIMILAR = 0.5  # least difflib ratio at which an unknown name is taken for a misspelled one


def _path(value: str) -> str:
    """One spelling of a path: `x/../kitti` is `kitti`, unless `..` leaves a symlink's target."""
    path = os.path.expanduser(value)
    shortest = os.path.normpath(path)
    is_same = os.path.realpath(shortest) == os.path.realpath(path)
    return shortest if is_same else str(Path(path))


def _paths(value: str) -> str:
    parts = (part.strip() for part in value.split(","))
    return ",".join(part and _path(part) for part in parts)


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
FilePath = Annotated[Text, AfterValidator(_path)]
FilePaths = Annotated[Text, AfterValidator(_paths)]


class Parameters(BaseModel):
    """What a run is asked for.

    Defaults are the paper's, except those of `device`, `loss_form` and `train_size_p1`, and of
    parameters that the paper's code lacks.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    what: Literal["train", "test"] = Field(
        "train", description="train, or test the weights of model_load_file"
    )
    which: Literal[
        "hyperprior", "hyperprior_eval_with_objs", "hyperprior_with_obj_features", "roi_vbr"
    ] = Field(
        "hyperprior_with_obj_features",
        description="model to train: the plain baseline, the same with ROI terms logged, the "
        "extended model, or one model for every λ and α",
    )
    device: str = Field("auto", description="torch device; auto: cuda if there is one")
    devices: int | None = Field(
        None, gt=0, description="processes, one per device; None: one per GPU, one on a CPU"
    )
    batch_size: int = Field(256, gt=0, description="pictures a step, of all processes together")
    num_workers: int = Field(16, ge=0, description="processes that load pictures")
    max_lr: float = Field(6e-4, gt=0, description="peak of OneCycleLR")
    warmup: float = Field(
        0.3, gt=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: Muon for convolutions, at 2.5 · max_lr, and AdamW for the rest",
    )
    max_epochs: int = Field(300, gt=0, description="passes over the training pictures")
    max_steps: int | None = Field(
        None,
        gt=0,
        description="stop after this many steps; raise it to continue a finished run",
    )
    obj_det_img_size: int = Field(
        640, gt=0, multiple_of=32, description="side of the detector's square input in pixels"
    )
    compr_img_size: int = Field(
        256, gt=0, multiple_of=64, description="side of the codec's square input in pixels"
    )
    crop: Literal["square", "native", "grid"] = Field(
        "square",
        description="square: of side min(H, W), resized (the paper's); native: pixels as they are; "
        "grid: as native, at multiples of 32, with features cut from those of the whole frame",
    )
    flip: bool = Field(False, description="mirror half of the training crops")
    lmbda: float = Field(
        0.0037,
        gt=0,
        description="rate-distortion trade-off, CompressAI's scale (255²·MSE); the paper's λ of "
        "240 is 240/255² = 0.0037 here",
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="1: all quality to the ROI, 0: all to the background, 0.5: plain loss",
    )
    train_size_p1: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the data that trains; None: the root's splits, else 0.95",
    )
    fixed_rate: bool = Field(
        False, description="train a roi_vbr at lmbda and alpha alone, for comparison"
    )
    zero_hooks: bool = Field(False, description="features replaced by zeros")
    mask_hooks: bool = Field(False, description="features replaced by the ROI mask")
    conditioning: Literal["concat", "sft"] = Field(
        "concat",
        description="how features join the encoder: concatenated (the paper's), or as a spatial "
        "feature transform (scale and shift)",
    )
    decoder_roi: bool = Field(
        False,
        description="the decoder knows the ROI mask too, and undoes a learned gain of each channel",
    )
    model_load_file: FilePath | None = Field(
        None,
        description="weights to test, or to start training from; shipped: the pretrained ones",
    )
    logdir: FilePath = Field("runs", description="folder of run folders")
    dataset: Literal["sample", "kitti", "coco", "folder"] = Field(
        "kitti", description="format of the data set"
    )
    data_root: FilePath = Field(
        "data/kitti", description="folder of the data set; default for others: data/NAME"
    )
    unlabelled: FilePaths | None = Field(
        None,
        description="folders of more training pictures, without labels, separated by commas",
    )
    detector_weights: FilePath | None = Field(
        None, description="a YOLOv8n file; None: the pretrained one"
    )
    metric: Literal["mse", "yuv", "ms-ssim"] = Field("mse", description="distortion of the loss")
    loss_form: Literal["corrected", "paper"] = Field(
        "corrected", description="one weighted mean, or the paper's area-squared terms"
    )
    N: int = Field(128, gt=0, description="channels of the transforms")
    M: int = Field(192, gt=0, description="channels of the latent (the extended model has 2M)")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is tested and saved; 0: none",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random number")
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="auto: bf16 where the processor has it, else 32"
    )
    compile: bool = Field(False, description="torch.compile the model")
    resume: bool = Field(
        True, description="go on from the newest checkpoint of the same parameters"
    )
    checkpoint_seconds: float = Field(120.0, ge=0, description="time between checkpoints")

    @model_validator(mode="after")
    def _default_data_root(self):
        if "data_root" not in self.model_fields_set and self.dataset != "kitti":
            object.__setattr__(self, "data_root", f"data/{self.dataset}")
        return self

    @model_validator(mode="after")
    def _fit_together(self):
        fields = type(self).model_fields
        extensions = [name for name in EXTENSIONS if getattr(self, name) != fields[name].default]
        if self.zero_hooks and self.mask_hooks:
            raise ValueError("zero_hooks and mask_hooks exclude each other")
        if extensions and self.which != "hyperprior_with_obj_features":
            raise ValueError(
                f"{', '.join(extensions)}: for hyperprior_with_obj_features, not for {self.which}"
            )
        if self.fixed_rate and self.which != "roi_vbr":
            raise ValueError(
                f"fixed_rate belongs to roi_vbr; {self.which} has no rate but that of its lmbda"
            )
        if self.which == "roi_vbr":
            self._fit_roi_vbr()
        elif self.metric == "yuv":
            raise ValueError(f"metric yuv belongs to roi_vbr, not to {self.which}")
        if self.metric == "ms-ssim" and self.compr_img_size <= 160:
            raise ValueError(
                f"metric ms-ssim needs compr_img_size above 160, not {self.compr_img_size}"
            )
        if self.what == "test" and self.model_load_file is None:
            raise ValueError("what=test needs model_load_file")
        return self

    def _fit_roi_vbr(self) -> None:
        if self.metric == "ms-ssim" or self.loss_form != "corrected":
            raise ValueError("roi_vbr is trained with metric mse or yuv and loss_form=corrected")
        if self.fixed_rate and self.metric != "mse":
            raise ValueError("fixed_rate is trained with metric=mse")
        if not LMBDA_MIN <= self.lmbda <= LMBDA_MAX:
            raise ValueError(
                f"roi_vbr's lmbda (at which it is tested) lies in [{LMBDA_MIN}, {LMBDA_MAX}], not "
                f"at {self.lmbda}"
            )
        if self.M > 768 or not 2 <= self.N <= 512:
            raise ValueError(
                f"roi_vbr's M is at most 768 and its N 2 to 512, not {self.M} and {self.N}"
            )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Parameters":
        """From typed values (YAML, a notebook).

        Raises ValueError with one line that names every wrong parameter.
        """
        return _one_line(cls.model_validate, dict(values))

    @classmethod
    def parse_notebook(cls, variables: Mapping[str, Any]) -> "Parameters":
        """From the `globals()` of a training notebook, right after its parameters cell.

        The cell's dict `more` may hold any other parameter; what papermill injects wins over both.
        Raises what `parse` raises.
        """
        own = {name: variables[name] for name in cls.model_fields if name in variables}
        injected = {name: variables[name] for name in _injected(variables["In"]) - {"more"}}
        return cls.parse(own | variables["more"] | injected)

    @classmethod
    def parse_arguments(cls, arguments: Sequence[str]) -> "Parameters":
        """From a command line's `--name=value` or `--name value`; names may have hyphens.

        `--name=None` where None is allowed; of a name that is given twice the last value counts.
        Raises what `parse` raises.
        """
        values, words = {}, iter(arguments)
        for argument in words:
            name, equals, value = argument.removeprefix("--").partition("=")
            if not equals:
                value = next(words, "--")
            if not argument.startswith("--") or (not equals and value.startswith("--")):
                raise ValueError(f"{argument}: expected --name=value")
            values[name.replace("-", "_")] = value
        values = {k: v for k, v in values.items() if v != "None" or not cls._may_be_none(k)}
        return _one_line(cls.model_validate_strings, values)

    def arguments(self) -> list[str]:
        """The command line of which `parse_arguments` makes these parameters."""
        return [f"--{name}={value}" for name, value in self.model_dump().items()]

    @classmethod
    def _may_be_none(cls, name: str) -> bool:
        return name in cls.model_fields and cls.model_fields[name].default is None

    @property
    def uses_objects(self) -> bool:
        """Whether the engine reads object labels."""
        return self.which != "hyperprior"

    @property
    def uses_detector(self) -> bool:
        """Whether the engine runs the detector."""
        return self.which == "hyperprior_with_obj_features" and not (
            self.zero_hooks or self.mask_hooks
        )

    @property
    def own_detector(self) -> Path | None:
        """The detector whose features the model needs, where it is not the pretrained one."""
        return Path(self.detector_weights) if self.uses_detector and self.detector_weights else None

    @property
    def start_file(self) -> Path | None:
        """The file of `model_load_file`. Raises ValueError where the pretrained one is missing."""
        if self.model_load_file == SHIPPED:
            if self.which != "roi_vbr":
                return pretrained(PRETRAINED_BASELINE)
            return pretrained(PRETRAINED_CODECS["yuv" if self.metric == "yuv" else "rgb"])
        return self.model_load_file and Path(self.model_load_file)

    @property
    def name(self) -> str:
        """The run's folder name: `<which>-<hash of the parameters that change the result>`."""
        values = self.model_dump(exclude=WITHOUT_EFFECT, exclude_defaults=True)
        files = {"model_load_file": self.start_file, "detector_weights": self.detector_weights}
        for name in files.keys() & values.keys():
            values[name] = _digest(str(files[name]))
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.which}-{digest[:10]}"

    @property
    def folder(self) -> Path:
        """Where the run lives: `logdir/name`."""
        return Path(self.logdir) / self.name


def _injected(sources: Sequence[str]) -> set[str]:
    """The names that papermill assigned, in a cell that begins with its comment."""
    cells = [ast.parse(source) for source in sources if source.startswith("# Parameters\n")]
    return {
        node.id
        for cell in cells
        for node in ast.walk(cell)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _digest(path: str) -> str:
    """A hash of a file's content for a run's name; the path itself while there is no file."""
    return content_hash(path) if Path(path).is_file() else path


def _one_line(validate: Callable[[dict], Parameters], values: dict) -> Parameters:
    try:
        return validate(values)
    except ValidationError as error:
        parts = [_message(e) for e in error.errors()]
        raise ValueError("; ".join(dict.fromkeys(parts))) from None


def _message(error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"][:1])) or "parameters"
    if error["type"] != "extra_forbidden":
        return f"{name}: {error['msg']}"
    known = {field.lower(): field for field in Parameters.model_fields}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1, SIMILAR)
    hint = f"; did you mean {known[near[0]]}?" if near else ""
    return f"{name}: no such parameter{hint} (roilib train --help lists all)"


def expand_sweep(profile: dict[str, Any], **overrides: Any) -> list[Parameters]:
    """Every run of a profile: each combination of the lists of an entry of `sweep`.

    An entry's values win over the profile's `parameters`, and `overrides` (data_root, logdir) over
    both. Raises ValueError naming what is wrong, also for an unknown key of the profile, and for a
    profile without runs.
    """
    _check_profile(profile)
    runs = []
    for entry in profile["sweep"]:
        lists = [value if isinstance(value, list) else [value] for value in entry.values()]
        for values in product(*lists):
            own = dict(zip(entry, values, strict=True))
            runs.append(Parameters.parse(profile["parameters"] | own | overrides))
    return runs


def _check_profile(profile: Any) -> None:
    """Raise ValueError for a profile whose parts are missing, unknown or of a wrong type."""
    if not isinstance(profile, dict):
        raise ValueError(f"a profile is a mapping with parameters and sweep, not {profile!r}")
    if unknown := profile.keys() - {"parameters", "sweep", "evaluate", "drive"}:
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"a profile has parameters, sweep, evaluate and drive, not {names}")
    if missing := {"parameters", "sweep"} - profile.keys():
        raise ValueError(f"a profile without {' and '.join(sorted(missing))}")
    if not isinstance(profile["parameters"], dict):
        raise ValueError(f"parameters is a mapping, not {profile['parameters']!r}")
    entries = profile["sweep"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"sweep is a list of mappings, not {entries!r}")
    if not entries:
        raise ValueError("sweep is empty; a mapping without names, {}, stands for one run")
    for name, value in (item for entry in entries for item in entry.items()):
        if value == []:
            raise ValueError(f"sweep: {name} has no values")
    for name in ("evaluate", "drive"):
        value = profile.get(name)
        if value is not None and value is not False and not isinstance(value, dict):
            raise ValueError(f"{name} is a mapping or false, not {value!r}")


def parameter_table() -> str:
    """The parameters as a Markdown table: name, type or choices, default, meaning."""
    rows = ["| name | type | default | meaning |", "|---|---|---|---|"]
    for name, field in Parameters.model_fields.items():
        kind = _type_name(field.annotation)
        rows.append(f"| `{name}` | {kind} | {field.default} | {field.description} |")
    return "\n".join(rows)


def parameter_help() -> str:
    """The parameters as text for a terminal: name, default, type or choices, meaning."""
    return "\n".join(
        f"--{name}={field.default}  ({_type_name(field.annotation)})\n    {field.description}"
        for name, field in Parameters.model_fields.items()
    )


def _type_name(annotation: Any) -> str:
    """A type as the table shows it: `int`, `str or None`, or the choices of a Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_args(annotation):
        return " or ".join(_type_name(part) for part in get_args(annotation))
    return "None" if annotation is type(None) else annotation.__name__


if __name__ == "__main__":
    print(parameter_table())
