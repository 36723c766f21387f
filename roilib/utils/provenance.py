"""Where numbers come from: what was asked for, by which code, with which versions, on which machine.

    parameters ──► origin ──► hparams.json of a run, provenance.json beside results, a part of a benchmark's JSON

A repository says commit and whether files were changed since; `source` stands for the modules themselves, in an image or a wheel without one too.
"""

import ast
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roilib.utils.processes import cores

HERE = Path(__file__).parent.parent  # the package
PACKAGES = (  # those that results are made with
    *(
        "torch",
        "torchvision",
        "lightning-fabric",
        "compressai",
        "constriction",
        "ultralytics",
        "numpy",
        "scipy",
        "pandas",
        "bjontegaard",
    ),
    *(
        "pytorch-msssim",
        "av",
        "pillow",
        "pillow-jxl-plugin",
        "safetensors",
        "matplotlib",
        "seaborn",
        "trimesh",
        "embreex",
    ),
)


def origin(parameters: Mapping[str, Any]) -> dict[str, dict]:
    """`parameters`, paths as text, and the `environment`: what each file of results has in it or beside it."""
    return {
        "parameters": json.loads(json.dumps(dict(parameters), default=str)),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Code, versions and machine."""
    import torch  # here: importing it takes seconds, which commands that never ask for this save

    ours = _git(
        "ls-files", "--error-unmatch", "__init__.py"
    )  # or else the repository is another's, in whose folder we are installed
    changed = ours and bool(
        _git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":/",
            ":(top,exclude)report/results",
        )
    )
    code = {
        "commit": ours and _git("rev-parse", "HEAD"),
        "dirty": changed,
    }  # results are no code: what is measured anew changes them
    machine = {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
    }
    machine |= {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    machine["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return code | {"source": sha256(sorted(HERE.rglob("*.py")))} | versions | machine


def sha256(files: Iterable[Path]) -> str:
    """One hash of the content of files, in their order."""
    return hashlib.sha256(
        b"".join(hashlib.sha256(Path(path).read_bytes()).digest() for path in files)
    ).hexdigest()


def sources(modules: Iterable[str], without: Iterable[str] = ()) -> list[Path]:
    """Files of these modules of the package and of all that they import from it, sorted.

    modules, without: dotted names below the package, as "codecs.roic". Imports of `without`
    are not followed.
    """
    found: set[Path] = set()
    todo = [HERE.joinpath(*name.split(".")).with_suffix(".py") for name in modules]
    left_out = {HERE.joinpath(*name.split(".")).with_suffix(".py") for name in without}
    while todo:
        path = todo.pop()
        if path in found or path in left_out or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(HERE.name):
                base = HERE.parent.joinpath(*node.module.split("."))
                todo.append(base.with_suffix(".py"))
                todo += [(base / alias.name).with_suffix(".py") for alias in node.names]
    return sorted(found)


def _processor() -> str:
    """The processor's name; Linux does not tell it to `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if cpuinfo.exists()
        else None
    )
    return found[1] if found else platform.processor()


def _git(*arguments: str) -> str | None:
    """What git says of the folder of these modules; None where it is not there or has nothing to say."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
