"""Time of encoding and decoding a frame, beside CompressAI's bmshj2018-hyperprior (N=128) in fp32, frame by frame in turn.

    python benchmarks/codec.py PICTURE [--weights FILE] [--lmbda λ] [--alpha α] [--pairs 10] [--json FILE]

The baseline's weights are random (its time hardly depends on them; it codes few bits, so its entropy coding is at its fastest). Medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from compressai.zoo import bmshj2018_hyperprior
from torch.profiler import ProfilerActivity, profile

from roilib.codec import Codec, load_codec
from roilib.datasets import read_picture
from roilib.detector import pad
from roilib.runs import write_json

BOXES = ((300, 150, 420, 250), (600, 170, 660, 220))
STAGES = ("tables", "analysis", "hyper analysis", "hyper synthesis", "entropy networks", "entropy coding", "synthesis")


def seconds(call: Callable) -> tuple[float, object]:
    """How long a call took, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@torch.no_grad()
def baseline(model: torch.nn.Module, frame: np.ndarray) -> dict[str, float]:
    """Seconds of CompressAI's model for one frame."""
    x = pad(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255, 64)
    encode, packed = seconds(lambda: model.compress(x))
    decode, _ = seconds(lambda: model.decompress(packed["strings"], packed["shape"]))
    return {"baseline encode": encode, "baseline decode": decode}


def ours(codec: Codec, frame: np.ndarray, lmbda: float, alpha: float) -> dict[str, float]:
    """Seconds of roi_vbr for the same frame, boxes given, container included."""
    encode, stream = seconds(lambda: codec.encode(frame, BOXES, lmbda=lmbda, alpha=alpha))
    decode, _ = seconds(lambda: codec.decode(stream))
    return {"encode": encode, "decode": decode}


def stages(codec: Codec, frame: np.ndarray, lmbda: float, alpha: float, count: int) -> dict[str, float]:
    """Mean seconds of each stage, encoder and decoder together; the profiler that tells them apart slows them a little."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(count):
            ours(codec, frame, lmbda, alpha)
    found = {event.key: event.cpu_time_total / 1e6 / count for event in profiler.key_averages() if event.key in STAGES}
    return {name: found[name] for name in STAGES}


def main() -> None:
    """Print and, with --json, write the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--lmbda", type=float, default=0.012)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frame = read_picture(options.picture).permute(1, 2, 0).numpy()
    codec, model = load_codec(options.weights), bmshj2018_hyperprior(1).eval()
    model.update()
    runs = [baseline(model, frame) | ours(codec, frame, options.lmbda, options.alpha) for _ in range(options.pairs + 1)][1:]
    times = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    ratio = statistics.median((run["baseline encode"] + run["baseline decode"]) / (run["encode"] + run["decode"]) for run in runs)
    parts = stages(codec, frame, options.lmbda, options.alpha, options.pairs)
    for name, value in (times | parts).items():
        print(f"{name:18} {1000 * value:7.1f} ms")
    print(f"ratio (median of {options.pairs} pairs) {ratio:.1f}; {torch.get_num_threads()} threads, frame {frame.shape[1]}x{frame.shape[0]}")
    if options.json:
        result = {"seconds": times, "stages": parts, "ratio": ratio, "pairs": options.pairs, "threads": torch.get_num_threads()}
        write_json(options.json, result | {"lmbda": options.lmbda, "alpha": options.alpha, "size": frame.shape[:2], "model": codec.id.hex()})


if __name__ == "__main__":
    main()
