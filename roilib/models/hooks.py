"""Ways for a detector's features (hooks) into the extended model's encoder.

    concatenation   layer(cat([y, resize(conv(hook))]))                           the paper's
    scale, shift    layer(y * (1 + scale) + shift), both resize(conv(conv(hook)))

Resizing is bilinear, to the size of y.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    constant: all channels of the hook are equal (zeros, or the ROI mask). The projected channels
    are then combinations of that one channel and of a one. The layer's weights for them are summed
    accordingly beforehand: the same result at the cost of two more channels than y has.
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
