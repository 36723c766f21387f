"""Structures of a second roi_vbr that the trials compare, in floats, rounded straight through.

`Trunks` has an exact integer decoder in mind (integer_layer.py): all its activations stand behind a
ReLU, residual sums included, and nothing but convolutions, a table (`signed_log`), a fixed DCT and
the gains is between symbols and picture.
"""

import functools
import math

import torch
import torch.nn.functional as F
from prior import EntropyBottleneck
from torch import Tensor, nn

from roilib.models.layers import cat_channels as cat
from roilib.models.layers import pixel_unshuffle, spectrum
from roilib.roi import CELL, STEPS_PER_OCTAVE, quality_index

Q_MIDDLE, Q_SPREAD, STEP, OCTAVES = quality_index(0.012), 263, 46.5 / 255, 4
# By pass: its quarter of the channels is this xor the cell's place in 2x2 cells.
QUARTERS = (0, 3, 1, 2)
# As in roilib.entropy_models, which need packages that a GPU machine may lack.
SCALE_MIN, SCALE_COUNT, SCALES_PER_OCTAVE = 0.1, 80, 8
TAIL_SHARE, BIT_WORTH, TOTAL = 2.0**-11, 0.055, 1 << 24
LINEAR = 16  # channels whose values are context too, not only their logarithms
VALUE_SCALE = 8


def signed_log(y: Tensor) -> Tensor:
    """log2(1 + |y|) with the sign of y."""
    return (1 + y.abs()).log2().copysign(y)


def scale_index_of(octaves: Tensor) -> Tensor:
    """int64: the index of the scale nearest to so many octaves above SCALE_MIN."""
    return (octaves * SCALES_PER_OCTAVE).round().nan_to_num().clamp(0, SCALE_COUNT - 1).long()


@functools.cache
def threshold_table(device: torch.device) -> Tensor:
    """`roilib.entropy_models.gaussian`: the least distance from the mean worth symbol 0, 1, 2, …"""
    rows = []
    for scale_index in range(SCALE_COUNT):
        scale = SCALE_MIN * 2 ** (scale_index / SCALES_PER_OCTAVE)
        k = torch.arange(16 + math.ceil(8 * scale), dtype=torch.float64)
        ends = torch.erf((torch.stack([k + 0.5, k - 0.5])) / scale / math.sqrt(2))
        gauss, tail = (ends[0] - ends[1]) / 2, 2.0 ** (-k / (1 + scale))
        sides, share = torch.where(k == 0, 1, 2), TAIL_SHARE * min(scale, 1)
        p = (1 - share) * gauss / (gauss * sides).sum() + share * tail / (tail * sides).sum()
        counts = (p * TOTAL).round().clamp(min=1)
        counts[0] += TOTAL - (counts * sides).sum()
        bits = -(counts / TOTAL).log2()
        least = torch.arange(1, len(bits)) - 0.5 + BIT_WORTH / 2 * bits.diff()
        rows.append(F.pad(least, (1, 0)).float())
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)


def rdoq(distance: Tensor, scale_indices: Tensor) -> Tensor:
    """`roilib.entropy_models.gaussian.rdoq` in one sweep over all, for training."""
    size, table = distance.abs(), threshold_table(distance.device)
    symbols = size.round().clamp_(max=table.shape[1] - 1)
    least = table.view(-1).take(scale_indices * table.shape[1] + symbols.long())
    return symbols.sub_((size < least).float()).copysign_(distance).nan_to_num_()


class _Bits(torch.autograd.Function):
    """Bits of y_hat's symbols under `TailedGaussian`, with the gradients of `of_symbols`.

    In closed form: the scales (in octaves) learn from the symbols, y and the means from noise.
    """

    @staticmethod
    def forward(ctx, y: Tensor, y_hat: Tensor, octaves: Tensor, means: Tensor) -> Tensor:
        inside = octaves.clamp(0, (SCALE_COUNT - 1) / SCALES_PER_OCTAVE)
        scale = SCALE_MIN * torch.exp2(inside)
        inverse, share = scale.reciprocal(), TAIL_SHARE * scale.clamp(max=1)
        log_ratio = (scale + 1).reciprocal_().mul_(-math.log(2))
        ratio = log_ratio.exp()
        tail_0 = share * (1 - ratio) / (1 + ratio)

        def parts(d: Tensor) -> tuple[Tensor, ...]:
            a, b = (0.5 - d).mul_(inverse), (-0.5 - d).mul_(inverse)
            gauss = torch.erfc(a * -(0.5**0.5)).sub_(torch.erfc(b * -(0.5**0.5))).mul_(0.5)
            tail = (log_ratio * d).exp_().mul_(tail_0)
            return (
                a,
                b,
                gauss,
                tail,
                torch.addcmul(gauss + tail, gauss, share, value=-1).clamp_(min=1e-9),
            )

        def density(v):
            return v.square().mul_(-0.5).exp_().mul_((2 * math.pi) ** -0.5)

        d = (y_hat - means).abs_()
        a, b, gauss, tail, p = parts(d)
        bits = p.log2().neg_()
        small = (scale < 1).float()
        slope = (b * density(b)).sub_(a * density(a)).mul_(1 - share)  # of p, times the scale
        slope.add_(
            tail
            * (
                small
                + (d - 2 * ratio / (1 - ratio.square())) * log_ratio.square() * scale / math.log(2)
            )
        ).sub_(share * small * gauss)
        of_octaves = slope.div_(p).neg_()
        of_octaves[(octaves > inside) | ((octaves < inside) & (of_octaves > 0))] = 0
        noisy = (y - means).add_(torch.empty_like(y).uniform_(-0.5, 0.5))
        d = noisy.abs()
        a, b, gauss, tail, p = parts(d)
        of_y = (
            density(b)
            .sub_(density(a))
            .mul_(inverse)
            .mul_(1 - share)
            .add_(tail * log_ratio)
            .div_(p)
            .mul_(-1 / math.log(2))
            .mul_(noisy.sign())
        )
        ctx.save_for_backward(of_y, of_octaves)
        return bits

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        of_y, of_octaves = (g * v for v in ctx.saved_tensors)
        return of_y, None, of_octaves, -of_y


class _Dct(torch.autograd.Function):
    """Orthonormal, so that the gradient of one direction is the other direction."""

    @staticmethod
    def forward(ctx, x: Tensor, tables: "DctTables", inverse: bool) -> Tensor:
        ctx.tables, ctx.inverse = tables, inverse
        return tables.inverse(x) if inverse else tables.forward(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.tables.forward(g) if ctx.inverse else ctx.tables.inverse(g)), None, None


class DctTables:
    """16x16 DCT of luma and two chroma axes, in the order of `roilib.models.layers.spectrum`."""

    def __init__(self):
        k = torch.arange(float(CELL), dtype=torch.float64)
        rows = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * CELL)) * math.sqrt(
            2 / CELL
        )
        rows[0] /= math.sqrt(2)
        axes = torch.tensor([[1, 1, 1], [-1, 0, 1], [1, -2, 1]], dtype=torch.float64)
        self.rows, self.axes = rows.float(), (axes / axes.norm(dim=1, keepdim=True)).float()
        self.order = torch.tensor(
            [axis * CELL**2 + u * CELL + v for _, axis, u, v in spectrum(3 * CELL**2)]
        )
        self.back = self.order.argsort()

    def to(self, device: torch.device) -> "DctTables":
        """Its tables there; they are no weights."""
        for name, table in vars(self).items():
            setattr(self, name, table.to(device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 768, H/16, W/16), channels last."""
        b, _, height, width = x.shape
        x = torch.einsum("ac,bchw->bahw", self.axes, x).contiguous()
        x = self.rows @ x.view(b, 3, height // CELL, CELL, width)
        x = x.view(b, 3, height // CELL, CELL, width // CELL, CELL) @ self.rows.T
        rows = (
            x.permute(1, 3, 5, 0, 2, 4).reshape(768, -1).index_select(0, self.order)
        )  # whole rows are copied fast
        return rows.t().contiguous().view(b, height // CELL, width // CELL, -1).movedim(-1, 1)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, 768, h, w) → (B, 3, 16 h, 16 w)."""
        b, _, h, w = y.shape
        y = (
            y.movedim(1, -1)
            .reshape(-1, 768)
            .t()
            .contiguous()
            .index_select(0, self.back)
            .view(3, CELL, CELL, b, h, w)
        )
        y = y.permute(3, 0, 4, 1, 5, 2).contiguous() @ self.rows
        y = y.view(b, 3, h, CELL, w * CELL)
        y = (self.rows.T @ y).view(b, 3, h * CELL, w * CELL)
        return torch.einsum("ac,bahw->bchw", self.axes, y).contiguous(
            memory_format=torch.channels_last
        )


def conv1(i: int, o: int, gain: float = 1.0) -> nn.Conv2d:
    """1x1 convolution, its weights so large that behind a ReLU the variance stays."""
    layer = nn.Conv2d(i, o, 1)
    nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / i))
    nn.init.zeros_(layer.bias)
    return layer


def depthwise(channels: int, side: int = 3) -> nn.Conv2d:
    """A filter of its own for each channel."""
    layer = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels)
    nn.init.normal_(layer.weight, std=math.sqrt(1 / side**2))
    layer.weight.data[:, 0, side // 2, side // 2] += 0.7
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """A residual block: 1x1, depthwise 3x3, 1x1; unsigned in, unsigned out."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.body = nn.Sequential(
            conv1(channels, hidden),
            nn.ReLU(),
            depthwise(hidden),
            nn.ReLU(),
            conv1(hidden, channels, 0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Pass(nn.Module):
    """Scales and means of a pass from what is known."""

    def __init__(self, own: int, hidden: int, o: int):
        super().__init__()
        self.known = conv1(own, hidden, 0.5) if own else None
        self.bias = nn.Parameter(torch.zeros(hidden, 1, 1))
        self.rest = nn.Sequential(
            depthwise(hidden, 5),
            nn.ReLU(),
            conv1(hidden, hidden),
            nn.ReLU(),
            depthwise(hidden),
            nn.ReLU(),
            conv1(hidden, o, 0.1),
        )

    def forward(self, base: Tensor, known: Tensor | None = None) -> Tensor:
        base = base + self.bias
        return self.rest(F.relu(base if known is None else base + self.known(known)))


class Trunks(nn.Module):
    """A fixed DCT each way, and two trunks each way that add what it cannot do.

        x ─┬─► DCT · d_a ────────────► (+) ─► · gain_a ─► Q ─► y_hat
           └─► trunk 1/8 ─► trunk 1/16 ─┘
        y_hat ─┬─► · gain_s ─► DCT⁻¹ ────────────────┬──────────────┬──► (+) ─► x_hat
               └─► signed_log, h ─► trunk 1/16 ─► trunk 1/8 (+ the linear picture) ─┘

    Entropy model: z ─► h; slice 0 in four passes, each over a quarter of the channels at each cell,
    another quarter at each of 2x2 cells; slice 1 in two passes over halves; the rest at once.

    Args:
        N, C: channels of the trunks at 1/8 and 1/16; E: of the entropy networks.
        hidden: how many times as many a block has inside, at 1/8 and 1/16.
        a8, a16, s8, s16: blocks of analysis and synthesis at 1/8 and 1/16.
    Sources: linear shortcuts, AuxT (Li et al. 2025); quarters, DCVC-DC (Li et al., CVPR 2023).
    """

    def __init__(
        self,
        N=128,
        C=256,
        E=128,
        hidden=(2, 1),
        a8=3,
        a16=2,
        s8=3,
        s16=2,
        slices=(64, 192, 768),
        hyper=96,
    ):
        super().__init__()
        self.M, self.slices, self.tables = slices[-1], slices, DctTables()

        def blocks8(n):
            return [Block(N, int(hidden[0] * N)) for _ in range(n)]

        def blocks16(n):
            return [Block(C, int(hidden[1] * C)) for _ in range(n)]

        self.d_a = nn.Parameter(torch.full((self.M, 1, 1), 1 / STEP))
        self.a8 = nn.Sequential(conv1(192 + 1, N), nn.ReLU(), *blocks8(a8))
        self.a16 = nn.Sequential(
            conv1(4 * N + 1, C), nn.ReLU(), *blocks16(a16), conv1(C, self.M, 0.001)
        )
        self.s16 = nn.Sequential(
            conv1(self.M + hyper + 1, C),
            nn.ReLU(),
            *blocks16(s16),
            conv1(C, 4 * N, 0.7),
            nn.PixelShuffle(2),
            nn.ReLU(),
        )
        self.s8_in = conv1(192 + 1, N, 0.7)
        self.s8 = nn.Sequential(nn.ReLU(), *blocks8(s8), conv1(N, 192, 0.001), nn.PixelShuffle(8))
        self.gain = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2 * self.M))
        self.gain[-1].weight.data.mul_(0.02), self.gain[-1].bias.data.zero_()
        self.h_a = nn.Sequential(
            conv1(self.M + 1, hyper),
            nn.ReLU(),
            nn.Conv2d(hyper, hyper, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(hyper, hyper // 2, 4, 2, 1),
        )

        def up(i):
            return [nn.Conv2d(i, 4 * hyper, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()]

        self.h_s = nn.Sequential(*up(hyper // 2), *up(hyper))
        self.entropy_bottleneck = EntropyBottleneck(hyper // 2, init_scale=1)
        n0, n1 = slices[0], slices[1] - slices[0]
        self.base = nn.ModuleList(
            [
                conv1(hyper + 1, E, 0.7),
                conv1(hyper + 1 + 2 * n0, E, 0.7),
                conv1(hyper + 1 + slices[1], E, 0.7),
            ]
        )
        self.e0 = nn.ModuleList(Pass((2 * n0 + LINEAR) if t else 0, E, 2 * n0) for t in range(4))
        self.e1 = nn.ModuleList(Pass(2 * n1 if t else 0, E, 2 * n1) for t in range(2))
        self.e2 = Pass(0, E, 2 * (self.M - slices[1]))
        octaves = (
            torch.log2(torch.tensor([scale for scale, *_ in spectrum(self.M)]) / SCALE_MIN)
            / OCTAVES
        )
        for nets, start, end in (
            (self.e0, 0, n0),
            (self.e1, n0, slices[1]),
            ([self.e2], slices[1], self.M),
        ):
            for net in nets:
                net.rest[-1].bias.data[: end - start] = octaves[start:end]

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self.tables.to(self.d_a.device)
        return self

    def _gain(self, q: Tensor) -> tuple[Tensor, Tensor]:
        different, cells = q.unique(return_inverse=True)
        octaves = (different.float() - Q_MIDDLE)[:, None] / STEPS_PER_OCTAVE
        plain = 0.5 * math.log(2) * octaves
        a, s = self.gain(octaves / 4).chunk(2, 1)
        a, s = (a + plain).exp(), (s - plain).exp() * STEP
        return tuple(F.embedding(cells[:, 0], v).movedim(-1, 1) for v in (a, s))

    def analysis(self, x: Tensor, condition: Tensor) -> Tensor:
        x = x - 0.5
        fine = self.a8(
            cat([pixel_unshuffle(x, 8), F.interpolate(condition, scale_factor=2, mode="nearest")])
        )
        return _Dct.apply(x, self.tables, False) * self.d_a + self.a16(
            cat([pixel_unshuffle(fine, 2), condition])
        )

    def synthesis(self, logs: Tensor, v: Tensor, h: Tensor) -> Tensor:
        """h: what the hyper synthesis gives, and the quality."""
        linear = _Dct.apply(v, self.tables, True)
        fine = F.interpolate(h[:, -1:], scale_factor=2, mode="nearest")
        t = self.s16(cat([logs, h])) + self.s8_in(cat([pixel_unshuffle(linear, 8), fine]))
        return self.s8(t) + linear + 0.5

    def forward(self, x: Tensor, q: Tensor) -> dict:
        gain_a, gain_s = self._gain(q)
        condition = (q.float() - Q_MIDDLE) / Q_SPREAD
        y = self.analysis(x, condition) * gain_a
        z = self.h_a(cat([(y.abs() + 0.01).log(), condition]))
        z_hat, z_likelihoods = self.entropy_bottleneck(z)
        medians = self.entropy_bottleneck.quantiles[:, 0, 1].detach()[:, None, None]
        h = cat([self.h_s(z_hat - medians), condition])
        shift = (q - Q_MIDDLE) / (2 * STEPS_PER_OCTAVE)
        rows, columns = (torch.arange(n, device=q.device) for n in q.shape[2:])
        place, (n0, n1) = rows[:, None] % 2 * 2 + columns % 2, self.slices[:2]

        passes = (
            torch.arange(n0, device=q.device)[:, None, None] % 4
        ) ^ place  # a quarter of the channels a pass
        masks, base = [passes == number for number in QUARTERS], self.base[0](h)
        found = self._passes(self.e0, masks, base, y[:, :n0], shift, LINEAR)
        logs0 = signed_log(found[0])
        passes = (
            torch.arange(n1 - n0, device=q.device)[:, None, None] + place // 2 + place
        ) % 2  # a half
        masks, base = (
            [passes == number for number in range(2)],
            self.base[1](cat([h, logs0, logs0.abs()])),
        )
        more = self._passes(self.e1, masks, base, y[:, n0:n1], shift, 0)
        logs1 = signed_log(more[0])
        base = self.base[2](cat([h, logs0.abs(), logs1.abs()]))
        last = self._code(self.e2(base), y[:, n1:], shift)
        y_hat, octaves, means = (cat(parts) for parts in zip(found, more, last, strict=True))
        bits = _Bits.apply(y, y_hat.detach(), octaves, means)
        logs = cat([logs0, logs1, signed_log(last[0])])
        return {
            "x_hat": self.synthesis(logs, y_hat * gain_s, h),
            "bits": {"y": bits, "z": -z_likelihoods.log2()},
        }

    @staticmethod
    def _code(parameters: Tensor, part: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        octaves, means = parameters.chunk(2, 1)
        octaves = OCTAVES * octaves + shift
        rounded = part + (rdoq(part - means, scale_index_of(octaves)) + means - part).detach()
        return rounded, octaves, means

    def _passes(self, nets, masks, base, part, shift, linear) -> tuple[Tensor, Tensor, Tensor]:
        """y_hat, scales and means of a slice, whose first `linear` channels' values are context."""
        found, known = (torch.zeros_like(part),) * 3, None
        for net, mask in zip(nets, masks, strict=True):
            new = self._code(net(base, known), part, shift)
            found = tuple(torch.where(mask, a, b) for a, b in zip(new, found, strict=True))
            logs = signed_log(found[0])
            known = cat([logs, logs.abs(), found[0][:, :linear] / VALUE_SCALE])
        return found

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.loss()
