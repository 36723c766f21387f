"""Figures of measured results, one function each, from the tables that notebook 05 wrote; every function returns the matplotlib Figure.

A table without what a figure shows gives None instead of an empty figure. Where one codec has several ROI strengths (α of ours, the quantiser offset
of x264 and x265), each is a line of its colour.
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
    LOOKS,
    codec_label,
    curve_label,
    look,
    strength_label,
    uniform_strength,
)
from roilib.evaluation.comparisons import BUDGETS
from roilib.evaluation.results import curves, drawn, trades, within_budget

AXES = {"roi_psnr": "ROI-PSNR (dB)", "bg_psnr": "background PSNR (dB)", "psnr": "PSNR (dB)"}
RATE = "bits per pixel"
STAGES = ("detector", "transforms", "entropy networks", "entropy coding", "tables", "container")


def rate_curves(rates: pd.DataFrame) -> Figure | None:
    """Rate against ROI-PSNR with rate against background PSNR beside it; rates: `tables.rate_table`.

    Dotted: uniform. Solid: the strongest ROI mode that costs at most 1 dB of background (the mildest where all cost more), or what a codec has. Thin:
    the other strengths. Peers' rates far above ours are left out.
    """
    if rates.empty:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.9), sharex=True, layout="constrained")
    handles, top = [], _highest_rate(rates)
    for codec, by_strength in curves(drawn(rates)):
        uniform, chosen, (colour, marker) = (
            uniform_strength(codec),
            within_budget(codec, by_strength),
            look(codec),
        )
        chosen = next((s for s in by_strength if s != uniform), None) if chosen is None else chosen
        for strength, points in by_strength.items():
            style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.4}
            if strength == uniform and len(by_strength) > 1:
                style |= {"linestyle": ":", "markerfacecolor": "white"}
            elif len(by_strength) > 1 and strength != chosen:
                style = {"color": colour, "linewidth": 0.5, "alpha": 0.45}
            points = points[points["bpp"] <= top]
            for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
                ax.plot(points["bpp"], points[name], **style)
            if "marker" in style and len(points):
                handles.append(
                    Line2D(
                        [], [], label=curve_label(codec, strength, len(by_strength) > 1), **style
                    )
                )
    wide = min(rates["bpp"].max(), top) > 8 * rates["bpp"].min()
    for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
        _rate_axis(ax, wide)
        ax.set(ylabel=AXES[name])
    _legend_below(figure, handles)
    return figure


def roi_plane(rates: pd.DataFrame) -> Figure | None:
    """What ROI strengths save in the ROI against what they cost outside, each codec against its own uniform mode; a rates table's BD figures."""
    table = trades(drawn(rates)) if len(rates) else pd.DataFrame()
    if table.empty:
        return None
    figure, ax = plt.subplots(figsize=(6.2, 3.9), layout="constrained")
    for budget in BUDGETS:
        ax.axvline(budget, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
        ax.annotate(
            f"{budget:g} dB",
            (budget, 1),
            (2, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=7,
            color="0.4",
        )
    named = table["codec"].isin(CODEC_NAMES) | ~table.duplicated(
        "strength", keep="last"
    )  # of peers, which lie close, an offset once
    for codec, group in table.groupby("codec", sort=False):
        colour, marker = look(codec)
        ax.plot(
            [0, *group["bg_loss"]],
            [0, *group["roi_bd_rate"]],
            color=colour,
            marker=marker,
            markersize=5,
            label=codec_label(codec),
        )
        for _, row in group[named[group.index]].iterrows():
            text, ours = (
                strength_label(codec, row["strength"]).removeprefix("offset "),
                codec in CODEC_NAMES,
            )  # ours below, theirs above
            place = {
                "xytext": (-2, -5) if ours else (3, 3),
                "ha": "right" if ours else "left",
                "va": "top" if ours else "bottom",
            }
            ax.annotate(
                text,
                (row["bg_loss"], row["roi_bd_rate"]),
                textcoords="offset points",
                fontsize=7,
                color=colour,
                **place,
            )
    ax.set(xlabel="background BD-PSNR lost (dB)", ylabel="ROI BD-rate (%)")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right")
    return figure


def alpha_sweep(rates: pd.DataFrame, targets: int = 3) -> Figure | None:
    """ROI and background PSNR of roi_vbr against α at equal rates, read from its curves in log bpp."""
    by_strength = dict(curves(rates)).get("roi_vbr", {}) if len(rates) else {}
    usable = {
        alpha: points.dropna(subset=["roi_psnr", "bg_psnr"])
        for alpha, points in by_strength.items()
    }
    usable = {alpha: points for alpha, points in usable.items() if len(points) > 1}
    if len(usable) < 3:
        return None
    low, high = (
        max(c["bpp"].min() for c in usable.values()),
        min(c["bpp"].max() for c in usable.values()),
    )
    if low >= high:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.2), sharey=True, layout="constrained")
    shades = sns.light_palette(look("roi_vbr")[0], targets + 1)[1:]
    for bpp, shade in zip(_round_rates(low, high, targets), shades, strict=True):
        for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
            values = [
                np.interp(np.log(bpp), np.log(points["bpp"]), points[name])
                for points in usable.values()
            ]
            ax.plot(
                list(usable), values, color=shade, marker="o", markersize=4.5, label=f"{bpp:g} bpp"
            )
    for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
        ax.set(xlabel="α", ylabel=AXES[name], title=AXES[name].removesuffix(" (dB)"))
    axes[1].legend(title="at equal rate")
    return figure


def training_curves(table: pd.DataFrame, against: str = "step") -> Figure | None:
    """Loss of every run against its steps, or its hours, which no two trainings share; table: `training_log.training_table`."""
    if table.empty:
        return None
    figure, ax = plt.subplots(figsize=(9.2, 3.2), layout="constrained")
    handles = []
    for codec in sorted(table["codec"].unique(), key=lambda name: list(LOOKS).index(name)):
        runs = list(table[table["codec"] == codec].groupby("label"))
        for (label, rows), shade in zip(
            runs, sns.light_palette(look(codec)[0], len(runs) + 1)[1:], strict=True
        ):
            ax.plot(rows[against], rows["loss"], color=shade, linewidth=1)
            handles.append(Line2D([], [], color=shade, label=label))
    ax.set(xlabel=against, ylabel=f"loss on {table['part'].iloc[0]} crops", yscale="log")
    ax.set_ylim(
        top=1.1 * table.groupby("label")["loss"].quantile(0.97).max()
    )  # the first epochs would leave no room for the rest
    _legend_below(figure, handles)
    return figure


def detection_curves(detection: pd.DataFrame, rates: pd.DataFrame) -> Figure | None:
    """Class-agnostic AP50 on decoded frames against rate, one panel a detector, with 95 % bands of the paired bootstrap against uncompressed frames.

    Of each codec the uniform mode (dotted) and the ROI mode of `rate_curves` (solid, with its band), or the strongest that was looked at.
    """
    if detection.empty:
        return None
    detectors = detection.groupby("detector", sort=False)
    figure, axes = plt.subplots(
        1,
        len(detectors),
        figsize=(4.6 * len(detectors), 3.9),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    chosen = (
        {codec: within_budget(codec, by_strength) for codec, by_strength in curves(rates)}
        if len(rates)
        else {}
    )
    top = _highest_rate(detection)
    handles: dict[str, Line2D] = {}
    for ax, (detector, rows) in zip(axes.flat, detectors, strict=True):
        whole, coded = (
            rows[rows["codec"] == "uncompressed"]["agnostic_ap50"].iloc[0],
            rows[rows["bpp"] <= top],
        )
        handles["uncompressed"] = ax.axhline(
            whole, color="0.3", linewidth=0.9, linestyle="--", label="uncompressed"
        )
        for codec, by_strength in curves(drawn(coded)):
            for strength, points in _shown(codec, by_strength, chosen.get(codec)).items():
                line = _detection_line(ax, codec, strength, points, whole, len(by_strength) > 1)
                handles.setdefault(line.get_label(), line)
        _rate_axis(ax, coded["bpp"].max() > 8 * coded["bpp"].min())
        ax.set(title=f"detector {detector}", ylabel="AP50, any class")
    _legend_below(figure, list(handles.values()))
    return figure


def _shown(
    codec: str, by_strength: dict[float, pd.DataFrame], chosen: float | None
) -> dict[float, pd.DataFrame]:
    """The uniform curve and one ROI curve: `chosen`, or the strongest."""
    wanted = {uniform_strength(codec), chosen if chosen in by_strength else list(by_strength)[-1]}
    return {strength: curve for strength, curve in by_strength.items() if strength in wanted}


def _detection_line(
    ax, codec: str, strength: float, points: pd.DataFrame, whole: float, several: bool
) -> Line2D:
    colour, marker = look(codec)
    uniform, label = (
        several and strength == uniform_strength(codec),
        curve_label(codec, strength, several),
    )
    style = {"linestyle": ":", "markerfacecolor": "white"} if uniform else {}
    (line,) = ax.plot(
        points["bpp"],
        points["agnostic_ap50"],
        color=colour,
        marker=marker,
        markersize=4.5,
        label=label,
        **style,
    )
    if strength != uniform_strength(codec):
        low, high = (
            whole * (1 - points[f"agnostic_ap50_loss_{end}"] / 100) for end in ("high", "low")
        )
        ax.fill_between(points["bpp"], low, high, color=colour, alpha=0.13, linewidth=0)
    return line


def latency(speed: dict) -> Figure | None:
    """Median milliseconds of encoding and decoding, with a line to the 95th percentile, ours by stage and without and with the detector; speed: the
    benchmark's JSON."""
    table = pd.DataFrame(speed.get("rows", []))
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
    """`count` rates between low and high, round ones where there are enough."""
    known = [
        bpp for bpp in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3) if low <= bpp <= high
    ]
    if len(known) < count:
        return np.geomspace(low, high, count).round(3).clip(low, high)
    return np.array(known)[np.linspace(0, len(known) - 1, count).round().astype(int)]


def _highest_rate(table: pd.DataFrame) -> float:
    """What figures show up to: a little above the rates of our codecs, or everything where there are none."""
    ours = table.loc[table["codec"].isin(CODEC_NAMES), "bpp"]
    return 1.25 * ours.max() if len(ours) else math.inf


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
