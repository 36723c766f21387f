"""Figures of measured results, drawn from the tables that notebook 05 wrote.

Every function returns the matplotlib Figure, or None for a table without what the figure shows.
A codec with several ROI strengths (α of ours, the quantiser offset of x264 and x265) has a line of
its colour for each.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from roilib.codecs.registry import (
    CODEC_NAMES,
    codec_label,
    curve_label,
    look,
    strength_label,
    uniform_strength,
)
from roilib.evaluation.comparisons import LOSSES, at_loss, nearest_strength
from roilib.evaluation.tables import by_strength, drawn, in_order, speed_in_short

AXES = {"roi_psnr": "ROI-PSNR (dB)", "bg_psnr": "background PSNR (dB)", "psnr": "PSNR (dB)"}
RATE = "bits per pixel"
STAGES = ("detector", "transforms", "entropy networks", "entropy coding", "tables", "container")
ROUND_RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3)  # bpp
HEADROOM = 1.25  # shown above the highest rate of our codecs
WIDE = 8  # ratio of rates from which the axis is logarithmic
LINE_STEPS = 100  # points of an interpolated line
Strengths = dict[float, pd.DataFrame]  # ROI strength → points by rising rate


def rate_curves(rates: pd.DataFrame, trade: pd.DataFrame) -> Figure | None:
    """Rate against ROI-PSNR, beside rate against background PSNR.

    rates, trade: of `tables.rate_table` and `comparisons.trade_table`. Dotted: uniform. Solid: the
    measured ROI strength whose background loss is nearest to 1 dB (the mildest if no loss is
    known), or what a codec has. Thin: the other strengths. Rates far above ours are left out.
    """
    if rates.empty:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.9), sharex=True, layout="constrained")
    handles, top = [], _highest_rate(rates)
    for codec, strengths in by_strength(drawn(rates)).items():
        chosen = _roi_strength(codec, strengths, trade)
        for strength, points in strengths.items():
            style = _curve_style(codec, strength, chosen, len(strengths) > 1)
            points = points[points["bpp"] <= top]
            for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
                ax.plot(points["bpp"], points[name], **style)
            if "marker" in style and len(points):
                label = curve_label(codec, strength, len(strengths) > 1)
                handles.append(Line2D([], [], label=label, **style))
    wide = min(rates["bpp"].max(), top) > WIDE * rates["bpp"].min()
    for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
        _rate_axis(ax, wide)
        ax.set(ylabel=AXES[name])
    _legend_below(figure, handles)
    return figure


def _roi_strength(codec: str, strengths: Strengths, trade: pd.DataFrame) -> float | None:
    """The ROI strength to draw: nearest to 1 dB of background, else the mildest."""
    mildest = next((s for s in strengths if s != uniform_strength(codec)), None)
    nearest = nearest_strength(trade, codec)
    return nearest if nearest in strengths else mildest


def _curve_style(codec: str, strength: float, chosen: float | None, several: bool) -> dict:
    colour, marker = look(codec)
    style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.4}
    if several and strength == uniform_strength(codec):
        return style | {"linestyle": ":", "markerfacecolor": "white"}
    if several and strength != chosen:
        return {"color": colour, "linewidth": 0.5, "alpha": 0.45}
    return style


def roi_plane(trade: pd.DataFrame) -> Figure | None:
    """What ROI strengths save in the ROI against what they cost in the background.

    trade: of `comparisons.trade_table`. Each codec is compared with its own uniform mode; markers
    are measured strengths, lines the interpolation of `comparisons.at_loss`.
    """
    known = trade.dropna(subset=["roi_bd_rate", "bg_loss"]) if len(trade) else trade
    if known.empty:
        return None
    table = drawn(known)
    figure, ax = plt.subplots(figsize=(6.2, 3.9), layout="constrained")
    for loss in LOSSES:
        ax.axvline(loss, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(f"{loss:g} dB", (loss, 1), (2, 2), fontsize=7, color="0.4", **place)
    # offsets of the conventional codecs, which lie close together, are named once
    named = table["codec"].isin(CODEC_NAMES) | ~table.duplicated("strength", keep="last")
    for codec in in_order(table):
        group = table[table["codec"] == codec]
        group = group[group["run"].fillna("") == group["run"].fillna("").iloc[0]]
        (colour, marker), points = look(codec), group[["bg_loss", "roi_bd_rate"]]
        _interpolated_line(ax, group, colour)
        style = {"linestyle": "", "marker": marker, "markersize": 5}
        ax.plot(*points.to_numpy().T, color=colour, **style)
        ax.plot([], [], color=colour, marker=marker, markersize=5, label=codec_label(codec))
        ours = codec in CODEC_NAMES  # labelled below the line, the others above it
        below, above = {"ha": "right", "va": "top"}, {"ha": "left", "va": "bottom"}
        text = {"xytext": (-2, -5), **below} if ours else {"xytext": (3, 3), **above}
        for (_, row), place in zip(group.iterrows(), points.to_numpy(), strict=True):
            if named[row.name]:
                label = strength_label(codec, row["strength"]).removeprefix("offset ")
                text |= {"textcoords": "offset points", "fontsize": 7, "color": colour}
                ax.annotate(label, place, **text)
    ax.set(xlabel="background BD-PSNR lost (dB)", ylabel="ROI BD-rate (%)")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right")
    return figure


def _interpolated_line(ax, group: pd.DataFrame, colour: str) -> None:
    losses = np.array([[0.0], *group[["bg_loss"]].to_numpy()])
    logs = np.log1p(np.array([[0.0], *group[["roi_bd_rate"]].to_numpy()]) / 100)
    grid = np.linspace(0, losses.max(), LINE_STEPS)
    line = [100 * np.expm1(at_loss(losses, logs, loss)[0]) for loss in grid]
    ax.plot(grid, line, color=colour)


def alpha_sweep(rates: pd.DataFrame, targets: int = 3) -> Figure | None:
    """ROI and background PSNR of roi_vbr against α at equal rates, read in log bpp."""
    usable = {
        alpha: points.dropna(subset=["roi_psnr", "bg_psnr"])
        for alpha, points in by_strength(rates).get("roi_vbr", {}).items()
    }
    usable = {alpha: points for alpha, points in usable.items() if len(points) > 1}
    if len(usable) < 3:
        return None
    low = max(points["bpp"].min() for points in usable.values())
    high = min(points["bpp"].max() for points in usable.values())
    if low >= high:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.2), sharey=True, layout="constrained")
    shades = sns.light_palette(look("roi_vbr")[0], targets + 1)[1:]
    for bpp, shade in zip(_round_rates(low, high, targets), shades, strict=True):
        style = {"color": shade, "marker": "o", "markersize": 4.5, "label": f"{bpp:g} bpp"}
        for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
            values = [
                np.interp(np.log(bpp), np.log(points["bpp"]), points[name])
                for points in usable.values()
            ]
            ax.plot(list(usable), values, **style)
    for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
        ax.set(xlabel="α", ylabel=AXES[name], title=AXES[name].removesuffix(" (dB)"))
    axes[1].legend(title="at equal rate")
    return figure


def training_curves(table: pd.DataFrame, against: str = "step") -> Figure | None:
    """Loss of every run against its steps or hours; table: of `engines.runs.training_table`."""
    if table.empty or table[against].isna().all():
        return None
    figure, ax = plt.subplots(figsize=(9.2, 3.2), layout="constrained")
    handles = []
    for codec in in_order(table):
        runs = list(table[table["codec"] == codec].groupby("label"))
        shades = sns.light_palette(look(codec)[0], len(runs) + 1)[1:]
        for (label, rows), shade in zip(runs, shades, strict=True):
            ax.plot(rows[against], rows["loss"], color=shade, linewidth=1)
            handles.append(Line2D([], [], color=shade, label=label))
    ax.set(xlabel=against, ylabel=f"loss on {table['part'].iloc[0]} crops", yscale="log")
    # the first epochs would leave no room for the rest
    ax.set_ylim(top=1.1 * table.groupby("label")["loss"].quantile(0.97).max())
    _legend_below(figure, handles)
    return figure


def detection_curves(detection: pd.DataFrame, trade: pd.DataFrame) -> Figure | None:
    """Class-agnostic AP50 on decoded frames against rate, one panel a detector.

    Of each codec the uniform mode (dotted) and the ROI mode of `rate_curves` (solid), with the 95 %
    band of the paired bootstrap against uncompressed frames.
    """
    if detection.empty:
        return None
    detectors = detection.groupby("detector", sort=False)
    panels = {"figsize": (4.6 * len(detectors), 3.9), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(detectors), sharey=True, squeeze=False, **panels)
    top = _highest_rate(detection)
    handles: dict[str, Line2D] = {}
    for ax, (detector, rows) in zip(axes.flat, detectors, strict=True):
        whole = rows[rows["codec"] == "uncompressed"]["agnostic_ap50"].iloc[0]
        coded = rows[rows["bpp"] <= top]
        style = {"color": "0.3", "linewidth": 0.9, "linestyle": "--"}
        handles["uncompressed"] = ax.axhline(whole, label="uncompressed", **style)
        for codec, strengths in by_strength(drawn(coded)).items():
            shown = {uniform_strength(codec), _roi_strength(codec, strengths, trade)}
            for strength in [s for s in strengths if s in shown]:
                points, several = strengths[strength], len(strengths) > 1
                line = _detection_line(ax, codec, strength, points, whole, several)
                handles.setdefault(line.get_label(), line)
        _rate_axis(ax, coded["bpp"].max() > WIDE * coded["bpp"].min())
        ax.set(title=f"detector {detector}", ylabel="AP50, any class")
    _legend_below(figure, list(handles.values()))
    return figure


def _detection_line(
    ax, codec: str, strength: float, points: pd.DataFrame, whole: float, several: bool
) -> Line2D:
    colour, marker = look(codec)
    is_uniform = strength == uniform_strength(codec)
    style = {"linestyle": ":", "markerfacecolor": "white"} if several and is_uniform else {}
    style |= {"color": colour, "marker": marker, "markersize": 4.5}
    label = curve_label(codec, strength, several)
    (line,) = ax.plot(points["bpp"], points["agnostic_ap50"], label=label, **style)
    if not is_uniform:
        low, high = (
            whole * (1 - points[f"agnostic_ap50_loss_{end}"] / 100) for end in ("high", "low")
        )
        ax.fill_between(points["bpp"], low, high, color=colour, alpha=0.13, linewidth=0)
    return line


def latency(speed: dict) -> Figure | None:
    """Median milliseconds of encoding and decoding, with a line to the 95th percentile.

    Ours is shown by stage, without and with the detector; speed: the JSON of benchmarks/codec.py,
    of which the first frame size and the most threads are drawn.
    """
    table = pd.DataFrame(speed_in_short(speed).get("rows", []))
    if table.empty:
        return None
    parts = table[(table["stage"] != "total") & (table["operation"] == "encode")]
    with_detector = parts.assign(codec=parts["codec"] + " + detector")
    table = pd.concat(
        [
            table[table["stage"] != "detector"],
            with_detector[with_detector["codec"].isin(table["codec"])],
        ]
    )
    names = [
        f"{c} ({d})" if table["device"].nunique() > 1 else c
        for c, d in zip(table["codec"], table["device"], strict=True)
    ]
    table = table.assign(name=names)
    order = table["name"].drop_duplicates().tolist()
    figure, axes = plt.subplots(
        1, 2, figsize=(9.2, 0.9 + 0.3 * len(order)), sharey=True, layout="constrained"
    )
    colours = dict(zip(STAGES, sns.color_palette("colorblind", len(STAGES)), strict=True))
    for ax, operation in zip(axes, ("encode", "decode"), strict=True):
        for y, name in enumerate(order):
            rows = table[(table["name"] == name) & (table["operation"] == operation)].set_index(
                "stage"
            )
            _latency_bar(ax, y, rows[["median", "p95"]] * 1000, colours)
        ax.set(title=operation, xlabel="milliseconds", yticks=range(len(order)), yticklabels=order)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(left=0)
    axes[0].invert_yaxis()
    _legend_below(
        figure,
        [
            plt.Rectangle((0, 0), 1, 1, color=c, label=stage)
            for stage, c in colours.items()
            if stage in set(table["stage"])
        ],
    )
    return figure


def _latency_bar(ax, y: int, rows: pd.DataFrame, colours: dict[str, tuple]) -> None:
    stages = [stage for stage in STAGES if stage in rows.index]
    left = 0.0
    for stage in stages:
        ax.barh(y, rows["median"][stage], left=left, height=0.62, color=colours[stage], linewidth=0)
        left += rows["median"][stage]
    if "total" in rows.index:
        if not stages:
            ax.barh(y, rows["median"]["total"], height=0.62, color="0.65", linewidth=0)
        ax.plot([rows["median"]["total"], rows["p95"]["total"]], [y, y], color="black", linewidth=1)
        ax.plot(rows["p95"]["total"], y, color="black", marker="|", markersize=7)


def _round_rates(low: float, high: float, count: int) -> np.ndarray:
    """`count` rates from low to high, round ones if there are enough."""
    known = [bpp for bpp in ROUND_RATES if low <= bpp <= high]
    if len(known) < count:
        return np.geomspace(low, high, count).round(3).clip(low, high)
    return np.array(known)[np.linspace(0, len(known) - 1, count).round().astype(int)]


def _highest_rate(table: pd.DataFrame) -> float:
    """The highest rate that figures show: a little above our codecs', if there is one."""
    ours = table.loc[table["codec"].isin(CODEC_NAMES), "bpp"]
    return HEADROOM * ours.max() if len(ours) else math.inf


def _rate_axis(ax, wide: bool) -> None:
    ax.set(xlabel=RATE, xscale="log" if wide else "linear")
    if wide:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, handles: list) -> None:
    columns = min(4, len(handles))
    figure.legend(
        handles=handles, loc="outside lower center", ncol=columns, fontsize=8, frameon=False
    )
