"""Do other settings of a machine decode the same symbols and the same picture?

    python benchmarks/portability.py --data-root DIR [--weights FILE] [--json FILE]

Every test frame is encoded at three λ, its analysis once in fp32 and once in bf16, and decoded by
a new process under each setting below.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import load_splits
from roilib.models.integer import synthesis
from roilib.parameters import Parameters
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

LMBDAS = (0.0015, 0.012, 0.08)
ALPHA = 0.9
SETTINGS = {  # environment variables, and what the process changes before it decodes
    "as encoded": ({}, ()),
    "1 thread": ({"OMP_NUM_THREADS": "1"}, ()),
    "2 threads": ({"OMP_NUM_THREADS": "2"}, ()),
    "sums in fp64, as on a GPU": ({}, ("fp64",)),
    "fp32 may be computed in bf16": ({}, ("medium",)),
    "oneDNN off": ({}, ("plain",)),
    "oneDNN limited to SSE4.1": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, ()),
    "oneDNN limited to AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, ()),
    "oneDNN limited to AVX512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, ()),
    "ATen without vector instructions": ({"ATEN_CPU_CAPABILITY": "default"}, ()),
    "all of these": (
        {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
        ("medium", "plain"),
    ),
    "CUDA": ({}, ("cuda",)),
}


def encode_all(folder: Path, weights: Path, data_root: Path) -> None:
    """Write streams and decoded pictures as `<frame>_<λ>_<precision>.{roic,npy}`."""
    _, data = load_splits(Parameters(dataset="kitti", data_root=str(data_root)))
    for precision in ("32", "bf16"):
        codec = load_codec(weights, precision=precision)
        for i, (id, lmbda) in (
            (i, (id, lmbda)) for i, id in enumerate(data.ids) for lmbda in LMBDAS
        ):
            image, boxes, _ = data[i]
            stream = codec.encode(
                image.permute(1, 2, 0).numpy(), boxes.numpy(), lmbda=lmbda, alpha=ALPHA
            )
            (folder / f"{id}_{lmbda}_{precision}.roic").write_bytes(stream)
            np.save(folder / f"{id}_{lmbda}_{precision}.npy", codec.decode(stream))


def decode_all(folder: Path, weights: Path, changes: list[str]) -> dict:
    """Decode all streams in this process.

    Returns the number of mismatches (streams whose symbols are refused) and the largest difference
    of a picture in grey levels.
    """
    torch.backends.mkldnn.enabled = "plain" not in changes
    if "medium" in changes:
        torch.set_float32_matmul_precision("medium")
    if "fp64" in changes:
        synthesis.exact_dtype = lambda _: torch.float64
    codec = load_codec(weights, "cuda" if "cuda" in changes else "cpu")
    result = {"streams": 0, "mismatches": 0, "largest_difference": 0}
    for path in sorted(folder.glob("*.roic")):
        result["streams"] += 1
        try:
            picture = codec.decode(path.read_bytes())
        except ValueError:
            result["mismatches"] += 1
            continue
        difference = int(np.abs(picture.astype(int) - np.load(path.with_suffix(".npy"))).max())
        result["largest_difference"] = max(result["largest_difference"], difference)
    return result


def main() -> None:
    """Print the table; write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-root", type=Path, help="a KITTI root")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--changes", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.decode:
        print(json.dumps(decode_all(options.decode, options.weights, options.changes)))
        return
    if not options.data_root:
        parser.error("--data-root is needed")
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        encode_all(Path(folder), options.weights, options.data_root)
        for name, (variables, changes) in SETTINGS.items():
            if "cuda" in changes and not torch.cuda.is_available():
                continue
            words = [
                "--decode",
                folder,
                "--changes",
                *changes,
                *(["--weights", str(options.weights)] if options.weights else []),
            ]
            done = subprocess.run(
                [sys.executable, __file__, *words],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            table[name] = json.loads(done.stdout)
            print(
                f"{name:34}", *(f"{key} {value}" for key, value in table[name].items()), flush=True
            )
    if options.json:
        result = {
            "table": table,
            "lmbda": LMBDAS,
            "alpha": ALPHA,
            "model": load_codec(options.weights).id.hex(),
        }
        write_json(
            options.json,
            result | origin({"weights": options.weights, "data_root": options.data_root}),
        )


if __name__ == "__main__":
    main()
