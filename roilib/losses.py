"""Rate-distortion losses: the ROI-aware one for one rate, and the one for all rates.

    loss = bpp_loss + lmbda * 255² * mean(weight * (x - x_hat)²)
    weight = 2 * (alpha * m + (1 - alpha) * (1 - m))

`alpha = 0.5` is CompressAI's RateDistortionLoss exactly (tests/test_losses.py). MS-SSIM cannot be
weighted pixel by pixel; there

    loss = bpp_loss + lmbda * ((1 - w) * d + 2 * w * d_part),    w = |2 * alpha - 1|

d is 1 - MS-SSIM of the reconstruction, d_part the same with only the ROI's errors left in it
(alpha > 0.5) or only the background's. For a distortion that is a sum over pixels, as the MSE is,
this equals the first formula.

metric `yuv` (only of the loss for all rates) replaces the squared error of red, green and blue by

    (3 * Y² + Cb² + Cr²) / 3        errors of BT.709's luma and chroma at 4:2:0

so that a grey error weighs as much in both.

`form="paper"`: lmbda * (alpha * p * D_roi + (1 - alpha) * (1 - p) * D_bg), with both D over
zero-filled frames and p the ROI's share of each picture. The area counts twice: a small ROI gets
alpha * p / ((1 - alpha) * (1 - p)) of the background's weight.
"""

import math

import torch
import torch.nn.functional as F
from compressai.transforms.functional import rgb2ycbcr
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

LMBDA_MIDDLE = 0.012  # at which a picture's share in the loss for all rates is 1
LUMA = 3  # weight of luma's squared error in the metric yuv, relative to Cb's and Cr's
FINE_CHROMA = 0.05  # weight of the chroma error that 4:2:0 discards: training still limits it
BALANCE = 0.5  # power of λ that the loss for all rates divides by


def bpp_terms(output: dict, target: Tensor) -> dict[str, Tensor]:
    """`bpp_<latent>` and their sum, `bpp_loss`: estimated bits per pixel of `likelihoods`."""
    pixels = target.shape[0] * target.shape[-2] * target.shape[-1]
    terms = {
        f"bpp_{name}": v.log().sum() / (-math.log(2) * pixels)
        for name, v in output["likelihoods"].items()
    }
    return terms | {"bpp_loss": sum(terms.values())}


def roi_weight(roi_mask: Tensor, alpha: float) -> Tensor:
    """Weight of each pixel's squared error: 2 alpha where roi_mask is 1, 2 (1 - alpha) where 0."""
    return 2 * (alpha * roi_mask + (1 - alpha) * (1 - roi_mask))


class RoiRateDistortionLoss(nn.Module):
    """`loss(output, target, roi_mask)` → dict of scalar tensors.

    output: a CompressionModel's `{"x_hat", "likelihoods"}`; target: (B, 3, H, W) in [0, 1];
    roi_mask: (B, 1, H, W) in [0, 1], or None for the plain loss without ROI terms.

    Terms: `loss`, `bpp_loss`, `bpp_<latent>`, `mse_loss`, `roi_mse_loss`, `bg_mse_loss`. The latter
    two are means over the pixels inside and outside, 0 where there are none. With metric ms-ssim
    they are called `ms_ssim_loss` and, like CompressAI's, are the similarity itself.
    """

    def __init__(
        self, lmbda: float, alpha: float = 0.5, metric: str = "mse", form: str = "corrected"
    ):
        super().__init__()
        if metric not in ("mse", "ms-ssim") or form not in ("corrected", "paper"):
            raise ValueError(
                f"metric is mse or ms-ssim and form corrected or paper, not {metric!r} and {form!r}"
            )
        self.lmbda, self.alpha, self.metric, self.form = lmbda, alpha, metric, form

    def forward(
        self, output: dict, target: Tensor, roi_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        x_hat, terms = output["x_hat"].float(), bpp_terms(output, target)
        if roi_mask is None:
            name, measure = ("mse", mse) if self.metric == "mse" else ("ms_ssim", similarity)
            terms[f"{name}_loss"] = value = measure(x_hat, target)
            distortion = self._scaled(value)
        else:
            terms |= self._distortion_terms(x_hat, target, roi_mask)
            weighted = self._paper if self.form == "paper" else self._corrected
            distortion = weighted(x_hat, target, roi_mask)
        return terms | {"loss": terms["bpp_loss"] + self.lmbda * distortion}

    def _corrected(self, x_hat: Tensor, target: Tensor, m: Tensor) -> Tensor:
        if self.metric == "mse":
            return self._scaled((roi_weight(m, self.alpha) * (x_hat - target) ** 2).mean())
        w, part = abs(2 * self.alpha - 1), m if self.alpha > 0.5 else 1 - m
        x_part = torch.lerp(target, x_hat, part)  # with only the part's errors
        d, d_part = 1 - similarity(x_hat, target), 1 - similarity(x_part, target)
        return (1 - w) * d + 2 * w * d_part

    def _paper(self, x_hat: Tensor, target: Tensor, m: Tensor) -> Tensor:
        p = m.mean((1, 2, 3))
        d_roi, d_bg = (self._per_picture(part * x_hat, part * target) for part in (m, 1 - m))
        return (self.alpha * p * d_roi + (1 - self.alpha) * (1 - p) * d_bg).mean()

    def _per_picture(self, x_hat: Tensor, target: Tensor) -> Tensor:
        if self.metric == "mse":
            return self._scaled(((x_hat - target) ** 2).mean((1, 2, 3)))
        return self._scaled(similarity(x_hat, target, size_average=False))

    def _scaled(self, value: Tensor) -> Tensor:
        return 255**2 * value if self.metric == "mse" else 1 - value

    def _distortion_terms(self, x_hat: Tensor, target: Tensor, m: Tensor) -> dict[str, Tensor]:
        if self.metric == "mse":
            return mse_terms(((x_hat - target) ** 2).mean(1, keepdim=True), m)
        return {
            "ms_ssim_loss": similarity(x_hat, target),
            "roi_ms_ssim_loss": similarity(m * x_hat, m * target),
            "bg_ms_ssim_loss": similarity((1 - m) * x_hat, (1 - m) * target),
        }


class VariableRateLoss(nn.Module):
    """`loss(output, target, roi_mask)` → dict of scalar tensors: a λ for every pixel.

        loss = mean over pictures of (bpp + 255² * mean(lmbda_map * (x - x_hat)²)) / balance
        balance = (mean of lmbda_map / LMBDA_MIDDLE) ** BALANCE, without `balanced` 1

    The balance keeps high rates from dominating a training on all rates. `output` also holds
    `lmbda_map` (B, 1, H, W); everything else is as in RoiRateDistortionLoss, whose loss this is,
    unbalanced, for lmbda_map = lmbda * weight. With metric yuv, `yuv_error` takes the place of the
    squared error; the other terms stay those of RGB.
    """

    def __init__(self, balanced: bool = True, metric: str = "mse"):
        super().__init__()
        if metric not in ("mse", "yuv"):
            raise ValueError(f"metric is mse or yuv, not {metric!r}")
        self.balanced, self.metric = balanced, metric

    def forward(self, output: dict, target: Tensor, roi_mask: Tensor) -> dict[str, Tensor]:
        x_hat = output["x_hat"].float()
        rgb_error = ((x_hat - target) ** 2).mean(1, keepdim=True)
        error = yuv_error(x_hat, target) if self.metric == "yuv" else rgb_error
        bits = sum(v.log().sum((1, 2, 3)) for v in output["likelihoods"].values())
        bpp = bits / (-math.log(2) * math.prod(target.shape[-2:]))
        lmbda_map = output["lmbda_map"]
        loss = bpp + 255**2 * (lmbda_map * error).mean((1, 2, 3))
        if self.balanced:
            loss = loss * (lmbda_map.mean((1, 2, 3)) / LMBDA_MIDDLE) ** -BALANCE
        return bpp_terms(output, target) | {"loss": loss.mean()} | mse_terms(rgb_error, roi_mask)


def yuv_error(x_hat: Tensor, target: Tensor) -> Tensor:
    """Return the squared error (B, 1, H, W) of the metric yuv; pictures (B, 3, H, W), even sides.

    FINE_CHROMA of what chroma differs from its mean over 2x2 pixels counts, too.
    """
    error = rgb2ycbcr(x_hat - target)
    luma, chroma = error[:, :1], error[:, 1:] - 0.5  # differences have no offset
    coarse = F.interpolate(F.avg_pool2d(chroma, 2), scale_factor=2, mode="nearest")
    squares = torch.lerp(coarse**2, chroma**2, FINE_CHROMA)
    return luma**2 + squares.sum(1, keepdim=True) / LUMA


def mse_terms(error: Tensor, roi_mask: Tensor) -> dict[str, Tensor]:
    """`mse_loss`, `roi_mse_loss` and `bg_mse_loss` of squared errors (B, 1, H, W)."""
    terms = {"mse_loss": error.mean()}
    for name, part in (("roi_mse_loss", roi_mask), ("bg_mse_loss", 1 - roi_mask)):
        terms[name] = (part * error).sum() / part.sum().clamp(min=1e-9)
    return terms


def mse(x_hat: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything."""
    return ((x_hat - target) ** 2).mean()


def similarity(x_hat: Tensor, target: Tensor, size_average: bool = True) -> Tensor:
    """MS-SSIM of pictures in [0, 1] with sides above 160 (Wang, Simoncelli, Bovik 2003)."""
    return ms_ssim(x_hat, target, data_range=1.0, size_average=size_average)
