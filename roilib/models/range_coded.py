"""Symbols to strings and back, for models whose float networks choose probability tables.

They code in fp32, by roilib.entropy_models.range_coder with CompressAI's tables (`build_indexes`).
A machine whose float networks compute differently may refuse a stream.
"""

import numpy as np
import torch
from compressai.models import CompressionModel
from compressai.models.google import get_scale_table
from torch import Tensor

from roilib.entropy_models.noise import KeyedBottleneck
from roilib.entropy_models.range_coder import (
    Decoder,
    Encoder,
    Tables,
    get_unbounded,
    joint_checksum,
    put_unbounded,
    tables_of,
)

SCALE_COUNT = 256  # with CompressAI's 64 scales, bytes exceed the estimate by up to 4 %


class RangeCoded(CompressionModel):
    """The shared part of the two scale hyperpriors: symbols to strings and back.

    A subclass has `g_s`, a `gaussian_conditional` for y, `bottlenecks` for the hyper-latents,
    `latents` and `scales`; one whose decoder knows the ROI has `gains`. Call `update_tables`
    before coding.
    """

    variable_rate = False  # lmbda and alpha are those of the training
    portable = False  # float networks decide probabilities: no bf16

    def likelihoods(self, *inputs) -> dict[str, Tensor]:
        """Return the `likelihoods` of `forward`, which takes these inputs."""
        return self(*inputs)["likelihoods"]

    def tables(self) -> tuple[Tables, ...]:
        """Return the probability tables of the latents: y, z (and w)."""
        models = (self.gaussian_conditional, *self.bottlenecks)
        return tuple(tables_of(model, escape=True) for model in models)

    @torch.no_grad()
    def compress(self, x: Tensor, *conditions) -> dict:
        """Code one picture: x (1, 3, H, W); conditions: the other arguments of `forward`.

        Returns `strings`, one [bytes] a latent: y, z (and w); the `shape` of z; `symbols`, one
        int32 (C, h, w) a latent; and their `checksum`.
        """
        y, *hyper = self.latents(x, *conditions)
        gain, _ = self.gains(*conditions[1:])
        symbols = [
            _symbols(latent - _medians(bottleneck))
            for latent, bottleneck in zip(hyper, self.bottlenecks, strict=True)
        ]
        symbols = [_symbols(y * gain), *symbols]
        indices = [self._y_indices(symbols[1:], gain), *map(_channel_indices, symbols[1:])]
        coders = [Encoder() for _ in symbols]
        for coder, *arrays, tables in zip(coders, symbols, indices, self.tables(), strict=True):
            put_unbounded(coder, *map(np.ravel, arrays), tables)
        return {
            "strings": [[coder.data()] for coder in coders],
            "shape": symbols[1].shape[1:],
            "symbols": symbols,
            "checksum": joint_checksum(coders),
        }

    def gains(self, roi_mask: Tensor | None = None) -> tuple[Tensor | float, Tensor | float]:
        """Return the factor of y and scales_hat before coding, and that of y_hat after it."""
        return 1.0, 1.0

    @torch.no_grad()
    def decode_symbols(
        self, strings: list[list[bytes]], shape: tuple[int, int], roi_mask: Tensor | None = None
    ) -> tuple[list[np.ndarray], Tensor, int]:
        """Return the symbols that `compress` wrote; those of y as (1, C, h, w); a checksum.

        roi_mask: the encoder's, for a decoder that knows it. Raises ValueError for strings that no
        encoder wrote.
        """
        y_tables, *hyper_tables = self.tables()
        hyper, coders = [], [Decoder(string) for (string,) in strings]
        for bottleneck, coder, tables in zip(
            self.bottlenecks, coders[1:], hyper_tables, strict=True
        ):
            indices = _channel_indices(np.empty((bottleneck.channels, *shape), np.uint8))
            symbols = get_unbounded(coder, indices.ravel(), tables)
            hyper.append(symbols.reshape(indices.shape))
        indices = self._y_indices(hyper, self.gains(roi_mask)[0])
        y = get_unbounded(coders[0], indices.ravel(), y_tables).reshape(indices.shape)
        return [y, *hyper], self._tensor(y), joint_checksum(coders)

    @torch.no_grad()
    def reconstruct(self, y: Tensor, roi_mask: Tensor | None = None) -> Tensor:
        """Return x_hat (1, 3, H, W) in [0, 1] of the symbols of y from `decode_symbols`."""
        return self.g_s(y * self.gains(roi_mask)[1]).clamp_(0, 1)

    def picture(self, y: Tensor, roi_mask: Tensor | None = None) -> Tensor:
        """Return the picture (3, H, W) uint8 of the symbols of y from `decode_symbols`."""
        return self.reconstruct(y, roi_mask)[0].mul_(255).round_().byte()

    @torch.no_grad()
    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], roi_mask: Tensor | None = None
    ) -> dict:
        """Return `x_hat` (1, 3, H, W) in [0, 1] from what `compress` returned."""
        y = self.decode_symbols(strings, shape, roi_mask)[1]
        return {"x_hat": self.reconstruct(y, roi_mask)}

    def _y_indices(self, hyper: list[np.ndarray], gain: Tensor | float) -> np.ndarray:
        """Return the table index of each symbol of y, from the hyper-latents' symbols."""
        hats = [
            self._tensor(symbols) + _medians(bottleneck)
            for symbols, bottleneck in zip(hyper, self.bottlenecks, strict=True)
        ]
        indices = self.gaussian_conditional.build_indexes(self.scales(*hats) * gain)
        return indices[0].cpu().numpy().astype(np.uint16)

    def _tensor(self, symbols: np.ndarray) -> Tensor:
        """Return symbols (C, h, w) as a batch of one, where and what the weights are."""
        return torch.from_numpy(symbols)[None].to(self.bottlenecks[0].quantiles)


def update_tables(model: CompressionModel) -> None:
    """Make the model's CDF tables for real coding, with more scales than CompressAI's 64."""
    model.update(get_scale_table(levels=SCALE_COUNT), force=True)


def _symbols(latent: Tensor) -> np.ndarray:
    """Round a latent (1, C, h, w) to symbols (C, h, w) int32 on the CPU."""
    return latent[0].round().int().cpu().numpy()


def _medians(bottleneck: KeyedBottleneck) -> Tensor:
    """Return the medians (C, 1, 1) that the symbols of a hyper-latent are relative to."""
    return bottleneck.quantiles[:, 0, 1, None, None].detach()


def _channel_indices(symbols: np.ndarray) -> np.ndarray:
    """Return the table index, its channel, of each symbol of a hyper-latent (C, h, w)."""
    channels = np.arange(len(symbols), dtype=np.uint16)
    return np.broadcast_to(channels[:, None, None], symbols.shape)
