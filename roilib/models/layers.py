"""The small layers of roi_vbr: channels-last reshaping, residual blocks, and the DCT it starts as.

CPU convolutions prefer channels side by side in memory (channels last). torch's own pixel unshuffle
and cat take at least twice as long to produce that layout.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
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
    """A residual bottleneck: x + 1x1 → 3x3 → 1x1.

    exact: outside training, the last layer and the sum are computed in fp32 also under bf16
    autocast. Most of bf16's error would come from them.
    """

    def __init__(self, channels: int, exact: bool = False):
        super().__init__()
        self.exact = exact
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
        if self.training or not self.exact:
            return x + self.body(x)
        hidden = self.body[:-1](x)
        with torch.autocast(x.device.type, enabled=False):
            return x.float() + self.body[-1](hidden.float())


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
