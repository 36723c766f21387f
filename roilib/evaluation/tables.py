"""Records and runs as pandas tables."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from roilib.codecs.registry import CODEC_NAMES
from roilib.datasets.dataset import RoiDataset
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import run_name
from roilib.evaluation.detection import BENCHMARK
from roilib.evaluation.results import roi_gain
from roilib.metrics import pooled_psnr
from roilib.models.detector import HookedDetector
from roilib.parameters import WITHOUT_EFFECT
from roilib.roi import roi_mask
from roilib.utils.files import replacing


def table_of(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table. What is None is NaN, in columns without any number too, where pandas would keep None."""
    table = pd.DataFrame(rows)
    return table.astype({name: float for name in table if table[name].isna().all()})


def rate_table(records: list[dict]) -> pd.DataFrame:
    """One row a codec and setting: mean bpp and MS-SSIM, PSNRs pooled (dB over all pictures' pixels together) and as means over the pictures.

    `car_psnr`, `pedestrian_psnr`, `cyclist_psnr` and their means are over the pixels of that class's boxes, where any picture has some.
    """
    points: dict[tuple, list[dict]] = {}
    for r in records:
        points.setdefault(
            (r["codec"], run_name(r), json.dumps(r["setting"], sort_keys=True)), []
        ).append(r)
    rows = []
    for (codec, run, _), group in sorted(points.items()):
        means = {
            name: pd.Series([r.get(name) for r in group], dtype=float).mean()
            for name in ("bpp", "bpp_estimated", "ms_ssim")
        }
        classes = [
            f"{name.lower()}_"
            for name in BENCHMARK
            if any(r.get(f"{name.lower()}_count") for r in group)
        ]
        psnrs = {f"{part}psnr": pooled_psnr(group, part) for part in ("roi_", "bg_", "", *classes)}
        psnrs |= {
            f"{part}psnr_mean": _mean_psnr(group, part) for part in ("roi_", "bg_", "", *classes)
        }
        label = CODEC_NAMES.get(codec, codec)
        rows.append(
            {"codec": codec, "label": label}
            | group[0]["setting"]
            | means
            | psnrs
            | {"pictures": len(group), "run": run}
        )
    order = [
        name
        for name in ("codec", "lmbda", "alpha", "qoffset", "quality")
        if any(name in row for row in rows)
    ]
    return table_of(rows).sort_values(order, ignore_index=True)


def _mean_psnr(group: list[dict], part: str) -> float:
    """Mean PSNR of the records that have such pixels; NaN where there is none, or one has no error in them and so no PSNR."""
    return pd.Series([r[f"{part}psnr"] for r in group if r[f"{part}count"]], dtype=float).mean(
        skipna=False
    )


def roi_trade_table(
    rates: pd.DataFrame, codec: str = "roi_vbr", uniform: float = 0.5
) -> pd.DataFrame:
    """What each α of a codec gains in the ROI and costs outside it, against the same weights at α = `uniform`; rates: of `rate_table`.

    Columns: run, alpha, roi_bd_rate (%), bg_bd_psnr (dB), and the overlaps of the curves they were read from.
    """
    rows = []
    for run, group in rates[rates["codec"] == codec].groupby("run"):
        curves = {alpha: points.sort_values("bpp") for alpha, points in group.groupby("alpha")}
        for alpha in sorted(curves.keys() - {uniform}) if uniform in curves else ():
            rows.append({"run": run, "alpha": alpha} | roi_gain(curves[uniform], curves[alpha]))
    return pd.DataFrame(
        rows, columns=["run", "alpha", "roi_bd_rate", "roi_overlap", "bg_bd_psnr", "bg_overlap"]
    )


def one_rate_table(rates: pd.DataFrame, alpha: float = 0.5) -> pd.DataFrame:
    """The model for every rate against those of one rate each, at equal PSNR; rates: of `rate_table`.

    Columns: lmbda of the model of one rate, its psnr and bpp, bpp_roi_vbr (of roi_vbr at this PSNR, its curve interpolated in log bpp by PCHIP; NaN
    beyond its ends) and difference (%, negative: roi_vbr needs less).
    """
    uniform = rates[rates["alpha"] == alpha]
    measured = uniform.dropna(subset="psnr").sort_values("psnr")
    curve, ones = (
        measured[measured["codec"] == codec] for codec in ("roi_vbr", "roi_vbr (fixed_rate)")
    )
    table = ones[["lmbda", "psnr", "bpp"]].reset_index(drop=True)
    known = len(curve) > 1
    table["bpp_roi_vbr"] = (
        np.exp(
            PchipInterpolator(curve["psnr"], np.log(curve["bpp"]), extrapolate=False)(table["psnr"])
        )
        if known
        else np.nan
    )
    return table.assign(difference=100 * (table["bpp_roi_vbr"] / table["bpp"] - 1))


def rate_order_table(records: list[dict]) -> pd.DataFrame:
    """By run and α: how many pictures a roi_vbr coded at more than one λ (pictures), and how many of them do not get more bytes with every λ."""
    rows = pd.DataFrame(
        [
            {"run": run_name(r), "image": r["image"], "bytes": r["bytes"]} | r["setting"]
            for r in records
            if r["codec"] == "roi_vbr"
        ]
    )
    found = []
    for (run, alpha), group in rows.groupby(["run", "alpha"]) if len(rows) else ():
        steps = group.sort_values("lmbda").groupby("image")["bytes"].diff()
        worst = steps.groupby(group["image"]).min()
        found.append(
            {
                "run": run,
                "alpha": alpha,
                "pictures": len(worst),
                "not_rising": int((worst <= 0).sum()),
            }
        )
    return pd.DataFrame(found, columns=["run", "alpha", "pictures", "not_rising"])


def speed_table(speed: Mapping) -> pd.DataFrame:
    """One row a codec and device, the slowest first: milliseconds of a frame, the median of encoding and decoding and their 95th percentiles; speed:
    what benchmarks/codec.py wrote.
    """
    times = (
        pd.DataFrame(speed["rows"])
        .query("stage == 'total'")
        .set_index(["codec", "device", "operation"])[["median", "p95"]]
        * 1000
    )
    wide = times.unstack()
    wide.columns = [
        operation if name == "median" else f"{operation}_p95" for name, operation in wide.columns
    ]
    return wide.sort_values("encode", ascending=False).reset_index()


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write every table that has rows as `folder/name.csv`; of an empty one no file of an earlier evaluation stays either."""
    for name, table in tables.items():
        path = Path(folder) / f"{name}.csv"
        if len(table):
            with replacing(path) as temporary:
                table.to_csv(temporary, index=False)
        else:
            path.unlink(missing_ok=True)


def rows(table: pd.DataFrame) -> list[dict]:
    """A table's rows for JSON, None where there is nothing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


RATE_COLUMNS = {
    "label": "codec",
    "lmbda": "λ",
    "alpha": "α",
    "bpp": "bpp",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "ms_ssim": "MS-SSIM",
}
KNOB_COLUMNS = {
    "lmbda": "λ",
    "alpha": "α",
    "quality": "crf or quality",
    "qoffset": "qoffset",
    "bpp": "bpp",
}
BOUNDS = {"low": "95 % from", "high": "to"}
BUDGET_COLUMNS = (
    {
        "label": "codec",
        "budget": "budget dB",
        "strength": "α or qoffset",
        "roi_bd_rate": "ROI BD-rate %",
    }
    | BOUNDS
    | {"bg_loss": "background loss dB"}
)
BD_COLUMNS = (
    {"anchor_label": "against", "bd_rate": "BD-rate %"} | BOUNDS | {"bd_psnr": "BD-PSNR dB"}
)
BYTE_RATIO_COLUMNS = (
    {"theirs_label": "against", "ratio": "bytes, ours/theirs"}
    | BOUNDS
    | {"reached": "points reached", "hull": "of"}
)
DETECTION_COLUMNS = {
    "detector": "detector",
    "label": "codec",
    "strength": "α or qoffset",
    "agnostic_ap50": "AP50",
    "agnostic_ap50_loss": "loss %",
}
DETECTION_COLUMNS |= {"agnostic_ap50_loss_low": "95 % from", "agnostic_ap50_loss_high": "to"}
TRADE_COLUMNS = {
    "run": "run",
    "alpha": "α",
    "roi_bd_rate": "ROI BD-rate %",
    "bg_bd_psnr": "background BD-PSNR dB",
}
ONE_RATE_COLUMNS = {
    "lmbda": "λ of the one",
    "psnr": "PSNR dB",
    "bpp": "its bpp",
    "bpp_roi_vbr": "roi_vbr's bpp",
    "difference": "difference %",
}
SPEED_COLUMNS = {
    "codec": "codec",
    "encode": "encode ms",
    "encode_p95": "p95",
    "decode": "decode ms",
    "decode_p95": "p95 ",
}
DIGITS = {
    "lmbda": "g",
    "alpha": "g",
    "bpp": ".3f",
    "bpp_roi_vbr": ".3f",
    "ms_ssim": ".4f",
    "label": "",
    "roi_bd_rate": ".1f",
}
DIGITS |= dict.fromkeys(("quality", "qoffset"), "g")
DIGITS |= dict.fromkeys(("over", "dropped", "late", "lost", "affected", "reached", "hull"), "d") | {
    "delay_p95": ".0f",
    "agnostic_ap50": ".3f",
}
DIGITS |= dict.fromkeys(("anchor_label", "theirs_label", "detector"), "") | dict.fromkeys(
    ("strength", "budget"), "g"
)
DIGITS |= {"codec": ""} | dict.fromkeys(("encode", "encode_p95", "decode", "decode_p95"), ".0f")
DIGITS |= dict.fromkeys(
    ("bd_rate", "agnostic_ap50_loss", "agnostic_ap50_loss_low", "agnostic_ap50_loss_high"), ".1f"
)


def shown(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Those of the columns (name → heading) that a table of this module has numbers in, rounded, for a notebook; a dash where there is none."""
    there = {
        name: heading
        for name, heading in columns.items()
        if name in table and table[name].notna().any()
    }
    return pd.DataFrame(
        {heading: [_cell(name, value) for value in table[name]] for name, heading in there.items()}
    )


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return "–" if pd.isna(value) else format(value, DIGITS.get(name, ".2f"))


def markdown(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """Columns (name → heading) of a table of this module as Markdown, for the README; a dash where there is no number."""
    rows = [[_cell(name, row[name]) for name in columns] for _, row in table.iterrows()]
    return "\n".join(
        "| " + " | ".join(cells) + " |"
        for cells in [list(columns.values()), ["---"] * len(columns), *rows]
    )


def object_table(data: RoiDataset) -> pd.DataFrame:
    """One row an object: picture, class, box and its width, height, centre and share of the picture."""
    rows = []
    for i, sample in enumerate(data.samples):
        height, width = data.size(i)
        for (x0, y0, x1, y1), label in zip(
            sample.boxes.tolist(), sample.labels.tolist(), strict=True
        ):
            place = {
                "x": (x0 + x1) / 2 / width,
                "y": (y0 + y1) / 2 / height,
                "share": (x1 - x0) * (y1 - y0) / (width * height),
            }
            rows.append(
                {
                    "image": sample.id,
                    "class": data.classes[label],
                    "width": x1 - x0,
                    "height": y1 - y0,
                }
                | place
            )
    return pd.DataFrame(rows, columns=["image", "class", "width", "height", "x", "y", "share"])


def roi_shares(data: RoiDataset) -> np.ndarray:
    """The share of each picture that is ROI."""
    return np.array(
        [roi_mask(sample.boxes, *data.size(i)).mean() for i, sample in enumerate(data.samples)]
    )


def hook_table(detector: HookedDetector, features: list, height: int) -> pd.DataFrame:
    """One row a module of the detector: type, output shape and stride; height: of the picture it saw."""
    rows = []
    for i, (module, output) in enumerate(zip(detector.yolo.model, features, strict=True)):
        tensor = output if hasattr(output, "shape") else None
        shape = "×".join(map(str, tensor.shape[1:])) if tensor is not None else "detections"
        stride = height // tensor.shape[-2] if tensor is not None else None
        rows.append(
            {"layer": i, "module": type(module).__name__, "output": shape, "stride": stride}
        )
    return pd.DataFrame(rows)


def run_table(runs: list[Run]) -> pd.DataFrame:
    """One row a run: the parameters in which the runs differ, its state, and the last test epoch's means where it is finished."""
    values = pd.DataFrame(
        [r.parameters.model_dump(exclude=WITHOUT_EFFECT) for r in runs],
        index=[r.folder.name for r in runs],
    ).astype(object)
    values = values.loc[:, values.map(str).nunique() > 1]
    values.insert(0, "state", [r.state for r in runs])
    means = pd.DataFrame([(r.metrics or {}).get("test") or {} for r in runs], index=values.index)
    return values.join(means).rename_axis("run").reset_index()
