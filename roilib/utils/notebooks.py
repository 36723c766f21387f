"""Notebooks: run headless with checked parameters, and what their first and last cells call.

Papermill itself only warns of an unknown parameter. `roilib notebook` is the command. The training
notebooks show a dozen parameters of a run; their dict `more` takes all others.
"""

import ast
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import papermill
from papermill.iorw import load_notebook_node, write_ipynb

from roilib.utils.files import write_json
from roilib.utils.provenance import origin

ROOT = Path(__file__).parent.parent.parent
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
LOG_SECONDS = 30  # between two lines of a progress bar in a log

_held: list[IO] = []  # open files, which lock this process' GPUs until it ends


def enter_repository() -> None:
    """Make the repository's root the working directory, as in JupyterLab so with papermill."""
    os.chdir(ROOT)


def prepare_sample_set(dataset: str, data_root: str) -> None:
    """Render the sample set, in a minute or two, where `dataset` is "sample" and it is missing."""
    if dataset == "sample" and not Path(data_root).is_dir():
        print(f"Rendering the sample set into {data_root} (a minute or two) …", flush=True)
        _prepare(data_root)


def prepare_drive(folder: str, frames: int, street: int = 21) -> str:
    """Render a drive of so many frames unless `folder`, or a video, is there; returns its name."""
    if Path(folder).is_file():
        return folder
    words = [folder, "--drive", str(frames)]
    if not Path(folder).is_dir():
        print(f"Rendering {frames} frames into {folder} (4 to 5 CPU seconds each) …", flush=True)
        words += ["--seed", str(street)]  # a drive that is there may be of another one
    _prepare(*words)
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


def options(more: Mapping[str, Any], **defaults: Any) -> SimpleNamespace:
    """The values of a notebook's dict `more`. Raises ValueError for a name without a default."""
    for name in more.keys() - defaults.keys():
        raise ValueError(f"more: no parameter {name!r}; it has {', '.join(defaults)}")
    return SimpleNamespace(**defaults | more)


def finish(notebook: str, variables: Mapping[str, Any], metrics: dict) -> None:
    """Write a notebook's `metrics.json` and `provenance.json` below its `logdir`.

    variables: the notebook's `globals()`, which have its parameters.
    """
    folder = Path(variables["logdir"]) / notebook
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "provenance.json", origin(parameter_values(notebook, variables)))
    write_json(folder / "metrics.json", metrics)


def checked_parameters(
    notebook: Path, values: dict[str, Any], parse: Callable[[dict], Any] = dict
) -> dict[str, Any]:
    """The values as the notebook's parameters cell takes them.

    A training notebook (03, 04) takes all parameters of a run: those that its cell does not show go
    to its dict `more`. parse: checks them; dict checks nothing. Raises ValueError for a missing
    notebook, and an unknown parameter or one of a wrong type.
    """
    if not notebook.is_file():
        raise ValueError(f"{notebook}: no such notebook")
    if not isinstance(values, dict):
        raise ValueError(f"parameters are a JSON object, not {values!r}")
    known = papermill.inspect_notebook(str(notebook))
    if "which" in known:  # a training notebook
        return _with_more(known, values, parse)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{notebook}: no parameter {name!r}; it has {', '.join(known)}")
        type_name = known[name]["inferred_type_name"]
        if not any(_is_of(value, kind.strip()) for kind in type_name.split("|")):
            raise ValueError(f"{notebook}: parameter {name} is {type_name}, not {value!r}")
    return values


def _with_more(
    known: dict[str, Any], values: dict[str, Any], parse: Callable[[dict], Any]
) -> dict[str, Any]:
    """`checked_parameters` of a training notebook; known: of papermill's inspection."""
    cell = {name: ast.literal_eval(about["default"]) for name, about in known.items()}
    more = cell.pop("more") | values.get("more", {})
    shown = {name: value for name, value in values.items() if name in cell}
    more |= {name: values[name] for name in values.keys() - shown.keys() - {"more"}}
    parse(cell | more | shown)
    return shown | {"more": more}


def _is_of(value: Any, kind: str) -> bool:
    if value is None or kind == "None":
        return value is None and kind == "None"
    is_bool = isinstance(value, bool)
    return kind in TYPES and isinstance(value, TYPES[kind]) and is_bool == (kind == "bool")


def execute(
    notebook: Path, executed: Path, values: dict[str, Any], parse: Callable[[dict], Any] = dict
) -> None:
    """Run `notebook` with `values`, with this interpreter; `executed` keeps what it shows.

    parse: see `checked_parameters`. Raises ValueError for wrong parameters and
    PapermillExecutionError when a cell fails.
    """
    values = checked_parameters(notebook, values, parse)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TQDM_MININTERVAL", str(LOG_SECONDS))
    # Else Jupyter prefers a user's own kernel "python3", which may be another interpreter.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            values,
            kernel_name="python3",
            log_output=True,
            progress_bar=False,
            cwd=str(ROOT),
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else each kernel warns of its TCP
        )
    finally:
        if executed.exists():
            _keep_last_of_bars(executed)


def _keep_last_of_bars(executed: Path) -> None:
    """Keep what each progress bar showed last, as a terminal does, not a line for every change."""
    notebook = load_notebook_node(str(executed))
    for cell in notebook.cells:
        shown: list = []
        for output in cell.get("outputs", []):
            if shown and output.get("name", "") == shown[-1].get("name"):
                shown[-1].text += output.text  # a stream comes in pieces
            else:
                shown.append(output)
        for output in shown:
            if output.output_type == "stream":
                lines = output.text.split("\n")
                output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if shown:
            cell.outputs = shown
    write_ipynb(notebook, str(executed))


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by CUDA's numbers."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i in range(len(listed.stdout.splitlines()))]


def claim_gpus(count: int, gpus: list[str], folder: Path) -> list[str]:
    """Take `count` of `gpus` that no other job of this machine has, until this process ends.

    A lock file in `folder` stands for each GPU. Jobs of SLURM number their own GPUs from 0, so
    each job has lock files of its own. Raises ValueError when too few are free.
    """
    claimed, job = [], os.environ.get("SLURM_JOB_ID", "")
    for gpu in gpus:
        path = folder / f"roilib-gpu-{job and job + '-'}{gpu}.lock"
        try:
            lock = path.open("w")
        except PermissionError:  # the file is another user's
            lock = path.open()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        claimed.append(gpu)
        if len(claimed) == count:
            return claimed
    free = f"only {len(claimed)} are free"
    raise ValueError(f"{count} GPUs asked for, but of {', '.join(gpus)} {free}")
