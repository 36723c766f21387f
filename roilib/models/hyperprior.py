"""The scale hyperprior, and the paper's extension of it by the features of a detector.

Both are coded as roilib.models.range_coded describes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from compressai.layers import GDN
from compressai.models import ScaleHyperprior
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from roilib.entropy_models.noise import KeyedBottleneck, KeyedGaussian
from roilib.models.detector import CODEC_CHANNELS, CODEC_STRIDES
from roilib.models.layers import FeatureTransform, Projection, joined
from roilib.models.range_coded import RangeCoded


class Hyperprior(RangeCoded, ScaleHyperprior):
    """CompressAI's `ScaleHyperprior`, our baseline: the same transforms and the same `forward`.

        x ─► g_a ─► y ─┬─► |·| ─ h_a ─► z ─ Q · EB ─► h_s ─► scales_hat
                       └─► Q · GC(scales_hat) ─► g_s ─► x_hat

    Args:
        N, M: channels of the transforms, channels of the latent.
    Source: Ballé et al., "Variational image compression with a scale hyperprior" (ICLR 2018).
    """

    def __init__(self, N: int = 128, M: int = 192):
        super().__init__(N, M)
        with torch.random.fork_rng(devices=[]):  # other initial weights stay what they were
            bottleneck = KeyedBottleneck(N)
        bottleneck.load_state_dict(self.entropy_bottleneck.state_dict())
        self.entropy_bottleneck, self.gaussian_conditional = bottleneck, KeyedGaussian(None)

    @property
    def bottlenecks(self) -> tuple[KeyedBottleneck, ...]:
        """The entropy models of the hyper-latents."""
        return (self.entropy_bottleneck,)

    def inputs(self, x: Tensor, quality: Callable, roi_mask: Callable, features: Callable) -> tuple:
        """Return the arguments of `forward` and `compress`; every model has this method.

        x (B, 3, H, W): the padded picture. The others are called by the models that need them:
        quality() → indices (B, 1, H/16, W/16); roi_mask() → (B, 1, H, W) in [0, 1]; features() →
        the detector's `codec_features`, for x.
        """
        return (x,)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (B, M, H/16, W/16) and z (B, N, H/64, W/64)."""
        y = self.g_a(x)
        return y, self.h_a(y.abs())

    def scales(self, z_hat: Tensor) -> Tensor:
        """Return scales_hat (B, M, H/16, W/16) of y."""
        return self.h_s(z_hat)


class HyperpriorWithObjFeatures(RangeCoded):
    """Scale hyperprior whose encoder sees a detector's features; one hyperprior is for objects.

          hook 15       hook 18       hook 21
             ▼             ▼             ▼
        x ─ cat ─ g_a.0 ─ cat ─ g_a.2 ─ cat ─ g_a.4 ─ g_a.6 ─► y

        y ─┬─► cat(hooks 15, 18, 21) ─ |·| ─ h_a_obj ─► w ─ Q · EB ─► h_s_obj ───┐
           ├─► |·| ─ h_a_image ───────────────────────► z ─ Q · EB ─► h_s_image ─┴─► scales_hat
           └─► Q · GC(scales_hat) ─► g_s ─► x_hat

    y has 2M channels; each hyperprior gives the scales of M of them. The decoder needs no detector.

    Args:
        N, M: channels of the transforms, half the channels of the latent.
        zero_hooks: replace features by zeros (a model of the same size that sees no objects).
        mask_hooks: replace features by the ROI mask.
        conditioning: how the hooks join g_a: "concat" (the paper's), or "sft", by scale and shift.
        decoder_roi: the decoder knows the ROI mask too (streams hold the boxes). A learned gain a
            channel scales y and scales_hat, one inside the ROI and one outside, and the decoder
            undoes it, up to a learned correction. With m, the ROI's share of a latent cell:

                y ──► * exp(gain) ──► Q ──► * exp(correction - gain) ──► g_s
                gain = roi_gain[0] * (1 - m) + roi_gain[1] * m, and correction likewise

            So ROI and background have quantiser steps of their own. All start at zero, which
            changes nothing.

    Source: Gorriz Viudez, "ROI-Aware Neural Image Compression for Teleoperation"; gains as in
    Cui et al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation", 2021.
    """

    def __init__(
        self,
        N: int = 128,
        M: int = 192,
        zero_hooks: bool = False,
        mask_hooks: bool = False,
        conditioning: str = "concat",
        decoder_roi: bool = False,
    ):
        super().__init__()
        self.N, self.M, self.zero_hooks, self.mask_hooks = N, M, zero_hooks, mask_hooks
        self.conditioning, self.decoder_roi = conditioning, decoder_roi
        c15, c18, c21 = CODEC_CHANNELS
        joining = ((c15, 32, 3), (c18, 64, N), (c21, 256, N))  # channels: hook, projected, joined
        if conditioning == "sft":
            ways, added = [FeatureTransform(*channels) for channels in joining], (0, 0, 0)
        else:
            ways, added = [Projection(*channels[:2]) for channels in joining], (32, 64, 256)
        self.g_a_hooks = nn.ModuleList(ways)
        self.g_a = nn.Sequential(
            conv(3 + added[0], N),
            GDN(N),
            conv(N + added[1], N),
            GDN(N),
            conv(N + added[2], N),
            GDN(N),
            conv(N, 2 * M),
        )
        self.g_s = nn.Sequential(
            deconv(2 * M, N),
            GDN(N, inverse=True),
            deconv(N, N),
            GDN(N, inverse=True),
            deconv(N, N),
            GDN(N, inverse=True),
            deconv(N, 3),
        )
        self.h_a_hooks = nn.ModuleList(
            [Projection(c15, 128), Projection(c18, 256), Projection(c21, 512)]
        )
        self.h_a_image = hyper_analysis(2 * M, N)
        self.h_a_obj = hyper_analysis(2 * M + 128 + 256 + 512, N)
        self.h_s_image, self.h_s_obj = hyper_synthesis(N, M), hyper_synthesis(N, M)
        self.entropy_bottleneck_image = KeyedBottleneck(N)
        self.entropy_bottleneck_obj = KeyedBottleneck(N)
        self.gaussian_conditional = KeyedGaussian(None)
        if decoder_roi:
            self.roi_gain = nn.Parameter(torch.zeros(2, 2 * M))  # of the background, of the ROI
            self.roi_correction = nn.Parameter(torch.zeros(2, 2 * M))

    @property
    def downsampling_factor(self) -> int:
        """Sides of x must be multiples of this."""
        return 64

    @property
    def bottlenecks(self) -> tuple[KeyedBottleneck, ...]:
        """The entropy models of the hyper-latents, z and w."""
        return self.entropy_bottleneck_image, self.entropy_bottleneck_obj

    def inputs(self, x: Tensor, quality: Callable, roi_mask: Callable, features: Callable) -> tuple:
        """Return the arguments of `forward` and `compress`; see `Hyperprior.inputs`."""
        return x, None if self.zero_hooks or self.mask_hooks else features(), roi_mask()

    def hooks(
        self, x: Tensor, features: list[Tensor] | None, roi_mask: Tensor | None
    ) -> list[Tensor]:
        """Return the inputs of the projections: features, zeros, or the mask in every channel.

        The mask becomes the ROI's share of each feature cell.
        """
        sizes = [(x.shape[-2] // s, x.shape[-1] // s) for s in CODEC_STRIDES]
        shapes = list(zip(CODEC_CHANNELS, sizes, strict=True))
        if self.zero_hooks:
            return [x.new_zeros(len(x), c, *size) for c, size in shapes]
        if self.mask_hooks:
            if roi_mask is None:
                raise ValueError("this model was built with mask_hooks: it needs roi_mask")
            return [
                F.adaptive_avg_pool2d(roi_mask, size).expand(-1, c, -1, -1) for c, size in shapes
            ]
        if features is None:
            raise ValueError("this model needs the detector's features of layers 15, 18 and 21")
        return features

    def latents(
        self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (B, 2M, H/16, W/16), z and w (B, N, H/64, W/64) of x, as `forward` takes it."""
        hooks, y = self.hooks(x, features, roi_mask), x
        for i, (way, hook) in enumerate(zip(self.g_a_hooks, hooks, strict=True)):
            if self.conditioning == "sft":
                y = self.g_a[2 * i](way(y, hook))
            else:
                constant = self.zero_hooks or self.mask_hooks
                y = joined(self.g_a[2 * i], y, way, hook, constant)
            y = self.g_a[2 * i + 1](y)
        y = self.g_a[6](y)
        objects = [
            projection(hook, y.shape[-2:])
            for projection, hook in zip(self.h_a_hooks, hooks, strict=True)
        ]
        return y, self.h_a_image(y.abs()), self.h_a_obj(torch.cat([y, *objects], 1).abs())

    def scales(self, z_hat: Tensor, w_hat: Tensor) -> Tensor:
        """Return scales_hat (B, 2M, H/16, W/16) of y."""
        return torch.cat([self.h_s_image(z_hat), self.h_s_obj(w_hat)], 1)

    def gains(self, roi_mask: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """Return the factors of y and scales_hat, and of y_hat; 1 without `decoder_roi`.

        roi_mask: (B, 1, H, W) → factors (B, 2M, H/16, W/16).
        """
        if not self.decoder_roi:
            return 1.0, 1.0
        if roi_mask is None:
            raise ValueError("this model was built with decoder_roi: it needs roi_mask")
        share = F.avg_pool2d(roi_mask, 16)
        gain, correction = (
            background.view(-1, 1, 1).lerp(roi.view(-1, 1, 1), share)
            for background, roi in (self.roi_gain, self.roi_correction)
        )
        return gain.exp(), (correction - gain).exp()

    def forward(
        self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None
    ) -> dict:
        """Code and decode pictures, with noise or rounding for the entropy coder.

        x (B, 3, H, W) in [0, 1], sides multiples of 64; features: the detector's `codec_features`;
        roi_mask: (B, 1, H, W). Returns `x_hat` and `likelihoods` of y, z and w.
        """
        y, z, w = self.latents(x, features, roi_mask)
        gain, inverse = self.gains(roi_mask)
        z_hat, z_likelihoods = self.entropy_bottleneck_image(z)
        w_hat, w_likelihoods = self.entropy_bottleneck_obj(w)
        scales_hat = self.scales(z_hat, w_hat) * gain
        y_hat, y_likelihoods = self.gaussian_conditional(y * gain, scales_hat)
        return {
            "x_hat": self.g_s(y_hat * inverse),
            "likelihoods": {"y": y_likelihoods, "z": z_likelihoods, "w": w_likelihoods},
        }


def hyper_analysis(channels: int, N: int) -> nn.Sequential:
    """Make the scale hyperprior's h_a: `channels` at y's size → N at a quarter of it."""
    return nn.Sequential(
        conv(channels, N, 3, 1),
        nn.ReLU(inplace=True),
        conv(N, N),
        nn.ReLU(inplace=True),
        conv(N, N),
    )


def hyper_synthesis(N: int, channels: int) -> nn.Sequential:
    """Make the scale hyperprior's h_s: N at z's size → `channels` at four times it."""
    return nn.Sequential(
        deconv(N, N),
        nn.ReLU(inplace=True),
        deconv(N, N),
        nn.ReLU(inplace=True),
        conv(N, channels, 3, 1),
        nn.ReLU(inplace=True),
    )
