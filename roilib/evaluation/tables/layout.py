"""Headings and number formats of tables, as Markdown and as a notebook shows them."""

from collections.abc import Mapping

import pandas as pd

from roilib.codecs.registry import is_ours

# Columns of tables → headings, for `formatted` and `markdown`.
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


def formatted(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Format the columns (name → heading) that hold any value, for a notebook; a dash for NaN."""
    there = {n: h for n, h in columns.items() if n in table and table[n].notna().any()}
    return pd.DataFrame({h: [_cell(n, value) for value in table[n]] for n, h in there.items()})


def markdown(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """Return the columns (name → heading) that a table has as Markdown; a dash for no number.

    pandas' `to_markdown` pads every column, so that one longer number would change all lines.
    """
    columns = {name: heading for name, heading in columns.items() if name in table}
    body = [[_cell(name, row[name]) for name in columns] for _, row in table.iterrows()]
    lines = [list(columns.values()), ["---"] * len(columns), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return "–" if pd.isna(value) else format(value, DIGITS.get(name, ".2f"))


def ranked(table: pd.DataFrame, columns: dict[str, str], value: str, form: str, bounds: str) -> str:
    """Return a table as Markdown: the least `value` first, its interval beside it, ours bold.

    columns: name → heading, `value` among them; form: of the value, as "+.1f"; bounds: as of
    `interval`.
    """
    known = table.dropna(subset=value).sort_values(value) if len(table) else table
    if known.empty:
        return "*Not measured here.*"
    cells = known.astype({value: object})
    cells[value] = [interval(row, value, form, bounds=bounds) for row in known.to_dict("records")]
    ours = known["codec"].map(is_ours)
    cells["label"] = known["label"].where(~ours, "**" + known["label"] + "**")
    return markdown(cells, columns)


def interval(row: Mapping, name: str, form: str, unit: str = "", bounds: str = "") -> str:
    """Return a value with its interval, where there is one; a dash for no value.

    bounds: the prefix of the interval's columns, `…low` and `…high`.
    """
    if pd.isna(row.get(name)):
        return "–"
    values = [row[name], row[f"{bounds}low"], row[f"{bounds}high"]]
    value, low, high = (format(v, form).replace("-", "−") for v in values)
    said = value if pd.isna(values[1]) else f"{value} [{low}, {high}]"
    return f"{said} {unit}".rstrip()
