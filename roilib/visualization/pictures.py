"""Figures of pictures and of one run, all in one look (seaborn, colour-blind safe); every function returns the matplotlib Figure.

Figures of measured results are in roilib.visualization.rates.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from roilib.apps.playground.coding import Coded, Result
from roilib.codecs.registry import curve_label
from roilib.datasets.dataset import RoiDataset
from roilib.roi import CELL
from roilib.visualization.side_by_side import Panel, Scene

ROI_COLOUR = "#f0c000"
CROP_ASPECT = 4 / 3  # width by height of what is enlarged
PSNR_NAMES = {
    "roi_psnr": "pooled ROI-PSNR (dB)",
    "bg_psnr": "pooled background PSNR (dB)",
    "psnr": "pooled PSNR (dB)",
}
SIMILARITY_NAMES = {
    "roi_ms_ssim_loss": "ROI",
    "bg_ms_ssim_loss": "background",
    "ms_ssim_loss": "all",
}


def draw_boxes(
    axes, boxes: Tensor | np.ndarray, colour: str = ROI_COLOUR, names: list[str] | None = None
) -> None:
    """Outline boxes (K, ≥4) xyxy on `axes`, with names above them."""
    for i, (x0, y0, x1, y1) in enumerate(np.asarray(boxes)[:, :4].tolist()):
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2)
        )
        if names and names[i]:
            axes.text(
                x0,
                y0 - 2,
                names[i],
                fontsize=6,
                color="black",
                backgroundcolor=colour,
                va="bottom",
                clip_on=True,
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
    rows = max(-(-len(chosen) // columns), 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.2 * columns, 1.9 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, i in zip(axes.flat, chosen, strict=False):
        image, boxes, labels = data[int(i)]
        show_picture(ax, image, data.samples[i].id)
        large = (boxes[:, 3] - boxes[:, 1]) > 0.15 * image.shape[-2]
        draw_boxes(
            ax,
            boxes,
            names=[
                data.classes[n] if named else ""
                for n, named in zip(labels.tolist(), large.tolist(), strict=True)
            ],
        )
    return figure


def object_statistics(objects: pd.DataFrame, roi_share: np.ndarray) -> Figure:
    """Class counts, box sizes, where boxes stand, and how much of each picture is ROI."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 2.9), layout="constrained")
    sns.histplot(x=roi_share, bins=np.linspace(0, 1, 21), ax=axes[3])
    axes[3].set(
        title=f"ROI share of a picture (mean {roi_share.mean():.0%})",
        xlabel="share",
        ylabel="pictures",
    )
    if objects.empty:
        return figure
    order = objects["class"].value_counts().index[:12]
    sns.countplot(objects, y="class", order=order, ax=axes[0], color="C0")
    axes[0].set(title="objects by class", ylabel="")
    sns.scatterplot(
        objects,
        x="width",
        y="height",
        hue="class",
        hue_order=order[:6],
        s=9,
        linewidth=0,
        ax=axes[1],
    )
    axes[1].set(title="box sizes (pixels)", xscale="log", yscale="log")
    axes[1].legend(fontsize=6, markerscale=2)
    axes[2].scatter(
        objects["x"], objects["y"], s=2000 * objects["share"] + 2, alpha=0.25, linewidth=0
    )
    axes[2].set(
        title="box centres (share of width, height)",
        xlim=(0, 1),
        ylim=(1, 0),
        xlabel="x",
        ylabel="y",
    )
    return figure


def feature_maps(image: Tensor, features: dict[str, Tensor]) -> Figure:
    """Mean activation of each feature (C, h, w) laid over the picture (3, H, W)."""
    figure, axes = plt.subplots(
        len(features), 1, figsize=(8, 2.6 * len(features)), squeeze=False, layout="constrained"
    )
    height, width = image.shape[-2:]
    for ax, (name, feature) in zip(axes.flat, features.items(), strict=True):
        show_picture(ax, image, name)
        activation = feature.float().abs().mean(0).cpu()
        ax.imshow(
            activation,
            alpha=0.6,
            cmap="viridis",
            extent=(0, width, height, 0),
            interpolation="bilinear",
        )
    return figure


def detections(image: Tensor, boxes: Tensor, found: Tensor, names: dict[int, str]) -> Figure:
    """Labelled boxes beside what the detector found (K, 6) with confidences."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.8), layout="constrained")
    show_picture(axes[0], image, "labels")
    draw_boxes(axes[0], boxes)
    show_picture(axes[1], image, "detections")
    draw_boxes(
        axes[1], found.cpu(), "#56b4e9", [f"{names[int(c)]} {p:.2f}" for *_, p, c in found.tolist()]
    )
    return figure


def crops(batch: dict, count: int = 6) -> Figure:
    """Training crops as the codec sees them, with their boxes, above their ROI masks."""
    count = min(count, len(batch["x"]))
    figure, axes = plt.subplots(
        2, count, figsize=(1.7 * count, 3.6), squeeze=False, layout="constrained"
    )
    for i in range(count):
        show_picture(axes[0, i], batch["x"][i])
        draw_boxes(axes[0, i], batch["boxes"][i])
        axes[1, i].imshow(batch["roi_mask"][i, 0], cmap="gray", vmin=0, vmax=1)
        axes[1, i].set_axis_off()
    return figure


def history(entries: list[dict]) -> Figure:
    """Loss, estimated rate and PSNRs of a run's epochs; `entries`: the `history` of its metrics."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    table = pd.DataFrame(
        [
            {"step": e["step"], "part": part} | e[part]
            for e in entries
            for part in ("train", "test")
            if part in e
        ]
    )
    style = {
        "errorbar": None,
        "marker": "o" if len(entries) < 10 else None,
    }  # of a single epoch there is no line
    for ax, name, label in ((axes[0], "loss", "loss"), (axes[1], "bpp_loss", "estimated bpp")):
        sns.lineplot(table, x="step", y=name, hue="part", ax=ax, **style)
        ax.set(ylabel=label, yscale="log")
        ax.legend(title=None)
    last = table["part"].unique()[-1]
    names = {
        name: label for name, label in (PSNR_NAMES | SIMILARITY_NAMES).items() if name in table
    }
    for name, label in names.items():
        sns.lineplot(
            table[table["part"] == last], x="step", y=name, label=label, ax=axes[2], **style
        )
    axes[2].set(ylabel=f"{last} {'PSNR (dB)' if PSNR_NAMES.keys() & names else 'MS-SSIM'}")
    return figure


def before_after(originals: Tensor, decoded: Tensor, boxes: list[Tensor], count: int = 4) -> Figure:
    """Crops above their reconstructions."""
    count = min(count, len(originals))
    figure, axes = plt.subplots(
        2, count, figsize=(2.4 * count, 4.9), squeeze=False, layout="constrained"
    )
    for i in range(count):
        for row, (pictures, title) in enumerate(((originals, "original"), (decoded, "decoded"))):
            show_picture(axes[row, i], pictures[i], title if i == 0 else "")
            draw_boxes(axes[row, i], boxes[i])
    return figure


def comparison(scenes: list[Scene]) -> Figure | None:
    """Pictures at equal bytes, a column a codec: whole frames with the ROI outlined, and under them one object enlarged, with bytes and PSNRs.

    None where nothing stands beside the originals.
    """
    columns = max(len(scene.panels) for scene in scenes)
    if columns == 1:
        return None
    ratios = [
        ratio
        for scene in scenes
        for ratio in (np.divide(*scene.panels[0].picture.shape[:2]), 1 / CROP_ASPECT)
    ]
    size = (1.75 * columns, 1.75 * sum(ratios) + 0.62 * len(scenes) + 0.2)
    figure, axes = plt.subplots(
        len(ratios),
        columns,
        figsize=size,
        squeeze=False,
        height_ratios=ratios,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    for row, scene in enumerate(scenes):
        x0, y0, x1, y1 = crop_window(scene.box, *scene.panels[0].picture.shape[:2])
        for column, panel in enumerate(scene.panels):
            frame, crop = axes[2 * row, column], axes[2 * row + 1, column]
            show_picture(
                frame,
                panel.picture,
                _panel_title(panel)
                if row == 0 or len(scene.panels) > len(scenes[0].panels)
                else "",
            )
            frame.title.set_fontsize(7.5)
            draw_boxes(frame, scene.boxes if panel.codec == "original" else scene.box[None])
            crop.imshow(panel.picture[y0:y1, x0:x1], interpolation="nearest")
            crop.set_xlabel(_panel_caption(scene, panel), fontsize=7)
        for ax in axes[2 * row : 2 * row + 2, len(scene.panels) :].flat:
            ax.set_axis_off()
    return figure


def crop_window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the window of CROP_ASPECT around a box with a margin, inside the picture as far as it fits."""
    middle, size = (box[:2] + box[2:]) / 2, 1.15 * (box[2:] - box[:2])
    size = np.maximum(size, size[::-1] * (CROP_ASPECT, 1 / CROP_ASPECT))
    size = np.minimum(size, (width, height))
    start = np.clip(middle - size / 2, 0, (width, height) - size)
    return tuple(int(v) for v in np.concatenate([np.floor(start), np.ceil(start + size)]))


def _panel_title(panel: Panel) -> str:
    if panel.strength is None:
        return panel.codec
    return ",\n".join(
        curve_label(panel.codec, panel.strength, not panel.codec.startswith("hyperprior")).rsplit(
            ", ", 1
        )
    )


def _panel_caption(scene: Scene, panel: Panel) -> str:
    if panel.stream is None:
        return scene.image
    psnrs = [
        f"{name} {psnr:.1f} dB"
        for name, psnr in (("ROI", panel.roi_psnr), ("rest", panel.bg_psnr))
        if psnr is not None
    ]
    return "\n".join([f"{len(panel.stream):,} bytes", *psnrs])


def bit_allocation(scene: Scene, allocations: dict[tuple[str, float], np.ndarray]) -> Figure | None:
    """A picture with its boxes, and where each stream of it spends its bits; allocations: of `side_by_side.allocations`, None where they are none."""
    if not allocations:
        return None
    picture = scene.panels[0].picture
    height, width = picture.shape[:2]
    rows = len(allocations) + 1
    figure, axes = plt.subplots(
        rows, 1, figsize=(6.5, rows * (6 * height / width + 0.2)), layout="constrained"
    )
    show_picture(axes[0], picture)
    draw_boxes(axes[0], scene.boxes)
    norm = PowerNorm(
        0.5, 0, max(bits.max() for bits in allocations.values())
    )  # few cells take most
    for ax, ((codec, strength), bits) in zip(axes[1:], allocations.items(), strict=True):
        shown = ax.imshow(
            bits,
            cmap="magma",
            norm=norm,
            extent=(0, 16 * bits.shape[1], 16 * bits.shape[0], 0),
            interpolation="nearest",
        )
        ax.set(
            xlim=(0, width),
            ylim=(height, 0),
            title=f"{curve_label(codec, strength, codec == 'roi_vbr')}, {bits.sum() / 8:,.0f} bytes",
        )
        ax.set_axis_off()
        draw_boxes(ax, scene.boxes, "white")
    figure.colorbar(shown, ax=list(axes[1:]), label="bits in a 16×16 cell", shrink=0.8, pad=0.02)
    return figure


def playground(result: Result) -> Figure:
    """A result as the playground shows it: whole pictures with their boxes, and beside each the ROI that counts most, enlarged."""
    panels = [("original", result.image), (_caption(result.ours), result.ours.picture)]
    panels += [(_caption(result.other), result.other.picture)] if result.other else []
    height, width = result.image.shape[:2]
    box = max(
        result.boxes,
        key=lambda b: (b[4], (b[2] - b[0]) * (b[3] - b[1])),
        default=(0, 0, width, height, 1),
    )
    rows, ratio = len(panels) + (result.bits is not None), width / height
    size = 2.4 * (ratio + 1.6), 2.7 * rows
    figure, axes = plt.subplots(
        rows, 2, figsize=size, width_ratios=[ratio, 1.6], squeeze=False, layout="constrained"
    )
    for (whole, part), (title, picture) in zip(axes, panels, strict=False):
        show_picture(whole, picture, title)
        show_picture(part, picture)
        part.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]), adjustable="box")
    draw_boxes(axes[0, 0], np.reshape(result.boxes, (-1, 5)))
    if result.bits is not None:
        show_picture(axes[-1, 0], result.image, "where the bits went")
        cells = axes[-1, 0].imshow(
            result.bits,
            cmap="inferno",
            alpha=0.75,
            extent=(0, CELL * result.bits.shape[1], CELL * result.bits.shape[0], 0),
        )
        axes[-1, 0].set(xlim=(0, width), ylim=(height, 0))
        axes[-1, 1].set_axis_off()
        figure.colorbar(
            cells, ax=axes[-1, 1], location="left", label="bits a 16×16 cell", fraction=0.3
        )
    return figure


def _caption(coded: Coded) -> str:
    psnrs = [
        f"{name} {value:.2f} dB"
        for name, value in (("ROI", coded.roi_psnr), ("background", coded.bg_psnr))
        if value is not None
    ]
    return ", ".join(
        [
            f"{coded.codec} ({coded.setting})",
            f"{coded.bytes:,} bytes",
            f"{coded.bpp:.3f} bpp",
            *psnrs,
        ]
    )
