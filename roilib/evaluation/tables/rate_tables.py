"""Records and runs as pandas tables."""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from roilib.codecs.registry import ANY_RATE, codec_label
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import run_name
from roilib.evaluation.detection import BENCHMARK
from roilib.metrics import pooled_psnr
from roilib.parameters import WITHOUT_EFFECT


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Return rows as a table with NaN for None, even in columns without any number."""
    table = pd.DataFrame(rows)
    return table.astype({name: float for name in table if table[name].isna().all()})


def rate_table(records: list[dict]) -> pd.DataFrame:
    """One row a codec and setting: PSNRs pooled and as means over pictures, all else as means.

    Pooled PSNRs (dB) are over all pictures' pixels together. `car_psnr`, `pedestrian_psnr` and
    `cyclist_psnr` are over the boxes of that class, if any picture has some. `yuv_psnr_mean`, the
    same of ROI and background, `haarpsi` and `roi_haarpsi` are there if the records have them.
    """
    points: dict[tuple, list[dict]] = {}
    for r in records:
        key = (r["codec"], run_name(r), json.dumps(r["setting"], sort_keys=True))
        points.setdefault(key, []).append(r)
    classes = [f"{name.lower()}_" for name in BENCHMARK]
    rows = []
    for (codec, run, _), group in sorted(points.items()):
        parts = ["roi_", "bg_", "", *(c for c in classes if any(r.get(f"{c}count") for r in group))]
        row = {"codec": codec, "label": codec_label(codec)} | group[0]["setting"]
        for name in ("bpp", "bpp_estimated", "ms_ssim"):
            row[name] = pd.Series([r.get(name) for r in group], dtype=float).mean()
        row |= _later_measures(group)
        row |= {f"{part}psnr": pooled_psnr(group, part) for part in parts}
        row |= {f"{part}psnr_mean": _mean_psnr(group, part) for part in parts}
        rows.append(row | {"pictures": len(group), "run": run})
    table = table_of(rows)
    order = [n for n in ("codec", "lmbda", "alpha", "qoffset", "quality") if n in table]
    return table.sort_values(order, ignore_index=True)


def _later_measures(group: list[dict]) -> dict[str, float]:
    """Means of the measures that records of earlier versions lack."""
    found = {}
    for part in ("", "roi_", "bg_"):
        if all(f"{part}yuv_psnr" in r for r in group):
            known = [r[f"{part}yuv_psnr"] for r in group if r[f"{part}count"]]
            found[f"{part}yuv_psnr_mean"] = pd.Series(known, dtype=float).mean(skipna=False)
    for name in ("haarpsi", "roi_haarpsi"):
        if all(name in r for r in group):
            found[name] = pd.Series([r[name] for r in group], dtype=float).mean()
    return found


def _mean_psnr(group: list[dict], part: str) -> float:
    """Mean PSNR of the records with such pixels; NaN if there is none, or one without an error."""
    return pd.Series([r[f"{part}psnr"] for r in group if r[f"{part}count"]], dtype=float).mean(
        skipna=False
    )


def one_rate_table(rates: pd.DataFrame, alpha: float = 0.5) -> pd.DataFrame:
    """The model for every rate against models of one rate each, at equal PSNR.

    rates: of `rate_table`. Columns: lmbda, psnr and bpp of a model of one rate, bpp_roi_vbr at this
    PSNR (PCHIP in log bpp; NaN beyond the curve's ends), difference (%, negative: roi_vbr less).
    """
    uniform = rates[rates["alpha"] == alpha]
    measured = uniform.dropna(subset="psnr").sort_values("psnr")
    curve, ones = (
        measured[measured["codec"] == codec] for codec in ("roi_vbr", "roi_vbr (fixed_rate)")
    )
    table = ones[["lmbda", "psnr", "bpp"]].reset_index(drop=True)
    table["bpp_roi_vbr"] = np.nan
    if len(curve) > 1:
        log_bpp = PchipInterpolator(curve["psnr"], np.log(curve["bpp"]), extrapolate=False)
        table["bpp_roi_vbr"] = np.exp(log_bpp(table["psnr"]))
    return table.assign(difference=100 * (table["bpp_roi_vbr"] / table["bpp"] - 1))


def rate_order_table(records: list[dict]) -> pd.DataFrame:
    """Count, by run and α, the pictures whose bytes do not rise with every λ of a roi_vbr."""
    ours = (r for r in records if r["codec"] in ANY_RATE)
    rows = pd.DataFrame(
        {"run": run_name(r), "image": r["image"], "bytes": r["bytes"]} | r["setting"] for r in ours
    )
    found = []
    for (run, alpha), group in rows.groupby(["run", "alpha"]) if len(rows) else ():
        steps = group.sort_values("lmbda").groupby("image")["bytes"].diff()
        worst = steps.groupby(group["image"]).min()
        found.append((run, alpha, len(worst), int((worst <= 0).sum())))
    return pd.DataFrame(found, columns=["run", "alpha", "pictures", "not_rising"])


def speed_table(speed: Mapping) -> pd.DataFrame:
    """One row a codec and device, slowest first: milliseconds a frame, medians and p95.

    speed: the JSON of benchmarks/codec.py. One of several frame sizes and numbers of threads has a
    row for each, in the columns `frame` and `threads`; one of an earlier version has no such
    columns.
    """
    table = pd.DataFrame(speed["rows"]).query("stage == 'total'")
    if "frame" in table:
        table = table.assign(frame=[f"{width}×{height}" for height, width in table["frame"]])
    conditions = [name for name in ("frame", "threads") if name in table]
    keys = [*conditions, "codec", "device", "operation"]
    wide = (table.set_index(keys)[["median", "p95"]] * 1000).unstack()
    wide.columns = [
        operation if name == "median" else f"{operation}_p95" for name, operation in wide.columns
    ]
    rank = {frame: i for i, frame in enumerate(table.get("frame", pd.Series(dtype=str)).unique())}
    return wide.reset_index().sort_values(
        [*conditions, "encode"],
        ascending=[True] * len(conditions) + [False],
        key=lambda column: column.map(rank) if column.name == "frame" else column,
        ignore_index=True,
    )


def speed_in_short(speed: Mapping) -> dict:
    """Keep the rows of the first frame size at the most threads; speed: as of `speed_table`."""
    rows = speed.get("rows", [])
    if not rows or "threads" not in rows[0]:
        return dict(speed)
    frame, threads = rows[0]["frame"], max(row["threads"] for row in rows)
    kept = [row for row in rows if (row["frame"], row["threads"]) == (frame, threads)]
    names = rows[0].keys() - {"frame", "threads"}
    return {**speed, "rows": [{name: row[name] for name in names} for row in kept]}


def run_table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: the parameters in which the runs differ, its state, its last test means."""
    values = pd.DataFrame(
        [r.parameters.model_dump(exclude=WITHOUT_EFFECT) for r in runs],
        index=[r.folder.name for r in runs],
    ).astype(object)
    values = values.loc[:, values.map(str).nunique() > 1]
    values.insert(0, "state", [r.state for r in runs])
    means = pd.DataFrame([(r.metrics or {}).get("test") or {} for r in runs], index=values.index)
    return values.join(means).rename_axis("run").reset_index()
