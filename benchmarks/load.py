"""A thousand small pictures twice in one process: does its memory stay flat?

    python benchmarks/load.py [--weights FILE] [--pictures 1000] [--json FILE]

Do fresh and parallel processes write the same bytes? A picture follows from its number: sides of 16
to --largest pixels, up to three boxes, λ and α from their whole ranges, every eighth with a byte
cap. The same pictures come twice, so that the second round needs no new memory.
Each of --again evenly chosen pictures is then coded and decoded by a process of its own, and a
hundred pictures by all --processes at once.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import torch

from roilib.codecs.codec import Codec
from roilib.codecs.roic import load_codec
from roilib.roi import LMBDA_MAX, LMBDA_MIN
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

SMALLEST = 16  # pixels a side
POINTS = 100  # of each round's memory curve, and pictures of the parallel processes


def picture(number: int, largest: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Make image, boxes and setting number `number`: a patchwork with grain."""
    random = np.random.default_rng(number)
    height, width = random.integers(SMALLEST, largest, 2, endpoint=True)
    patches = (
        random.uniform(0, 255, (-(-height // 8), -(-width // 8), 3))
        .repeat(8, 0)
        .repeat(8, 1)[:height, :width]
    )
    image = (patches + random.normal(0, 5, patches.shape)).clip(0, 255).astype(np.uint8)
    corners = np.sort(random.uniform(0, (width - 1, height - 1), (random.integers(4), 2, 2)), 1)
    knobs = {
        "lmbda": LMBDA_MIN * (LMBDA_MAX / LMBDA_MIN) ** random.random(),
        "alpha": random.random(),
    }
    return (
        image,
        np.concatenate([corners[:, 0], corners[:, 1] + 1], 1),
        knobs | ({} if number % 8 else {"max_bytes": 500 + height * width // 8}),
    )


def coded(codec: Codec, number: int, largest: int) -> str:
    """Code a picture and decode it; return a hash of the stream and the decoded picture."""
    image, boxes, knobs = picture(number, largest)
    stream = codec.encode(image, boxes, **knobs)
    return hashlib.sha256(stream + codec.decode(stream).tobytes()).hexdigest()


def by_processes(
    count: int, numbers: list[int], weights: Path | None, largest: int
) -> list[list[str]]:
    """Return the hashes that each of `count` processes at once makes of these pictures."""
    words = [
        sys.executable,
        __file__,
        "--largest",
        str(largest),
        *(["--weights", str(weights)] if weights else []),
    ]
    # The number of threads may change a picture by rounding, and Ultralytics has set another
    # number for processes that are started here.
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    started = [
        subprocess.Popen(
            [*words, "--only", *map(str, numbers)], stdout=subprocess.PIPE, text=True, env=alike
        )
        for _ in range(count)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def measure(codec: Codec, numbers: Iterable[int], largest: int) -> tuple[list[str], np.ndarray]:
    """Code pictures here; return their hashes and the resident memory after each in MB."""
    found, memory, process = [], [], psutil.Process()
    for number in numbers:
        found.append(coded(codec, number, largest))
        memory.append(process.memory_info().rss / 2**20)
    return found, np.array(memory)


def flatness(memory: np.ndarray) -> dict[str, float]:
    """Return the slope of a line through the second half of the memory.

    Beside it stand the memory at first, in the middle and at last.
    """
    second = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(second)), second, 1)[0])
    return {
        "kb_a_picture": 1024 * slope,
        "first_mb": float(memory[0]),
        "middle_mb": float(second[0]),
        "last_mb": float(second[-1]),
    }


def evenly(total: int, count: int) -> list[int]:
    """Return at most `count` of the numbers below `total`, with the first and the last."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(int)).tolist()


def load(weights: Path | None, pictures: int, largest: int, again: int, processes: int) -> dict:
    """Measure everything."""
    start, codec = time.perf_counter(), load_codec(weights)
    found, first_round = measure(codec, range(pictures), largest)
    second, second_round = measure(codec, range(pictures), largest)
    memory = np.concatenate([first_round, second_round])
    result = {
        "pictures": pictures,
        "seconds": time.perf_counter() - start,
        "model": codec.id.hex(),
        "memory": flatness(memory),
    }
    result["memory_mb"] = [round(memory[i], 1) for i in evenly(len(memory), 2 * POINTS)]
    result["second_round"] = {"pictures": pictures, "equal": sum(map(str.__eq__, found, second))}
    fresh, shared = evenly(pictures, again), evenly(pictures, POINTS)
    equal = sum(
        by_processes(1, [number], weights, largest) == [[found[number]]] for number in fresh
    )
    result["fresh_processes"] = {"pictures": len(fresh), "equal": equal}
    wanted = [found[number] for number in shared]
    equal = sum(
        sum(map(str.__eq__, wanted, made))
        for made in by_processes(processes, shared, weights, largest)
    )
    return result | {"parallel_processes": {"pictures": processes * len(shared), "equal": equal}}


def main() -> None:
    """Print what was measured; write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pictures", type=int, default=1000, help="each is coded twice")
    parser.add_argument("--largest", type=int, default=200, help="longest possible side in pixels")
    parser.add_argument(
        "--again", type=int, default=12, help="pictures that a process each codes again"
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", type=int, nargs="+", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    path, only = options.pop("json"), options.pop("only")
    if only:
        codec = load_codec(options["weights"])
        print(json.dumps([coded(codec, number, options["largest"]) for number in only]))
        return
    result = load(**options)
    print(f"{result['pictures']} pictures twice in {result['seconds']:.0f} s")
    print(f"second round: resident memory {result['memory']['kb_a_picture']:+.2f} kB a picture")
    for name in ("second_round", "fresh_processes", "parallel_processes"):
        counts = f"{result[name]['equal']} of {result[name]['pictures']}"
        print(f"{name.replace('_', ' ')}: {counts} the same")
    if path:
        write_json(path, result | origin(options))


if __name__ == "__main__":
    main()
