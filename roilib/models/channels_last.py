"""Tensors (B, C, H, W) whose channels lie side by side in memory, as CPU convolutions like them, in half the time that torch takes or less."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """F.pixel_unshuffle: (B, C, H, W) → (B, C * factor², H / factor, W / factor)."""
    blocks = x.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).movedim(-1, 1)


class PixelUnshuffle(nn.PixelUnshuffle):
    """As `pixel_unshuffle`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W)."""
        return pixel_unshuffle(x, self.downscale_factor)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat of channels."""
    return torch.cat([part.movedim(1, -1) for part in parts], -1).movedim(-1, 1)
