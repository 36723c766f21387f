"""Time of encoding and decoding frames: roi_vbr by stage, with and without the detector.

    python benchmarks/codec.py PICTURE… [--weights FILE] [--lmbda λ] [--alpha α] [--rounds 10]
                               [--sizes 1242x375 1920x1080] [--threads 1 2] [--quick] [--json FILE]

CompressAI's hyperprior, x264, x265 and SVT-AV1 are measured beside it. Every round codes every
picture with every codec at every size and number of threads, one after the other, so that other
load on the machine affects all of them alike. The first WARM_UP rounds are not counted. Rows show
the median, the 95th and the 99th percentile.

A picture smaller than a size is continued by its mirror image, a larger one is cut: pixels are as
detailed at every size. Threads are those of torch for ours and CompressAI's, of x264's, x265's and
SVT-AV1's encoder and of FFmpeg's decoders; entropy coding has one. Of one frame, x264 codes nothing
in parallel without slices.

CompressAI's bmshj2018-hyperprior, fp32, is there twice: at N=64 with the weights of
data/weights/hyperprior_small.safetensors, and at the usual N=128 with random weights. Its networks
take the same time whatever the weights, but random ones code few bits: there, entropy coding is at
its fastest. On a machine with a GPU, all but the conventional codecs are also measured there.

--quick: one round of the first picture, to see that everything runs. Its times are no result.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from compressai.models import ScaleHyperprior
from torch import nn

from roilib.codecs.codec import Codec
from roilib.codecs.conventional import ConventionalCodec
from roilib.codecs.roic import load_codec
from roilib.datasets.images import read_picture
from roilib.evaluation.evaluate import now
from roilib.models.detector import HookedDetector, pad
from roilib.models.roi_vbr import RoiVbr
from roilib.utils.files import write_json
from roilib.utils.pretrained import PRETRAINED_BASELINE, pretrained
from roilib.utils.provenance import origin

WARM_UP = 3  # rounds
SIZES = ("1242x375", "1920x1080")
THREADS = (1, 2)
BOXES = ((300, 150, 420, 250), (600, 170, 660, 220))
CONVENTIONAL = (
    *("x264 medium", "x264 ultrafast", "x265 medium", "x265 veryfast", "x265 ultrafast"),
    *("svtav1 6 4:2:0", "svtav1 10 4:2:0"),
)
CRF = 34
SVT_AV1_CRF = 31  # about as many bytes
QOFFSET = -0.2
MAX_BYTES = 12_500  # a frame's share of 1 Mbit/s at 10 frames a second
STAGES = {  # roi_vbr's name of a stage → the part that it counts for
    "tables": "tables",
    "analysis": "transforms",
    "synthesis": "transforms",
    "hyper analysis": "entropy networks",
    "hyper synthesis": "entropy networks",
    "entropy networks": "entropy networks",
    "entropy coding": "entropy coding",
}
CAPPED = f"roi_vbr, cap of {MAX_BYTES:,} bytes"
TRAINED = "bmshj2018-hyperprior N=64 (trained)"
RANDOM = "bmshj2018-hyperprior N=128 (random weights)"
# codec, device, operation, stage → seconds of each frame
Times = dict[tuple[str, str, str, str], list[float]]
Condition = tuple[tuple[int, int], int]  # height and width, threads


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
    """Time roi_vbr for one frame: with given boxes by stage, with the detector, with a byte cap.

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
    alpha = knobs["alpha"]
    within, _ = seconds(lambda: codec.encode_within(frame, BOXES, MAX_BYTES, alpha=alpha))
    times[CAPPED, device, "encode", "total"].append(within)


def baselines() -> dict[str, ScaleHyperprior]:
    """Return CompressAI's model with trained weights, and the usual size of it with random ones."""
    trained = load_codec(pretrained(PRETRAINED_BASELINE)).model
    small = ScaleHyperprior(trained.N, trained.M)
    loaded = nn.Module.load_state_dict(small, dict(trained.named_parameters()), strict=False)
    if loaded.unexpected_keys or set(loaded.missing_keys) & dict(small.named_parameters()).keys():
        raise ValueError(f"{PRETRAINED_BASELINE}: not the weights of CompressAI's hyperprior")
    models = {TRAINED: small, RANDOM: ScaleHyperprior(128, 192)}
    for model in models.values():
        model.eval().update()
    return models


@torch.no_grad()
def baseline(times: Times, name: str, model: nn.Module, frame: np.ndarray) -> None:
    """Time CompressAI's model for one frame, as CompressAI runs it."""
    device = next(model.parameters()).device
    x = pad(torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 255, 64)
    encode, packed = seconds(lambda: model.compress(x))
    decode, _ = seconds(lambda: model.decompress(packed["strings"], packed["shape"]))
    times[name, device.type, "encode", "total"].append(encode)
    times[name, device.type, "decode", "total"].append(decode)


def conventional(times: Times, name: str, frame: np.ndarray, threads: int) -> None:
    """Time a video codec for one frame with the same boxes, as a still picture."""
    codec = ConventionalCodec(name, threads)
    crf = CRF if codec.has_roi else SVT_AV1_CRF
    encode, stream = seconds(lambda: codec.encode(frame, BOXES, quality=crf, qoffset=QOFFSET))
    decode, _ = seconds(lambda: codec.decode(stream))
    times[name, "cpu", "encode", "total"].append(encode)
    times[name, "cpu", "decode", "total"].append(decode)


def fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the top left of a frame, continued by its mirror image, at a height and width."""
    missing = [(0, max(0, wanted - side)) for wanted, side in zip(size, frame.shape, strict=False)]
    return np.pad(frame, [*missing, (0, 0)], "symmetric")[: size[0], : size[1]]


def measure(
    frames: list[np.ndarray],
    weights: Path | None,
    rounds: int,
    knobs: dict[str, float],
    devices: list[str],
    conditions: list[Condition],
    warm_up: int = WARM_UP,
) -> tuple[dict[Condition, Times], str]:
    """Return the seconds of every counted frame under each condition, and the model's id."""
    models = {
        device: (
            load_codec(weights, device),
            HookedDetector().to(device),
            {name: model.to(device) for name, model in baselines().items()},
        )
        for device in devices
    }
    before, found = torch.get_num_threads(), {}
    try:
        for number in range(warm_up + rounds):
            if number in (0, warm_up):
                found = {condition: defaultdict(list) for condition in conditions}
            for (size, threads), times in found.items():
                torch.set_num_threads(threads)
                for frame in frames:
                    _all_codecs(times, models, fitted(frame, size), threads, knobs)
    finally:
        torch.set_num_threads(before)
    return found, models[devices[0]][0].id.hex()


def _all_codecs(
    times: Times, models: dict[str, tuple], frame: np.ndarray, threads: int, knobs: dict
) -> None:
    for codec, detector, others in models.values():
        ours(times, codec, detector, frame, knobs)
        for name, model in others.items():
            baseline(times, name, model, frame)
    for name in CONVENTIONAL:
        conventional(times, name, frame, threads)


def summary(found: dict[Condition, Times]) -> list[dict]:
    """Return a row for each condition, codec, device, operation and stage."""
    names = ("median", "p95", "p99")
    rows = []
    for (size, threads), times in found.items():
        for (codec, device, operation, stage), values in sorted(
            times.items(), key=lambda item: (item[0][1], item[0][0], *item[0][2:])
        ):
            who = {"codec": codec, "device": device, "operation": operation, "stage": stage}
            quantiles = np.quantile(values, (0.5, 0.95, 0.99)).tolist()
            condition = {"frame": list(size), "threads": threads}
            rows.append(who | condition | dict(zip(names, quantiles, strict=True)))
    return rows


def size_of(text: str) -> tuple[int, int]:
    """Return height and width of a size like "1242x375"."""
    width, _, height = text.partition("x")
    return int(height), int(width)


def main() -> None:
    """Print the times; write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sizes", type=size_of, nargs="+", default=[size_of(s) for s in SIZES])
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument("--lmbda", type=float, default=0.012)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = options.pictures[: 1 if options.quick else None]
    rounds, warm_up = (1, 0) if options.quick else (options.rounds, WARM_UP)
    frames = [read_picture(path).permute(1, 2, 0).numpy() for path in paths]
    knobs = {"lmbda": options.lmbda, "alpha": options.alpha}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    conditions = list(itertools.product(options.sizes, options.threads))
    found, model = measure(frames, options.weights, rounds, knobs, devices, conditions, warm_up)
    rows = summary(found)
    for row in rows:
        numbers = "".join(f"{1000 * row[name]:9.1f}" for name in ("median", "p95", "p99"))
        height, width = row["frame"]
        print(
            f"{width}x{height} {row['threads']} {row['device']:5} {row['codec']:44} "
            f"{row['operation']:7} {row['stage']:17}{numbers} ms"
        )
    print(f"{rounds} rounds of {len(frames)} frames; each row: size, threads, device, codec, …")
    if options.json:
        about = {"frames": rounds * len(frames), "warm_up": warm_up, "model": model}
        settings = {"crf": CRF, "svtav1_crf": SVT_AV1_CRF, "qoffset": QOFFSET}
        write_json(options.json, about | knobs | settings | {"rows": rows} | origin(vars(options)))


if __name__ == "__main__":
    main()
