"""Small layers: channels-last reshaping, roi_vbr's blocks and DCT, the extended model's hooks.

CPU convolutions are fastest with channels side by side in memory (channels last). torch's own pixel
unshuffle and cat take at least twice as long to produce that layout.

A detector's features (hooks) join the extended model's encoder in one of two ways:

    concatenation   layer(cat([y, resize(conv(hook))]))                           the paper's
    scale, shift    layer(y * (1 + scale) + shift), both resize(conv(conv(hook)))
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from roilib.roi import CELL

COLOUR_AXES = (  # of RGB: luma, then two of chroma
    (1.0, 1.0, 1.0),
    (-1.0, 0.0, 1.0),
    (1.0, -2.0, 1.0),
)
SPECTRA = (  # (a, p) of each axis: the coefficient of frequency f has rms a * f^-p, in quantiser
    (25.5, 1.72),  # steps at lmbda 0.012; fitted to 21 street and 50 other pictures
    (3.0, 1.25),
    (1.15, 1.1),
)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """F.pixel_unshuffle: (B, C, H, W) → (B, C * factor², H / factor, W / factor)."""
    blocks = x.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).movedim(-1, 1)


class PixelUnshuffle(nn.PixelUnshuffle):
    """`pixel_unshuffle` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Unshuffle x (B, C, H, W)."""
        return pixel_unshuffle(x, self.downscale_factor)


def cat_channels(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat of the channels of (B, C, H, W) tensors."""
    return torch.cat([part.movedim(1, -1) for part in parts], -1).movedim(-1, 1)


class Block(nn.Module):
    """A residual bottleneck: x + 1x1 → 3x3 → 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, channels, H, W) plus its correction."""
        return x + self.body(x)


def conv3(i: int, o: int) -> nn.Conv2d:
    """Make a 3x3 convolution that keeps the size."""
    return nn.Conv2d(i, o, 3, padding=1)


def entropy_parameters(i: int, hidden: int, o: int) -> nn.Sequential:
    """Make a network from the i channels of a context to scales and means."""
    return nn.Sequential(
        conv3(i, hidden), nn.ReLU(), conv3(hidden, hidden), nn.ReLU(), nn.Conv2d(hidden, o, 1)
    )


def dct_basis(M: int) -> Tensor:
    """Return (M, 3, 16, 16): the M largest coefficients of `spectrum`, M ≤ 768.

    An orthonormal 16x16 DCT over three orthonormal colour axes.
    """
    cosines = dct(np.eye(CELL), norm="ortho", axis=0)  # (frequency, pixel)
    axes = np.array(COLOUR_AXES)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rows = [
        axes[axis][:, None, None] * cosines[u][:, None] * cosines[v]
        for _, axis, u, v in spectrum(M)
    ]
    return torch.from_numpy(np.stack(rows)).float()


def spectrum(M: int) -> list[tuple[float, int, int, int]]:
    """Return the M channels of the latent: (scale at lmbda 0.012, colour axis, row, column).

    The largest scale comes first.
    """
    channels = [
        (a * math.hypot(u + 0.5, v + 0.5) ** -p, axis, u, v)
        for axis, (a, p) in enumerate(SPECTRA)
        for u in range(CELL)
        for v in range(CELL)
    ]
    return sorted(channels, key=lambda channel: -channel[0])[:M]


class Projection(nn.Module):
    """A 1x1 convolution, then a bilinear resize to where the hook joins."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hook: Tensor, size: torch.Size) -> Tensor:
        """Project a hook (B, in, h, w) to (B, out, *size)."""
        return resized(self.conv(hook), size)


class FeatureTransform(nn.Module):
    """Scale and shift of y, both computed from a hook.

    The last convolution starts at zero, so that y is unchanged before the first step.

    Source: Wang et al., "Recovering Realistic Texture in Image Super-resolution by Deep Spatial
    Feature Transform", CVPR 2018.
    """

    def __init__(self, in_channels: int, hidden: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden, 1)
        self.scale_shift = nn.Conv2d(hidden, 2 * channels, 1)
        nn.init.zeros_(self.scale_shift.weight)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(self, y: Tensor, hook: Tensor) -> Tensor:
        """Transform y (B, channels, H, W) by a hook (B, in, h, w)."""
        maps = self.scale_shift(F.leaky_relu(self.conv(hook), 0.1))
        scale, shift = resized(maps, y.shape[-2:]).chunk(2, 1)
        return y * (1 + scale) + shift


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """Resize x (B, C, h, w) to (B, C, *size)."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def joined(
    layer: nn.Conv2d, y: Tensor, projection: Projection, hook: Tensor, constant: bool
) -> Tensor:
    """Return layer(cat([y, projection(hook)])).

    constant: all channels of the hook are equal (zeros, or the ROI mask). Every projected channel
    is then a combination of that one channel and a constant 1. Summing the layer's weights
    accordingly gives the same result, with only two more input channels than y has.
    """
    size = y.shape[-2:]
    if not constant:
        return layer(torch.cat([y, projection(hook, size)], 1))
    own, projected = layer.weight.split((y.shape[1], layer.in_channels - y.shape[1]), 1)
    parts = torch.stack([projection.conv.weight.sum((1, 2, 3)), projection.conv.bias], 1)
    weight = torch.cat([own, torch.einsum("npij,pk->nkij", projected, parts)], 1)
    channel = resized(hook[:, :1], size)
    x = torch.cat([y, channel, torch.ones_like(channel)], 1)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
