"""Arithmetic of encoding and decoding, and parameters: roi_vbr beside other learned codecs.

    python benchmarks/complexity.py [--json FILE]

torch's FlopCounterMode counts what convolutions and matrix products really compute for a frame of
FRAME; two of its operations are one multiply-accumulate (MAC). Entropy coding and colour conversion
are not counted. The paper's models encode with g_a, h_a and h_s, and decode with h_s and g_s;
the encoder of the one with object features needs the detector too. CompressAI's other models have
the size that its published curves have at high rates. All but ours have random weights, on which
their arithmetic does not depend.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from compressai.models import (
    Cheng2020Attention,
    CompressionModel,
    Elic2022Official,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roilib.codecs.roic import load_codec
from roilib.evaluation.tables.layout import COMPLEXITY_COLUMNS, markdown
from roilib.evaluation.tables.rate_tables import table_of
from roilib.models.detector import CODEC_CHANNELS, CODEC_STRIDES, HookedDetector
from roilib.models.hyperprior import Hyperprior, HyperpriorWithObjFeatures
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

FRAME = (384, 1280)  # a KITTI frame, padded to multiples of 64
PUBLISHED = {
    "mbt2018-mean": lambda: MeanScaleHyperprior(192, 320),
    "mbt2018": lambda: JointAutoregressiveHierarchicalPriors(192, 320),
    "cheng2020-attn": lambda: Cheng2020Attention(192),
    "ELIC": Elic2022Official,
}
BOXES = ((300, 150, 420, 250),)


@torch.no_grad()
def kmacs(call: Callable) -> tuple[float, object]:
    """Call, and return the thousands of MACs a pixel of FRAME, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops() / 2 / np.prod(FRAME) / 1000, result


def parameters(model: nn.Module) -> float:
    """Return the millions of parameters."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def ours() -> dict:
    """Count the pretrained roi_vbr with real streams."""
    codec = load_codec()
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), np.uint8)
    encode, stream = kmacs(lambda: codec.encode(frame, BOXES))
    decode, _ = kmacs(lambda: codec.decode(stream))
    return _row("roi_vbr", codec.model, encode, decode)


def papers(name: str, model: Hyperprior | HyperpriorWithObjFeatures, *features) -> dict:
    """Count one of the paper's models, on the device "meta"."""
    encode, (y, *hyper) = kmacs(
        lambda: model.latents(torch.empty(1, 3, *FRAME, device="meta"), *features)
    )
    entropy, _ = kmacs(lambda: model.scales(*hyper))
    decode, _ = kmacs(lambda: model.g_s(y))
    return _row(name, model, encode + entropy, entropy + decode)


def published(name: str, model: CompressionModel) -> dict:
    """Count one of CompressAI's models: encoders do without g_s, decoders without g_a and h_a."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, *FRAME))
    counts = {
        part.removeprefix(f"{type(model).__name__}."): sum(flops.values()) / 2e3 / np.prod(FRAME)
        for part, flops in counter.get_flop_counts().items()
    }
    h_a = next(kmac for part, kmac in counts.items() if part.split(".")[-1] == "h_a")
    whole = counts["Global"]
    return _row(name, model, whole - counts["g_s"], whole - counts["g_a"] - h_a)


def _row(codec: str, model: nn.Module, encode: float, decode: float | None) -> dict:
    return {"codec": codec, "parameters": parameters(model), "encode": encode, "decode": decode}


def rows() -> list[dict]:
    """Return a row for each model."""
    found, detector = [ours()], HookedDetector()
    look, _ = kmacs(lambda: detector(torch.zeros(1, 3, *FRAME)))
    features = [
        torch.empty(1, channels, FRAME[0] // stride, FRAME[1] // stride, device="meta")
        for channels, stride in zip(CODEC_CHANNELS, CODEC_STRIDES, strict=True)
    ]
    extended = HyperpriorWithObjFeatures().to("meta")
    found.append(papers("bmshj2018-hyperprior", Hyperprior().to("meta")))
    found.append(papers("with object features", extended, features))
    found += [published(name, model()) for name, model in PUBLISHED.items()]
    return [*found, _row("YOLOv8n, the detector", detector, look, None)]


def main() -> None:
    """Print the table; write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = rows()
    print(markdown(table_of(found), COMPLEXITY_COLUMNS))
    if options.json:
        write_json(options.json, {"frame": FRAME, "rows": found} | origin(vars(options)))


if __name__ == "__main__":
    main()
