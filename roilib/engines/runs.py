"""Run folders: a run's parameters, its results, and what it resumes from.

logdir/<which>-<hash>/hparams.json       parameters, code, versions, machine
                      metrics.json       the result, written last: a run that has it is finished
                      timing.json        seconds and memory, which differ from run to run
                      splits.json        training and test pictures, by id and by content, and
                                         training pictures that were removed after it began
                      lock               while a process trains the run
                      checkpoints/       what to resume from (roilib.engines.checkpoints)
                      weights.safetensors
                      events.out.tfevents…  TensorBoard
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from roilib.codecs.codec import Codec
from roilib.codecs.registry import codec_label, codec_name
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.images import read_picture
from roilib.engines.checkpoints import Checkpoints
from roilib.models.weights import picture_hash
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device
from roilib.utils.files import read_json, write_json
from roilib.utils.processes import cores
from roilib.utils.provenance import origin

TERMS = ("loss", "bpp_loss", "psnr", "roi_psnr", "bg_psnr")
TRAINING_COLUMNS = ("run", "codec", "label", "part", "step", "hours", *TERMS)
MAX_ROWS = 150  # of a run in the training table: more than a figure can show
REMOVED_SHARE = 0.01  # of the training pictures that may go while a run trains; one always may
DIGITS = 5  # significant ones of the training table


@dataclass(frozen=True)
class Run:
    """One run's folder and parameters; `open_run` makes it."""

    folder: Path
    parameters: Parameters

    @property
    def weights(self) -> Path:
        """The trained model's file."""
        return self.folder / "weights.safetensors"

    @property
    def model_file(self) -> Path:
        """The weights that the run trained; of a test run, those that it tested."""
        p = self.parameters
        return p.start_file if p.what == "test" else self.weights

    def codec(self, device: str = "cpu") -> Codec:
        """The codec of `model_file`, with the detector that the run's own parameters name."""
        return load_codec(self.model_file, device, detector=self.parameters.own_detector)

    @property
    def splits(self) -> Path:
        """What the run trains and tests on, as `data_splits` describes it."""
        return self.folder / "splits.json"

    @property
    def noted(self) -> dict:
        """What `splits` holds, empty before the run has begun. Raises ValueError naming it."""
        noted = read_json(self.splits) if self.splits.exists() else {}
        if not isinstance(noted, dict):
            raise ValueError(f"{self.splits}: not a run's data")
        return noted

    @property
    def checkpoints(self) -> Checkpoints:
        """The states to resume from."""
        return Checkpoints(self.folder / "checkpoints")

    @property
    def state(self) -> str:
        """`finished`, or the step of the newest checkpoint."""
        if self.metrics is not None:
            return "finished"
        recent = self.checkpoints.recent()
        return f"step {int(recent[0].stem.removeprefix('step-'))}" if recent else "step 0"

    @property
    def begun(self) -> bool:
        """Whether the run is finished or has a checkpoint."""
        return self.metrics is not None or bool(self.checkpoints.all())

    @property
    def metrics(self) -> dict | None:
        """The result of a finished run, None of an unfinished one."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else None


def open_run(p: Parameters) -> Run:
    """Create (or find) the folder of these parameters and write its hparams.json.

    An earlier result stays, with `resume=False` until its data are checked (`begin_anew`). Raises
    ValueError, before it changes anything, for a device or a weights file that does not exist.
    """
    run = Run(p.folder, p)
    if not p.resume or run.metrics is None:
        resolve_device(p.device)
        for file in (p.start_file, p.detector_weights):
            if file is not None and not Path(file).is_file():
                raise ValueError(f"{file}: no such weights file")
    try:
        run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        if not run.begun:  # else hparams.json says what made its files
            write_json(run.folder / "hparams.json", origin(p.model_dump()))
    except OSError as error:
        raise ValueError(
            f"{run.folder}: cannot be written ({error.strerror}); make room or choose another "
            "logdir"
        ) from None
    return run


def begin_anew(run: Run) -> None:
    """Delete an earlier result, and write the run's hparams.json."""
    results = (*run.folder.glob("*.json"), *run.folder.glob("events.out.tfevents.*"))
    for path in (*run.checkpoints.folder.iterdir(), *results, run.weights):
        path.unlink(missing_ok=True)
    write_json(run.folder / "hparams.json", origin(run.parameters.model_dump()))


def discard(run: Run) -> None:
    """Remove what `open_run` made for a run that was refused before it began."""
    begun = (run.splits, run.folder / "metrics.json", run.folder / "lock", *run.checkpoints.all())
    if any(path.exists() for path in begun):
        return
    (run.folder / "hparams.json").unlink(missing_ok=True)
    with suppress(OSError):  # the executed notebook stays, and its folder
        run.checkpoints.folder.rmdir()
        run.folder.rmdir()


def all_runs(logdir: str | Path) -> list[Run]:
    """Every run below `logdir`, finished or not. Raises what `read_run` raises."""
    return [read_run(path.parent) for path in sorted(Path(logdir).glob("*/hparams.json"))]


def read_run(folder: Path) -> Run:
    """The run in a folder, finished or not.

    Raises ValueError naming an hparams.json that cannot be read.
    """
    path = folder / "hparams.json"
    try:
        return Run(folder, Parameters.parse(json.loads(path.read_text())["parameters"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a run's parameters ({error})") from None


def is_shorter(run: Run, other: Run) -> bool:
    """Whether a run differs from another in a lower `max_steps` alone."""
    limit, longer = run.parameters.max_steps, other.parameters.max_steps
    same = run.parameters.model_copy(update={"max_steps": longer}).name == other.parameters.name
    return bool(same and limit and (longer is None or limit < longer))


def shorter_run(run: Run) -> Run | None:
    """The longest finished run in the same logdir that differs in a lower `max_steps` alone."""
    found = []
    for path in Path(run.parameters.logdir).glob("*/hparams.json"):
        with suppress(ValueError):  # of a folder that is no run's
            other = read_run(path.parent)
            if is_shorter(other, run) and other.metrics:
                found.append(other)
    return max(found, key=lambda other: other.parameters.max_steps, default=None)


def data_splits(p: Parameters, train_data: RoiDataset, test_data: RoiDataset) -> dict:
    """The data of a run: ids of its pictures, their `picture_hash`es, and hashes of their labels.

    Raises ValueError when a test picture is among the training pictures, under whatever name.
    """
    splits = {"dataset": p.dataset}
    for part, data in (("train", train_data), ("test", test_data)):
        with ThreadPoolExecutor(cores()) as pool:
            digests = list(pool.map(picture_hash, (s.path for s in data.samples)))
        labels = [s.boxes.tobytes() + s.labels.tobytes() for s in data.samples]
        splits |= {part: data.ids, f"{part}_pictures": digests}
        splits[f"{part}_labels"] = [hashlib.sha256(bytes).hexdigest()[:16] for bytes in labels]
    tested = dict(zip(splits["test_pictures"], test_data.ids, strict=True))
    for sample, digest in zip(train_data.samples, splits["train_pictures"], strict=True):
        if digest in tested:
            raise ValueError(
                f"{sample.path}: a training picture with the content of test picture "
                f"{tested[digest]}"
            )
    return splits


def data_change(run: Run, splits: dict) -> str | None:
    """How `splits` differs from what the run began with, in a few words; None: not at all."""
    noted = splits | run.noted
    for part in ("train", "test"):
        before, now = noted[part], splits[part]
        if before != now:
            gone, new = len({*before} - {*now}), len({*now} - {*before})
            return f"{part} pictures: {gone} gone, {new} new"
        for kind, what in (("pictures", "is another"), ("labels", "has other labels")):
            hashes = zip(now, noted[f"{part}_{kind}"], splits[f"{part}_{kind}"], strict=True)
            if other := next((id for id, old, new in hashes if old != new), None):
                return f"{part} picture {other} {what}"
    return None if noted["dataset"] == splits["dataset"] else "its dataset changed"


def removed_pictures(run: Run, splits: dict) -> dict[str, str]:
    """Training pictures that are gone since the run began, by id: their `picture_hash`es.

    Empty if anything else differs from what the run began with, or more than REMOVED_SHARE is gone.
    """
    noted, left = run.noted, set(splits["train"])
    if splits.keys() - noted.keys():  # of an earlier version
        return {}
    rest, ids = {name: noted[name] for name in splits}, noted["train"]
    hashes = zip(ids, noted["train_pictures"], strict=True)
    gone = {id: digest for id, digest in hashes if id not in left}
    for name in ("train", "train_pictures", "train_labels"):
        rest[name] = [v for v, id in zip(noted[name], ids, strict=True) if id not in gone]
    few = len(gone) <= max(1, REMOVED_SHARE * len(ids))
    return gone if few and rest == splits else {}


def check_pictures(*parts: RoiDataset) -> None:
    """Decode every picture once, which takes less time than an epoch.

    Raises ValueError naming the first ones that cannot be read.
    """

    def error(path: Path) -> str | None:
        try:
            read_picture(path)
        except ValueError as error:
            return str(error)
        return None

    paths = dict.fromkeys(sample.path for data in parts for sample in data.samples)
    with ThreadPoolExecutor(cores()) as pool:
        errors = [message for message in pool.map(error, paths) if message]
    if errors:
        more = f"; {len(errors) - 1} more cannot be read" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}")


def training_table(runs: Sequence[Run]) -> pd.DataFrame:
    """TRAINING_COLUMNS of the epochs of finished runs, at most MAX_ROWS a run.

    part: test, or train where nothing was tested. hours: of training and testing until then.
    Raises ValueError naming a run that is not finished.
    """
    tables = [pd.DataFrame(columns=TRAINING_COLUMNS)]
    for run, label in zip(runs, run_labels(runs), strict=True):
        table = _epochs(run)
        rows = np.linspace(0, len(table) - 1, MAX_ROWS).round().astype(int)
        names = {"run": run.folder.name, "codec": codec_name(run.parameters), "label": label}
        tables.append(table.iloc[np.unique(rows)].assign(**names))
    return pd.concat(tables[1:] or tables)[list(TRAINING_COLUMNS)]


def _epochs(run: Run) -> pd.DataFrame:
    """part, step, hours and TERMS of a run's epochs."""
    if run.metrics is None:
        raise ValueError(f"{run.folder}: not a finished run")
    history = run.metrics["history"]
    # Runs of earlier versions do not say how long each epoch took.
    seconds = read_json(run.folder / "timing.json").get("seconds_of_epochs", [None] * len(history))
    part = "test" if "test" in history[0] else "train"
    table = pd.DataFrame([entry[part] for entry in history]).reindex(columns=TERMS)
    hours = pd.Series(seconds, dtype=float).cumsum() / 3600
    table = table.assign(hours=hours).map(lambda value: float(f"{value:.{DIGITS}g}"))
    return table.assign(part=part, step=[entry["step"] for entry in history])


def run_labels(runs: Sequence[Run]) -> list[str]:
    """What a legend calls each run: its codec, and the λ and α that it was trained for.

    Runs that would be called alike are distinguished by the end of their folder's name.
    """
    labels = []
    for p in (run.parameters for run in runs):
        label = codec_label(codec_name(p))
        if p.which != "roi_vbr" or p.fixed_rate:
            label += f", λ {p.lmbda:g}"
        if p.which == "hyperprior_with_obj_features":
            label += f", α {p.alpha:g}"
        labels.append(label)
    return [
        label if labels.count(label) == 1 else f"{label}, {run.folder.name[-4:]}"
        for label, run in zip(labels, runs, strict=True)
    ]
