"""Weights of a run, finished or not, as a small file to ship: `python data/weights/export.py RUN_FOLDER OUT.safetensors`.

The newest checkpoint's weights (their moving average where the run has one) in fp16, with what coding needs, and in the metadata the parameters, the
step, the hours that it took to get there, hashes of the pictures that it was trained on, and the code, versions and machine that the run began with.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from roilib.datasets.dataset import load_splits
from roilib.engines.checkpoints import Checkpoints
from roilib.engines.trainer import make_tables
from roilib.models.build import build_model
from roilib.models.weights import picture_hash, save_weights
from roilib.parameters import Parameters


@torch.no_grad()
def ship(folder: Path, out: Path, licence: str = "") -> int:
    """Write `out` from the newest checkpoint of the run in `folder`; returns its step. Raises ValueError when there is none."""
    folder = Path(folder)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: the file of weights ends in .safetensors")
    state = Checkpoints(folder / "checkpoints").newest()
    if state is None:
        raise ValueError(f"{folder}: no checkpoint of a run")
    p = Parameters.parse(state["parameters"])
    model = build_model(p)
    average = {
        name.removeprefix("module."): v
        for name, v in state.get("ema", {}).items()
        if name.startswith("module.")
    }
    made_anew = {name: value for name, value in model.state_dict().items() if "_integer." in name}
    model.load_state_dict((average or state["codec"]) | made_anew)
    for weight in model.parameters():
        weight.copy_(weight.half())  # the integer networks are made from what is shipped
    pictures = load_splits(p)[0]
    make_tables(model, p, pictures)
    about = {"licence": licence, "hours": f"{state['seconds'] / 3600:.2f}"}
    about["pictures"] = json.dumps(
        sorted({picture_hash(sample.path) for sample in pictures.samples})
    )
    began = json.loads((folder / "hparams.json").read_text())["environment"]
    save_weights(
        out,
        model,
        p,
        state["step"],
        half=True,
        **about,
        environment=json.dumps(began, sort_keys=True),
    )
    return state["step"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--licence", default="", help="what the data that it was trained on allows")
    options = parser.parse_args()
    try:
        print(
            f"{options.out}: step {ship(options.folder, options.out, options.licence)}, {options.out.stat().st_size / 1e6:.1f} MB"
        )
    except (ValueError, OSError) as error:
        sys.exit(f"export: {error}")


if __name__ == "__main__":
    main()
