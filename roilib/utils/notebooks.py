"""Run a notebook headless with papermill, with its parameters checked first (papermill itself only warns of an unknown one).

python -m roilib.utils.notebooks notebooks/03_baseline_training.ipynb runs/out.ipynb --parameters '{"lmbda": 0.013}'
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from roilib.utils.files import write_json
from roilib.utils.provenance import origin

ROOT = Path(__file__).parent.parent.parent
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


def enter_repository() -> None:
    """Make the repository's root the working directory, so that a notebook's relative paths mean the same in JupyterLab and papermill."""
    os.chdir(ROOT)


def prepare_sample_set(dataset: str, data_root: str) -> None:
    """Render the sample set where a notebook asks for it and it is not there: a minute or two."""
    if dataset == "sample" and not Path(data_root).is_dir():
        print(f"Rendering the sample set into {data_root} (a minute or two) …", flush=True)
        _prepare(data_root)


def prepare_drive(folder: str, frames: int, street: int) -> str:
    """Render a drive of `frames` frames unless `folder` is there; returns the folder."""
    if not Path(folder).is_dir():
        print(f"Rendering {frames} frames into {folder} (4 to 5 CPU seconds each) …", flush=True)
    _prepare(folder, "--drive", str(frames), "--seed", str(street))
    return folder


def _prepare(*words: str) -> None:
    """Run data/streets/prepare.py. Raises ValueError with the line that it ends with."""
    script = ROOT / "data" / "streets" / "prepare.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip().rpartition("\n")[2])


def parameter_values(notebook: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a notebook's parameters; variables: its `globals()`."""
    names = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
    return {name: variables[name] for name in names}


def finish(notebook: str, variables: Mapping[str, Any], metrics: dict) -> None:
    """Write a notebook's `metrics.json` and `provenance.json` below its `logdir`.

    variables: the notebook's `globals()`, which have its parameters.
    """
    folder = Path(variables["logdir"]) / notebook
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "provenance.json", origin(parameter_values(notebook, variables)))
    write_json(folder / "metrics.json", metrics)


def check_parameters(notebook: Path, values: dict[str, Any]) -> None:
    """Raise ValueError with one line for a notebook that is missing, and a parameter that it does not have or whose type is another."""
    if not notebook.is_file():
        raise ValueError(f"{notebook}: no such notebook")
    if not isinstance(values, dict):
        raise ValueError(f"parameters are a JSON object, not {values!r}")
    known = papermill.inspect_notebook(str(notebook))
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{notebook}: no parameter {name!r}; it has {', '.join(known)}")
        kinds = [kind.strip() for kind in known[name]["inferred_type_name"].split("|")]
        if value is None and "None" in kinds:
            continue
        if not any(
            isinstance(value, TYPES[k]) and isinstance(value, bool) == (k == "bool")
            for k in kinds
            if k in TYPES
        ):
            raise ValueError(
                f"{notebook}: parameter {name} is {known[name]['inferred_type_name']}, not {value!r}"
            )


def execute(notebook: Path, executed: Path, values: dict[str, Any]) -> None:
    """Run `notebook` with `values` and keep what it shows in `executed`. Raises ValueError, or PapermillExecutionError when a cell fails."""
    check_parameters(notebook, values)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log gets a line every half minute
    options = {
        "kernel_name": "python3",
        "log_output": True,
        "progress_bar": False,
        "cwd": str(ROOT),
    }
    papermill.execute_notebook(str(notebook), str(executed), values, **options)


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by CUDA's numbers."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i in range(len(listed.stdout.splitlines()))]


def claim_gpus(count: int, gpus: list[str], folder: Path) -> list[str]:
    """Take `count` of `gpus` that no other job of this machine has taken, until this process ends.

    A lock file in `folder` stands for each; jobs of SLURM count their own GPUs from 0, so each has its own. Raises ValueError when too few are free.
    """
    taken, job = [], os.environ.get("SLURM_JOB_ID", "")
    for gpu in gpus:
        path = folder / f"roilib-gpu-{job and job + '-'}{gpu}.lock"
        try:
            lock = path.open("w")
        except PermissionError:  # another user's
            lock = path.open()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        taken.append(gpu)
        if len(taken) == count:
            return taken
    raise ValueError(f"{count} GPUs asked for, but of {', '.join(gpus)} only {len(taken)} are free")


_held: list = []  # open lock files


def main() -> int:
    """0; 2 with one line for bad parameters; 1 with one line that names the executed notebook when a cell failed."""
    if sys.stdout:
        sys.stdout.reconfigure(
            errors="replace"
        )  # where the locale is not UTF-8, "?" for what it lacks
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("executed", type=Path, help="where the executed notebook goes")
    parser.add_argument("--parameters", type=json.loads, default={}, metavar="JSON")
    parser.add_argument(
        "--gpus",
        type=int,
        help="run on so many GPUs that no other job with this option has (default: on all)",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        if args.gpus and (here := gpus_here()):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
                claim_gpus(args.gpus, here, Path(tempfile.gettempdir()))
            )
        execute(args.notebook, args.executed, args.parameters)
    except ValueError as error:
        print(f"roilib.utils.notebooks: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"roilib.utils.notebooks: {error.filename or args.executed}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except PapermillExecutionError as error:
        print(
            f"\nroilib.workbook: {args.notebook} failed in cell {error.exec_count}: {error.ename}: {error.evalue}",
            file=sys.stderr,
        )
        print(f"roilib.utils.notebooks: open {args.executed} to see it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
