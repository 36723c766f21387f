"""What the paper's models pay, in the terms of the loss that they were trained on."""

import numpy as np
import pandas as pd

from roilib.codecs.registry import codec_label
from roilib.evaluation.bootstrap import COUNT, resamples, run_name, with_interval
from roilib.metrics import pooled_psnr

WITH_FEATURES = "hyperprior_with_obj_features"
ZERO_HOOKS = f"{WITH_FEATURES} (zero_hooks)"


def cost_table(records: list[dict], count: int = COUNT) -> pd.DataFrame:
    """What the paper's models pay, in the terms of the loss that they were trained on.

        cost = bpp + λ · mean(weight · squared error),   mean over pictures, of real bytes

    So one number weighs bytes, ROI and background as the training did. One row a model, λ and α:
    `cost`, and `difference` (%), how much less or more than the model with zero hooks that was
    trained on the same loss. The runs of a model (its `seeds`) are averaged; intervals are of
    resampled pictures and runs. Only trainings by the default loss are in the table.
    """
    found: dict[tuple, dict[str, list[dict]]] = {}
    for r in records:
        setting = r["setting"]
        known = r["codec"].startswith((WITH_FEATURES, "hyperprior_eval")) and "seed" in setting
        if known and (setting["loss_form"], setting["metric"]) == ("corrected", "mse"):
            model = (setting["lmbda"], setting["alpha"], r["codec"])
            found.setdefault(model, {}).setdefault(run_name(r), []).append(r)
    costs = {model: _costs(runs, count, i) for i, (model, runs) in enumerate(found.items())}
    table = []
    for (lmbda, alpha, codec), runs in sorted(found.items()):
        same = [r for rs in runs.values() for r in rs]
        cost, zeros = (costs.get((lmbda, alpha, name)) for name in (codec, ZERO_HOOKS))
        difference = np.full(len(cost), np.nan)
        if zeros is not None and codec != ZERO_HOOKS:
            difference = 100 * (cost / zeros - 1)
        table.append(
            {"codec": codec, "label": codec_label(codec), "lmbda": lmbda, "alpha": alpha}
            | {"bpp": float(np.mean([r["bpp"] for r in same]))}
            | {f"{part}psnr": pooled_psnr(same, part) for part in ("roi_", "bg_")}
            | with_interval("cost", cost)
            | with_interval("difference", difference, "low", "high")
            | {"seeds": len(runs), "pictures": len(same) // len(runs)}
        )
    return pd.DataFrame(table)


def _costs(runs: dict[str, list[dict]], count: int, stream: int) -> np.ndarray:
    """(1 + count,) mean costs: of all, then of resamples; `stream` draws this model's runs."""
    costs = np.array([[_cost(r) for r in sorted(rs, key=_image)] for rs in runs.values()])
    pictures, drawn = resamples(costs.shape[1], count), resamples(len(costs), count, 1 + stream)
    return np.einsum("bs,sp,bp->b", drawn, costs, pictures) / costs.size


def _image(record: dict) -> str:
    return record["image"]


def _cost(record: dict) -> float:
    alpha, lmbda = record["setting"]["alpha"], record["setting"]["lmbda"]
    weighted = 2 * (alpha * record["roi_sse"] + (1 - alpha) * record["bg_sse"])
    return record["bpp"] + lmbda * weighted / record["count"]
