"""Where numbers come from: parameters, code, versions and machine.

    parameters ──► origin ──► hparams.json of a run, provenance.json beside results, benchmarks

Code is told by its commit in a repository, and by a hash of the modules (`source`) everywhere.
"""

import ast
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from roilib.utils.processes import cores

HERE = Path(__file__).parent.parent  # the package
PACKAGES = (  # whose versions can change results
    *("torch", "torchvision", "lightning-fabric", "compressai", "constriction", "ultralytics"),
    *("numpy", "scipy", "pandas", "bjontegaard", "pytorch-msssim", "piq", "av"),
    *("pillow", "pillow-jxl-plugin", "safetensors", "matplotlib", "seaborn", "trimesh", "embreex"),
)


def origin(parameters: Mapping[str, Any]) -> dict[str, dict]:
    """`parameters`, paths as text, and the `environment`: stored in or beside every result."""
    return {
        "parameters": json.loads(json.dumps(dict(parameters), default=str)),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Code, versions and machine."""
    import torch  # seconds, which commands that need no environment save

    is_ours = _git("ls-files", "--error-unmatch", "__init__.py")  # not a repository around us
    changes = ("status", "--porcelain", "--untracked-files=no", "--", ":/")
    results = ":(top,exclude)report/results"  # no code: new measurements change them
    return {
        "commit": is_ours and _git("rev-parse", "HEAD"),
        "dirty": is_ours and bool(_git(*changes, results)),
        "source": sha256(sorted(HERE.rglob("*.py"))),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    """Return a package's version; None if it is not installed, as those that render streets."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def sha256(files: Iterable[Path]) -> str:
    """One hash of the content of files, in their order."""
    digests = [hashlib.sha256(Path(path).read_bytes()).digest() for path in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


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
    """The processor's name, which `platform` does not know on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _git(*arguments: str) -> str | None:
    """What git prints in the package's folder; None where it fails or is not installed."""
    command = ["git", *arguments]
    try:
        return subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
