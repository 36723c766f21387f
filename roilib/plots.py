"""Figures, one function each, all in one look (seaborn, colour-blind safe); every function returns the matplotlib Figure."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from roilib.datasets import RoiDataset
from roilib.evaluation import CODEC_NAMES
from roilib.playground import Coded, Result
from roilib.quality import CELL

ROI_COLOUR = "#f0c000"
MARKERS = "oosD^vP"  # one a codec of CODEC_NAMES, the same in all figures
PSNR_NAMES = {"roi_psnr": "pooled ROI-PSNR (dB)", "bg_psnr": "pooled background PSNR (dB)", "psnr": "pooled PSNR (dB)"}


def set_style() -> None:
    """The house's look, for notebooks and files alike."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    plt.rcParams |= {"figure.dpi": 110, "savefig.bbox": "tight", "savefig.dpi": 160, "axes.titlesize": 10, "pdf.fonttype": 42}


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.pdf` and `name.png` without dates, so that the same figure gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]
    figure.savefig(paths[0], metadata={"CreationDate": None})
    figure.savefig(paths[1], metadata={"Software": None})
    return paths


def draw_boxes(axes, boxes: Tensor | np.ndarray, colour: str = ROI_COLOUR, names: list[str] | None = None) -> None:
    """Outline boxes (K, ≥4) xyxy on `axes`, with names above them."""
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes)[:, :4].tolist()):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2))
        if names and names[i]:
            axes.text(
                x0, y0 - 2, names[i], fontsize=6, color="black", backgroundcolor=colour, va="bottom", clip_on=True
            ).get_bbox_patch().set_boxstyle("square,pad=0.1")


def show_picture(axes, image: Tensor | np.ndarray, title: str = "") -> None:
    """A picture, (3, H, W) tensor or (H, W, 3) array, uint8 or in [0, 1], without ticks."""
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image
    axes.imshow(array)
    axes.set_title(title)
    axes.set_axis_off()


def samples(data: RoiDataset, count: int = 6, columns: int = 2) -> Figure:
    """Evenly chosen pictures of a data set with their boxes; large ones are named."""
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    rows = -(-len(chosen) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 1.9 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i in zip(axes.flat, chosen, strict=False):
        image, boxes, labels = data[int(i)]
        show_picture(ax, image, data.samples[i].id)
        large = (boxes[:, 3] - boxes[:, 1]) > 0.15 * image.shape[-2]
        draw_boxes(ax, boxes, names=[data.classes[n] if named else "" for n, named in zip(labels.tolist(), large.tolist(), strict=True)])
    return figure


def object_statistics(objects: pd.DataFrame, roi_share: np.ndarray) -> Figure:
    """Class counts, box sizes, where boxes stand, and how much of each picture is ROI."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.9), layout="constrained")
    sns.histplot(x=roi_share, bins=np.linspace(0, 1, 21), ax=axes[3])
    axes[3].set(title=f"ROI share of a picture (mean {roi_share.mean():.0%})", xlabel="share", ylabel="pictures")
    if objects.empty:
        return figure
    order = objects["class"].value_counts().index[:12]
    sns.countplot(objects, y="class", order=order, ax=axes[0], color="C0")
    axes[0].set(title="objects by class", ylabel="")
    sns.scatterplot(objects, x="width", y="height", hue="class", hue_order=order[:6], s=9, linewidth=0, ax=axes[1])
    axes[1].set(title="box sizes (pixels)", xscale="log", yscale="log")
    axes[1].legend(fontsize=6, markerscale=2)
    axes[2].scatter(objects["x"], objects["y"], s=2000 * objects["share"] + 2, alpha=0.25, linewidth=0)
    axes[2].set(title="box centres (share of width, height)", xlim=(0, 1), ylim=(1, 0), xlabel="x", ylabel="y")
    return figure


def feature_maps(image: Tensor, features: dict[str, Tensor]) -> Figure:
    """Mean activation of each feature (C, h, w) laid over the picture (3, H, W)."""
    figure, axes = plt.subplots(len(features), 1, figsize=(8, 2.6 * len(features)), squeeze=False, layout="constrained")
    height, width = image.shape[-2:]
    for ax, (name, feature) in zip(axes.flat, features.items(), strict=True):
        show_picture(ax, image, name)
        activation = feature.float().abs().mean(0).cpu()
        ax.imshow(activation, alpha=0.6, cmap="viridis", extent=(0, width, height, 0), interpolation="bilinear")
    return figure


def detections(image: Tensor, boxes: Tensor, found: Tensor, names: dict[int, str]) -> Figure:
    """Labelled boxes beside what the detector found (K, 6) with confidences."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.8), layout="constrained")
    show_picture(axes[0], image, "labels")
    draw_boxes(axes[0], boxes)
    show_picture(axes[1], image, "detections")
    draw_boxes(axes[1], found.cpu(), "#56b4e9", [f"{names[int(c)]} {p:.2f}" for *_, p, c in found.tolist()])
    return figure


def crops(batch: dict, count: int = 6) -> Figure:
    """Training crops as the codec sees them, with their boxes, above their ROI masks."""
    count = min(count, len(batch["x"]))
    figure, axes = plt.subplots(2, count, figsize=(1.7 * count, 3.6), squeeze=False, layout="constrained")
    for i in range(count):
        show_picture(axes[0, i], batch["x"][i])
        draw_boxes(axes[0, i], batch["boxes"][i])
        axes[1, i].imshow(batch["roi_mask"][i, 0], cmap="gray", vmin=0, vmax=1)
        axes[1, i].set_axis_off()
    return figure


def history(entries: list[dict]) -> Figure:
    """Loss, estimated rate and PSNRs of a run's epochs; `entries`: the `history` of its metrics."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    table = pd.DataFrame([{"step": e["step"], "part": part} | e[part] for e in entries for part in ("train", "test") if part in e])
    for ax, name, label in ((axes[0], "loss", "loss"), (axes[1], "bpp_loss", "estimated bpp")):
        sns.lineplot(table, x="step", y=name, hue="part", ax=ax, errorbar=None)
        ax.set(ylabel=label, yscale="log")
        ax.legend(title=None)
    last = table["part"].unique()[-1]
    for name in (n for n in PSNR_NAMES if n in table):
        sns.lineplot(table[table["part"] == last], x="step", y=name, label=PSNR_NAMES[name], ax=axes[2], errorbar=None)
    axes[2].set(ylabel=f"{last} PSNR (dB)")
    return figure


def before_after(originals: Tensor, decoded: Tensor, boxes: list[Tensor], count: int = 4) -> Figure:
    """Crops above their reconstructions."""
    count = min(count, len(originals))
    figure, axes = plt.subplots(2, count, figsize=(2.4 * count, 4.9), squeeze=False, layout="constrained")
    for i in range(count):
        for row, (pictures, title) in enumerate(((originals, "original"), (decoded, "decoded"))):
            show_picture(axes[row, i], pictures[i], title if i == 0 else "")
            draw_boxes(axes[row, i], boxes[i])
    return figure


def _codec_lines(table: pd.DataFrame, y: str, ax) -> None:
    names = [*CODEC_NAMES, *sorted(set(table["codec"]) - CODEC_NAMES.keys())]
    for codec, rows in table.groupby("codec", sort=False):
        place, ours = names.index(codec), codec in CODEC_NAMES
        groups = list(rows.groupby(["alpha", "loss_form", "metric", "seed"] if ours else ["qoffset"]))
        shades = [f"C{place}"] if len(groups) == 1 else sns.color_palette("flare" if ours else f"light:C{place}", len(groups) + 1)[1:]
        for ((strength, *_), group), shade in zip(groups, shades, strict=True):
            label = (f", α {strength:g}" if place > 1 else "") if ours else (f", ROI offset {strength:g}" if strength else "")
            group = group.sort_values("bpp")
            line = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4} if ours else {"linestyle": "--"}
            ax.plot(group["bpp"], group[y], color=shade, label=CODEC_NAMES.get(codec, codec) + label, **line)
    wide = table["bpp"].max() > 8 * table["bpp"].min()
    ax.set(xlabel="bits per pixel (real bytes)", ylabel=PSNR_NAMES[y], xscale="log" if wide else "linear")


def rate_curves(table: pd.DataFrame) -> Figure:
    """Rate against ROI-PSNR with rate against background PSNR beside it; `table`: `tables.rate_table`."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for ax, name in zip(axes, ("roi_psnr", "bg_psnr"), strict=True):
        _codec_lines(table, name, ax)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def roi_trade(table: pd.DataFrame) -> Figure:
    """What every α gains in the ROI against what it costs outside; `table`: `tables.roi_trade_table`."""
    figure, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for run, group in table.groupby("run"):
        ax.plot(group["bg_bd_psnr"], group["roi_bd_rate"], marker=MARKERS[5], color="C5", label=run)
        for _, row in group.iterrows():
            ax.annotate(f"α {row['alpha']:g}", (row["bg_bd_psnr"], row["roi_bd_rate"]), (5, 4), textcoords="offset points", fontsize=8)
    ax.set(xlabel="background BD-PSNR against α 0.5 (dB)", ylabel="ROI BD-rate against α 0.5 (%)")
    return figure


def loss_curves(histories: dict[str, list[dict]]) -> Figure:
    """Test loss of every run against steps; `histories`: legend → a run's history."""
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for i, (name, entries) in enumerate(histories.items()):
        part = "test" if "test" in entries[-1] else "train"
        ax.plot([e["step"] for e in entries], [e[part]["loss"] for e in entries], label=name, color=f"C{i % 10}")
    ax.set(xlabel="step", ylabel="test loss", yscale="log")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def roi_comparison(panels: list[tuple[str, np.ndarray, str]], box: np.ndarray) -> Figure:
    """The paper's figure: one ROI enlarged from each picture; `panels`: (title, picture uint8 (H, W, 3), caption)."""
    height, width = panels[0][1].shape[:2]
    margin = 0.08 * np.array([box[0] - box[2], box[1] - box[3], box[2] - box[0], box[3] - box[1]])
    x0, y0, x1, y1 = np.clip(box + margin, 0, [width, height, width, height]).round().astype(int)
    shape = (3.1 * len(panels), 3.1 * (y1 - y0) / max(x1 - x0, 1) + 0.8)
    figure, axes = plt.subplots(1, len(panels), figsize=shape, squeeze=False, layout="constrained")
    for ax, (title, picture, caption) in zip(axes.flat, panels, strict=True):
        ax.imshow(picture[y0:y1, x0:x1], interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[], xlabel=caption)
    return figure


def playground(result: Result) -> Figure:
    """A result as the playground shows it: whole pictures with their boxes, and beside each the ROI that counts most, enlarged."""
    panels = [("original", result.image), (_caption(result.ours), result.ours.picture)]
    panels += [(_caption(result.peer), result.peer.picture)] if result.peer else []
    height, width = result.image.shape[:2]
    box = max(result.boxes, key=lambda b: (b[4], (b[2] - b[0]) * (b[3] - b[1])), default=(0, 0, width, height, 1))
    rows, ratio = len(panels) + (result.bits is not None), width / height
    size = 2.4 * (ratio + 1.6), 2.7 * rows
    figure, axes = plt.subplots(rows, 2, figsize=size, width_ratios=[ratio, 1.6], squeeze=False, layout="constrained")
    for (whole, part), (title, picture) in zip(axes, panels, strict=False):
        show_picture(whole, picture, title)
        show_picture(part, picture)
        part.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]), adjustable="box")
    draw_boxes(axes[0, 0], np.reshape(result.boxes, (-1, 5)))
    if result.bits is not None:
        show_picture(axes[-1, 0], result.image, "where the bits went")
        cells = axes[-1, 0].imshow(result.bits, cmap="inferno", alpha=0.75, extent=(0, CELL * result.bits.shape[1], CELL * result.bits.shape[0], 0))
        axes[-1, 0].set(xlim=(0, width), ylim=(height, 0))
        axes[-1, 1].set_axis_off()
        figure.colorbar(cells, ax=axes[-1, 1], location="left", label="bits a 16×16 cell", fraction=0.3)
    return figure


def _caption(coded: Coded) -> str:
    psnrs = [f"{name} {value:.2f} dB" for name, value in (("ROI", coded.roi_psnr), ("background", coded.bg_psnr)) if value is not None]
    return ", ".join([f"{coded.codec} ({coded.setting})", f"{coded.bytes:,} bytes", f"{coded.bpp:.3f} bpp", *psnrs])
