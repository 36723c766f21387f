"""One codec for every rate and every ROI strength: quality indices scale the latent cell by cell.

A linear transform starts as the 16x16 DCT of luma and two chroma axes. A parallel convolutional
transform learns what the linear one cannot do. Everything that a decoder computes runs on integers
(roilib.models.integer), so a stream decodes to the same picture on every machine.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from compressai.models import CompressionModel
from torch import Tensor, nn
from torch.profiler import record_function

from roilib.entropy_models.gaussian import (
    SCALE_MIN,
    SCALES,
    TailedGaussian,
    frequencies,
    rdoq,
    scale_index_of,
    scale_of,
)
from roilib.entropy_models.noise import KeyedBottleneck
from roilib.entropy_models.range_coder import Counter, Encoder, Tables, joint_checksum
from roilib.models.context import Q_MIDDLE, condition, later_context, magnitudes, pass_map
from roilib.models.integer import coding
from roilib.models.integer.coding import OCTAVES
from roilib.models.integer.networks import IntegerNet
from roilib.models.integer.synthesis import IntegerSynthesis
from roilib.models.layers import (
    Block,
    PixelUnshuffle,
    cat_channels,
    conv3,
    dct_basis,
    entropy_parameters,
    pixel_unshuffle,
    spectrum,
)
from roilib.roi import CELL, STEPS_PER_OCTAVE

STEP = 46.5 / 255  # step of the DCT's quantiser that suits lmbda 0.012
SLICES = (16, 64, 192)  # channels where the latent, largest scales first, is cut into slices
PASSES = (3, 2, 1, 1)  # over the cells of each slice; most bits are in the first slices
LOW_CHANNELS = 256  # of the latent: the convolutional analysis adds to these


class RoiVbr(CompressionModel):
    """Variable-rate codec: a map q of quality indices, one a 16x16 cell, sets rate and ROI.

        x ─┬─► a_lin ─►(+)─► y · gain_a(q) ─►(-)─► Q ─► AE ═══ AD ─►(+)─► · gain_s(q) ─► s_lin ─┐
           └─► g_a ─────┘            │      means    scales, means              x_hat ◄─(+)◄────┤
                                     │                       ▲                       └── g_s ◄──┘
                                     ├─► h_a(·, q) ─► z ─ Q · EB ─► h_s ─► h ─┐     │
                                     │                                        ├─► e[k][pass](h, q …)
                                     └── y_hat of slices 0 … k-1 and of the ──┘
                                         cells of slice k in earlier passes

    y (B, M, H/16, W/16) is cut into slices of falling scale. The probabilities of a slice depend on
    the slices before it. In the first two slices they also depend on neighbouring cells, which
    earlier passes over the slice have coded (roilib.models.context): e[k] holds a network a pass.
    g_s corrects the linear synthesis at an eighth of the picture's size. h_s and e run on integers
    when bits are written or read, the synthesis when a picture is decoded.

    `e` holds the entropy parameters, `e_integer` their integer twins; `synthesis_integer` is the
    twin of gain_s, s_lin and g_s. Weights files contain these names, and the model id of a stream
    depends on them.

    Args:
        N: channels of the convolutional transforms at 1/8, and of the hyper networks.
        M: channels of the latent, at most 768 = 3 * 16 * 16 (all of a cell).
    Sources: spatially scaled latents, Perugachi-Diaz et al. (BMVC 2022); gain units, Cui et al.
    (CVPR 2021); channel slices, Minnen and Singh (ICIP 2020); passes over cells, He et al.
    (CVPR 2021).
    """

    variable_rate = True  # lmbda and alpha are knobs of an encoder
    portable = True  # decoders compute integers only: an encoder's transforms may run in bf16
    # Marks the stages of coding for a profiler; benchmarks give their own.
    stage: Callable[[str], AbstractContextManager] = record_function

    def __init__(self, N: int = 128, M: int = 768):
        super().__init__()
        self.N, self.M = N, M
        cuts = (0, *(cut for cut in SLICES if cut < M), M)
        self.slices = list(itertools.pairwise(cuts))
        # With CompressAI's init_scale of 10, training needs thousands of steps to recover.
        self.entropy_bottleneck = KeyedBottleneck(N // 2, init_scale=1)
        self.gaussian_conditional = TailedGaussian(None, scale_bound=SCALE_MIN)
        self.a_lin = nn.Sequential(PixelUnshuffle(CELL), nn.Conv2d(3 * CELL**2, M, 1, bias=False))
        self.s_lin = nn.Sequential(nn.Conv2d(M, 3 * CELL**2, 1, bias=False), nn.PixelShuffle(CELL))
        self.g_a = nn.Sequential(
            PixelUnshuffle(8),
            conv3(192, N),
            *(Block(N) for _ in range(4)),
            nn.Conv2d(N, min(LOW_CHANNELS, M), 4, 2, 1),
        )
        self.g_s = nn.Sequential(
            conv3(192 + 1, N),
            *(Block(N) for _ in range(4)),
            conv3(N, 192),
            nn.PixelShuffle(8),
        )
        self.gain = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2 * M))
        self.h_a = nn.Sequential(
            nn.Conv2d(M + 1, N, 1),
            nn.ReLU(),
            nn.Conv2d(N, N, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(N, N // 2, 4, 2, 1),
        )
        shuffle = nn.PixelShuffle(2)
        self.h_s = nn.Sequential(
            conv3(N // 2, 4 * N), shuffle, nn.ReLU(), conv3(N, 4 * N), shuffle, nn.ReLU()
        )
        self.e, self.e_integer = nn.ModuleList(), nn.ModuleList()
        for (start, end), passes in zip(self.slices, PASSES, strict=False):
            n = end - start
            shared = N + 1 + start  # channels that all passes over a slice see: h, q, slices before
            own = [3 * n if number else 0 for number in range(passes)]  # of the slice's own y_hat
            nets = nn.ModuleList(entropy_parameters(shared + more, N, 2 * n) for more in own)
            signed = [[N, *range(shared + n, shared + more)] for more in own]
            # The means of the first slices need fine weights.
            twins = (
                IntegerNet(net, places, fine=passes > 1)
                for net, places in zip(nets, signed, strict=True)
            )
            self.e.append(nets)
            self.e_integer.append(nn.ModuleList(twins))
        self.h_s_integer = IntegerNet(self.h_s, signed=range(N // 2))
        self.synthesis_integer = IntegerSynthesis(M, self.g_s)
        self.register_buffer(
            "y_counts", torch.from_numpy(np.concatenate([frequencies(scale) for scale in SCALES]))
        )
        self._start_as_dct()

    @torch.no_grad()
    def _start_as_dct(self) -> None:
        """Set the linear transforms to a DCT, and convolutions and learned gains near nothing."""
        basis = dct_basis(self.M).flatten(1)[:, :, None, None]
        self.a_lin[1].weight.copy_(basis / STEP)
        self.s_lin[0].weight.copy_(basis.transpose(0, 1) * STEP)
        for layer in (self.g_a[-1], self.g_s[-2], self.gain[-1]):
            layer.weight.mul_(0.02)
            layer.bias.zero_()
        octaves = torch.log2(torch.tensor([scale for scale, *_ in spectrum(self.M)]) / SCALE_MIN)
        for (start, end), nets in zip(self.slices, self.e, strict=True):
            for net in nets:
                net[-1].bias[: end - start] = octaves[start:end] / OCTAVES

    @property
    def downsampling_factor(self) -> int:
        """Sides of x must be multiples of this."""
        return 64

    def gain_a(self, q: Tensor) -> Tensor:
        """Return the factors before quantisation (B, M, h, w) of quality indices q (B, 1, h, w)."""
        return self._gain(q, 0)

    def gain_s(self, q: Tensor) -> Tensor:
        """Return the factors after quantisation, as `gain_a`."""
        return self._gain(q, 1)

    def _gain(self, q: Tensor, side: int) -> Tensor:
        """Return the factors of a side: 0 before quantisation, 1 after it."""
        different, cells = q.unique(return_inverse=True)  # few, compared with the cells
        octaves = (different.float() - Q_MIDDLE)[:, None] / STEPS_PER_OCTAVE
        with torch.autocast(q.device.type, enabled=False):
            learned = self.gain(octaves / 4).chunk(2, 1)[side]
        # The best quantiser step is proportional to lmbda ** -0.5.
        plain = (0.5, -0.5)[side] * math.log(2) * octaves
        return F.embedding(cells[:, 0], (learned + plain).exp()).movedim(-1, 1)

    def analysis(self, x: Tensor) -> Tensor:
        """Transform x (B, 3, H, W) in [0, 1] to y (B, M, H/16, W/16) before its gain."""
        x = x - 0.5
        y, learned = self.a_lin(x).float(), self.g_a(x).float()
        y[:, : learned.shape[1]] += learned
        return y

    def synthesis(self, v: Tensor, q: Tensor) -> Tensor:
        """Transform y_hat after its gain (B, M, h, w) to x_hat (B, 3, 16 h, 16 w)."""
        x = self.linear(v)
        return self.g_s(self.correction_input(x, q)).float().add_(x).add_(0.5)

    def linear(self, v: Tensor) -> Tensor:
        """Return the linear picture (B, 3, 16 h, 16 w) of y_hat after its gain: x_hat - 0.5."""
        device = v.device.type
        # Outside training in fp32, as near as floats come to the integers of `picture`.
        with torch.autocast(device, enabled=self.training and torch.is_autocast_enabled(device)):
            return self.s_lin(v).float()

    def correction_input(self, x: Tensor, q: Tensor) -> Tensor:
        """Return the input (B, 193, H/8, W/8) of g_s from the linear picture."""
        fine = F.interpolate(condition(q), scale_factor=2, mode="nearest")
        return cat_channels([pixel_unshuffle(x, 8), fine])

    def hyper(self, y: Tensor, q: Tensor) -> Tensor:
        """Return z (B, N/2, h/4, w/4) of y after its gain."""
        return self.h_a(cat_channels([y.abs().add_(0.01).log(), condition(q)])).float()

    def medians(self) -> Tensor:
        """Return the medians of z, (N/2, 1, 1): symbols are rounded relative to them."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach()[:, None, None]

    def context(self, h: Tensor, q: Tensor, before: Tensor) -> Tensor:
        """Return what all passes over slice k see; before: y_hat of slices 0 … k-1."""
        return torch.cat([h, condition(q), magnitudes(before)], 1)

    def forward(self, x: Tensor, q: Tensor) -> dict:
        """Code and decode pictures, with noise or rounding for the entropy coder.

        x (B, 3, H, W) in [0, 1], sides multiples of 64; q (B, 1, H/16, W/16): quality indices
        0 … 654. Returns `x_hat` and `likelihoods` of y and z.
        """
        y_hat, likelihoods = self.quantised(x, q)
        return {"x_hat": self.synthesis(y_hat * self.gain_s(q), q), "likelihoods": likelihoods}

    def likelihoods(self, x: Tensor, q: Tensor) -> dict[str, Tensor]:
        """Return the `likelihoods` of `forward`, without making x_hat."""
        return self.quantised(x, q)[1]

    def quantised(self, x: Tensor, q: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return y_hat before its gain, and the likelihoods of y and z."""
        y = self.analysis(x) * self.gain_a(q)
        z_hat, z_likelihoods = self.entropy_bottleneck(self.hyper(y, q))
        h = self.h_s(z_hat - self.medians())
        y_hat, likelihoods = y[:, :0], []
        for k, (start, end) in enumerate(self.slices):
            part = y[:, start:end]
            rounded, octaves, means = self._code_slice(k, part, self.context(h, q, y_hat), q)
            likelihoods.append(
                self.gaussian_conditional.of_symbols(part, rounded, scale_of(octaves), means)
            )
            y_hat = torch.cat([y_hat, rounded], 1)
        return y_hat, {"y": torch.cat(likelihoods, 1), "z": z_likelihoods}

    def _code_slice(
        self, k: int, part: Tensor, context: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y_hat of a slice's y, its scales in octaves of SCALE_MIN, and its means."""
        numbers = pass_map(len(self.e[k]), *part.shape[-2:]).to(part.device)
        found = (torch.zeros_like(part),) * 3
        for number, net in enumerate(self.e[k]):
            seen = later_context(context, found[0]) if number else context
            octaves, means = net(seen).float().chunk(2, 1)
            # The plain gain scales y, too.
            octaves = OCTAVES * octaves + (q - Q_MIDDLE) / (2 * STEPS_PER_OCTAVE)
            # Straight-through gradients for what comes after.
            quantised = rdoq(part - means, scale_index_of(octaves)) + means
            rounded = part + (quantised - part).detach()
            found = tuple(
                torch.where(numbers == number, new, old)
                for new, old in zip((rounded, octaves, means), found, strict=True)
            )
        return found

    def contexts(self, h: Tensor, q: Tensor, y_hat: Tensor) -> list[list[Tensor]]:
        """Return the input of each network of e, by slice and pass."""
        found = []
        for (start, end), nets in zip(self.slices, self.e, strict=True):
            context = self.context(h, q, y_hat[:, :start])
            numbers = pass_map(len(nets), *y_hat.shape[-2:]).to(y_hat.device)
            later = (
                later_context(context, torch.where(numbers < number, y_hat[:, start:end], 0))
                for number in range(1, len(nets))
            )
            found.append([context, *later])
        return found

    def quantise(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Make the integer networks and the tables of z, which real coding needs.

        pictures: some (x, q) of `forward`, from which the ranges of activations are measured.
        """
        pictures = list(pictures)
        coding.make_integer_networks(self, pictures)
        self.synthesis_integer.quantise(self, pictures)
        self.entropy_bottleneck.update(force=True)

    def tables(self) -> tuple[Tables, Tables]:
        """Return the probability tables of the latents, y and z."""
        return coding.tables(self)

    def inputs(self, x: Tensor, quality: Callable, roi_mask: Callable, features: Callable) -> tuple:
        """Return the arguments of `forward` and `compress`; see `Hyperprior.inputs`."""
        return x, quality()

    @torch.no_grad()
    def compress(self, x: Tensor, q: Tensor) -> dict:
        """Code one picture: x (1, 3, H, W), q as in `forward`.

        Returns `strings` [[y], [z]], the `shape` of z, `symbols` (y int32, z int32), and their
        `checksum`.
        """
        with self.stage("analysis"):
            y = self.analysis(x)
        return self.write(y, q)

    def write(self, y: Tensor, q: Tensor) -> dict:
        """Return what `compress` returns, from the y of `analysis`."""
        y_coder, z_coder = Encoder(), Encoder()
        symbols = coding.encode_symbols(self, y, q, y_coder, z_coder)
        return {
            "strings": [[y_coder.data()], [z_coder.data()]],
            "shape": symbols[1].shape[:2],
            "symbols": symbols,
            "checksum": joint_checksum([y_coder, z_coder]),
        }

    def size(self, y: Tensor, q: Tensor) -> float:
        """Estimate the bytes of the strings of `write`, without writing them."""
        counter = Counter()
        coding.encode_symbols(self, y, q, counter, counter)
        return counter.bits / 8

    def decode_symbols(
        self, strings: list[list[bytes]], shape: tuple[int, int], q: Tensor
    ) -> tuple[list[np.ndarray], Tensor, int]:
        """Return the symbols that `compress` wrote, y_hat for `picture`, and a checksum."""
        return coding.decode_symbols(self, strings, shape, q)

    def picture(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """Return the picture (3, H, W) uint8 of the y_hat that `decode_symbols` returns.

        y_hat (H/16, W/16, M): int32 in units of MEAN_UNIT.
        """
        with self.stage("synthesis"):
            return self.synthesis_integer(y_hat, q[0, 0])

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int], q: Tensor) -> dict:
        """Return `x_hat` (1, 3, H, W) in [0, 1] from what `compress` returned and the same q."""
        y_hat = self.decode_symbols(strings, shape, q)[1]
        return {"x_hat": self.picture(y_hat, q)[None] / 255}
