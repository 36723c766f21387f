"""roilib.losses: the identities behind the numbers."""

import pytest
import torch
import torch.nn.functional as F
from compressai.losses import RateDistortionLoss
from compressai.transforms.functional import rgb2ycbcr

from roilib.losses import (
    FINE_CHROMA,
    LUMA,
    RoiRateDistortionLoss,
    VariableRateLoss,
    yuv_error,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 192, 192, generator=generator)
    output = {
        "x_hat": (target + 0.1 * torch.randn(target.shape, generator=generator)).requires_grad_(),
        "likelihoods": {
            "y": torch.rand(2, 8, 12, 12, generator=generator),
            "z": torch.rand(2, 4, 3, 3, generator=generator),
        },
    }
    mask = torch.zeros(2, 1, 192, 192)
    mask[0, :, 20:60, 30:90] = 1
    mask[1, :, 100:110, 5:25] = 1
    return output, target, mask


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_alpha_half_is_compressais_loss(batch, metric):
    output, target, mask = batch
    theirs = RateDistortionLoss(lmbda=0.013, metric=metric)(output, target)
    for roi_mask in (mask, None):
        ours = RoiRateDistortionLoss(0.013, 0.5, metric)(output, target, roi_mask)
        for name, value in theirs.items():
            assert ours[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_weights_are_per_pixel_whatever_the_roi_covers(batch):
    output, target, mask = batch
    for alpha in (0.0, 0.3, 0.9, 1.0):
        terms = RoiRateDistortionLoss(1.0, alpha)(output, target, mask)
        p = mask.mean()
        expected = (
            255**2
            * 2
            * (alpha * p * terms["roi_mse_loss"] + (1 - alpha) * (1 - p) * terms["bg_mse_loss"])
        )
        assert (terms["loss"] - terms["bpp_loss"]).item() == pytest.approx(
            expected.item(), rel=1e-5
        )


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
@pytest.mark.parametrize(("alpha", "inside"), [(1.0, True), (0.0, False)])
def test_extremes_ignore_the_other_part(batch, metric, alpha, inside):
    output, target, mask = batch
    loss = RoiRateDistortionLoss(1.0, alpha, metric)(output, target, mask)["loss"]
    gradient = torch.autograd.grad(loss, output["x_hat"])[0].abs()
    seen, unseen = (mask, 1 - mask) if inside else (1 - mask, mask)
    assert (gradient * seen).sum() > 0
    assert (gradient * unseen).max() == 0


def test_paper_form_counts_the_area_twice(batch):
    output, target, mask = batch
    alpha, p = 0.5, mask.mean((1, 2, 3))
    squares = (255 * (output["x_hat"] - target)) ** 2
    d_roi, d_bg = ((part * squares).mean((1, 2, 3)) for part in (mask, 1 - mask))
    expected = (alpha * p * d_roi + (1 - alpha) * (1 - p) * d_bg).mean()
    terms = RoiRateDistortionLoss(1.0, alpha, form="paper")(output, target, mask)
    assert (terms["loss"] - terms["bpp_loss"]).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
@pytest.mark.parametrize("form", ["corrected", "paper"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_roi_and_all_roi_are_finite(batch, metric, form, value):
    output, target, mask = batch
    terms = RoiRateDistortionLoss(0.013, 0.9, metric, form)(
        output, target, torch.full_like(mask, value)
    )
    terms["loss"].backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(output["x_hat"].grad).all()


def test_roi_terms_are_means_over_the_true_pixels(batch):
    output, target, mask = batch
    terms = RoiRateDistortionLoss(0.013, 0.9)(output, target, mask)
    inside = mask.expand_as(target).bool()
    squares = (output["x_hat"] - target) ** 2
    assert terms["roi_mse_loss"].item() == pytest.approx(squares[inside].mean().item(), rel=1e-5)
    assert terms["bg_mse_loss"].item() == pytest.approx(squares[~inside].mean().item(), rel=1e-5)


def test_yuv_error_is_that_of_luma_and_of_chroma_at_half_the_size(batch):
    output, target, _ = batch
    x_hat = output["x_hat"].detach()
    luma, *chroma = (rgb2ycbcr(x_hat) - rgb2ycbcr(target)).split(1, 1)
    want = (luma**2).mean()
    for plane in chroma:
        coarse = (F.avg_pool2d(plane, 2) ** 2).mean()
        want += ((1 - FINE_CHROMA) * coarse + FINE_CHROMA * (plane**2).mean()) / LUMA
    assert yuv_error(x_hat, target).mean().item() == pytest.approx(want.item(), rel=1e-5)


def test_the_terms_beside_a_loss_by_yuv_are_those_of_rgb(batch):
    output, target, mask = batch
    output = {"x_hat": output["x_hat"].detach(), "lmbda_map": 0.01 + mask} | {
        "likelihoods": output["likelihoods"]
    }
    rgb, yuv = (VariableRateLoss(metric=metric)(output, target, mask) for metric in ("mse", "yuv"))
    assert yuv["loss"].item() != pytest.approx(rgb["loss"].item(), rel=0.05)
    for name in rgb.keys() - {"loss"}:
        assert yuv[name].item() == rgb[name].item(), name


def test_a_grey_error_weighs_as_much_in_both_metrics(batch):
    output, target, mask = batch
    grey = {"x_hat": target + 0.1 * torch.randn(2, 1, 192, 192), "lmbda_map": 0.01 + mask}
    rgb, yuv = (
        VariableRateLoss(metric=metric)(output | grey, target, mask) for metric in ("mse", "yuv")
    )
    for name, value in rgb.items():
        assert yuv[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_refuses_unknown_metric():
    with pytest.raises(ValueError, match="metric"):
        RoiRateDistortionLoss(0.1, metric="psnr")
    with pytest.raises(ValueError, match="metric"):
        VariableRateLoss(metric="ms-ssim")
