"""Quality of a decoded picture against its original, over the true pixel sets.

`roi_psnr` and `bg_psnr` are means over the pixels inside and outside the ROI, never over zero-filled frames. A PSNR of no pixels, or of pixels
without error, is None: it is no number of dB, and JSON has no infinity. Squared errors and counts beside it say which of the two it is.
"""

import math
from collections.abc import Mapping, Sequence

import bjontegaard
import numpy as np
import torch
from pytorch_msssim import ms_ssim

MS_SSIM_MIN_SIDE = 161
MIN_POINTS, MIN_OVERLAP = 6, 0.5  # of two curves that can be compared
LEAST_RISE = 0.05  # dB; a point that costs more and is no better than that is where a codec's scale has ended


def psnr_from_mse(mse: float, peak: float = 1.0) -> float | None:
    """PSNR in dB of a mean squared error on a scale that ends at `peak`; None for 0."""
    return None if mse <= 0 else 10 * math.log10(peak**2 / mse)


def psnr_of(total: float, count: int) -> float | None:
    """PSNR in dB of `count` values on a scale to 255 whose squared errors sum to `total`; None of no values or no error."""
    return psnr_from_mse(total / count, 255) if count else None


def regions(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a picture whose quality is reported, as masks: all of it, the ROI, bool (H, W), and the background."""
    return {"": np.ones_like(mask), "roi_": mask, "bg_": ~mask}


def squared_errors(
    image: np.ndarray, decoded: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, int]]:
    """Sum of squared errors and number of values in each part.

    image, decoded: uint8 (H, W, 3); parts: masks, bool (H, W). Sums of several pictures give the pooled PSNR.
    """
    error = ((image.astype(np.int32) - decoded.astype(np.int32)) ** 2).sum(2)
    return {name: (float(error[mask].sum()), 3 * int(mask.sum())) for name, mask in parts.items()}


def picture_metrics(
    image: np.ndarray,
    decoded: np.ndarray,
    mask: np.ndarray,
    classes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float | None]:
    """psnr, roi_psnr, bg_psnr (dB), their squared errors and counts, and ms_ssim (None below 161 pixels a side).

    classes: masks of classes of objects by name, of each of which `name_psnr`, `name_sse` and `name_count` are given too.
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
    """PSNR of all records' pixels together; name is "", "roi_", "bg_" or a class's."""
    return psnr_of(*(sum(r[f"{name}{part}"] for r in records) for part in ("sse", "count")))


def known(value: float | None) -> bool:
    """Whether a PSNR, of a record or of a table, is a number of dB."""
    return value is not None and math.isfinite(value)


def rising(quality: Sequence[float | None]) -> list[int]:
    """Which points of a curve, by rising rate, are better than every cheaper one by at least LEAST_RISE. Those without a PSNR are not."""
    best, kept = -math.inf, []
    for i, value in enumerate(quality):
        if known(value) and value >= best + LEAST_RISE:
            best, kept = value, [*kept, i]
    return kept


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float | None, float]:
    """Bjøntegaard's mean difference of rate at equal quality, in per cent (negative: `test` needs less), and the overlap of the qualities.

    Both curves are (bpp, dB) points, of which those without a PSNR are left out; Akima interpolation (Herglotz et al. 2022). The overlap is the
    shared range of dB as a share of the shorter one. None for curves of fewer than 6 points or that overlap by less than half, of which it would say
    nothing.
    """
    return _bjontegaard(bjontegaard.bd_rate, anchor, test, 1)


def bd_psnr(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float | None, float]:
    """Bjøntegaard's mean difference of dB at equal rate (positive: `test` is better), and the overlap of the log rates; else as `bd_rate`."""
    return _bjontegaard(bjontegaard.bd_psnr, anchor, test, 0)


def _bjontegaard(
    difference, anchor: Sequence, test: Sequence, shared: int
) -> tuple[float | None, float]:
    curves = [
        np.array(sorted({point for point in curve if known(point[1])}), float).reshape(-1, 2).T
        for curve in (anchor, test)
    ]
    ranges = [
        np.sort(curve[shared] if shared else np.log(curve[shared]))[[0, -1]]
        if curve.size
        else np.zeros(2)
        for curve in curves
    ]
    common = min(r[1] for r in ranges) - max(r[0] for r in ranges)
    overlap = max(0.0, common) / max(min(r[1] - r[0] for r in ranges), 1e-12)
    if min(curve.shape[1] for curve in curves) < MIN_POINTS or overlap < MIN_OVERLAP:
        return None, float(overlap)
    if not all((np.diff(curve[shared]) > 0).all() for curve in curves):
        raise ValueError("a rate-distortion curve whose quality does not rise with its rate")
    value = difference(
        *curves[0], *curves[1], method="akima", require_matching_points=False, min_overlap=0
    )
    return float(value), float(overlap)
