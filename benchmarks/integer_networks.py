"""The cost of integers: real bytes and pictures against those of the float networks.

    python benchmarks/integer_networks.py --data-root DIR [--weights FILE] [--json FILE]

The float curve has the bits and pictures of `forward`. The integer curve has the payloads of real
streams and their decoded pictures, so that the entropy coder's own loss counts too. The cost is the
BD-rate between them over whole test frames, at α = 0.5 with transforms in fp32. The coder's share
is a number of its own: payload bits beyond those that the coder's tables promise.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from roilib.codecs.codec import Codec
from roilib.codecs.container import Header
from roilib.codecs.roic import load_codec
from roilib.datasets.dataset import RoiDataset, load_splits
from roilib.evaluation.bd_rate import bd_rate
from roilib.metrics import psnr_from_mse
from roilib.parameters import Parameters
from roilib.utils.files import write_json
from roilib.utils.provenance import origin

LMBDAS = (0.0004, 0.0015, 0.006, 0.024, 0.06, 0.12)


@torch.no_grad()
def float_picture(codec: Codec, image: np.ndarray, lmbda: float) -> tuple[float, np.ndarray]:
    """Return bits and picture of the float networks."""
    output = codec.model(*codec.inputs(image, lmbda=lmbda, alpha=0.5))
    x_hat = (
        output["x_hat"][0, :, : image.shape[0], : image.shape[1]]
        .clamp(0, 1)
        .mul(255)
        .round()
        .byte()
    )
    return sum(
        -v.double().log2().sum().item() for v in output["likelihoods"].values()
    ), x_hat.permute(1, 2, 0).numpy()


def payload_bits(stream: bytes) -> int:
    """Return the bits of a stream's strings."""
    return 8 * sum(map(len, Header.unpack(stream)[1]))


def real_picture(codec: Codec, image: np.ndarray, lmbda: float) -> tuple[float, np.ndarray]:
    """Return the bits of a stream's payload, and its picture."""
    stream = codec.encode(image, lmbda=lmbda, alpha=0.5)
    return payload_bits(stream), codec.decode(stream)


@torch.no_grad()
def coder_loss(codec: Codec, image: np.ndarray, lmbda: float) -> float:
    """Return how many more bits the payload has than its tables promise, as a share."""
    x, q = codec.inputs(image, lmbda=lmbda, alpha=0.5)
    return (
        payload_bits(codec.encode(image, lmbda=lmbda, alpha=0.5))
        / (8 * codec.model.size(codec.model.analysis(x), q))
        - 1
    )


def curve(code, codec: Codec, data: RoiDataset) -> list[tuple[float, float]]:
    """Return (bpp, pooled PSNR) at each λ."""
    points = []
    for lmbda in LMBDAS:
        bits = pixels = error = 0.0
        for i in range(len(data)):
            image = data[i][0].permute(1, 2, 0).numpy()
            size, decoded = code(codec, image, lmbda)
            bits, pixels = bits + size, pixels + image.shape[0] * image.shape[1]
            error += float(((image.astype(np.int32) - decoded) ** 2).sum())
        points.append((bits / pixels, psnr_from_mse(error / (3 * pixels), 255)))
    return points


def main() -> None:
    """Print the two curves and the BD-rate between them; write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    codec = load_codec(options.weights, precision="32")
    _, data = load_splits(Parameters(dataset="kitti", data_root=str(options.data_root)))
    curves = {
        name: curve(code, codec, data)
        for name, code in (("float", float_picture), ("integer", real_picture))
    }
    cost, overlap = bd_rate(curves["float"], curves["integer"])
    for name, points in curves.items():
        print(f"{name:8}", *(f"{bpp:.4f} bpp {psnr:.2f} dB " for bpp, psnr in points))
    losses = [
        [coder_loss(codec, data[i][0].permute(1, 2, 0).numpy(), lmbda) for i in range(len(data))]
        for lmbda in LMBDAS
    ]
    print("coder   ", *(f"{np.mean(loss):.2%} (at most {max(loss):.2%})" for loss in losses))
    print(f"BD-rate of the integer networks {cost:+.2f} % ({len(data)} frames)")
    if options.json:
        result = {
            "curves": curves,
            "bd_rate": cost,
            "overlap": overlap,
            "lmbda": LMBDAS,
            "frames": len(data),
        }
        result |= {
            "coder_loss": [{"mean": float(np.mean(loss)), "most": max(loss)} for loss in losses]
        }
        write_json(options.json, result | {"model": codec.id.hex()} | origin(vars(options)))


if __name__ == "__main__":
    main()
