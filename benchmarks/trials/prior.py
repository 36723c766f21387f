"""CompressAI's EntropyBottleneck as far as training needs it, to run where only torch is.

The weights have the same names. Source: Ballé et al., "Variational image compression with a scale
hyperprior" (ICLR 2018), section 6.1.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FILTERS, TAIL, LIKELIHOOD_MIN = (1, 3, 3, 3, 3, 1), 1e-9, 1e-9


class EntropyBottleneck(nn.Module):
    """A factorised density of each channel; what is rounded is rounded relative to its median."""

    def __init__(self, channels: int, init_scale: float = 1.0):
        super().__init__()
        self.matrices, self.biases, self.factors = (nn.ParameterList() for _ in range(3))
        scale = init_scale ** (1 / (len(FILTERS) - 1))
        for i, o in itertools.pairwise(FILTERS):
            start = math.log(math.expm1(1 / scale / o))
            self.matrices.append(nn.Parameter(torch.full((channels, o, i), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, o, 1).uniform_(-0.5, 0.5)))
        for o in FILTERS[1:-1]:
            self.factors.append(nn.Parameter(torch.zeros(channels, o, 1)))
        start = torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1)
        self.quantiles = nn.Parameter(start)
        target = math.log(2 / TAIL - 1)
        self.register_buffer("target", torch.tensor([-target, 0, target]))

    def _logits(self, values: Tensor, fixed: bool = False) -> Tensor:
        """Of the cumulative densities at values (C, 1, n); fixed: no gradient for the density."""
        own = (lambda v: v.detach()) if fixed else (lambda v: v)
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = F.softplus(own(matrix)) @ values + own(bias)
            if i < len(self.factors):
                values = values + own(self.factors[i]).tanh() * values.tanh()
        return values

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w) → z_hat (noisy in training) and its likelihoods."""
        medians = self.quantiles[:, 0, 1].detach()[:, None, None]
        if self.training:
            z_hat = z + torch.empty_like(z).uniform_(-0.5, 0.5)
        else:
            z_hat = (z - medians).round() + medians
        values = z_hat.movedim(1, 0).flatten(1)[:, None]
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        sign = -(lower + upper).detach().sign()
        likelihoods = ((sign * upper).sigmoid() - (sign * lower).sigmoid()).abs()
        shape = (z.shape[1], z.shape[0], *z.shape[2:])
        return z_hat, likelihoods.view(shape).movedim(0, 1).clamp(min=LIKELIHOOD_MIN)

    def loss(self) -> Tensor:
        """How far the quantiles are from where they should be."""
        return (self._logits(self.quantiles, fixed=True) - self.target).abs().sum()
