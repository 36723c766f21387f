"""The rate-distortion loss weighted by regions of interest.

    loss = bpp_loss + lmbda * 255² * mean(weight * (x - x_hat)²)        weight = 2 * (alpha * m + (1 - alpha) * (1 - m))

`alpha = 0.5` is CompressAI's RateDistortionLoss exactly (tests/test_losses.py). MS-SSIM has no pixels to weight, so there

    loss = bpp_loss + lmbda * ((1 - w) * d + 2 * w * d_part)        w = |2 * alpha - 1|

with d = 1 - MS-SSIM of the picture and d_part that of the picture with only the ROI's errors left in (alpha > 0.5) or only the
background's: d at alpha = 0.5, 2 * d_part at the ends, and for a distortion that adds up, as MSE does, the formula above.

`form="paper"` is the original's: lmbda * (alpha * p * D_roi + (1 - alpha) * (1 - p) * D_bg), both D over zero-filled frames, p the ROI's
share of each picture. It counts the area twice: a small ROI gets alpha * p / ((1 - alpha) * (1 - p)) of the background's weight.
"""

import math

import torch
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

LMBDA_MIDDLE, BALANCE = 0.012, 0.5


def bpp_terms(output: dict, target: Tensor) -> dict[str, Tensor]:
    """Estimated bits per pixel of each latent, `bpp_<latent>`, from `output["likelihoods"]`; target: (B, 3, H, W)."""
    pixels = target.shape[0] * target.shape[-2] * target.shape[-1]
    return {
        f"bpp_{name}": v.log().sum() / (-math.log(2) * pixels)
        for name, v in output["likelihoods"].items()
    }


class RoiRateDistortionLoss(nn.Module):
    """`loss(output, target, roi_mask)` → dict of scalar tensors.

    output: a CompressionModel's `{"x_hat", "likelihoods"}`; target: (B, 3, H, W) in [0, 1]; roi_mask: (B, 1, H, W) in [0, 1], or None for a
    batch without labels (plain loss; no ROI terms). Terms: `loss`, `bpp_loss`, `bpp_<latent>`, `mse_loss`, `roi_mse_loss`, `bg_mse_loss` (means over
    the true pixel sets; 0 where a set is empty), or their `ms_ssim_loss` sisters, which like CompressAI's are the similarity itself.
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
        terms = bpp_terms(output, target)
        terms["bpp_loss"] = sum(terms.values())
        x_hat = output["x_hat"].float()
        if roi_mask is None:
            name, values = (
                ("mse_loss", [mse(x_hat, target)])
                if self.metric == "mse"
                else ("ms_ssim_loss", [similarity(x_hat, target)])
            )
            terms[name], distortion = values[0], self._scale(values[0])
        else:
            terms |= self._terms(x_hat, target, roi_mask)
            distortion = (
                self._paper(x_hat, target, roi_mask)
                if self.form == "paper"
                else self._corrected(x_hat, target, roi_mask)
            )
        terms["loss"] = terms["bpp_loss"] + self.lmbda * distortion
        return terms

    def _scale(self, value: Tensor) -> Tensor:
        return 255**2 * value if self.metric == "mse" else 1 - value

    def _corrected(self, x_hat: Tensor, target: Tensor, m: Tensor) -> Tensor:
        if self.metric == "mse":
            weight = 2 * (self.alpha * m + (1 - self.alpha) * (1 - m))
            return self._scale((weight * (x_hat - target) ** 2).mean())
        w, part = abs(2 * self.alpha - 1), m if self.alpha > 0.5 else 1 - m
        d, d_part = (
            1 - similarity(picture, target) for picture in (x_hat, torch.lerp(target, x_hat, part))
        )
        return (1 - w) * d + 2 * w * d_part

    def _paper(self, x_hat: Tensor, target: Tensor, m: Tensor) -> Tensor:
        p = m.mean((1, 2, 3))
        d_roi, d_bg = (self._per_picture(part * x_hat, part * target) for part in (m, 1 - m))
        return (self.alpha * p * d_roi + (1 - self.alpha) * (1 - p) * d_bg).mean()

    def _per_picture(self, x_hat: Tensor, target: Tensor) -> Tensor:
        if self.metric == "mse":
            return self._scale(((x_hat - target) ** 2).mean((1, 2, 3)))
        return self._scale(similarity(x_hat, target, size_average=False))

    def _terms(self, x_hat: Tensor, target: Tensor, m: Tensor) -> dict[str, Tensor]:
        if self.metric == "mse":
            return mse_terms(((x_hat - target) ** 2).mean(1, keepdim=True), m)
        masked = {
            "": (x_hat, target),
            "roi_": (m * x_hat, m * target),
            "bg_": ((1 - m) * x_hat, (1 - m) * target),
        }
        return {f"{k}ms_ssim_loss": similarity(*pair) for k, pair in masked.items()}


class VariableRateLoss(nn.Module):
    """`loss(output, target, roi_mask)` → dict of scalar tensors: the corrected loss with a λ of its own at every pixel.

    output: also holds `lmbda_map` (B, 1, H, W). `balanced` divides each picture's loss by (mean λ / 0.012)^BALANCE, so that high rates do not
    dominate a training on all rates. Terms as in RoiRateDistortionLoss; with lmbda_map = lmbda * weight, unbalanced, `loss` is the same too.
    """

    def __init__(self, balanced: bool = True):
        super().__init__()
        self.balanced = balanced

    def forward(self, output: dict, target: Tensor, roi_mask: Tensor) -> dict[str, Tensor]:
        terms, lmbda_map = bpp_terms(output, target), output["lmbda_map"]
        terms["bpp_loss"] = sum(terms.values())
        error = ((output["x_hat"].float() - target) ** 2).mean(1, keepdim=True)
        pixels = target.shape[-2] * target.shape[-1]
        bpp = sum(v.log().sum((1, 2, 3)) for v in output["likelihoods"].values()) / (
            -math.log(2) * pixels
        )
        each = bpp + 255**2 * (lmbda_map * error).mean((1, 2, 3))
        terms["loss"] = (
            each * (lmbda_map.mean((1, 2, 3)) / LMBDA_MIDDLE) ** -BALANCE if self.balanced else each
        ).mean()
        return terms | mse_terms(error, roi_mask)


def mse_terms(error: Tensor, roi_mask: Tensor) -> dict[str, Tensor]:
    """`mse_loss`, and the means over the pixels inside and outside the ROI, of squared errors (B, 1, H, W)."""
    parts = {"roi_": roi_mask, "bg_": 1 - roi_mask}
    means = {
        f"{k}mse_loss": (part * error).sum() / part.sum().clamp(min=1e-9)
        for k, part in parts.items()
    }
    return {"mse_loss": error.mean()} | means


def mse(x_hat: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over everything."""
    return ((x_hat - target) ** 2).mean()


def similarity(x_hat: Tensor, target: Tensor, size_average: bool = True) -> Tensor:
    """MS-SSIM of pictures in [0, 1] with sides above 160 (Wang, Simoncelli, Bovik 2003)."""
    return ms_ssim(x_hat, target, data_range=1.0, size_average=size_average)
