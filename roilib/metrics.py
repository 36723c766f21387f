"""Quality of a decoded picture: PSNR of all pixels, of ROI and background, and MS-SSIM.

`roi_psnr` and `bg_psnr` are over the pixels inside and outside the ROI, never over zero-filled
frames. The PSNR of no pixels, or of pixels without error, is None, since JSON has no infinity; the
squared errors and counts beside it tell the two apart.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from pytorch_msssim import ms_ssim

MS_SSIM_MIN_SIDE = 161  # pixels, for five scales


def psnr_from_mse(mse: float, peak: float = 1.0) -> float | None:
    """Return the PSNR in dB of a mean squared error on a scale up to `peak`; None for 0."""
    return None if mse <= 0 else 10 * math.log10(peak**2 / mse)


def psnr_of(total: float, count: int) -> float | None:
    """Return the PSNR in dB of `count` values up to 255 whose squared errors sum to `total`.

    It is None for no values or no error.
    """
    return psnr_from_mse(total / count, 255) if count else None


def regions(mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return the masks, bool (H, W), whose quality is reported: whole picture, ROI, background."""
    return {"": np.ones_like(mask), "roi_": mask, "bg_": ~mask}


def squared_errors(
    image: np.ndarray, decoded: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, int]]:
    """Return the sum of squared errors and the number of values of each part.

    image, decoded: uint8 (H, W, 3); parts: masks, bool (H, W). Sums of several pictures give their
    pooled PSNR.
    """
    error = ((image.astype(np.int32) - decoded.astype(np.int32)) ** 2).sum(2)
    return {name: (float(error[mask].sum()), 3 * int(mask.sum())) for name, mask in parts.items()}


def picture_metrics(
    image: np.ndarray,
    decoded: np.ndarray,
    mask: np.ndarray,
    classes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float | None]:
    """Measure psnr, roi_psnr, bg_psnr (dB), their squared errors and counts, and ms_ssim.

    ms_ssim is None below 161 pixels a side. classes: masks of object classes by name; each adds
    `name_psnr`, `name_sse` and `name_count`.
    """
    parts = regions(mask) | {f"{name}_": m for name, m in (classes or {}).items()}
    values: dict[str, float | None] = {}
    for name, (total, count) in squared_errors(image, decoded, parts).items():
        values |= {f"{name}psnr": psnr_of(total, count), f"{name}sse": total, f"{name}count": count}
    return values | {"ms_ssim": _ms_ssim(image, decoded)}


def _ms_ssim(image: np.ndarray, decoded: np.ndarray) -> float | None:
    if min(image.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    pair = [torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (image, decoded)]
    return float(ms_ssim(*pair, data_range=255))


def pooled_psnr(records: list[dict], name: str = "") -> float | None:
    """Return the PSNR of all records' pixels together; name: "", "roi_", "bg_" or "class_"."""
    return psnr_of(*(sum(r[f"{name}{part}"] for r in records) for part in ("sse", "count")))
