"""One codec for every rate and every ROI strength: quality indices (roilib.roi) scale the latent cell by cell.

The transforms are a linear one, which starts as the 16x16 DCT of luma and two chroma axes, and a convolutional one beside it that learns what
the linear one cannot do. What decides probabilities runs on integers (roilib.models.integer), so a stream decodes to the same symbols everywhere.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from types import EllipsisType

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import EntropyBottleneck
from compressai.models import CompressionModel
from torch import Tensor, nn
from torch.profiler import record_function

from roilib.entropy_models.gaussian import (
    LEVELS_PER_OCTAVE,
    SCALE_LEVELS,
    SCALE_MIN,
    SCALES,
    TailedGaussian,
    level_of,
    round_to_cheap,
    scale_of,
)
from roilib.entropy_models.range_coder import (
    CODER_BITS,
    Counter,
    Decoder,
    Encoder,
    Tables,
    frequencies,
    reach,
)
from roilib.models import channels_last
from roilib.models.context import (
    CONTEXT_UNIT,
    MEAN_UNIT,
    VALUE_SCALE,
    VALUE_UNITS,
    Cells,
    Known,
    cells_of,
    magnitudes,
    passes_of,
    with_known,
)
from roilib.models.dct import dct_basis, spectrum
from roilib.models.integer import MAX, IntegerNet
from roilib.roi import CELL, STEPS_PER_OCTAVE, quality_index

Q_MIDDLE, Q_SPREAD = (
    quality_index(0.012),
    263,
)  # quality indices that 0 and 1 stand for as an input of networks, 1 relative to 0
STEP = 46.5 / 255  # the DCT quantiser's step that suits lmbda 0.012
SLICES = (16, 64, 192)  # where the latent's channels, largest scales first, are cut
PASSES = (3, 2, 1, 1)  # over the cells of each slice: where most bits are, neighbours tell most
Q_UNIT = 4  # steps of quality that 1 stands for in the integer networks
LEVEL_SHIFT = (
    2 * STEPS_PER_OCTAVE // LEVELS_PER_OCTAVE
).bit_length() - 1  # 2 to its power: steps of quality that raise the scale by a level
OCTAVES = 4  # of scale that 1 in an entropy network's output stands for


class Block(nn.Module):
    """A residual bottleneck. exact: but in training its last layer and the sum are never bf16, where most of its error would come from."""

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
        if self.training or not self.exact:
            return x + self.body(x)
        hidden = self.body[:-1](x)
        with torch.autocast(x.device.type, enabled=False):
            return x.float() + self.body[-1](hidden.float())


def conv3(i: int, o: int) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(i, o, 3, padding=1)


def entropy_parameters(i: int, hidden: int, o: int) -> nn.Sequential:
    """From the i channels of a context to scales and means."""
    return nn.Sequential(
        conv3(i, hidden), nn.ReLU(), conv3(hidden, hidden), nn.ReLU(), nn.Conv2d(hidden, o, 1)
    )


class RoiVbr(CompressionModel):
    """Variable-rate codec whose rate and ROI strength are a map of quality indices q, one a 16x16 cell.

        x ─┬─► a_lin ─►(+)─► y · gain_a(q) ─►(-)─► Q ─► AE ═══ AD ─►(+)─► · gain_s(q) ─► s_lin ─┬─►(+)─► x_hat
           └─► g_a ─────┘            │      means    scales, means                               └─► g_s ─┘
                                     ├─► h_a(·, q) ─► z ─ Q · EB ─► h_s ─► h ─┐     ▲
                                     │                                        ├─► e[k][pass](h, q, …)
                                     └── y_hat of slices 0 … k-1 and of k's ──┘
                                         cells that earlier passes coded

    y (B, M, H/16, W/16) is cut into slices of falling scale; the probabilities of each depend on those before it, and in the first two also on
    neighbouring cells, which earlier passes over the slice have coded (roilib.models.context): e[k] holds a network a pass. h_s and e run on integers
    when bits are written or read. g_s corrects the linear synthesis in the picture, at an eighth of its size.

    Args:
        N: channels of the convolutional transforms at 1/8; the hyper networks have as many.
        M: channels of the latent, at most 768 = 3 * 16 * 16 (all of a cell).
    Sources: spatially scaled latents, Perugachi-Diaz et al. (BMVC 2022); gain units, Cui et al. (CVPR 2021); channel slices, Minnen and Singh
    (ICIP 2020); passes over cells, He et al. (CVPR 2021).
    """

    def __init__(self, N: int = 128, M: int = 768):
        super().__init__()
        self.N, self.M = N, M
        cuts = (0, *(cut for cut in SLICES if cut < M), M)
        self.slices = list(itertools.pairwise(cuts))
        low = min(256, M)  # channels that the convolutional analysis adds to
        self.entropy_bottleneck = EntropyBottleneck(
            N // 2, init_scale=1
        )  # of CompressAI's 10 it takes thousands of steps to recover
        self.gaussian_conditional = TailedGaussian(None, scale_bound=SCALE_MIN)
        self.a_lin = nn.Sequential(
            channels_last.PixelUnshuffle(CELL), nn.Conv2d(3 * CELL**2, M, 1, bias=False)
        )
        self.s_lin = nn.Sequential(nn.Conv2d(M, 3 * CELL**2, 1, bias=False), nn.PixelShuffle(CELL))
        self.g_a = nn.Sequential(
            channels_last.PixelUnshuffle(8),
            conv3(192, N),
            *(Block(N) for _ in range(4)),
            nn.Conv2d(N, low, 4, 2, 1),
        )
        self.g_s = nn.Sequential(
            conv3(192 + 1, N),
            *(Block(N, exact=True) for _ in range(4)),
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
            n, shared = (
                end - start,
                N + 1 + start,
            )  # channels of a slice, and of what all its passes know
            own = [
                3 * n if turn else 0 for turn in range(passes)
            ]  # channels that tell of the slice's own y_hat
            nets = nn.ModuleList(entropy_parameters(shared + more, N, 2 * n) for more in own)
            signed = [[N, *range(shared + n, shared + more)] for more in own]
            twins = (
                IntegerNet(net, places, fine=passes > 1)
                for net, places in zip(nets, signed, strict=True)
            )  # the first slices' means need them
            self.e.append(nets)
            self.e_integer.append(nn.ModuleList(twins))
        self.h_s_integer = IntegerNet(self.h_s, signed=range(N // 2))
        self.register_buffer(
            "y_counts", torch.from_numpy(np.concatenate([frequencies(scale) for scale in SCALES]))
        )
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """A DCT codec at first: the convolutional transforms and the learned gains begin near nothing."""
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
        """Factors before quantisation (B, M, h, w) of the quality indices q (B, 1, h, w)."""
        return self._gain(q, 0)

    def gain_s(self, q: Tensor) -> Tensor:
        """Factors after quantisation, as `gain_a`."""
        return self._gain(q, 1)

    def _gain(self, q: Tensor, side: int) -> Tensor:
        """The factors of a side, 0: before quantisation, 1: after it."""
        different, cells = q.unique(return_inverse=True)  # few, beside the cells
        octaves = (different.float() - Q_MIDDLE)[:, None] / STEPS_PER_OCTAVE
        with torch.autocast(q.device.type, enabled=False):
            learned = self.gain(octaves / 4).chunk(2, 1)[side]
        plain = (
            (0.5, -0.5)[side] * math.log(2) * octaves
        )  # the step that suits lmbda goes with its root
        return F.embedding(cells[:, 0], (learned + plain).exp()).movedim(-1, 1)

    def analysis(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) in [0, 1] → y (B, M, H/16, W/16) before its gain."""
        x = x - 0.5
        y, learned = self.a_lin(x).float(), self.g_a(x).float()
        y[:, : learned.shape[1]] += learned
        return y

    def synthesis(self, v: Tensor, q: Tensor) -> Tensor:
        """y_hat after its gain (B, M, h, w) → x_hat (B, 3, 16 h, 16 w)."""
        device = v.device.type
        with torch.autocast(
            device, enabled=self.training and torch.is_autocast_enabled(device)
        ):  # decoders of other precision see the same picture
            x = self.s_lin(v).float()
        fine = F.interpolate(self.condition(q), scale_factor=2, mode="nearest")
        return (
            self.g_s(channels_last.cat([channels_last.pixel_unshuffle(x, 8), fine]))
            .float()
            .add_(x)
            .add_(0.5)
        )

    @staticmethod
    def condition(q: Tensor) -> Tensor:
        """Quality indices as an input of networks, -1.7 … 0.8."""
        return (q.float() - Q_MIDDLE) / Q_SPREAD

    def hyper(self, y: Tensor, q: Tensor) -> Tensor:
        """z (B, N/2, h/4, w/4) of y after its gain."""
        return self.h_a(channels_last.cat([y.abs().add_(0.01).log(), self.condition(q)])).float()

    def medians(self) -> Tensor:
        """(N/2, 1, 1): what z is rounded relative to."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach()[:, None, None]

    def context(self, h: Tensor, q: Tensor, before: Tensor) -> Tensor:
        """What all passes over slice k know; before: y_hat of the slices before it (B, start, h, w)."""
        return torch.cat([h, self.condition(q), magnitudes(before)], 1)

    def forward(self, x: Tensor, q: Tensor) -> dict:
        """x (B, 3, H, W) in [0, 1], sides multiples of 64; q (B, 1, H/16, W/16) quality indices 0 … 654."""
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
        return {
            "x_hat": self.synthesis(y_hat * self.gain_s(q), q),
            "likelihoods": {"y": torch.cat(likelihoods, 1), "z": z_likelihoods},
        }

    def _code_slice(
        self, k: int, part: Tensor, context: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y_hat of a slice's y, and the scales (in octaves of SCALE_MIN) and means that its symbols are coded with, all (B, n, h, w)."""
        turns, found = (
            passes_of(len(self.e[k]), *part.shape[-2:]).to(part.device),
            (torch.zeros_like(part),) * 3,
        )
        for turn, net in enumerate(self.e[k]):
            octaves, means = (
                net(with_known(context, found[0]) if turn else context).float().chunk(2, 1)
            )
            octaves = OCTAVES * octaves + (q - Q_MIDDLE) / (
                2 * STEPS_PER_OCTAVE
            )  # the plain gain's
            rounded = (
                part + (round_to_cheap(part - means, level_of(octaves)) + means - part).detach()
            )  # straight through for what comes after
            found = tuple(
                torch.where(turns == turn, new, old)
                for new, old in zip((rounded, octaves, means), found, strict=True)
            )
        return found

    def _contexts(self, h: Tensor, q: Tensor, y_hat: Tensor) -> list[list[Tensor]]:
        """By slice and pass: the input of each network of e."""
        found = []
        for (start, end), nets in zip(self.slices, self.e, strict=True):
            context, turns = (
                self.context(h, q, y_hat[:, :start]),
                passes_of(len(nets), *y_hat.shape[-2:]).to(y_hat.device),
            )
            later = (
                with_known(context, torch.where(turns < turn, y_hat[:, start:end], 0))
                for turn in range(1, len(nets))
            )
            found.append([context, *later])
        return found

    @torch.no_grad()
    def quantise(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Make the integer networks from the trained ones, and z's tables; pictures: some (x, q) of `forward`, to see how large activations get."""
        hyper_latents, contexts = [], []
        for x, q in pictures:
            y = self.analysis(x) * self.gain_a(q)
            hyper_latents.append(torch.round(self.hyper(y, q) - self.medians()))
            contexts.append(self._contexts(self.h_s(hyper_latents[-1]), q, torch.round(y)))
        unit_h, unit_q = (
            self.h_s_integer.quantise(self.h_s, hyper_latents, torch.ones(self.N // 2)),
            torch.tensor([Q_UNIT / Q_SPREAD]),
        )
        for k, (start, end) in enumerate(self.slices):
            own = torch.tensor(
                [CONTEXT_UNIT, *(unit / VALUE_SCALE for unit in VALUE_UNITS)]
            ).repeat_interleave(end - start)
            outputs = torch.full(
                (2 * (end - start),), 1 / (OCTAVES * 2 * STEPS_PER_OCTAVE)
            )  # a step of quality moves the scale by as much
            outputs[end - start :] = MEAN_UNIT
            for turn, (integer, net) in enumerate(zip(self.e_integer[k], self.e[k], strict=True)):
                units = torch.cat(
                    [unit_h, unit_q, torch.full((start,), CONTEXT_UNIT), own if turn else own[:0]]
                )
                integer.quantise(net, [seen[k][turn] for seen in contexts], units, outputs)
        self.entropy_bottleneck.update(force=True)

    def tables(self) -> tuple[Tables, Tables]:
        """Probability tables of y's levels and of z's channels, not to be changed: the same objects for the same weights."""
        bottleneck = self.entropy_bottleneck
        cdfs, lengths, offsets = (
            t.cpu().numpy()
            for t in (bottleneck._quantized_cdf, bottleneck._cdf_length, bottleneck._offset)
        )
        rows = tuple(cdf[:length].tobytes() for cdf, length in zip(cdfs, lengths, strict=True))
        return _y_tables(self.y_counts.cpu().numpy().tobytes()), _z_tables(
            rows, tuple(offsets.tolist())
        )

    def coded(self, part: slice, levels: np.ndarray) -> np.ndarray | EllipsisType:
        """Index of the levels (cells, n) whose symbols are in the stream: in the last slice not the lowest level's, too sure to be zero."""
        return levels > 0 if part.stop == self.M else ...

    @torch.no_grad()
    def scan(
        self,
        z: np.ndarray,
        q: Tensor,
        code: Callable[[slice, Cells, np.ndarray, np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, Tensor]:
        """The symbols and y_hat in units of MEAN_UNIT, both (h, w, M) int32, slice by slice and pass by pass, all on integers on the CPU.

        z (h/4, w/4, N/2): symbols; q (1, 1, h, w); code(channels, cells, levels, means) gives the symbols of these channels at these cells, as levels
        and means all (cells, n) integers, the means in units of MEAN_UNIT: an encoder makes and writes them, a decoder reads them.
        """
        with record_function("hyper synthesis"):
            h = self.h_s_integer(torch.from_numpy(z.astype(np.int8))[None])[0]
        (height, width), gain = q.shape[-2:], q.cpu().flatten().int() - Q_MIDDLE
        nearest = gain[:, None] + (1 << LEVEL_SHIFT - 1)
        known = Known(h, torch.div(gain + Q_UNIT // 2, Q_UNIT, rounding_mode="floor"), self.M)
        for (start, end), nets in zip(self.slices, self.e_integer, strict=True):
            for turn, (net, cells) in enumerate(
                zip(nets, cells_of(len(nets), height, width), strict=True)
            ):
                with record_function("entropy networks"):
                    found = net(
                        known.seen(slice(start, end), turn), cells if len(nets) > 1 else None
                    )
                    scales, means = found.view(-1, 2 * (end - start)).chunk(2, 1)
                    levels = (
                        (scales + nearest[cells])
                        .bitwise_right_shift_(LEVEL_SHIFT)
                        .clamp_(0, SCALE_LEVELS - 1)
                        .to(torch.uint8)
                    )
                with record_function("entropy coding"):
                    symbols = torch.from_numpy(
                        code(slice(start, end), cells, levels.numpy(), means.numpy())
                    )
                with record_function("entropy networks"):
                    known.add(slice(start, end), cells, symbols, means, more=turn + 1 < len(nets))
        return known.symbols.view(height, width, -1).numpy(), known.y_hat.view(height, width, -1)

    @torch.no_grad()
    def compress(self, x: Tensor, q: Tensor) -> dict:
        """Bytes of one picture: x (1, 3, H, W), q as in `forward` → strings [[y], [z]], shape of z, and the symbols (y int32, z int32)."""
        with record_function("analysis"):
            y = self.analysis(x)
        return self.write(y, q)

    def write(self, y: Tensor, q: Tensor) -> dict:
        """What `compress` returns, of the y of `analysis`."""
        y_coder, z_coder = Encoder(), Encoder()
        symbols = self._put(y, q, y_coder, z_coder)
        return {
            "strings": [[y_coder.data()], [z_coder.data()]],
            "shape": symbols[1].shape[:2],
            "symbols": symbols,
        }

    def size(self, y: Tensor, q: Tensor) -> float:
        """About how many bytes the strings of `write` have, without writing them."""
        counter = Counter()
        self._put(y, q, counter, counter)
        return counter.bits / 8

    @torch.no_grad()
    def _put(
        self, y: Tensor, q: Tensor, y_coder: Encoder | Counter, z_coder: Encoder | Counter
    ) -> list[np.ndarray]:
        """Give all symbols to the coders, and return them: y (h, w, M), z (h/4, w/4, N/2)."""
        with record_function("tables"):
            y_tables, z_tables = self.tables()
        y = y * self.gain_a(q)
        with record_function("hyper analysis"):
            z = _cells_first(torch.round(self.hyper(y, q) - self.medians()))
        z = z.clip(z_tables.low.clip(-MAX), z_tables.high.clip(max=MAX)).astype(np.int32)
        z_coder.put(z.ravel(), self.z_levels(z.shape[:2]), z_tables)
        rows = _cells_first(y).reshape(-1, self.M)

        def code(part: slice, cells: Cells, levels: np.ndarray, means: np.ndarray) -> np.ndarray:
            coded, symbols = self.coded(part, levels), np.zeros(levels.shape, np.int32)
            chosen = levels[coded]
            bound, distance = (
                y_tables.high[chosen],
                rows[cells, part][coded] - means[coded] * np.float32(MEAN_UNIT),
            )
            symbols[coded] = (
                round_to_cheap(torch.from_numpy(distance), torch.from_numpy(chosen))
                .numpy()
                .clip(-bound, bound)
            )
            y_coder.put(symbols[coded].ravel(), chosen.ravel(), y_tables)
            return symbols

        return [self.scan(z, q, code)[0], z]

    @torch.no_grad()
    def decode_symbols(
        self, strings: list[list[bytes]], shape: tuple[int, int], q: Tensor
    ) -> tuple[list[np.ndarray], Tensor]:
        """The symbols that `compress` wrote, [y (h, w, M), z (h/4, w/4, N/2)], and y_hat (1, M, h, w)."""
        with record_function("tables"):
            y_tables, z_tables = self.tables()
        z = Decoder(strings[1][0]).get(self.z_levels(shape), z_tables).reshape(*shape, -1)
        coder = Decoder(strings[0][0])

        def code(part: slice, cells: Cells, levels: np.ndarray, means: np.ndarray) -> np.ndarray:
            coded, symbols = self.coded(part, levels), np.zeros(levels.shape, np.int32)
            chosen = levels[coded]
            symbols[coded] = coder.get(chosen.ravel(), y_tables).reshape(chosen.shape)
            return symbols

        y, y_hat = self.scan(z, q, code)
        return [y, z], (y_hat * MEAN_UNIT).movedim(-1, 0)[None]

    def least_bytes(self, shape: tuple[int, int]) -> int:
        """No stream of a z (*shape, N/2) has fewer: that of the most probable symbols, less what the coder keeps."""
        return max(
            0, math.floor((math.prod(shape) * self.tables()[1].least_bits.sum() - CODER_BITS) / 8)
        )

    def z_levels(self, shape: tuple[int, int]) -> np.ndarray:
        """The number of z's table, its channel, of each symbol of a z (*shape, N/2)."""
        return np.tile(np.arange(self.N // 2, dtype=np.uint8), math.prod(shape))

    @torch.no_grad()
    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int], q: Tensor) -> dict:
        """`x_hat` (1, 3, H, W) in [0, 1] from what `compress` returned and the same q."""
        _, y_hat = self.decode_symbols(strings, shape, q)
        return {"x_hat": self.reconstruct(y_hat, q)}

    def reconstruct(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """x_hat (1, 3, H, W) in [0, 1] of the y_hat that `decode_symbols` returns."""
        with record_function("synthesis"):
            return self.synthesis(y_hat.to(q.device) * self.gain_s(q), q).clamp_(0, 1)


@functools.lru_cache(8)
def _y_tables(counts: bytes) -> Tables:
    ends = np.cumsum([reach(scale) + 1 for scale in SCALES])[:-1]
    return Tables.symmetric(np.split(np.frombuffer(counts, np.int32), ends))


@functools.lru_cache(8)
def _z_tables(cdfs: tuple[bytes, ...], offsets: tuple[int, ...]) -> Tables:
    return Tables(
        [np.diff(np.frombuffer(cdf, np.int32)[:-1]) for cdf in cdfs], offsets
    )  # the last entry is CompressAI's escape


def _cells_first(latent: Tensor) -> np.ndarray:
    """(1, C, h, w) → (h, w, C) fp32 on the CPU."""
    return latent[0].float().permute(1, 2, 0).cpu().contiguous().numpy()
