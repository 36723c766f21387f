"""A thousand pictures twice through one process: does its memory stay flat, and are its bytes those of fresh and of parallel processes?

    python benchmarks/load.py [--weights FILE] [--pictures 1000] [--largest 200] [--again 12] [--processes 4] [--json FILE]

A picture follows from its number: sides of 16 to --largest pixels, up to three boxes, λ and α from their whole ranges, every eighth under a byte cap.
Each is encoded, decoded and forgotten, and when all have been, each once more. Resident memory rises in steps, where something needs more in one
piece than the allocator has kept; what glibc says is in use in its heap tells to the byte whether the second round gave back what it took. Stream and
decoded picture of --again evenly chosen ones are then made by a process for each of them, and those of a hundred by all --processes at once.
"""

import argparse
import ctypes
import gc
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

from roilib.codecs.roic import Codec, load_codec
from roilib.roi import LMBDA_MAX, LMBDA_MIN
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

SMALLEST, POINTS = (
    16,
    100,
)  # pixels a side; of the memory's curve, and pictures of the parallel processes


def picture(number: int, largest: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Image, boxes and knobs of a number: a patchwork with grain."""
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
    """Code a picture and decode it; what stands for its stream and what that decodes to."""
    image, boxes, knobs = picture(number, largest)
    stream = codec.encode(image, boxes, **knobs)
    return hashlib.sha256(stream + codec.decode(stream).tobytes()).hexdigest()


def by_processes(
    count: int, numbers: list[int], weights: Path | None, largest: int
) -> list[list[str]]:
    """What each of `count` new processes, at work at once, makes of the pictures of these numbers."""
    words = [
        sys.executable,
        __file__,
        "--largest",
        str(largest),
        *(["--weights", str(weights)] if weights else []),
    ]
    # The number of threads may change a picture by rounding, and Ultralytics has set another one for processes that are started here.
    alike = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    started = [
        subprocess.Popen(
            [*words, "--only", *map(str, numbers)], stdout=subprocess.PIPE, text=True, env=alike
        )
        for _ in range(count)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def measure(codec: Codec, numbers: Iterable[int], largest: int) -> tuple[list[str], np.ndarray]:
    """Of the picture of each number, coded by this process: what stands for it, and the resident memory after it in MB."""
    found, memory, process = [], [], psutil.Process()
    for number in numbers:
        found.append(coded(codec, number, largest))
        memory.append(process.memory_info().rss / 2**20)
    return found, np.array(memory)


class Mallinfo2(ctypes.Structure):
    """glibc's account of its heap."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


def malloc() -> int | None:
    """Bytes in use in the heap; None where there is no glibc."""
    gc.collect()
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return None
    ask.restype = Mallinfo2
    account = ask()
    return account.uordblks + account.hblkhd


def flatness(memory: np.ndarray) -> dict[str, float]:
    """The slope of a line through the second half of the memory, and what there was at first, in the middle and at last."""
    second = memory[len(memory) // 2 :]
    slope = float(np.polyfit(np.arange(len(second)), second, 1)[0])
    return {
        "kb_a_picture": 1024 * slope,
        "first_mb": float(memory[0]),
        "middle_mb": float(second[0]),
        "last_mb": float(second[-1]),
    }


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, count).round().astype(int)).tolist()


def load(weights: Path | None, pictures: int, largest: int, again: int, processes: int) -> dict:
    """Everything that is measured."""
    start, codec = time.perf_counter(), load_codec(weights)
    (found, first_round), before = measure(codec, range(pictures), largest), malloc()
    (second, second_round), after = measure(codec, range(pictures), largest), malloc()
    memory = np.concatenate([first_round, second_round])
    result = {
        "pictures": pictures,
        "seconds": time.perf_counter() - start,
        "model": codec.id.hex(),
        "memory": flatness(memory),
    }
    result["malloc_bytes_a_picture"] = None if before is None else (after - before) / pictures
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
    """Print and, with --json, write it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pictures", type=int, default=1000, help="each is coded twice")
    parser.add_argument("--largest", type=int, default=200, help="longest possible side in pixels")
    parser.add_argument(
        "--again", type=int, default=12, help="pictures that other processes make again"
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
    print(
        f"{result['pictures']} pictures twice in {result['seconds']:.0f} s; in the second round, a picture:"
    )
    print(
        f"resident memory {result['memory']['kb_a_picture']:+.2f} kB, in use in the heap {result['malloc_bytes_a_picture']} bytes"
    )
    for name in ("second_round", "fresh_processes", "parallel_processes"):
        print(
            f"{name.replace('_', ' ')}: {result[name]['equal']} of {result[name]['pictures']} the same"
        )
    if path:
        write_json(path, result | origin(options))


if __name__ == "__main__":
    main()
