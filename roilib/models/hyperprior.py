"""Image codecs, all CompressAI `CompressionModel`s: the scale hyperprior and the paper's extension by detector features.

`hyperprior` is CompressAI's `ScaleHyperprior` (Ballé et al. 2018) as it is. `build_model` makes a model from parameters.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.layers import GDN
from compressai.models import CompressionModel
from compressai.models.google import get_scale_table
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from roilib.models import rans
from roilib.models.detector import CODEC_CHANNELS, CODEC_STRIDES


class Projection(nn.Module):
    """A hook's way into the codec: 1x1 convolution, then bilinear resize to where it joins."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hook: Tensor, size: torch.Size) -> Tensor:
        """hook (B, in, h, w) → (B, out, *size)."""
        return F.interpolate(self.conv(hook), size, mode="bilinear", align_corners=False)


class HyperpriorWithObjFeatures(CompressionModel):
    """Scale hyperprior whose encoder also sees a detector's features, with one hyperprior for the image and one for the objects.

                 hook 15     hook 18    hook 21          hooks 15, 18, 21
                    ▼           ▼          ▼                    ▼
        x ──►─ cat ─┴─g_a.0─ cat┴─g_a.2─cat┴─g_a.4─g_a.6─┬─►─ cat ─ |·| ─ h_a_obj ─►─ w ─ Q · EB ─ h_s_obj ─►─┐
                                                       y │                                                  ├─ scales_hat
                                                         ├─►─ |·| ─ h_a_image ───►─── z ─ Q · EB ─ h_s_image ►┘     │
                                                         ▼                                                         ▼
        x_hat ──◄─────────────── g_s ──────────◄──────── Q ─────────────────────────◄──────────────────────────── GC

    y has 2M channels; each hyperprior gives the scales of M of them. The decoder needs no detector.

    Args:
        N, M: channels of the transforms, half the channels of the latent.
        zero_hooks: features replaced by zeros (a model of the same size that sees no objects).
        mask_hooks: features replaced by the ROI mask.
    Source: Gorriz Viudez, "ROI-Aware Neural Image Compression for Teleoperation".
    """

    def __init__(
        self, N: int = 128, M: int = 192, zero_hooks: bool = False, mask_hooks: bool = False
    ):
        super().__init__()
        self.N, self.M, self.zero_hooks, self.mask_hooks = N, M, zero_hooks, mask_hooks
        c15, c18, c21 = CODEC_CHANNELS
        self.g_a_hooks = nn.ModuleList(
            [Projection(c15, 32), Projection(c18, 64), Projection(c21, 256)]
        )
        self.g_a = nn.Sequential(
            conv(3 + 32, N),
            GDN(N),
            conv(N + 64, N),
            GDN(N),
            conv(N + 256, N),
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
        self.h_a_image, self.h_a_obj = (
            hyper_analysis(2 * M, N),
            hyper_analysis(2 * M + 128 + 256 + 512, N),
        )
        self.h_s_image, self.h_s_obj = hyper_synthesis(N, M), hyper_synthesis(N, M)
        self.entropy_bottleneck_image, self.entropy_bottleneck_obj = (
            EntropyBottleneck(N),
            EntropyBottleneck(N),
        )
        self.gaussian_conditional = GaussianConditional(None)

    @property
    def downsampling_factor(self) -> int:
        """Sides of x must be multiples of this."""
        return 64

    def hooks(
        self, x: Tensor, features: list[Tensor] | None, roi_mask: Tensor | None
    ) -> list[Tensor]:
        """What the projections see: the features, zeros, or the ROI's share of each feature cell in every channel."""
        sizes = [(x.shape[-2] // s, x.shape[-1] // s) for s in CODEC_STRIDES]
        if self.zero_hooks:
            return [
                x.new_zeros(len(x), c, *size) for c, size in zip(CODEC_CHANNELS, sizes, strict=True)
            ]
        if self.mask_hooks:
            if roi_mask is None:
                raise ValueError("this model was built with mask_hooks: it needs roi_mask")
            return [
                F.adaptive_avg_pool2d(roi_mask, size).expand(-1, c, -1, -1)
                for c, size in zip(CODEC_CHANNELS, sizes, strict=True)
            ]
        if features is None:
            raise ValueError("this model needs the detector's features of layers 15, 18 and 21")
        return features

    def analysis(self, x: Tensor, hooks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, H, W), H and W multiples of 64 → y (B, 2M, H/16, W/16), z and w (B, N, H/64, W/64)."""
        y = x
        for i, (projection, hook) in enumerate(zip(self.g_a_hooks, hooks, strict=True)):
            y = self.g_a[2 * i : 2 * i + 2](torch.cat([y, projection(hook, y.shape[-2:])], 1))
        y = self.g_a[6](y)
        objects = [
            projection(hook, y.shape[-2:])
            for projection, hook in zip(self.h_a_hooks, hooks, strict=True)
        ]
        return y, self.h_a_image(y.abs()), self.h_a_obj(torch.cat([y, *objects], 1).abs())

    def scales(self, z_hat: Tensor, w_hat: Tensor) -> Tensor:
        """scales_hat (B, 2M, H/16, W/16) of y."""
        return torch.cat([self.h_s_image(z_hat), self.h_s_obj(w_hat)], 1)

    def forward(
        self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None
    ) -> dict:
        """x (B, 3, H, W) in [0, 1], sides multiples of 64; features: the detector's `codec_features`; roi_mask: (B, 1, H, W)."""
        y, z, w = self.analysis(x, self.hooks(x, features, roi_mask))
        z_hat, z_likelihoods = self.entropy_bottleneck_image(z)
        w_hat, w_likelihoods = self.entropy_bottleneck_obj(w)
        y_hat, y_likelihoods = self.gaussian_conditional(y, self.scales(z_hat, w_hat))
        return {
            "x_hat": self.g_s(y_hat),
            "likelihoods": {"y": y_likelihoods, "z": z_likelihoods, "w": w_likelihoods},
        }

    def compress(
        self, x: Tensor, features: list[Tensor] | None = None, roi_mask: Tensor | None = None
    ) -> dict:
        """`strings` [y, z, w], each a list with one bytes a picture, and the `shape` of z and w. Call `update()` before."""
        y, z, w = self.analysis(x, self.hooks(x, features, roi_mask))
        z_strings, w_strings = (
            self.entropy_bottleneck_image.compress(z),
            self.entropy_bottleneck_obj.compress(w),
        )
        indexes = self._indexes(z_strings, w_strings, z.shape[-2:])
        return {
            "strings": [self.gaussian_conditional.compress(y, indexes), z_strings, w_strings],
            "shape": z.shape[-2:],
        }

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict:
        """`x_hat` (B, 3, H, W) in [0, 1] from what `compress` returned."""
        return {"x_hat": self.g_s(decode_latents(self, strings, shape)[1]).clamp_(0, 1)}

    def _indexes(
        self, z_strings: list[bytes], w_strings: list[bytes], shape: tuple[int, int]
    ) -> Tensor:
        z_hat = self.entropy_bottleneck_image.decompress(z_strings, shape)
        w_hat = self.entropy_bottleneck_obj.decompress(w_strings, shape)
        return self.gaussian_conditional.build_indexes(self.scales(z_hat, w_hat))

    @classmethod
    def from_state_dict(
        cls, state_dict: dict, zero_hooks: bool = False, mask_hooks: bool = False
    ) -> "HyperpriorWithObjFeatures":
        """A model of the sizes in `state_dict`, with its weights."""
        model = cls(
            state_dict["g_a.0.weight"].size(0),
            state_dict["g_a.6.weight"].size(0) // 2,
            zero_hooks,
            mask_hooks,
        )
        model.load_state_dict(state_dict)
        return model


@torch.no_grad()
def decode_latents(
    model: CompressionModel, strings: list[list[bytes]], shape: tuple[int, int]
) -> tuple[list[np.ndarray], Tensor]:
    """What a scale hyperprior (the baseline or the extended one) reads before its synthesis: the symbols of each latent, and y_hat.

    Raises ValueError for strings that its encoder did not write.
    """
    if isinstance(model, HyperpriorWithObjFeatures):
        bottlenecks, scales = (
            (model.entropy_bottleneck_image, model.entropy_bottleneck_obj),
            model.scales,
        )
    else:
        bottlenecks, scales = (model.entropy_bottleneck,), model.h_s
    hyper, hyper_hat = [], []
    for bottleneck, own in zip(bottlenecks, strings[1:], strict=True):
        channels = np.arange(bottleneck.channels)[:, None, None]
        hyper.append(
            _read_symbols(
                bottleneck, own, np.broadcast_to(channels, (len(own), bottleneck.channels, *shape))
            )
        )
        medians = bottleneck.quantiles[:, 0, 1, None, None]
        hyper_hat.append(torch.from_numpy(hyper[-1]).to(medians) + medians)
    y = _read_symbols(
        model.gaussian_conditional,
        strings[0],
        model.gaussian_conditional.build_indexes(scales(*hyper_hat)).cpu().numpy(),
    )
    return [y, *hyper], torch.from_numpy(y).to(hyper_hat[0])


def _read_symbols(
    entropy_model: EntropyModel, strings: list[bytes], indexes: np.ndarray
) -> np.ndarray:
    """Symbols int32 (B, C, h, w) of one string a picture; indexes: the table of each."""
    values = (
        v.cpu().numpy()
        for v in (entropy_model._quantized_cdf, entropy_model._cdf_length, entropy_model._offset)
    )
    tables = rans.Tables(*values)
    return np.stack(
        [
            tables.read(s, own.ravel()).reshape(own.shape)
            for s, own in zip(strings, indexes, strict=True)
        ]
    )


def hyper_analysis(channels: int, N: int) -> nn.Sequential:
    """The scale hyperprior's h_a: `channels` at y's size → N at a quarter of it."""
    return nn.Sequential(
        conv(channels, N, 3, 1),
        nn.ReLU(inplace=True),
        conv(N, N),
        nn.ReLU(inplace=True),
        conv(N, N),
    )


def hyper_synthesis(N: int, channels: int) -> nn.Sequential:
    """The scale hyperprior's h_s: N at z's size → `channels` at four times it."""
    return nn.Sequential(
        deconv(N, N),
        nn.ReLU(inplace=True),
        deconv(N, N),
        nn.ReLU(inplace=True),
        conv(N, channels, 3, 1),
        nn.ReLU(inplace=True),
    )


def keep_entropy_models_in_fp32(model: CompressionModel) -> CompressionModel:
    """Make the model's entropy models compute in fp32 under autocast too: bf16 likelihoods are useless. In place."""
    for module in model.modules():
        if isinstance(module, EntropyModel):
            module.forward = functools.partial(_in_fp32, module.forward)
    return model


def _in_fp32(forward, *tensors: Tensor, **options):
    with torch.autocast(tensors[0].device.type, enabled=False):
        return forward(*(t.float() for t in tensors), **options)


SCALE_LEVELS = 256  # with CompressAI's 64 real bytes exceed the estimate by up to 4 %


def update_tables(model: CompressionModel) -> None:
    """Make the model's CDF tables for real coding, with a finer table of scales than CompressAI's own."""
    model.update(get_scale_table(levels=SCALE_LEVELS), force=True)
