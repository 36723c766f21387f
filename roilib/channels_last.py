"""Tensors (B, C, H, W) whose channels lie side by side in memory, as CPU convolutions like them; torch's own ways there are several times slower."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """F.pixel_unshuffle: (B, C, H, W) → (B, C * factor², H / factor, W / factor)."""
    blocks = x.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).movedim(-1, 1)


class PixelUnshuffle(nn.Module):
    """nn.PixelUnshuffle."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """As `pixel_unshuffle`."""
        return pixel_unshuffle(x, self.factor)


def cat(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat of channels."""
    return torch.cat([part.movedim(1, -1) for part in parts], -1).movedim(-1, 1)
