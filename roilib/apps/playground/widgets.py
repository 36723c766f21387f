"""The playground of notebook 07: controls, and a picture on which to draw regions.

    sliders, buttons, boxes ──► Request ──► Newest ──► Result ──► PictureView (widgets.js)

Headless (papermill, nbconvert), `playground` returns a figure instead.
"""

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anywidget
import ipywidgets as ui
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from IPython import get_ipython
from matplotlib.figure import Figure
from PIL import Image

from roilib import roi
from roilib.apps.playground.coding import CONVENTIONAL, Coded, Coder, Newest, Request, Result
from roilib.apps.playground.figure import draw_result
from roilib.datasets.images import Sample

HEAD = ["", "setting", "bytes", "bits a pixel", "ROI", "background", "encode", "decode"]
TIERS = {"high": 1.0, "mid": 0.5, "low": 0.25}  # importance of a box
WIDE = {"width": "auto", "flex": "1 1 0"}  # no widget, so that importing opens no channel
BUDGETS = {  # of the byte budget's slider, in powers of 10
    "min": 3.0,  # 1,000 bytes
    "max": 3.0 + 7 * math.log10(2),  # 128,000 bytes
    "step": math.log10(2) / 32,
}


class PictureView(anywidget.AnyWidget):
    """The pictures over each other, boxes to edit, magnified ROIs and a table.

    widgets.js says what each trait does there.
    """

    _esm, _css = Path(__file__).with_name("widgets.js"), Path(__file__).with_name("widgets.css")
    size = t.List([1, 1]).tag(sync=True)  # width, height
    original = t.Bytes().tag(sync=True)  # picture files
    ours = t.Bytes().tag(sync=True)
    theirs = t.Bytes().tag(sync=True)
    heat = t.Bytes().tag(sync=True)
    names = t.List(["", ""]).tag(sync=True)  # of what is left and right of the wipe
    legend = t.Unicode().tag(sync=True)  # of the heat map
    head = t.List(HEAD).tag(sync=True)  # the table's first column
    columns = t.List().tag(sync=True)  # its others, a codec each: cells, stale
    boxes = t.List().tag(sync=True)  # [x0, y0, x1, y1, importance]; edited in the browser
    tiers = t.List(list(TIERS.values())).tag(sync=True)
    tier = t.Float(1.0).tag(sync=True)  # importance of new boxes, and of the selected one
    working = t.Bool(False).tag(sync=True)
    error = t.Unicode().tag(sync=True)
    watched = t.List().tag(sync=True)  # ids of the sliders
    values = t.List().tag(sync=True)  # what `ours` was made with: λ, α, budget or None
    shown = t.Int(0).tag(sync=True)  # counts results; set last
    latencies = t.List().tag(sync=True)  # ms from a slider's move to the picture, by the browser

    def __init__(self, **traits):
        self.lock = threading.RLock()  # results come from the worker, edits from the front end
        super().__init__(**traits)

    def set_state(self, sync_data: dict) -> None:
        with self.lock:
            super().set_state(sync_data)


class Playground(ui.VBox):
    """Sliders on live bitstreams.

    samples: the pictures to choose from; their labels are boxes to start from.
    """

    def __init__(self, coder: Coder, samples: Sequence[Sample], request: Request):
        self.view, self._boxes = PictureView(tier=1.0), request.boxes
        self._last: Result | None = None  # with what earlier ones of the same picture had
        self._files: dict[str, tuple[np.ndarray, bytes]] = {}
        self._labels = {(sample.path, None): sample.boxes for sample in samples}
        self._controls([(sample.id, (sample.path, None)) for sample in samples], request)
        self.view.watched = [slider.model_id for slider in (self.lmbda, self.alpha, self.budget)]
        self.newest = Newest(coder.answer, self._show, self._fail, self._rest)
        super().__init__([*self._rows(), self.view])
        self.add_class("roilib-playground")
        for control in (
            self.lmbda,
            self.alpha,
            self.capped,
            self.budget,
            self.bit_map,
            self.against,
        ):
            control.observe(lambda change: self.ask(), "value")
        self.picture.observe(lambda change: self._start_from(None), "value")
        self.upload.observe(self._uploaded, "value")
        self.view.observe(self._edited, "boxes")
        self.ask()

    def _controls(self, pictures: list[tuple[str, tuple]], request: Request) -> None:
        self.picture = ui.Dropdown(options=pictures, value=(request.picture, None), layout=WIDE)
        self.upload = ui.FileUpload(
            accept="image/*",
            description="Upload",
            tooltip="your picture, up to 10 MB",
            layout=ui.Layout(width="106px"),
        )
        starts = {"Detect": lambda: None, "Labels": self._labelled, "None": tuple}
        self.starts = [
            ui.Button(description=name, layout=ui.Layout(width="68px")) for name in starts
        ]
        for button, boxes in zip(self.starts, starts.values(), strict=True):
            button.on_click(lambda _, boxes=boxes: self._start_from(boxes()))
        self.tier = _choice(TIERS, 1.0, "52px")
        t.link((self.tier, "value"), (self.view, "tier"))
        most = math.log10(roi.LMBDA_MAX)  # steps count from here, so that the default is one
        limits = {
            "min": most - math.floor(100 * (most - math.log10(roi.LMBDA_MIN))) / 100,
            "max": most,
            "step": 0.01,
        }
        self.lmbda = ui.FloatLogSlider(request.lmbda, **limits, readout_format=".4f", layout=WIDE)
        self.alpha = ui.FloatSlider(request.alpha, min=0, max=1, step=0.01, layout=WIDE)
        self.capped = ui.Checkbox(
            request.max_bytes is not None,
            description="byte budget",
            indent=False,
            layout=ui.Layout(width="104px"),
        )
        self.budget = ui.FloatLogSlider(
            request.max_bytes or 8000, **BUDGETS, readout_format=",.0f", layout=WIDE
        )
        others = {"original": ""} | {label: name for name, label in CONVENTIONAL.items()}
        self.against = _choice(others, request.against, "98px")
        self.bit_map = ui.ToggleButton(
            request.bit_map,
            description="bit map",
            layout=ui.Layout(width="84px"),
            tooltip="bits a 16×16 cell",
        )

    def _rows(self) -> list[ui.Widget]:
        rows = [
            ["picture", self.picture, self.upload, "boxes", *self.starts, "importance", self.tier],
            ["λ", self.lmbda, "α", self.alpha, self.capped, self.budget],
            ["against", self.against, "show", self.bit_map],
        ]
        middle = ui.Layout(align_items="center")
        return [
            ui.HBox(
                [ui.Label(part) if isinstance(part, str) else part for part in row], layout=middle
            )
            for row in rows
        ]

    def ask(self) -> None:
        """Ask for the picture as the controls say; returns at once."""
        picture, content = self.picture.value
        knobs = {
            "lmbda": float(np.clip(self.lmbda.value, roi.LMBDA_MIN, roi.LMBDA_MAX)),  # rounding
            "alpha": self.alpha.value,
            "bit_map": self.bit_map.value,
            "against": self.against.value,
        }
        with self.view.lock:
            self.lmbda.disabled, self.budget.disabled = self.capped.value, not self.capped.value
            self.view.working = True
            max_bytes = round(self.budget.value) if self.capped.value else None
            self.newest.submit(Request(picture, content, self._boxes, max_bytes=max_bytes, **knobs))

    def _labelled(self) -> tuple:
        boxes = self._labels.get(self.picture.value, np.zeros((0, 4)))  # none of an upload
        return tuple((*box, 1.0) for box in boxes.tolist())

    def _start_from(self, boxes: tuple | None) -> None:
        self._boxes = boxes
        if boxes is not None:
            self.view.boxes = [list(box) for box in boxes]
        self.ask()

    def _edited(self, change) -> None:
        if (boxes := tuple(tuple(box) for box in change.new)) != self._boxes:
            self._start_from(boxes)

    def _uploaded(self, change) -> None:
        for file in change.new:
            choice = (Path(file["name"]), bytes(file["content"]))
            self.picture.options = [*self.picture.options, (f"{file['name']} (uploaded)", choice)]
            self.picture.value = choice

    def _show(self, result: Result) -> None:
        """Put a result on screen; called by the worker.

        Parts that are not ready yet keep their last state, if that was of the same picture.
        """
        request, bits, other, before = result.request, result.bits, result.other, self._last
        if before is not None and before.image is result.image:
            bits = before.bits if bits is None else bits
            if other is None and before.request.against == request.against:
                other = before.other
        self._last = replace(result, bits=bits, other=other)
        other = other if request.against else None
        files = {
            "original": result.image,
            "ours": result.ours.picture,
            "theirs": other.picture if other else result.image,
        }
        state = {name: self._file(name, picture) for name, picture in files.items()}
        has_map = request.bit_map and bits is not None
        state["heat"], state["legend"] = heat_map(bits) if has_map else (b"", "")
        state["names"] = [result.ours.codec, other.codec if other else "original"]
        state["columns"] = [column(result.ours)]
        if other:
            state["columns"].append(column(other, stale=result.other is None))
        state["size"] = list(result.image.shape[1::-1])
        state["values"] = [request.lmbda, request.alpha, request.max_bytes]
        with self.view.lock, self.view.hold_sync():
            if self._boxes is None and request.boxes is None:
                self._boxes = result.boxes
                state["boxes"] = [list(box) for box in result.boxes]
            self.view.set_trait("error", "")
            for name, value in state.items():
                self.view.set_trait(name, value)
            self.view.shown += 1

    def _file(self, name: str, picture: np.ndarray) -> bytes:
        if self._files.get(name, (None, b""))[0] is not picture:
            self._files[name] = picture, lossless(picture)
        return self._files[name][1]

    def _fail(self, line: str) -> None:
        with self.view.lock:
            self.view.error = line

    def _rest(self) -> None:
        with self.view.lock:
            self.view.working = self.newest.waiting  # something may have been asked for meanwhile


def _choice(options: dict, value, width: str) -> ui.ToggleButtons:
    return ui.ToggleButtons(
        options=options,
        value=value,
        style={"button_width": width},
        layout=ui.Layout(width="max-content"),
    )


def lossless(picture: np.ndarray) -> bytes:
    """Return a picture as lossless WebP: written twice as fast as PNG, and smaller."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "webp", lossless=True, method=0, quality=0)
    return file.getvalue()


def heat_map(bits: np.ndarray) -> tuple[bytes, str]:
    """Return a PNG with a pixel for each cell, and what its colours mean."""
    colours = matplotlib.colormaps["inferno"](bits / bits.max(), alpha=0.75, bytes=True)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "png")
    return file.getvalue(), f"0 … {bits.max():.0f} bits a cell of 16×16"


def column(coded: Coded, stale: bool = False) -> dict:
    """Return a column of the table; stale: of an earlier setting."""
    cells = [coded.codec, coded.setting, f"{coded.bytes:,}", f"{coded.bpp:.3f}"]
    cells += ["–" if db is None else f"{db:.2f} dB" for db in (coded.roi_psnr, coded.bg_psnr)]
    cells += [f"{1000 * seconds:.0f} ms" for seconds in (coded.encode, coded.decode)]
    return {"cells": cells, "stale": stale}


def watched() -> bool:
    """Return whether a person runs this cell: in JupyterLab or VS Code, not papermill."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell")["content"].get("allow_stdin"))


def playground(coder: Coder, samples: Sequence[Sample], request: Request) -> Playground | Figure:
    """Return the playground, or when headless a figure of its first result.

    Raises ValueError for a wrong request of that figure.
    """
    if watched():
        return Playground(coder, samples, request)
    figure = draw_result(coder.answer(replace(request, bit_map=True)))
    plt.close(figure)  # else the inline backend shows it a second time
    return figure
