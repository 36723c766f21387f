"""Run folders: what a run was told, what it measured and what it can go on from.

logdir/<which>-<hash>/hparams.json       parameters, code, versions, machine
                      metrics.json       the result; written last, so a run with this file is finished
                      timing.json        seconds and memory, which no two runs share
                      splits.json        ids of the training and test pictures
                      lock               while a process trains it
                      checkpoints/       what to resume from (roilib.engines.checkpoints)
                      weights.safetensors
                      events.out.tfevents…  TensorBoard
"""

import json
from dataclasses import dataclass
from pathlib import Path

from roilib.engines.checkpoints import Checkpoints
from roilib.parameters import Parameters
from roilib.utils.device import resolve_device
from roilib.utils.files import read_json, write_json
from roilib.utils.provenance import origin


@dataclass(frozen=True)
class Run:
    """One run's folder and parameters; make it with `open_run`."""

    folder: Path
    parameters: Parameters

    @property
    def weights(self) -> Path:
        """The trained model's file."""
        return self.folder / "weights.safetensors"

    @property
    def model_file(self) -> Path:
        """The weights that this run is about: those it trained, or of a test run those it tested."""
        return (
            Path(self.parameters.model_load_file)
            if self.parameters.what == "test"
            else self.weights
        )

    @property
    def splits(self) -> Path:
        """The ids of what it trained and tested on."""
        return self.folder / "splits.json"

    @property
    def checkpoints(self) -> Checkpoints:
        """The states to resume from."""
        return Checkpoints(self.folder / "checkpoints")

    @property
    def state(self) -> str:
        """`finished`, or how far its newest checkpoint is."""
        if self.metrics is not None:
            return "finished"
        recent = self.checkpoints.recent()
        return f"step {int(recent[0].stem.removeprefix('step-'))}" if recent else "step 0"

    @property
    def metrics(self) -> dict | None:
        """The result of a finished run, None of an unfinished one."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() else None


def open_run(p: Parameters) -> Run:
    """Create (or find) the folder of these parameters and write its hparams.json. With `resume=False` an earlier result is cleared.

    Raises ValueError, before it touches anything, for a device that is not there or a file to start from that is missing.
    """
    run = Run(p.folder, p)
    if not p.resume or run.metrics is None:
        resolve_device(p.device)
        for file in (p.model_load_file, p.detector_weights):
            if file is not None and not Path(file).is_file():
                raise ValueError(f"{file}: no such weights file")
    try:
        _prepare(run)
    except OSError as error:
        raise ValueError(
            f"{run.folder}: cannot be written ({error.strerror}); make room or choose another logdir"
        ) from None
    return run


def _prepare(run: Run) -> None:
    p = run.parameters
    run.checkpoints.folder.mkdir(parents=True, exist_ok=True)
    if not p.resume:
        for stale in (
            *run.checkpoints.folder.iterdir(),
            *run.folder.glob("*.json"),
            *run.folder.glob("events.out.tfevents.*"),
            run.weights,
        ):
            stale.unlink(missing_ok=True)
    if (
        not run.checkpoints.all() and run.metrics is None
    ):  # a resumed or finished run keeps what made it
        write_json(run.folder / "hparams.json", origin(p.model_dump()))


def all_runs(logdir: str | Path) -> list[Run]:
    """Every run below `logdir`, finished or not. Raises ValueError naming an hparams.json that cannot be read."""
    return [read_run(path.parent) for path in sorted(Path(logdir).glob("*/hparams.json"))]


def read_run(folder: Path) -> Run:
    """The run in a folder, finished or not. Raises ValueError naming an hparams.json that cannot be read."""
    path = folder / "hparams.json"
    try:
        return Run(folder, Parameters.parse(json.loads(path.read_text())["parameters"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a run's parameters ({error})") from None
