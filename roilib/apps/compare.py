"""One picture coded by our codec and by conventional ones at no more bytes: table and picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from roilib.apps.playground.coding import Coded, Coder, Request, read
from roilib.apps.transcode import Regions
from roilib.evaluation.tables.layout import markdown

COLUMNS = {
    "codec": "codec",
    "setting": "setting",
    "bytes": "bytes",
    "bpp": "bpp",
    "roi_psnr": "ROI dB",
    "bg_psnr": "background dB",
    "roi_yuv_psnr": "ROI YUV dB",
    "bg_yuv_psnr": "background YUV dB",
}
STRIP = 22  # pixels above a picture, for its caption
CAPTION_SIZE = 14  # pixels
FONT = "/fonts/ttf/DejaVuSans.ttf"  # of Matplotlib; unlike Pillow's it has Greek letters
WHITE = 255


def compare(
    picture: Path, regions: Regions, coder: Coder, **knobs
) -> tuple[list[Coded], np.ndarray]:
    """Code a picture with every codec; return the results, and one picture that shows them all.

    knobs: lmbda, alpha and max_bytes of a Request. Raises ValueError naming the file.
    """
    image = read(picture)
    boxes = tuple((*box, 1.0)[:5] for box in np.asarray(regions(picture, image)).tolist())
    try:
        coded = coder.compare(Request(picture, boxes=boxes, **knobs))
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from None
    return coded, side_by_side(image, boxes, coded)


def table(coded: Sequence[Coded]) -> str:
    """Return the codecs' bytes and PSNRs as Markdown, with YUV-PSNRs where there are any."""
    rows = pd.DataFrame([c.record() | {"bytes": f"{c.bytes:,}"} for c in coded])
    return markdown(rows, {name: title for name, title in COLUMNS.items() if name in rows})


def side_by_side(image: np.ndarray, boxes: Sequence, coded: Sequence[Coded]) -> np.ndarray:
    """Stack the original and the decoded pictures, each with the largest box enlarged beside it.

    Returns uint8 (H, W, 3).
    """
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1, _ in boxes]
    crop = boxes[int(np.argmax(areas))][:4] if boxes else None
    rows = [caption(with_crop(image, crop), "original")]
    for c in coded:
        psnrs = (("ROI", c.roi_psnr), ("background", c.bg_psnr))
        if c.yuv:
            psnrs = (("ROI YUV", c.yuv["roi_yuv_psnr"]), ("background YUV", c.yuv["bg_yuv_psnr"]))
        said = [f"{name} {db:.2f} dB" for name, db in psnrs if db is not None]
        text = ", ".join([f"{c.codec} ({c.setting})", f"{c.bytes:,} bytes", *said])
        rows.append(caption(with_crop(c.picture, crop), text))
    return np.concatenate(rows)


def with_crop(picture: np.ndarray, crop: Sequence[float] | None) -> np.ndarray:
    """Return a picture with its crop beside it, enlarged to the picture's height."""
    if crop is None:
        return picture
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = crop
    scale = min(height / (y1 - y0), width / (x1 - x0))
    size = max(round(scale * (x1 - x0)), 1), max(round(scale * (y1 - y0)), 1)
    part = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST, box=(x0, y0, x1, y1))
    padded = np.full((height, size[0], 3), WHITE, np.uint8)
    padded[: size[1]] = np.asarray(part)[:height]
    return np.concatenate([picture, padded], 1)


def caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Return a picture with a line of text above it."""
    strip = Image.new("RGB", (picture.shape[1], STRIP), "white")
    font = ImageFont.truetype(get_data_path() + FONT, CAPTION_SIZE)
    ImageDraw.Draw(strip).text((6, 3), text, "black", font)
    return np.concatenate([np.asarray(strip), picture])
