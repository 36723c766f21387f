"""How far a detector's features of a crop are from those of the same place in the whole frame.

    python benchmarks/crop_features.py KITTI_ROOT [--crops 48] [--sides 128 320 640] [--json FILE]

A model codes whole frames; trained on features of crops, it sees others there. Crops are 128
pixels wide, at multiples of the detector's stride; `sides` are what they are enlarged to before the
detector sees them.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from roilib.datasets.crops import Crops
from roilib.datasets.dataset import RoiDataset
from roilib.datasets.kitti import kitti_samples
from roilib.models.detector import CODEC_LAYERS, FrameFeatures, HookedDetector
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

SIDE = 128


def crop_features(detector: HookedDetector, crop: Tensor, side: int) -> list[Tensor]:
    """The codec's features of a crop (1, 3, S, S) in [0, 1] enlarged to `side`, at its own size."""
    found = detector.codec_features(F.interpolate(crop, (side, side), mode="bilinear"))
    size = crop.shape[-1]
    return [
        F.interpolate(f, (f.shape[-2] * size // side, f.shape[-1] * size // side), mode="bilinear")
        for f in found
    ]


def differences(data: RoiDataset, crops: int, sides: list[int]) -> list[dict]:
    """A row for each of `sides`: rms of the difference over rms of the frame's features, in %.

    The columns are the codec's layers. A picture gives one crop.
    """
    detector = HookedDetector()
    whole, cut = FrameFeatures(detector, cache_bytes=0), Crops(data, SIDE, SIDE, kind="grid")
    apart = torch.zeros(len(sides), len(CODEC_LAYERS))
    energy = torch.zeros(len(CODEC_LAYERS))
    for i in range(crops):
        item = cut[0, i]
        own = whole([item["frame"]], [item["place"]], SIDE)
        energy += torch.stack([f.square().mean() for f in own])
        for row, side in zip(apart, sides, strict=True):
            seen = crop_features(detector, item["x"][None].float() / 255, side)
            row += torch.stack([(a - b).square().mean() for a, b in zip(seen, own, strict=True)])
    return [
        {"side": side}
        | {str(layer): 100 * math.sqrt(v) for layer, v in zip(CODEC_LAYERS, row, strict=True)}
        for side, row in zip(sides, (apart / energy).tolist(), strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write it; 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--crops", type=int, default=48)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 320, 640])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        data = RoiDataset(kitti_samples(options.data_root)[: options.crops])
    except ValueError as error:
        print(f"crop_features: {error}", file=sys.stderr)
        return 2
    rows = differences(data, len(data), options.sides)
    for row in rows:
        print("  ".join(f"{name} {value:.0f}" for name, value in row.items()))
    if options.json:
        write_json(options.json, {"crops": len(data), "rows": rows} | origin(vars(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
