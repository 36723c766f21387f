"""Give a roi_vbr the colour axes of the metric yuv, to start a training by it from.

    python data/weights/tune_for_yuv.py roi_vbr.safetensors start.safetensors

The linear transforms of a roi_vbr begin as DCTs of luma and of two axes of chroma. Errors of equal
size on these axes count equally in the squared error of RGB, but not in the metric `yuv`. This
script turns and scales the three channels of each frequency so that they do: equal quantiser steps
are then best again. The product of both transforms stays what it was, so without quantisation the
linear picture does, too. The file can be trained on from, but codes nothing before.

The first channel of a frequency becomes BT.709's luma. The others become Cb - Cr and Cb + Cr, the
axes of chroma nearest to those of before: the entropy networks see channels that behave as before.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from compressai.transforms.functional import rgb2ycbcr
from torch import Tensor

from roilib.codecs.roic import load_codec
from roilib.losses import FINE_CHROMA, LUMA
from roilib.models.layers import COLOUR_AXES, spectrum
from roilib.models.weights import save_weights, trained_on
from roilib.roi import CELL


def turn(row: int, column: int) -> Tensor:
    """Return what the channels (3,) of a frequency of the DCT are multiplied by, (3, 3)."""
    offset = torch.tensor([0, 0.5, 0.5])
    luma, cb, cr = (rgb2ycbcr(torch.eye(3)[:, :, None, None])[:, :, 0, 0] - offset).T.double()
    # A mean over 2x2 pixels leaves so much of the energy of this frequency's chroma.
    halved = math.prod(math.cos(math.pi * f / (2 * CELL)) ** 2 for f in (row, column))
    chroma = math.sqrt((FINE_CHROMA + (1 - FINE_CHROMA) * halved) * 3 / LUMA / 2)
    wanted = torch.stack([math.sqrt(3) * luma, chroma * (cb - cr), chroma * (cb + cr)])
    axes = torch.tensor(COLOUR_AXES, dtype=torch.float64)
    return wanted @ (axes / axes.norm(dim=1, keepdim=True)).T


@torch.no_grad()
def tuned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a roi_vbr's weights on the axes of the metric yuv."""
    state = {name: v.double() if v.is_floating_point() else v for name, v in state.items()}
    analysis, synthesis = state["a_lin.1.weight"], state["s_lin.0.weight"]
    learned = [state["g_a.6.weight"], state["g_a.6.bias"]]  # adds to the first channels
    places: dict[tuple[int, int], dict[int, int]] = {}
    for channel, (_, axis, row, column) in enumerate(spectrum(len(analysis))):
        places.setdefault((row, column), {})[axis] = channel
    for frequency, found in places.items():
        axes, channels = sorted(found), [found[axis] for axis in sorted(found)]
        here = turn(*frequency)[axes][:, axes]
        analysis[channels] = torch.tensordot(here, analysis[channels], 1)
        synthesis[:, channels] = torch.einsum(
            "oihw,ij->ojhw", synthesis[:, channels], here.inverse()
        )
        low = [i for i, channel in enumerate(channels) if channel < len(learned[0])]
        for layer in learned if low else ():
            rows = [channels[i] for i in low]
            layer[rows] = torch.tensordot(here[low][:, low], layer[rows], 1)
    return {n: v.float() if v.is_floating_point() else v for n, v in state.items()}


def main() -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a roi_vbr's weights")
    parser.add_argument("out", type=Path, help="the file to write, ending in .safetensors")
    options = parser.parse_args()
    try:
        codec = load_codec(options.weights)
        p = codec.parameters
        if p.which != "roi_vbr" or p.metric == "yuv":
            raise ValueError(f"{options.weights}: not the weights of a roi_vbr for RGB")
        codec.model.load_state_dict(tuned(codec.model.state_dict()))
        # They are the old axes' integers. Without them nothing can be coded before a training.
        del codec.model.synthesis_integer
        pictures = json.dumps(sorted(trained_on(options.weights)))
        save_weights(options.out, codec.model, p, 0, pictures=pictures)
    except (ValueError, OSError) as error:
        print(f"tune_for_yuv: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
