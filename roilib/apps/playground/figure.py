"""The playground's result as one figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from roilib.apps.playground.coding import Coded, Result
from roilib.roi import CELL
from roilib.visualization.pictures import draw_boxes, show_picture


def draw_result(result: Result) -> Figure:
    """Draw a result as the playground shows it.

    Whole pictures with their boxes stand beside the most important ROI, enlarged.
    """
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
    parts = [f"{coded.codec} ({coded.setting})", f"{coded.bytes:,} bytes", f"{coded.bpp:.3f} bpp"]
    psnrs = {"ROI": coded.roi_psnr, "background": coded.bg_psnr}
    parts += [f"{name} {value:.2f} dB" for name, value in psnrs.items() if value is not None]
    return ", ".join(parts)
