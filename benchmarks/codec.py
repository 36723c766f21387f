"""Time of encoding and decoding frames: roi_vbr by stage, with and without the detector.

    python benchmarks/codec.py PICTURE… [--weights FILE] [--lmbda λ] [--alpha α] [--rounds 10]
                               [--json FILE]

CompressAI's hyperprior, x264 and x265 are measured beside it. Every round codes every picture with
every codec, one after the other, so that other load on the machine affects all of them alike. The
first WARM_UP rounds are not counted. The table shows median, 95th and 99th percentile.

The baseline is CompressAI's bmshj2018-hyperprior (N=128, fp32) with random weights. Its time hardly
depends on them, but it codes few bits, so that its entropy coding is at its fastest. x264 has one
thread, as in the evaluation; x265 chooses its own number. On a machine with a GPU, all but these
two are also measured there.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from compressai.zoo import bmshj2018_hyperprior

from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.roic import Codec, load_codec
from roilib.datasets.images import read_picture
from roilib.evaluation.evaluate import now
from roilib.models.detector import HookedDetector, pad
from roilib.models.roi_vbr import RoiVbr
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

WARM_UP = 3  # rounds
BOXES = ((300, 150, 420, 250), (600, 170, 660, 220))
CONVENTIONAL = ("x264 medium", "x264 ultrafast", "x265 medium", "x265 ultrafast")
CRF = 34
QOFFSET = -0.2
STAGES = {  # roi_vbr's name of a stage → the part that it counts for
    "tables": "tables",
    "analysis": "transforms",
    "synthesis": "transforms",
    "hyper analysis": "entropy networks",
    "hyper synthesis": "entropy networks",
    "entropy networks": "entropy networks",
    "entropy coding": "entropy coding",
}
BASELINE = "bmshj2018-hyperprior"
# codec, device, operation, stage → seconds of each frame
Times = dict[tuple[str, str, str, str], list[float]]


def seconds(call: Callable) -> tuple[float, object]:
    """Call, and return the seconds that it took and its result."""
    start = now()
    result = call()
    return now() - start, result


@contextmanager
def stage_times(model: RoiVbr) -> Iterator[dict[str, float]]:
    """Yield the seconds spent in each stage of a model."""
    spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = now()
        yield
        spent[STAGES[name]] += now() - start

    marking, model.stage = model.stage, stage
    try:
        yield spent
    finally:
        model.stage = marking


def ours(
    times: Times, codec: Codec, detector: HookedDetector, frame: np.ndarray, knobs: dict[str, float]
) -> None:
    """Time roi_vbr for one frame, with given boxes by stage, and with the detector.

    The container is what no stage takes: checks, header, checksums, colours, copies.
    """
    device = codec.device.type
    look, found = seconds(lambda: detector.regions(frame))
    with stage_times(codec.model) as encoding:
        encode, stream = seconds(lambda: codec.encode(frame, BOXES, **knobs))
    with stage_times(codec.model) as decoding:
        decode, _ = seconds(lambda: codec.decode(stream))
    for operation, total, stages in (("encode", encode, encoding), ("decode", decode, decoding)):
        for stage, spent in {
            "total": total,
            **stages,
            "container": total - sum(stages.values()),
        }.items():
            times["roi_vbr", device, operation, stage].append(spent)
    with_boxes, _ = seconds(lambda: codec.encode(frame, found, **knobs))
    times["roi_vbr", device, "encode", "detector"].append(look)
    times["roi_vbr + detector", device, "encode", "total"].append(look + with_boxes)


@torch.no_grad()
def baseline(times: Times, model: torch.nn.Module, frame: np.ndarray) -> None:
    """Time CompressAI's model for one frame, as CompressAI runs it."""
    device = next(model.parameters()).device
    x = pad(torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 255, 64)
    encode, packed = seconds(lambda: model.compress(x))
    decode, _ = seconds(lambda: model.decompress(packed["strings"], packed["shape"]))
    times[BASELINE, device.type, "encode", "total"].append(encode)
    times[BASELINE, device.type, "decode", "total"].append(decode)


def conventional(times: Times, name: str, frame: np.ndarray) -> None:
    """Time a video codec for one frame with the same boxes, as a still picture."""
    codec = ConventionalCodec(name)
    encode, stream = seconds(lambda: codec.encode(frame, BOXES, quality=CRF, qoffset=QOFFSET))
    decode, _ = seconds(lambda: codec.decode(stream))
    times[name, "cpu", "encode", "total"].append(encode)
    times[name, "cpu", "decode", "total"].append(decode)


def measure(
    frames: list[np.ndarray],
    weights: Path | None,
    rounds: int,
    knobs: dict[str, float],
    devices: list[str],
) -> tuple[Times, str]:
    """Return the seconds of every counted frame, and the model's id."""
    models = {}
    for device in devices:
        model = bmshj2018_hyperprior(1).eval().to(device)
        model.update()
        models[device] = load_codec(weights, device), HookedDetector().to(device), model
    times: Times = {}
    for number in range(WARM_UP + rounds):
        times = defaultdict(list) if number in (0, WARM_UP) else times
        for frame in frames:
            for codec, detector, model in models.values():
                ours(times, codec, detector, frame, knobs)
                baseline(times, model, frame)
            for name in CONVENTIONAL:
                conventional(times, name, frame)
    return times, models[devices[0]][0].id.hex()


def summary(times: Times) -> list[dict]:
    """Return a row for each codec, device, operation and stage."""
    rows = []
    for (codec, device, operation, stage), values in times.items():
        quantiles = dict(
            zip(
                ("median", "p95", "p99"),
                np.quantile(values, (0.5, 0.95, 0.99)).tolist(),
                strict=True,
            )
        )
        rows.append(
            {"codec": codec, "device": device, "operation": operation, "stage": stage} | quantiles
        )
    return sorted(
        rows, key=lambda row: (row["device"], row["codec"], row["operation"], row["stage"])
    )


def main() -> None:
    """Print the times; write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lmbda", type=float, default=0.012)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    frames = [read_picture(path).permute(1, 2, 0).numpy() for path in options.pictures]
    knobs = {"lmbda": options.lmbda, "alpha": options.alpha}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    times, model = measure(frames, options.weights, options.rounds, knobs, devices)
    rows = summary(times)
    for row in rows:
        numbers = "".join(f"{1000 * row[name]:9.1f}" for name in ("median", "p95", "p99"))
        name = f"{row['device']:5} {row['codec']:22} {row['operation']:7} {row['stage']:18}"
        print(f"{name}{numbers} ms")
    size, threads = list(frames[0].shape[:2]), torch.get_num_threads()
    print(
        f"{options.rounds} rounds of {len(frames)} frames, the first {size[1]}x{size[0]}; "
        f"{threads} threads"
    )
    if options.json:
        about = {
            "threads": threads,
            "frame": size,
            "frames": options.rounds * len(frames),
            "warm_up": WARM_UP,
            "model": model,
        }
        write_json(
            options.json,
            about | knobs | {"crf": CRF, "qoffset": QOFFSET, "rows": rows} | origin(vars(options)),
        )


if __name__ == "__main__":
    main()
