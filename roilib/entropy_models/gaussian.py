"""The distributions that code roi_vbr's latent y: scales, probability tables, likelihoods and RDOQ.

scale index i ──► SCALES[i] = SCALE_MIN · 2^(i / 8) ──► frequencies: the table of its symbols;
                                                   │    up to SKIPPED they are 0 and not coded
                                                   └──► thresholds: how far from the mean a
                                                        symbol is worth its bits (RDOQ)
"""

import functools
import math

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from roilib.entropy_models.noise import KeyedGaussian

SCALE_MIN = 0.1  # the scale of scale index 0, in quantiser steps
SCALE_COUNT = 80  # scales up to 94
SCALES_PER_OCTAVE = 8
SCALES = tuple(SCALE_MIN * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALE_COUNT))
SKIPPED = 4  # largest scale index whose symbols are no part of a stream: they are 0
SKIPPED_BELOW = SCALE_MIN * 2 ** ((SKIPPED + 0.5) / SCALES_PER_OCTAVE)  # the scales of these
TOTAL = 1 << 24  # sum of the frequencies of a table
# A network's scale is a guess: (weight, octaves from it) of the scales that a symbol may have. Of
# the spreads and offsets tried, these take the fewest bits on KITTI's train split and photographs.
COMPONENTS = ((1 / 6, -0.558), (2 / 3, -0.125), (1 / 6, 0.308))
TAIL_SHARE = 2.0**-11  # of the probability goes to the geometric tail; less for scales below 1
BIT_WORTH = 0.055  # squared error, in steps, that RDOQ accepts to save a bit; best on KITTI's train


def reach(scale: float) -> int:
    """Return the largest magnitude of a symbol in the table of this scale."""
    return 15 + math.ceil(8 * scale)


def frequencies(scale: float) -> np.ndarray:
    """Return the frequencies (reach + 1,) int32 of symbols 0, ±1, ±2, …, of each sign alone.

    Rounded Gaussians of COMPONENTS with a geometric tail. The frequencies of all symbols sum to
    TOTAL.
    """
    k = np.arange(reach(scale) + 1)
    gauss = sum(weight * _between(k, scale * 2**octaves) for weight, octaves in COMPONENTS)
    tail = 2.0 ** (-k / (1 + scale))
    sides = np.where(k == 0, 1, 2)
    share = TAIL_SHARE * min(scale, 1)
    p = (1 - share) * gauss / (gauss * sides).sum() + share * tail / (tail * sides).sum()
    counts = np.maximum(np.round(p * TOTAL), 1).astype(np.int64)
    counts[0] += TOTAL - (counts * sides).sum()
    return counts.astype(np.int32)


def _between(k: np.ndarray, scale: float) -> np.ndarray:
    """Return a Gaussian's probability of half a step on each side of k."""
    upper, lower = (erf((k + side) / scale / math.sqrt(2)) for side in (0.5, -0.5))
    return (upper - lower) / 2


def thresholds(scale: float) -> np.ndarray:
    """Return (reach + 1,) float32: the least distance from the mean worth symbol 0, ±1, ±2, ….

    Between k - 1 and k the error that k saves is worth the additional bits of k, at BIT_WORTH a
    bit. If bits were free, it would be k - 1/2. In quantiser steps.
    """
    bits = -np.log2(frequencies(scale) / TOTAL)
    return np.concatenate(
        [[0], np.arange(1, len(bits)) - 0.5 + BIT_WORTH / 2 * np.diff(bits)]
    ).astype(np.float32)


class TailedGaussian(KeyedGaussian):
    """Gaussians of COMPONENTS with a geometric tail, as in the tables of `frequencies`.

    The bits of an outlier grow with its size, not with the square of its size.
    """

    def _likelihood(self, inputs: Tensor, scales: Tensor, means: Tensor | None = None) -> Tensor:
        distance = (inputs if means is None else inputs - means).abs()
        scales = self.lower_bound_scale(scales)
        gauss = sum(
            weight * self._between(distance, scales * 2**octaves) for weight, octaves in COMPONENTS
        )
        share, ratio = TAIL_SHARE * scales.clamp(max=1), torch.exp2(-1 / (1 + scales))
        tail = share * (1 - ratio) / (1 + ratio) * ratio**distance
        return (1 - share) * gauss + tail

    def _between(self, distance: Tensor, scales: Tensor) -> Tensor:
        """Return the probability of half a step on each side of a distance from the mean."""
        upper = self._standardized_cumulative((0.5 - distance) / scales)
        return upper - self._standardized_cumulative((-0.5 - distance) / scales)

    def of_symbols(self, y: Tensor, y_hat: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """Return the likelihoods of y_hat, the quantised y.

        In training the scales learn from y_hat; y and the means learn from y with noise. Else
        skipped symbols have likelihood 1: they cost nothing.
        """
        exact = self.likelihood_lower_bound(
            self._likelihood(y_hat.detach(), scales, means.detach())
        )
        if not self.training:
            return torch.where(scales < SKIPPED_BELOW, 1, exact)
        noisy = self(y, scales.detach(), means)[1]
        return exact * (noisy / noisy.detach())


def scale_of(octaves: Tensor) -> Tensor:
    """Return the scale this many octaves above SCALE_MIN, at most the largest scale."""
    return SCALE_MIN * torch.exp2(octaves.clamp(max=(SCALE_COUNT - 1) / SCALES_PER_OCTAVE))


def scale_index_of(octaves: Tensor) -> Tensor:
    """Return the index (int64) of the scale nearest to so many octaves above SCALE_MIN.

    NaN becomes index 0: the loss reports it.
    """
    nearest = (octaves * SCALES_PER_OCTAVE).round().nan_to_num()
    return nearest.clamp(0, SCALE_COUNT - 1).long()


@functools.cache
def threshold_table(device: torch.device | str = "cpu") -> Tensor:
    """Return `thresholds` of all scales, (SCALE_COUNT, largest reach + 1) fp32; 0 beyond reach."""
    rows = [torch.from_numpy(thresholds(scale)) for scale in SCALES]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


@torch.compiler.disable
def rdoq(distance: Tensor, scale_indices: Tensor) -> Tensor:
    """Quantise distances from the mean by rate-distortion-optimised quantisation (RDOQ).

    A symbol, returned as a float, is the nearest integer or the one below it in magnitude, where
    that saves more bits than its error costs; up to scale index SKIPPED it is 0. Only encoders
    choose symbols; decoders do not care.

    scale_indices: the tables that code the symbols, integers of the same shape.
    """
    symbols = distance.round()
    # Most symbols are 0 and stay 0, as NaN stays NaN. The others are few.
    others = (symbols.abs() > 0).nonzero(as_tuple=True)
    table, size = threshold_table(distance.device), distance[others].abs()
    scale_indices = scale_indices[others].long()
    nearest = size.round().clamp_(max=table.shape[1] - 1).long()
    chosen = nearest - (size < table[scale_indices, nearest]).long()
    chosen[scale_indices <= SKIPPED] = 0
    symbols[others] = chosen.to(size.dtype).copysign(distance[others])
    return symbols
