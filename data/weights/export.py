"""Export a run's weights, finished or not, as a small file.

    python data/weights/export.py RUN_FOLDER OUT.safetensors

The file holds the newest checkpoint's weights (their moving average where the run has one) in fp16
and the integer networks made of them. Its metadata holds the parameters, the step, the hours of
training, hashes of the training pictures (also of the weights that it started from), and the code,
versions and machine of the run's start. Of
paths only the last names are kept.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from roilib.datasets.dataset import load_splits
from roilib.engines.checkpoints import Checkpoints
from roilib.engines.trainer import make_tables
from roilib.models.weights import (
    build_model,
    detector_hash,
    picture_hash,
    save_weights,
    trained_on,
)
from roilib.parameters import Parameters

PATHS = ("data_root", "unlabelled", "model_load_file", "logdir", "detector_weights")


@torch.no_grad()
def export(folder: Path, out: Path, licence: str = "") -> int:
    """Write `out` from the newest checkpoint of the run in `folder`; return its step.

    Raises ValueError where there is no checkpoint.
    """
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
        weight.copy_(weight.half())  # the integer networks are made of the exported weights
    pictures = load_splits(p)[0]
    make_tables(model, p, pictures)
    about = {"licence": licence, "hours": f"{state['seconds'] / 3600:.2f}"} | detector_hash(p)
    seen = {picture_hash(sample.path) for sample in pictures.samples}
    if p.start_file:
        seen |= trained_on(p.start_file)
    about["pictures"] = json.dumps(sorted(seen))
    began = json.loads((folder / "hparams.json").read_text())["environment"]
    save_weights(
        out,
        model,
        without_folders(p),
        state["step"],
        half=True,
        **about,
        environment=json.dumps(began, sort_keys=True),
    )
    return state["step"]


def without_folders(p: Parameters) -> Parameters:
    """Return the parameters with paths cut to their last names: others keep theirs elsewhere."""
    paths = {name: getattr(p, name) for name in PATHS}
    names = {
        name: ",".join(Path(part).name for part in value.split(","))
        for name, value in paths.items()
        if value
    }
    return p.model_copy(update=names)


def main() -> int:
    """Return 0, or 2 with one line that says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--licence", default="", help="use that the training data allow")
    options = parser.parse_args()
    try:
        step = export(options.folder, options.out, options.licence)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: step {step}, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
