"""Tables: records and runs as pandas tables, tables as CSV files, Markdown and notebook output.

records, runs ──► tables ──► results/NAME.csv ──► tables ──► by_strength: curves for figures
                     └─────► shown, markdown
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from roilib.codecs.conventional import SUBSAMPLED
from roilib.codecs.registry import CODEC_NAMES, DRAWN, LOOKS, codec_label, uniform_strength
from roilib.engines.runs import Run
from roilib.evaluation.bootstrap import run_name
from roilib.evaluation.detection import BENCHMARK
from roilib.metrics import pooled_psnr
from roilib.parameters import BASELINES, WITHOUT_EFFECT
from roilib.utils.files import replacing


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
    ours = (r for r in records if r["codec"] == "roi_vbr")
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


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as `folder/name.csv`; for an empty one, remove the file of an earlier run."""
    for name, table in tables.items():
        path = Path(folder) / f"{name}.csv"
        if len(table):
            with replacing(path) as temporary:
                table.to_csv(temporary, index=False)
        else:
            path.unlink(missing_ok=True)


def rows(table: pd.DataFrame) -> list[dict]:
    """Return a table's rows for JSON, None for NaN."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


# Columns of tables → headings, for `shown` and `markdown`.
BOUNDS = {"low": "95 % from", "high": "to"}
RATE_COLUMNS = {
    "label": "codec",
    "lmbda": "λ",
    "alpha": "α",
    "bpp": "bpp",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "yuv_psnr_mean": "YUV dB",
    "ms_ssim": "MS-SSIM",
    "haarpsi": "HaarPSI",
    "roi_haarpsi": "ROI HaarPSI",
}
COST_COLUMNS = {
    "label": "codec",
    "lmbda": "λ",
    "alpha": "α",
    "bpp": "bpp",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "cost": "cost",
    "difference": "cost against zero hooks %",
    **BOUNDS,
    "seeds": "seeds",
}
KNOB_COLUMNS = {
    "lmbda": "λ",
    "alpha": "α",
    "quality": "crf or quality",
    "qoffset": "qoffset",
    "bpp": "bpp",
}
BD_COLUMNS = {
    "anchor_label": "against",
    "bd_rate": "BD-rate %",
    **BOUNDS,
    "bd_psnr": "BD-PSNR dB",
}
DETECTION_COLUMNS = {
    "detector": "detector",
    "label": "codec",
    "strength": "α or qoffset",
    "agnostic_ap50": "AP50",
    "agnostic_ap50_loss": "loss %",
    "agnostic_ap50_loss_low": "95 % from",
    "agnostic_ap50_loss_high": "to",
}
ONE_RATE_COLUMNS = {
    "lmbda": "λ of the one",
    "psnr": "PSNR dB",
    "bpp": "its bpp",
    "bpp_roi_vbr": "roi_vbr's bpp",
    "difference": "difference %",
}
SPEED_COLUMNS = {
    "frame": "frame",
    "threads": "threads",
    "codec": "codec",
    "encode": "encode ms",
    "encode_p95": "p95",
    "decode": "decode ms",
    "decode_p95": "p95 ",
}
COMPLEXITY_COLUMNS = {
    "codec": "codec",
    "encode": "encode kMAC/pixel",
    "decode": "decode kMAC/pixel",
    "parameters": "parameters in millions",
}
FORMATS = {  # columns of each format; all others have two digits
    "": "codec label anchor_label theirs_label detector frame",
    "d": "threads frames over dropped late lost affected reached hull seeds",
    "g": "lmbda alpha quality qoffset",
    ".3g": "strength",
    ".0f": "delay_p95 encode encode_p95 decode decode_p95",
    ".1f": "roi_bd_rate bd_rate agnostic_ap50_loss agnostic_ap50_loss_low agnostic_ap50_loss_high",
    ".3f": "bpp bpp_roi_vbr cost agnostic_ap50",
    ".4f": "ms_ssim haarpsi roi_haarpsi",
}
DIGITS = {name: form for form, names in FORMATS.items() for name in names.split()}


HEADLINE_BG_LOSS = 0.5  # dB, at which the README reads the ROI modes


def headline_table(
    ratios: pd.DataFrame, bd_rates: pd.DataFrame, codecs: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Compare roi_vbr with other codecs in a short table; a dash where nothing was measured.

    ratios: of `comparisons.byte_ratio_tables`; bd_rates: of `comparisons.bd_table`. codecs: name →
    label; None: every codec that can be compared with all pixels alike, the strongest first, but
    for those at 4:2:0: these are no match by RGB-PSNR (see `measure_table`).
    """
    if bd_rates.empty:
        return pd.DataFrame()
    rates = bd_rates[bd_rates["test"] == "roi_vbr"]
    equal = rates[(rates["bg_loss"] == HEADLINE_BG_LOSS) & (rates["metric"] == "roi_psnr")]
    uniform = rates[rates["bg_loss"].isna() & (rates["metric"] == "psnr")]
    if codecs is None:
        known = full_chroma(uniform, "anchor").dropna(subset="bd_rate")
        known = known.sort_values("bd_rate", ascending=False)
        codecs = dict(zip(known["anchor"], known["anchor_label"], strict=True))
    found = []
    for codec, label in codecs.items():
        ratio = _first(ratios, theirs=codec, ours="roi_vbr")
        roi, plain = _first(equal, anchor=codec), _first(uniform, anchor=codec)
        row = {"`roi_vbr` against": label, "bytes at equal ROI and background": "–"}
        if ratio:
            points = f"{ratio['reached']} of {ratio['hull']} points"
            row["bytes at equal ROI and background"] = (
                f"**{_interval(ratio, 'ratio', '.2f')}**, {points}"
            )
        row["ROI BD-rate"] = _interval(roi, "bd_rate", "+.1f", "%") if roi else "no ROI"
        row["BD-rate, all pixels alike"] = _interval(plain, "bd_rate", "+.1f", "%")
        found.append(row)
    return pd.DataFrame(found)


MEASURE_COLUMNS = {  # metrics of `comparisons.bd_table` → headings: all pixels alike, then ROI
    "psnr": "PSNR",
    "yuv_psnr_mean": "YUV-PSNR",
    "ms_ssim": "MS-SSIM",
    "haarpsi": "HaarPSI",
    "roi_yuv_psnr_mean": "ROI YUV-PSNR",
    "roi_haarpsi": "ROI HaarPSI",
}


def measure_table(bd_rates: pd.DataFrame) -> pd.DataFrame:
    """Compare roi_vbr with other codecs by every measure of quality: BD-rates (%) in cells.

    bd_rates: of `comparisons.bd_table`. With all pixels alike; the columns of the ROI are of the
    ROI modes where both lose HEADLINE_BG_LOSS of background. Codecs at 4:2:0, whose RGB-PSNR the
    format limits, have none. The strongest by YUV-PSNR first, then those that lack it.
    """
    if bd_rates.empty:
        return pd.DataFrame()
    rates = bd_rates[bd_rates["test"] == "roi_vbr"]
    rates = rates[(rates["metric"] != "psnr") | ~_subsampled(rates["anchor"])]
    uniform, equal = rates[rates["bg_loss"].isna()], rates[rates["bg_loss"] == HEADLINE_BG_LOSS]
    found = []
    for anchor, label in dict(zip(rates["anchor"], rates["anchor_label"], strict=True)).items():
        rows = {
            metric: _first(
                equal if metric.startswith("roi_") else uniform, anchor=anchor, metric=metric
            )
            for metric in MEASURE_COLUMNS
        }
        cells = [_interval(row, "bd_rate", "+.1f") for row in rows.values()]
        strength = rows["yuv_psnr_mean"].get("bd_rate", math.nan)
        found.append((strength, label, *cells))
    found.sort(key=lambda row: math.inf if math.isnan(row[0]) else -row[0])
    headings = ["strength", "`roi_vbr` against", *MEASURE_COLUMNS.values()]
    return pd.DataFrame(found, columns=headings).drop(columns="strength")


def full_chroma(table: pd.DataFrame, column: str = "codec") -> pd.DataFrame:
    """Leave out the rows of codecs at 4:2:0, which RGB-PSNR does not do justice to."""
    return table[~_subsampled(table[column])] if len(table) else table


def _subsampled(codecs: pd.Series) -> pd.Series:
    return codecs.str.endswith(SUBSAMPLED)


def _first(table: pd.DataFrame, **where: str) -> dict:
    """Return the first row with these values, or an empty one."""
    for name, value in where.items():
        table = table[table[name] == value] if len(table) else table
    return next(iter(table.to_dict("records")), {})


def _interval(row: Mapping, name: str, form: str, unit: str = "", bounds: str = "") -> str:
    """Return a value with its interval, where there is one; a dash for no value.

    bounds: the prefix of the interval's columns, `…low` and `…high`.
    """
    if pd.isna(row.get(name)):
        return "–"
    values = [row[name], row[f"{bounds}low"], row[f"{bounds}high"]]
    value, low, high = (format(v, form).replace("-", "−") for v in values)
    said = value if pd.isna(values[1]) else f"{value} [{low}, {high}]"
    return f"{said} {unit}".rstrip()


def ranked(table: pd.DataFrame, columns: dict[str, str], value: str, form: str, bounds: str) -> str:
    """Return a table as Markdown: the least `value` first, its interval beside it, ours bold.

    columns: name → heading, `value` among them; form: of the value, as "+.1f"; bounds: as of
    `_interval`.
    """
    known = table.dropna(subset=value).sort_values(value) if len(table) else table
    if known.empty:
        return "*Not measured here.*"
    cells = known.astype({value: object})
    cells[value] = [_interval(row, value, form, bounds=bounds) for row in known.to_dict("records")]
    is_ours = known["codec"].isin(CODEC_NAMES)
    cells["label"] = known["label"].where(~is_ours, "**" + known["label"] + "**")
    return markdown(cells, columns)


def shown(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Format the columns (name → heading) that hold any value, for a notebook; a dash for NaN."""
    there = {n: h for n, h in columns.items() if n in table and table[n].notna().any()}
    return pd.DataFrame({h: [_cell(n, value) for value in table[n]] for n, h in there.items()})


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return "–" if pd.isna(value) else format(value, DIGITS.get(name, ".2f"))


def markdown(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return the columns (name → heading) that a table has as Markdown; a dash for no number.

    pandas' `to_markdown` pads every column, so that one longer number would change all lines.
    """
    columns = {name: heading for name, heading in columns.items() if name in table}
    body = [[_cell(name, row[name]) for name in columns] for _, row in table.iterrows()]
    lines = [list(columns.values()), ["---"] * len(columns), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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


def read_table(results: str | Path, name: str) -> pd.DataFrame:
    """Read `results/name.csv`, empty if it does not exist. Raises ValueError naming the file."""
    path = Path(results) / f"{name}.csv"
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame()
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table ({error})") from None


def by_strength(rates: pd.DataFrame) -> dict[str, dict[float, pd.DataFrame]]:
    """Split a table of rates: codec → ROI strength (mildest first) → its points by rising rate.

    Codecs come in the order of LOOKS. Of trainings with equal settings the first is kept.
    """
    found = {}
    for codec in in_order(rates):
        rows, uniform = rates[rates["codec"] == codec], uniform_strength(codec)
        knob = "alpha" if codec in CODEC_NAMES else "qoffset"
        has_strength = knob in rows and codec not in BASELINES
        rows = rows.assign(strength=rows[knob].fillna(uniform) if has_strength else uniform)
        keys = ["strength", *(name for name in ("lmbda", "quality") if name in rows)]
        groups = rows.drop_duplicates(keys).sort_values("bpp").groupby("strength")
        found[codec] = dict(sorted(groups, key=lambda pair: abs(pair[0] - uniform)))
    return found


def drawn(rates: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that figures show: one preset of each video codec."""
    presets: dict[str, list[str]] = {}
    for codec in in_order(rates):
        video = codec.partition(" ")[0] if codec not in CODEC_NAMES else codec
        presets.setdefault(video, []).append(codec)
    return rates[rates["codec"].isin([min(found, key=_rank) for found in presets.values()])]


def in_order(table: pd.DataFrame) -> list[str]:
    """Return the codecs of a table in the order of LOOKS, others at the end."""
    found, known = list(table["codec"].unique() if len(table) else ()), list(LOOKS)
    return sorted(found, key=lambda c: (known.index(c) if c in known else len(known), c))


def _rank(codec: str) -> tuple:
    preset = codec.partition(" ")[2]
    return (*(preset != wanted for wanted in DRAWN), codec)
