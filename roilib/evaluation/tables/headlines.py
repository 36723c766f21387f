"""roi_vbr against other codecs in short tables, whose cells hold values and intervals."""

import math
from collections.abc import Mapping

import pandas as pd

from roilib.codecs.conventional import SUBSAMPLED
from roilib.codecs.registry import TUNED_FOR_YUV, is_ours
from roilib.evaluation.tables.layout import interval

HEADLINE_BG_LOSS = 0.5  # dB, at which the README reads the ROI modes


def headline_table(
    ratios: pd.DataFrame,
    bd_rates: pd.DataFrame,
    codecs: Mapping[str, str] | None = None,
    ours: str = "roi_vbr",
) -> pd.DataFrame:
    """Compare one of our codecs with others in a short table; a dash where nothing was measured.

    ratios: of `byte_ratio_tables`; bd_rates: of `bd_table`. The codec tuned for YUV is compared by
    YUV-PSNR, `ratios` too. codecs: name → label; None: every codec that can be compared with all
    pixels alike, the strongest first; by RGB-PSNR without those at 4:2:0, to which it does not do
    justice.
    """
    if bd_rates.empty:
        return pd.DataFrame()
    yuv = ours == TUNED_FOR_YUV
    metric = "yuv_psnr_mean" if yuv else "psnr"
    rates = bd_rates[bd_rates["test"] == ours]
    equal = rates[(rates["bg_loss"] == HEADLINE_BG_LOSS) & (rates["metric"] == f"roi_{metric}")]
    uniform = rates[rates["bg_loss"].isna() & (rates["metric"] == metric)]
    if codecs is None:
        known = (uniform if yuv else full_chroma(uniform, "anchor")).dropna(subset="bd_rate")
        known = known.sort_values("bd_rate", ascending=False)
        codecs = dict(zip(known["anchor"], known["anchor_label"], strict=True))
    found = []
    for codec, label in codecs.items():
        ratio = _first(ratios, theirs=codec, ours=ours)
        roi, plain = _first(equal, anchor=codec), _first(uniform, anchor=codec)
        row = {f"`{ours}` against": label, "bytes at equal ROI and background": "–"}
        if ratio:
            points = f"{ratio['reached']} of {ratio['hull']} points"
            row["bytes at equal ROI and background"] = (
                f"**{interval(ratio, 'ratio', '.2f')}**, {points}"
            )
        row["ROI BD-rate"] = interval(roi, "bd_rate", "+.1f", "%") if roi else "no ROI"
        row["BD-rate, all pixels alike"] = interval(plain, "bd_rate", "+.1f", "%")
        found.append(row)
    return pd.DataFrame(found)


MEASURE_COLUMNS = {  # metrics of `bd_table` → headings: all pixels alike, then ROI
    "psnr": "PSNR",
    "yuv_psnr_mean": "YUV-PSNR",
    "ms_ssim": "MS-SSIM",
    "haarpsi": "HaarPSI",
    "roi_yuv_psnr_mean": "ROI YUV-PSNR",
    "roi_haarpsi": "ROI HaarPSI",
}


def measure_table(bd_rates: pd.DataFrame, ours: str = "roi_vbr") -> pd.DataFrame:
    """Compare one of our codecs with others by every measure of quality: BD-rates (%) in cells.

    bd_rates: of `bd_table`. With all pixels alike; the columns of the ROI are of the ROI modes
    where both lose HEADLINE_BG_LOSS of background. Codecs at 4:2:0, or tuned for it, have no
    RGB-PSNR here: it does not do justice to them. The strongest by YUV-PSNR first, then those that
    lack it.
    """
    if bd_rates.empty:
        return pd.DataFrame()
    rates = bd_rates[bd_rates["test"] == ours]
    unfair = _subsampled(rates["anchor"]) | _subsampled(rates["test"])
    rates = rates[(rates["metric"] != "psnr") | ~unfair]
    uniform, equal = rates[rates["bg_loss"].isna()], rates[rates["bg_loss"] == HEADLINE_BG_LOSS]
    found = []
    for anchor, label in dict(zip(rates["anchor"], rates["anchor_label"], strict=True)).items():
        rows = {
            metric: _first(
                equal if metric.startswith("roi_") else uniform, anchor=anchor, metric=metric
            )
            for metric in MEASURE_COLUMNS
        }
        cells = [interval(row, "bd_rate", "+.1f") for row in rows.values()]
        strength = rows["yuv_psnr_mean"].get("bd_rate", math.nan)
        found.append((strength, label, *cells))
    found.sort(key=lambda row: math.inf if math.isnan(row[0]) else -row[0])
    headings = ["strength", f"`{ours}` against", *MEASURE_COLUMNS.values()]
    table = pd.DataFrame(found, columns=headings).drop(columns="strength")
    # By RGB-PSNR its background loses little, so an equal loss would flatter its ROI.
    unfair_columns = ["PSNR", "ROI YUV-PSNR", "ROI HaarPSI"]
    return table.drop(columns=unfair_columns) if ours == TUNED_FOR_YUV else table


def full_chroma(table: pd.DataFrame, column: str = "codec") -> pd.DataFrame:
    """Leave out codecs at 4:2:0, as WebP always is, and tuned for it: RGB-PSNR is unfair."""
    return table[~_subsampled(table[column])] if len(table) else table


def half_chroma(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out conventional codecs at 4:4:4, where any was measured at 4:2:0."""
    halved = _subsampled(table["codec"])
    return table[halved | table["codec"].map(is_ours)] if halved.any() else table


def _subsampled(codecs: pd.Series) -> pd.Series:
    return codecs.str.endswith(SUBSAMPLED) | codecs.isin((TUNED_FOR_YUV, "webp"))


def _first(table: pd.DataFrame, **where: str) -> dict:
    """Return the first row with these values, or an empty one."""
    for name, value in where.items():
        table = table[table[name] == value] if len(table) else table
    return next(iter(table.to_dict("records")), {})
