"""Swap test of the extended model: what it does when it is given another ROI than the picture's.

    python benchmarks/swaps.py WEIGHTS… --data-root DIR

A model that does not react to its hooks cannot show what hooks are worth. Rates are those of the
likelihoods of rounded latents.
"""

import argparse
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from roilib.codecs.codec import Codec
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset, evaluation_pictures
from roilib.metrics import pooled_psnr, regions, squared_errors
from roilib.roi import roi_mask

OWN, SWAPS = "own", ("zeros", "ones", "inverted", "another")
Told = tuple[list[Tensor] | None, Tensor]  # features and ROI mask, as the model takes them


def swapped(swap: str, own: Told, another: Told) -> Told | None:
    """Return what the model is told in place of `own`: of `another` picture, for example.

    None for "ones" and "inverted" of features, which have neither.
    """
    features, mask = own
    if swap == OWN:
        return own
    if swap == "another":
        fitted = F.interpolate(another[1], mask.shape[-2:])
        if features is None:
            return None, fitted
        pairs = zip(another[0], features, strict=True)
        return [F.interpolate(a, f.shape[-2:], mode="bilinear") for a, f in pairs], fitted
    if swap == "zeros":
        zeros = None if features is None else [torch.zeros_like(f) for f in features]
        return zeros, torch.zeros_like(mask)
    if features is not None:
        return None
    return None, torch.ones_like(mask) if swap == "ones" else 1 - mask


@torch.no_grad()
def swap_records(codec: Codec, data: RoiDataset) -> list[dict]:
    """Measure every whole picture under its own hooks and under every swap.

    A record has image, hooks, bits, pixels, and squared errors and counts of all pixels, of the ROI
    (`roi_sse`, `roi_count`) and of the background. Raises ValueError for fewer than two pictures.
    """
    if len(data) < 2:
        raise ValueError(f"the swap test needs 2 pictures or more, not {len(data)}")
    pictures = []
    for image, boxes, _ in data:
        image, boxes = image.permute(1, 2, 0).numpy(), boxes.numpy()
        pictures.append((image, roi_mask(boxes, *image.shape[:2]), codec.inputs(image, boxes)))
    records = []
    for i, (image, mask, (x, *own)) in enumerate(pictures):
        another = tuple(pictures[i - 1][2][1:])
        for hooks in (OWN, *SWAPS):
            told = swapped(hooks, tuple(own), another)
            if told is not None:
                where = {"image": data.ids[i], "hooks": hooks}
                records.append(where | _measured(codec, image, mask, x, told))
    return records


def _measured(codec: Codec, image: np.ndarray, mask: np.ndarray, x: Tensor, told: Told) -> dict:
    output = codec.model(x, *told)
    height, width = image.shape[:2]
    x_hat = output["x_hat"][0, :, :height, :width].clamp(0, 1).mul(255).round().byte()
    errors = squared_errors(image, x_hat.permute(1, 2, 0).cpu().numpy(), regions(mask))
    values = {"pixels": height * width}
    values["bits"] = sum(-v.double().log2().sum().item() for v in output["likelihoods"].values())
    for part, (total, count) in errors.items():
        values |= {f"{part}sse": total, f"{part}count": count}
    return values


def swap_table(records: list[dict]) -> list[dict]:
    """Return bpp, roi_psnr and bg_psnr (dB) over all pictures, one row a kind of hooks.

    Rows of swaps also hold the change against the own hooks: bits (%), roi and bg (dB).
    """
    rows: list[dict] = []
    for hooks in (OWN, *SWAPS):
        same = [record for record in records if record["hooks"] == hooks]
        if not same:
            continue
        bpp = sum(r["bits"] for r in same) / sum(r["pixels"] for r in same)
        row = {"hooks": hooks, "bpp": bpp}
        row |= {f"{part}psnr": pooled_psnr(same, part) for part in ("roi_", "bg_")}
        if rows:
            row["bits"] = 100 * (bpp / rows[0]["bpp"] - 1)
            row |= {k: row[f"{k}_psnr"] - rows[0][f"{k}_psnr"] for k in ("roi", "bg")}
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table of each weights file, one JSON row a line; 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--data-root", default="data/kitti")
    parser.add_argument(
        "--pictures", type=int, help="only the first of the test pictures, 2 or more"
    )
    options = parser.parse_args(arguments)
    try:
        for path in options.weights:
            codec = load_codec(path)
            where = {"data_root": options.data_root, "unlabelled": None}
            data = evaluation_pictures(codec.parameters.model_copy(update=where))
            data.samples = data.samples[: options.pictures]
            for row in swap_table(swap_records(codec, data)):
                short = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                print(json.dumps({"weights": path} | short))
    except ValueError as error:
        print(f"swaps: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
