"""The 16x16 DCT of three colour axes that roi_vbr's linear transforms start as, its coefficients ordered by what pictures hold of them."""

import math

import torch
from torch import Tensor

from roilib.roi import CELL

AXES = ((1.0, 1.0, 1.0), (-1.0, 0.0, 1.0), (1.0, -2.0, 1.0))  # of colour: luma and two of chroma
SPECTRA = (
    (25.5, 1.72),
    (3.0, 1.25),
    (1.15, 1.1),
)  # a, p of each axis: the rms of frequency f's coefficient, in steps that suit lmbda 0.012,
# is a * f^-p, read off 21 street and 50 other pictures


def dct_basis(M: int) -> Tensor:
    """(M, 3, 16, 16): the M largest coefficients of an orthonormal 16x16 DCT over three orthonormal colour axes; M ≤ 768."""
    k = torch.arange(float(CELL), dtype=torch.float64)
    cosines = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * CELL)) * math.sqrt(2 / CELL)
    cosines[0] /= math.sqrt(2)
    axes = torch.tensor(AXES, dtype=torch.float64)
    axes = axes / axes.norm(dim=1, keepdim=True)
    return torch.stack(
        [axes[a][:, None, None] * cosines[u][:, None] * cosines[v] for _, a, u, v in spectrum(M)]
    ).float()


def spectrum(M: int) -> list[tuple[float, int, int, int]]:
    """The latent's M channels, largest first: scale at lmbda 0.012, colour axis, rows, columns."""
    places = ((axis, u, v) for axis in range(3) for u in range(CELL) for v in range(CELL))
    scales = [
        (SPECTRA[axis][0] * math.hypot(u + 0.5, v + 0.5) ** -SPECTRA[axis][1], axis, u, v)
        for axis, u, v in places
    ]
    return sorted(scales, key=lambda channel: -channel[0])[:M]
