"""Figures of measured results, drawn from the tables that notebook 05 wrote.

Every function returns the matplotlib Figure, or None for a table without what the figure shows.
Every line is named at its end, in its colour. Dotted: a codec's uniform mode. Solid: its measured
ROI strength whose background loss is nearest to 1 dB (the mildest if no loss is known), or all that
it has. Rates far above ours are left out.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from roilib.codecs.registry import (
    ANY_RATE,
    TUNED_FOR_YUV,
    codec_label,
    curve_label,
    is_ours,
    look,
    strength_label,
    uniform_strength,
)
from roilib.evaluation.comparisons.families import LOSSES, at_loss
from roilib.evaluation.comparisons.roi_modes import nearest_strength
from roilib.evaluation.tables.files import by_strength, drawn, in_order
from roilib.evaluation.tables.headlines import full_chroma, half_chroma

AXES = {"roi_psnr": "ROI-PSNR (dB)", "bg_psnr": "background PSNR (dB)"}
YUV_AXES = {
    "roi_yuv_psnr_mean": "ROI YUV-PSNR (dB)",
    "bg_yuv_psnr_mean": "background YUV-PSNR (dB)",
}
ROUND_RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3)  # bpp
HEADROOM = 1.25  # shown above the highest rate of our codecs
WIDE = 8  # ratio of rates from which the axis is logarithmic
LINE_STEPS = 100  # points of an interpolated line
MOST_CODECS = 4  # of a panel with bands
MOST_RUNS = 6  # that training curves name one by one
NAME_SIZE = 7.5  # points, of a line's name
Strengths = dict[float, pd.DataFrame]  # ROI strength → points by rising rate


def rate_curves(rates: pd.DataFrame, trade: pd.DataFrame) -> Figure | None:
    """Rate against ROI-PSNR, beside rate against background PSNR.

    rates, trade: of `rate_table` and `trade_table`. Shaded: all ROI strengths of roi_vbr. Codecs at
    4:2:0 or tuned for it are left out: RGB-PSNR does not do justice to them.
    """
    return _rate_figure(full_chroma(rates), trade, AXES, "roi_vbr")


def yuv_rate_curves(rates: pd.DataFrame, trade: pd.DataFrame) -> Figure | None:
    """`rate_curves` by YUV-PSNR, of ours and of the codecs that were measured at 4:2:0.

    Shaded: all ROI strengths of the codec tuned for YUV.
    """
    if not set(YUV_AXES) <= set(rates) or TUNED_FOR_YUV not in rates["codec"].to_numpy():
        return None
    return _rate_figure(half_chroma(rates), trade, YUV_AXES, TUNED_FOR_YUV)


def _rate_figure(
    rates: pd.DataFrame, trade: pd.DataFrame, names: dict[str, str], shaded: str
) -> Figure | None:
    """Draw two panels; names: column of `rates` → label of each panel's axis."""
    if rates.empty:
        return None
    figure, axes = _two_panels(names)
    table = rates[rates["bpp"] <= _highest_rate(rates)]
    for codec, strengths in by_strength(drawn(table)).items():
        for ax, name in zip(axes, names, strict=True):
            if codec == shaded:
                _shade_range(ax, strengths, name, look(codec)[0])
            for strength in _shown_strengths(codec, strengths, trade):
                points = strengths[strength]
                style = _style(codec, strength, len(strengths) > 1)
                ax.plot(points["bpp"], points[name], **style)
    _finish(axes, table)
    return figure


def arm_curves(arms: pd.DataFrame) -> Figure | None:
    """Rate against ROI and background PSNR of the paper's arms, means over seeds.

    arms: rows with arm, lmbda, bpp, roi_psnr and bg_psnr. Those of one λ have no curve.
    """
    if arms.empty:
        return None
    arms = arms[arms.groupby("arm")["lmbda"].transform("nunique") > 1]
    if arms.empty:
        return None
    figure, axes = _two_panels()
    points = arms.groupby(["arm", "lmbda"], as_index=False).mean(numeric_only=True)
    for arm, colour in zip(arms["arm"].unique(), sns.color_palette("dark"), strict=False):
        rows = points[points["arm"] == arm].sort_values("bpp")
        for ax, name in zip(axes, AXES, strict=True):
            ax.plot(rows["bpp"], rows[name], color=colour, marker="o", markersize=4, label=arm)
    _finish(axes, points)
    return figure


def _two_panels(names: dict[str, str] = AXES) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.7), sharex=True, layout="constrained")
    for ax, label in zip(axes, names.values(), strict=True):
        ax.set_ylabel(label)
    return figure, axes


def _finish(axes: np.ndarray, table: pd.DataFrame) -> None:
    for ax in axes:
        _rate_axis(ax, table["bpp"])
        _name_lines(ax)


def _shown_strengths(codec: str, strengths: Strengths, trade: pd.DataFrame) -> list[float]:
    """Return the uniform strength, and the one nearest to 1 dB of background, else the mildest."""
    uniform, nearest = uniform_strength(codec), nearest_strength(trade, codec)
    mildest = next((s for s in strengths if s != uniform), None)
    chosen = nearest if nearest in strengths else mildest
    return [s for s in strengths if s in (uniform, chosen)]


def _style(codec: str, strength: float, several: bool) -> dict:
    (colour, marker), ours = look(codec), codec in ANY_RATE
    style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 2 if ours else 1.3}
    if several and strength == uniform_strength(codec):
        style |= {"linestyle": ":", "markerfacecolor": "white"}
    return style | {"zorder": 3 if ours else 2, "label": curve_label(codec, strength, several)}


def _shade_range(ax: Axes, strengths: Strengths, name: str, colour: str) -> None:
    """Shade what lies between ROI strengths, at every rate that two of them reach."""
    logs = [np.log(points["bpp"]) for points in strengths.values()]
    grid = np.linspace(min(map(min, logs)), max(map(max, logs)), LINE_STEPS)
    pairs = zip(logs, strengths.values(), strict=True)
    lines = [np.interp(grid, x, p[name], left=np.nan, right=np.nan) for x, p in pairs]
    low, high = pd.DataFrame(lines).min(), pd.DataFrame(lines).max()
    ax.fill_between(np.exp(grid), low, high, color=colour, alpha=0.1, linewidth=0)


def _name_lines(ax: Axes) -> None:
    """Write the label of every line beside its end, without overlaps."""
    labelled = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    lines = [line for line in labelled if not np.isnan(line.get_ydata()).all()]
    ends = [line.get_xydata()[~np.isnan(line.get_ydata())][-1] for line in lines]
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [to_axes.transform(end)[1] for end in ends]
    gap = 1.35 * NAME_SIZE / (72 * 0.8 * ax.figure.get_figheight())
    order = np.argsort(places)
    spread = np.maximum.accumulate(np.array(places)[order] - gap * np.arange(len(order)))
    spread = np.minimum(spread, 1 - gap * len(order)) + gap * np.arange(len(order))
    for i, place in zip(order, spread, strict=True):
        style = {"color": lines[i].get_color(), "fontsize": NAME_SIZE, "va": "center"}
        leader = {"arrowstyle": "-", "color": style["color"], "linewidth": 0.6, "alpha": 0.6}
        ax.annotate(
            lines[i].get_label(),
            ends[i],
            (1.04, place),
            textcoords="axes fraction",
            arrowprops=leader | {"relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2},
            annotation_clip=False,
            **style,
        )


def roi_plane(trade: pd.DataFrame) -> Figure | None:
    """What ROI strengths save in the ROI against what they cost in the background.

    trade: of `trade_table`. Each codec is compared with its own uniform mode; markers are measured
    strengths, lines the interpolation of `at_loss`. Codecs at 4:2:0 or tuned for it are left out,
    since the differences are of RGB-PSNR.
    """
    known = trade.dropna(subset=["roi_bd_rate", "bg_loss"]) if len(trade) else trade
    table = drawn(full_chroma(known)) if len(known) else known
    if table.empty:
        return None
    figure, ax = plt.subplots(figsize=(6.8, 3.3), layout="constrained")
    for loss in LOSSES:
        ax.axvline(loss, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    # offsets of the conventional codecs, which lie close together, are named once
    named = table["codec"].map(is_ours) | ~table.duplicated("strength", keep="last")
    for codec in in_order(table):
        group = table[table["codec"] == codec]
        group = group[group["run"].fillna("") == group["run"].fillna("").iloc[0]]
        (colour, marker), points = look(codec), group[["bg_loss", "roi_bd_rate"]].to_numpy()
        ax.plot(*_interpolated(points), color=colour, label=codec_label(codec))
        ax.plot(*points.T, color=colour, linestyle="", marker=marker, markersize=5)
        ours = is_ours(codec)  # labelled below the line, the others above it
        below, above = {"ha": "right", "va": "top"}, {"ha": "left", "va": "bottom"}
        text = {"xytext": (-2, -5), **below} if ours else {"xytext": (3, 3), **above}
        text |= {"textcoords": "offset points", "fontsize": 7, "color": colour}
        for (_, row), place in zip(group.iterrows(), points, strict=True):
            if named[row.name]:
                label = strength_label(codec, row["strength"]).removeprefix("offset ")
                ax.annotate(label, place, **text)
    ax.set(xlabel="background BD-PSNR lost (dB)", ylabel="ROI BD-rate (%)")
    ax.grid(axis="x", visible=False)
    _name_lines(ax)
    return figure


def _interpolated(points: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return losses from 0 on and the ROI BD-rates between `points` (K, 2)."""
    losses, rates = np.array([[0.0, 0.0], *points]).T[:, :, None]
    grid = np.linspace(0, losses.max(), LINE_STEPS)
    logs = np.log1p(rates / 100)
    return grid, [100 * np.expm1(at_loss(losses, logs, loss)[0]) for loss in grid]


def alpha_sweep(rates: pd.DataFrame, targets: int = 3) -> Figure | None:
    """ROI and background PSNR of roi_vbr against α at equal rates, read in log bpp."""
    usable = {
        alpha: points.dropna(subset=list(AXES))
        for alpha, points in by_strength(rates).get("roi_vbr", {}).items()
    }
    usable = {alpha: points for alpha, points in usable.items() if len(points) > 1}
    if len(usable) < 3:
        return None
    low = max(points["bpp"].min() for points in usable.values())
    high = min(points["bpp"].max() for points in usable.values())
    if low >= high:
        return None
    figure, axes = _two_panels()
    colour, _ = look("roi_vbr")
    for bpp, line in zip(_round_rates(low, high, targets), (":", "--", "-"), strict=False):
        style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 4}
        for ax, name in zip(axes, AXES, strict=True):
            values = [
                np.interp(np.log(bpp), np.log(points["bpp"]), points[name])
                for points in usable.values()
            ]
            ax.plot(list(usable), values, label=f"{bpp:g} bpp", **style)
    for ax in axes:
        ax.set_xlabel("α")
        _name_lines(ax)
    return figure


def training_curves(table: pd.DataFrame) -> Figure | None:
    """Loss of every run against its steps; table: of `engines.runs.training_table`.

    Of many runs, those of one codec share its name.
    """
    if table.empty:
        return None
    figure, ax = plt.subplots(figsize=(7.6, 2.6), layout="constrained")
    few = table["run"].nunique() <= MOST_RUNS
    for codec in in_order(table):
        runs = table[table["codec"] == codec].groupby("run", sort=False)
        for i, (_, rows) in enumerate(runs):
            label = rows["label"].iloc[0] if few else codec_label(codec) if i == 0 else None
            ax.plot(rows["step"], rows["loss"], color=look(codec)[0], linewidth=1, label=label)
    ax.set(xlabel="step", ylabel=f"loss on {table['part'].iloc[0]} crops", yscale="log")
    # the first epochs would leave no room for the rest
    ax.set_ylim(top=1.1 * table.groupby("run")["loss"].quantile(0.97).max())
    ax.yaxis.set(major_locator=MaxNLocator(6), minor_locator=NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    _name_lines(ax)
    return figure


def detection_curves(detection: pd.DataFrame, trade: pd.DataFrame) -> Figure | None:
    """Class-agnostic AP50 on decoded frames against rate, one panel a detector.

    The first four codecs that have curves are drawn, ROI modes with the 95 % band of the paired
    bootstrap against uncompressed frames.
    """
    if detection.empty:
        return None
    detectors = detection.groupby("detector", sort=False)
    panels = {"figsize": (4.6 * len(detectors), 3.5), "layout": "constrained"}
    figure, axes = plt.subplots(1, len(detectors), sharey=True, squeeze=False, **panels)
    for ax, (detector, rows) in zip(axes.flat, detectors, strict=True):
        whole = rows[rows["codec"] == "uncompressed"]["agnostic_ap50"].iloc[0]
        coded = rows[rows["bpp"] <= _highest_rate(rows)]
        found = by_strength(drawn(coded)).items()
        curves = [(c, s) for c, s in found if max(map(len, s.values())) > 1] or list(found)
        for codec, strengths in curves[:MOST_CODECS]:
            for strength in _shown_strengths(codec, strengths, trade):
                _detection_line(ax, codec, strength, strengths, whole)
        line = {"color": "0.3", "linewidth": 0.9, "linestyle": "--", "label": "uncompressed"}
        ax.plot([coded["bpp"].min(), coded["bpp"].max()], [whole, whole], **line)
        ax.set(title=f"detector {detector}", ylabel="AP50, any class")
        _finish([ax], coded)
    return figure


def _detection_line(
    ax: Axes, codec: str, strength: float, strengths: Strengths, whole: float
) -> None:
    points, style = strengths[strength], _style(codec, strength, len(strengths) > 1)
    ax.plot(points["bpp"], points["agnostic_ap50"], **style)
    if strength != uniform_strength(codec):
        low, high = (
            whole * (1 - points[f"agnostic_ap50_loss_{end}"] / 100) for end in ("high", "low")
        )
        ax.fill_between(points["bpp"], low, high, color=look(codec)[0], alpha=0.13, linewidth=0)


def _round_rates(low: float, high: float, count: int) -> np.ndarray:
    """`count` rates from low to high, round ones if there are enough."""
    known = [bpp for bpp in ROUND_RATES if low <= bpp <= high]
    if len(known) < count:
        return np.geomspace(low, high, count).round(3).clip(low, high)
    return np.array(known)[np.linspace(0, len(known) - 1, count).round().astype(int)]


def _highest_rate(table: pd.DataFrame) -> float:
    """The highest rate that figures show: a little above our codecs', if there is one."""
    ours = table.loc[table["codec"].map(is_ours), "bpp"]
    return HEADROOM * ours.max() if len(ours) else math.inf


def _rate_axis(ax: Axes, rates: pd.Series) -> None:
    ax.set_xlabel("bits per pixel")
    if rates.max() > WIDE * rates.min():
        ax.set_xscale("log")
        ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
        ax.xaxis.set_major_formatter("{x:g}")
