"""Fine-tune g_s of trained roi_vbr weights to the integers that decoders compute.

    python data/weights/finetune_synthesis.py WEIGHTS OUT.safetensors --data-root DIR
           [--unlabelled DIR,DIR] [--steps 2000]

A decoder rounds the weights and the activations of g_s (roilib.models.integer.synthesis). Training
with this rounding takes back most of what it costs. All other networks stay as they are. The loss
is the distortion of the training of roi_vbr; AdamW's learning rate falls to zero along a cosine.
OUT has another model id than WEIGHTS, so it does not decode the streams of WEIGHTS.

WEIGHTS: a roi_vbr file, also one of before the integer synthesis existed.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from roilib.datasets.dataset import RoiDataset, batches, load_splits
from roilib.engines.step import CLIP_NORM, knobs
from roilib.engines.trainer import calibration
from roilib.losses import BALANCE, LMBDA_MIDDLE
from roilib.models.roi_vbr import RoiVbr
from roilib.models.weights import build_model, load_state, picture_hash, read_weights, save_weights
from roilib.parameters import Parameters

LR = 2e-4
WARM_UP = 50  # steps
MADE_ANEW = ("synthesis_integer.", "y_counts")  # not taken from older files


def load(path: Path) -> tuple[RoiVbr, Parameters]:
    """Return the model and the parameters of its training."""
    state, trained = read_weights(path)
    p = Parameters.parse(trained)
    if p.which != "roi_vbr":
        raise ValueError(f"{path}: weights of a {p.which}, not of a roi_vbr")
    model = build_model(p)
    made_anew = {k: v for k, v in model.state_dict().items() if k.startswith(MADE_ANEW)}
    load_state(path, model, state | made_anew, p.which)
    return model.eval(), p


def settings(p: Parameters, step: int, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (B, 3, S, S) in [0, 1], their quality indices, and λ of each pixel."""
    q, lmbda, _ = knobs(p, batch["boxes"], p.compr_img_size, range(len(batch["x"])), step)
    return batch["x"].float() / 255, q, lmbda


def distortion(x_hat: Tensor, x: Tensor, lmbda: Tensor) -> Tensor:
    """Return the distortion of roilib.losses.VariableRateLoss, balanced."""
    error = (x_hat - x).square().mean(1, keepdim=True)
    each = 255**2 * (lmbda * error).mean((1, 2, 3))
    return (each * (lmbda.mean((1, 2, 3)) / LMBDA_MIDDLE) ** -BALANCE).mean()


def finetune(model: RoiVbr, p: Parameters, data: RoiDataset, steps: int) -> Iterator[float]:
    """Train g_s, yield the loss of each step, and make the integers at the end."""
    integer = model.synthesis_integer
    integer.measure(model, calibration(p, data))
    model.rounded = True
    model.requires_grad_(False)
    model.g_s.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.g_s.parameters(), weight_decay=0, betas=(0.9, 0.99))
    loader, step = batches(data, p, train=True), 0
    while step < steps:
        for batch in loader:
            if step == steps:
                break
            x, q, lmbda = settings(p, step, batch)
            with torch.no_grad():
                y_hat, _ = model.quantised(x, q)
            loss = distortion(model.synthesis(y_hat * model.gain_s(q), q), x, lmbda)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.g_s.parameters(), CLIP_NORM)
            falling = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = LR * falling * min(1, (step + 1) / WARM_UP)
            optimizer.step()
            step += 1
            yield float(loss.detach())
        loader.batch_sampler.epoch += 1
    for weight in model.parameters():
        weight.data.copy_(weight.half())  # as they are saved
    integer.quantise(model)


def main() -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-root", required=True, help="a KITTI root")
    parser.add_argument("--unlabelled", default="", help="folders of more pictures")
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    try:
        if options.out.suffix != ".safetensors" or not options.out.parent.is_dir():
            raise ValueError(f"{options.out}: not a .safetensors file in a folder that exists")
        model, trained = load(options.weights)
        given = {"data_root": options.data_root, "unlabelled": options.unlabelled}
        p = trained.model_copy(update=given | {"num_workers": 0})
        data, _ = load_splits(p)
        if not len(data):
            raise ValueError(f"{options.data_root}: no training pictures")
        losses = finetune(model, p, data, options.steps)
        mean = None
        for loss in (bar := tqdm(losses, total=options.steps)):
            mean = loss if mean is None else 0.99 * mean + 0.01 * loss
            bar.set_postfix_str(f"loss {mean:.4f}", refresh=False)
        with safe_open(options.weights, "pt") as file:
            about = file.metadata()
        pictures = set(json.loads(about.get("pictures", "[]")))
        pictures |= {picture_hash(sample.path) for sample in data.samples}
        step = int(about["step"])
        about = {k: v for k, v in about.items() if k not in ("parameters", "step")}
        about["pictures"] = json.dumps(sorted(pictures))
        about["synthesis_steps"] = str(int(about.get("synthesis_steps", 0)) + options.steps)
        save_weights(options.out, model, trained, step, half=True, **about)
    except (ValueError, OSError) as error:
        print(f"finetune_synthesis: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
