"""Quality of a decoded picture: PSNR of all pixels, of ROI and background, MS-SSIM and HaarPSI.

`roi_psnr` and `bg_psnr` are over the pixels inside and outside the ROI, never over zero-filled
frames. The PSNR of no pixels, or of pixels without error, is None, since JSON has no infinity; the
squared errors and counts beside it tell the two apart.

    yuv_psnr = (6 * psnr(Y) + psnr(Cb) + psnr(Cr)) / 8, of BT.709 planes at 4:2:0

is that of Ohm et al., "Comparison of the Coding Efficiency of Video Coding Standards", IEEE TCSVT
22(12), 2012, section III. HaarPSI is that of Reisenhofer et al., Signal Processing: Image
Communication 61, 2018, as piq computes it.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from compressai.transforms.functional import rgb2ycbcr
from piq import haarpsi
from pytorch_msssim import ms_ssim
from scipy import ndimage
from torch import Tensor

MS_SSIM_MIN_SIDE = 161  # pixels, for five scales
HAARPSI_MIN_SIDE = 16  # pixels, for three scales of a picture of half the size
CROP_MIN_SIDE = 32  # pixels; in smaller crops most of HaarPSI's windows lie across their borders
YUV_WEIGHTS = (6 / 8, 1 / 8, 1 / 8)


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
    """Measure a decoded picture, all of it and inside and outside the ROI.

    image, decoded: uint8 (H, W, 3); mask: the ROI, bool (H, W).
    Returns psnr, roi_psnr, bg_psnr (dB), their squared errors and counts, the three yuv_psnr (dB),
    ms_ssim, haarpsi and roi_haarpsi. ms_ssim is None below 161 pixels a side, haarpsi below 16.
    classes: masks of object classes by name; each adds `name_psnr`, `name_sse` and `name_count`.
    """
    parts = regions(mask) | {f"{name}_": m for name, m in (classes or {}).items()}
    values: dict[str, float | None] = {}
    for name, (total, count) in squared_errors(image, decoded, parts).items():
        values |= {f"{name}psnr": psnr_of(total, count), f"{name}sse": total, f"{name}count": count}
    x, x_hat = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (image, decoded))
    return (
        values
        | yuv_psnrs(image, decoded, mask)
        | {
            "ms_ssim": _ms_ssim(x, x_hat),
            "haarpsi": _haarpsi(x, x_hat),
            "roi_haarpsi": _roi_haarpsi(x, x_hat, mask),
        }
    )


def yuv_psnrs(image: np.ndarray, decoded: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    """Return yuv_psnr, roi_yuv_psnr and bg_yuv_psnr; None where a plane has no pixel or no error.

    image, decoded: uint8 (H, W, 3); mask: the ROI, bool (H, W). A sample of chroma is the mean of
    up to 2x2 pixels. It belongs to the ROI if half of them do.
    """
    difference = torch.from_numpy(image.astype(np.float32) - decoded.astype(np.float32))
    errors = rgb2ycbcr(difference.permute(2, 0, 1))
    errors[1:] -= 0.5  # the offset of chroma, which differences do not have
    squares = [(e**2).double().numpy() for e in (errors[0], *map(_halved, errors[1:]))]
    chroma = _halved(torch.from_numpy(mask).float()).numpy() >= 0.5
    found = {}
    for name, luma, halved in zip(
        regions(mask), regions(mask).values(), regions(chroma).values(), strict=True
    ):
        parts = zip(squares, (luma, halved, halved), strict=True)
        psnrs = [psnr_of(float(plane.sum(where=part)), int(part.sum())) for plane, part in parts]
        known = None not in psnrs
        found[f"{name}yuv_psnr"] = float(np.dot(YUV_WEIGHTS, psnrs)) if known else None
    return found


def _halved(plane: Tensor) -> Tensor:
    return F.avg_pool2d(plane[None], 2, ceil_mode=True, count_include_pad=False)[0]


def _ms_ssim(x: Tensor, x_hat: Tensor) -> float | None:
    if min(x.shape[2:]) < MS_SSIM_MIN_SIDE:
        return None
    return float(ms_ssim(x, x_hat, data_range=255))


def _haarpsi(x: Tensor, x_hat: Tensor) -> float | None:
    """Return HaarPSI, 1 for pictures that are the same."""
    if min(x.shape[2:]) < HAARPSI_MIN_SIDE:
        return None
    return min(float(haarpsi(x, x_hat, data_range=255)), 1.0)  # of two black pictures piq's is inf


def _roi_haarpsi(x: Tensor, x_hat: Tensor, mask: np.ndarray) -> float | None:
    """Return the mean HaarPSI of the ROI's connected regions, weighted by their pixels.

    Each is cropped to its bounding rectangle. A crop of less than 32 pixels a side is enlarged to
    32 around its middle, as far as the picture reaches.
    """
    labels, _ = ndimage.label(mask)
    values, counts = [], []
    for index, rectangle in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = (_enlarged(s, side) for s, side in zip(rectangle, mask.shape, strict=True))
        values.append(_haarpsi(x[..., rows, columns], x_hat[..., rows, columns]))
        counts.append(int((labels[rectangle] == index).sum()))
    return float(np.average(values, weights=counts)) if values and None not in values else None


def _enlarged(part: slice, side: int) -> slice:
    """Widen a slice to CROP_MIN_SIDE, or to the whole side of the picture if that is less."""
    length = min(max(part.stop - part.start, CROP_MIN_SIDE), side)
    start = min(max((part.start + part.stop - length) // 2, 0), side - length)
    return slice(start, start + length)


def pooled_psnr(records: list[dict], name: str = "") -> float | None:
    """Return the PSNR of all records' pixels together; name: "", "roi_", "bg_" or "class_"."""
    return psnr_of(*(sum(r[f"{name}{part}"] for r in records) for part in ("sse", "count")))
