"""Figures of pictures and of one training run; figures of measured results: visualization.rates.

Every function returns the matplotlib Figure.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle
from torch import Tensor

from roilib.codecs.registry import ANY_RATE, curve_label
from roilib.datasets.dataset import RoiDataset
from roilib.visualization.side_by_side import Panel, Scene, is_one_rate

ROI_COLOUR = "#f0c000"
CROP_ASPECT = 4 / 3  # width by height of what is enlarged
WIDTH = 9.2  # inches, of `comparison`
WHOLE_HEIGHT = 2.3  # inches of its whole picture, where that has a row of its own
MOST_COLUMNS = 5
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
    """Show a picture, (3, H, W) tensor or (H, W, 3) array, uint8 or in [0, 1], without ticks."""
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


def detections(image: Tensor, boxes: Tensor, found: Tensor, names: dict[int, str]) -> Figure:
    """A picture with its labelled boxes, and with what a detector found (K, 6)."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.8), layout="constrained")
    show_picture(axes[0], image, f"{len(boxes)} labelled")
    draw_boxes(axes[0], boxes)
    show_picture(axes[1], image, f"{len(found)} detected, with their confidence")
    captions = [f"{names[int(c)]} {p:.2f}" for *_, p, c in found.tolist()]
    draw_boxes(axes[1], found.cpu(), "#56b4e9", captions)
    return figure


def activations(image: Tensor, maps: dict[str, Tensor], columns: int = 2) -> Figure:
    """Activation maps (h, w) of a padded picture, by their titles, over the picture in grey."""
    height, width = image.shape[1:]
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    size = (9, rows * (9 / columns * height / width + 0.3))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, (title, activation) in zip(axes.flat, maps.items(), strict=False):
        show_picture(ax, image.float().mean(0)[..., None].expand(-1, -1, 3).byte().numpy(), title)
        stride = -(-height // activation.shape[0])
        extent = (0, stride * activation.shape[1], stride * activation.shape[0], 0)
        ax.imshow(activation.cpu(), cmap="inferno", alpha=0.65, extent=extent)
        ax.set(xlim=(0, width), ylim=(height, 0))
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
    """Loss, estimated rate and PSNRs of a run's epochs; entries: the `history` of its metrics."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    table = pd.DataFrame(
        [
            {"step": e["step"], "part": part} | e[part]
            for e in entries
            for part in ("train", "test")
            if part in e
        ]
    )
    # a single epoch has no line, so that it needs a marker
    style = {"errorbar": None, "marker": "o" if len(entries) < 10 else None}
    for ax, name, label in ((axes[0], "loss", "loss"), (axes[1], "bpp_loss", "estimated bpp")):
        sns.lineplot(table, x="step", y=name, hue="part", ax=ax, **style)
        ax.set(ylabel=label, yscale="log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
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


def enlarged(frames: dict[str, np.ndarray], box: np.ndarray) -> Figure:
    """Whole frames, (H, W, 3) by their titles; beside each the marked window around `box` (4,)."""
    height, width = next(iter(frames.values())).shape[:2]
    x0, y0, x1, y1 = crop_window(box, height, width)
    high = 8 * height / width  # inches
    figure, axes = plt.subplots(
        len(frames),
        2,
        figsize=(8 + high * CROP_ASPECT, (high + 0.3) * len(frames)),
        squeeze=False,
        width_ratios=[width / height, CROP_ASPECT],
        layout="constrained",
    )
    for (whole, part), (title, picture) in zip(axes, frames.items(), strict=True):
        show_picture(whole, picture, title)
        draw_boxes(whole, np.array([[x0, y0, x1, y1]]))
        show_picture(part, picture[y0:y1, x0:x1])
    return figure


def comparison(scenes: list[Scene]) -> Figure | None:
    """Pictures at equal bytes; None for originals alone.

    Of each scene the whole original stands first, then its marked window, enlarged: as it is and
    as every codec decodes it, with bytes and PSNRs. Few windows stand beside the whole, more below.
    """
    if all(len(scene.panels) == 1 for scene in scenes):
        return None
    shapes = [_rows_and_columns(len(scene.panels)) for scene in scenes]
    heights = [_height(*shape) for shape in shapes]
    figure = plt.figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(scenes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, scene, (rows, columns) in zip(parts, scenes, shapes, strict=True):
        original = scene.panels[0].picture
        x0, y0, x1, y1 = crop_window(scene.box, *original.shape[:2])
        whole, crops = _places(part, rows, columns)
        show_picture(whole, original, f"picture {scene.image}")
        draw_boxes(whole, np.array([[x0, y0, x1, y1]]))
        for place, panel in zip(crops, scene.panels, strict=False):
            ax = part.add_subplot(place)
            ax.imshow(panel.picture[y0:y1, x0:x1], interpolation="nearest")
            ax.set(xticks=[], yticks=[], title=_panel_title(panel))
            ax.set_xlabel(_panel_caption(panel), fontsize=7)
            ax.title.set_fontsize(8)
    return figure


def _rows_and_columns(panels: int) -> tuple[int, int]:
    """Rows and columns of a scene's crops; 0 rows: they stand beside the whole picture."""
    if panels + 2 <= MOST_COLUMNS:
        return 0, panels + 2
    rows = math.ceil(panels / MOST_COLUMNS)
    return rows, math.ceil(panels / rows)


def _height(rows: int, columns: int) -> float:
    """Inches of a scene's part of the figure."""
    return max(rows, 1) * (WIDTH / columns / CROP_ASPECT + 0.55) + (WHOLE_HEIGHT if rows else 0)


def _places(part: SubFigure, rows: int, columns: int) -> tuple[Axes, list[SubplotSpec]]:
    """Axes of the whole picture, and the places of the crops."""
    if not rows:
        grid = part.add_gridspec(1, columns)
        return part.add_subplot(grid[0, :2]), [grid[0, i] for i in range(2, columns)]
    crop_height = WIDTH / columns / CROP_ASPECT + 0.55
    ratios = [WHOLE_HEIGHT, *[crop_height] * rows]
    grid = part.add_gridspec(rows + 1, columns, height_ratios=ratios)
    places = [grid[1 + i // columns, i % columns] for i in range(rows * columns)]
    return part.add_subplot(grid[0, :]), places


def crop_window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a window of CROP_ASPECT around a box, with a margin, inside the picture."""
    middle, size = (box[:2] + box[2:]) / 2, 1.15 * (box[2:] - box[:2])
    size = np.maximum(size, size[::-1] * (CROP_ASPECT, 1 / CROP_ASPECT))
    size = np.minimum(size, (width, height))
    start = np.clip(middle - size / 2, 0, (width, height) - size)
    return tuple(int(v) for v in np.concatenate([np.floor(start), np.ceil(start + size)]))


def _panel_title(panel: Panel) -> str:
    if panel.strength is None:
        return panel.codec
    return curve_label(panel.codec, panel.strength, not is_one_rate(panel.codec))


def _panel_caption(panel: Panel) -> str:
    if panel.stream is None:
        return ""
    psnrs = [
        f"{name} {psnr:.1f} dB"
        for name, psnr in (("ROI", panel.roi_psnr), ("background", panel.bg_psnr))
        if psnr is not None
    ]
    return "\n".join([f"{len(panel.stream):,} bytes", ", ".join(psnrs)])


def bit_allocation(scene: Scene, allocations: dict[tuple[str, float], np.ndarray]) -> Figure | None:
    """A picture with its boxes, and where each of its streams spends its bits; None for no stream.

    allocations: of `side_by_side.allocations`.
    """
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
    most = max(bits.max() for bits in allocations.values())
    norm = PowerNorm(0.5, 0, most)  # few cells take most bits
    for ax, ((codec, strength), bits) in zip(axes[1:], allocations.items(), strict=True):
        shown = ax.imshow(
            bits,
            cmap="Blues",
            norm=norm,
            extent=(0, 16 * bits.shape[1], 16 * bits.shape[0], 0),
            interpolation="nearest",
        )
        ax.set(
            xlim=(0, width),
            ylim=(height, 0),
            title=f"{curve_label(codec, strength, codec in ANY_RATE)}, {bits.sum() / 8:,.0f} bytes",
        )
        ax.set_axis_off()
        draw_boxes(ax, scene.boxes, "#d55e00")
    figure.colorbar(shown, ax=list(axes[1:]), label="bits in a 16×16 cell", shrink=0.8, pad=0.02)
    return figure
