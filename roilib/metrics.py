"""Quality of a decoded picture against its original, over the true pixel sets.

`roi_psnr` and `bg_psnr` are means over the pixels inside and outside the ROI, never over zero-filled frames.
"""

import math

import numpy as np
import torch
from pytorch_msssim import ms_ssim

MS_SSIM_MIN_SIDE = 161


def psnr_from_mse(mse: float, peak: float = 1.0) -> float:
    """PSNR in dB of a mean squared error on a scale that ends at `peak`; infinite for 0."""
    return math.inf if mse <= 0 else 10 * math.log10(peak**2 / mse)


def squared_errors(image: np.ndarray, decoded: np.ndarray, mask: np.ndarray) -> dict[str, tuple[float, int]]:
    """Sum of squared errors and number of values in all, inside and outside the mask.

    image, decoded: uint8 (H, W, 3); mask: bool (H, W). Sums of several pictures give the pooled PSNR.
    """
    error = (image.astype(np.int32) - decoded.astype(np.int32)) ** 2
    parts = {"": np.ones_like(mask), "roi_": mask, "bg_": ~mask}
    return {name: (float(error[part].sum()), 3 * int(part.sum())) for name, part in parts.items()}


def picture_metrics(image: np.ndarray, decoded: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    """psnr, roi_psnr, bg_psnr (dB; None where a set is empty), their squared errors and counts, and ms_ssim (None below 161 pixels a side)."""
    values: dict[str, float | None] = {}
    for name, (total, count) in squared_errors(image, decoded, mask).items():
        values |= {f"{name}psnr": psnr_from_mse(total / count, 255) if count else None, f"{name}sse": total, f"{name}count": count}
    return values | {"ms_ssim": _ms_ssim(image, decoded)}


def _ms_ssim(image: np.ndarray, decoded: np.ndarray) -> float | None:
    if min(image.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    pair = [torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (image, decoded)]
    return float(ms_ssim(*pair, data_range=255))


def pooled_psnr(records: list[dict], name: str = "") -> float | None:
    """PSNR of all records' pixels together; name is "", "roi_" or "bg_". None without such pixels."""
    total, count = (sum(r[f"{name}{part}"] for r in records) for part in ("sse", "count"))
    return psnr_from_mse(total / count, 255) if count else None
