"""The scales of Gaussians that roi_vbr's symbols are coded with: their levels, their likelihoods in training, and which symbol an encoder takes."""

import functools

import torch
from compressai.entropy_models import GaussianConditional
from torch import Tensor, nn

from roilib.entropy_models.range_coder import TAIL_SHARE, thresholds

SCALE_MIN, SCALE_LEVELS, LEVELS_PER_OCTAVE = (
    0.1,
    80,
    8,
)  # scale of level i: SCALE_MIN * 2^(i / 8), up to 94
SCALES = tuple(SCALE_MIN * 2 ** (i / LEVELS_PER_OCTAVE) for i in range(SCALE_LEVELS))


class TailedGaussian(GaussianConditional):
    """A Gaussian with a share of far symbols, as in the tables of roilib.entropy_models.range_coder: an outlier costs bits in proportion to its size, not its square."""

    def _likelihood(self, inputs: Tensor, scales: Tensor, means: Tensor | None = None) -> Tensor:
        distance = (inputs if means is None else inputs - means).abs()
        scales = self.lower_bound_scale(scales)
        gauss = self._standardized_cumulative(
            (0.5 - distance) / scales
        ) - self._standardized_cumulative((-0.5 - distance) / scales)
        share, ratio = TAIL_SHARE * scales.clamp(max=1), torch.exp2(-1 / (1 + scales))
        return (1 - share) * gauss + share * (1 - ratio) / (1 + ratio) * ratio**distance

    def of_symbols(self, y: Tensor, y_hat: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """Likelihoods of y_hat, which y is coded as. In training the scales learn from them; y and the means learn from noise in rounding's place."""
        exact = self.likelihood_lower_bound(
            self._likelihood(y_hat.detach(), scales, means.detach())
        )
        if not self.training:
            return exact
        noisy = self(y, scales.detach(), means)[1]
        return exact * (noisy / noisy.detach())


def scale_of(octaves: Tensor) -> Tensor:
    """The scale that is so many octaves above SCALE_MIN, at most the last level's."""
    return SCALE_MIN * torch.exp2(octaves.clamp(max=(SCALE_LEVELS - 1) / LEVELS_PER_OCTAVE))


def level_of(octaves: Tensor) -> Tensor:
    """int64: the level nearest to the scale that is so many octaves above SCALE_MIN."""
    return (
        (octaves * LEVELS_PER_OCTAVE).round().nan_to_num().clamp(0, SCALE_LEVELS - 1).long()
    )  # NaN is the loss's business, no index


@functools.cache
def threshold_table(device: torch.device | str = "cpu") -> Tensor:
    """(SCALE_LEVELS, reach of the last level + 1) fp32: `entropy.thresholds` of each level, 0 beyond its reach."""
    rows = [torch.from_numpy(thresholds(scale)) for scale in SCALES]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.compiler.disable
def round_to_cheap(distance: Tensor, levels: Tensor) -> Tensor:
    """Symbols, as floats, of distances from the mean: the nearest, or one nearer to the mean where that saves more bits than its error costs.

    levels: integers, of the tables that the symbols are coded with, same shape. Encoders choose the symbols, so decoders need not know how.
    """
    symbols = distance.round()
    others = (symbols.abs() > 0).nonzero(
        as_tuple=True
    )  # few: most symbols are 0, and stay it, as NaN does
    table, size, levels = (
        threshold_table(distance.device),
        distance[others].abs(),
        levels[others].long(),
    )
    nearest = size.round().clamp_(max=table.shape[1] - 1).long()
    symbols[others] = (
        (nearest - (size < table[levels, nearest]).long()).to(size.dtype).copysign(distance[others])
    )
    return symbols
