"""The decoded picture on integers: the same on every machine, bit by bit.

    y_hat · gain(q) ──► v ──► linear synthesis ──► L ─┬───────────────► (+) ──► round, clamp
                                                      └─► g_s(L, q) ─────┘

Fixed-point formats:

    gain          a row of M at every GAIN_STEP-th quality index, linear in between
    v             what 1 is worth differs by channel
    L             2^-LINEAR_SHIFT grey levels from middle grey
    input of g_s  -128 … 127: grey levels from middle grey; Q_UNIT steps of quality
    stream        between the blocks of g_s: 2^-STREAM_SHIFT of `stream_unit`. Layers read it in
                  steps of `stream_unit`, -1024 … 1023: with fewer, high rates lose 0.1 dB
    hidden        inside a block: 0 … 255 in `hidden_units`
    correction    what g_s returns: 2^-GREY_SHIFT grey levels
    weights       -127 … 127, with an integer bias and a shift an output channel

No sum exceeds 2^24, so fp32 rounds none, in any order, and all factors are powers of two. A layer
rounds once, to the nearest even, as IEEE 754 defines it. Convolutions run as oneDNN's int8 kernel
where that keeps every bit, else in fp32, or in fp64 where fp32's algorithm is not exact.

`IntegerSynthesis.trained` rounds g_s in the same way in training. Gradients to the weights of the
float network pass through the rounding (straight-through; Bengio et al. 2013).
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import nnpack

from roilib.models.context import MEAN_UNIT, Q_MIDDLE, Q_SPREAD, Q_UNIT
from roilib.models.layers import cat_channels, pixel_unshuffle
from roilib.roi import CELL, Q_MAX

if TYPE_CHECKING:
    from roilib.models.roi_vbr import RoiVbr

RANGES = {"byte": (0, 255), "signed": (-128, 127), "deep": (-1024, 1023)}  # of activations
DEEP_SHIFT = 3  # bits of a deep activation beyond a byte
EXACT = 2**24  # fp32 adds whole numbers exactly up to this
WEIGHT_MAX, LINEAR_MAX = 127, 127  # of a layer, of the linear synthesis
LINEAR_SHIFT, STREAM_SHIFT, GREY_SHIFT = 13, 2, 6
GAIN_STEP, GAIN_SHIFT, GAIN_MAX = 8, 16, 2**27
GREY = 1 / 255  # a grey level, as float networks see it
LEAST_UNIT = 0.01  # of a hidden channel, relative to the largest of its layer
CHUNK_CELLS = 2048  # of the linear synthesis at a time: a street frame is one chunk


class IntegerLayer(nn.Module):
    """The integers of an nn.Conv2d of an odd kernel that keeps the size.

        a ──► Σ weight · a + bias ──► · 2^-shift ──► round ──► clamp to 0 … 255, unless wide

    takes: the name of its inputs' RANGES.
    """

    def __init__(self, conv: nn.Conv2d, takes: str, wide: bool):
        super().__init__()
        self.takes, self.wide, self.edge = takes, wide, conv.kernel_size[0] // 2
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))
        self._forget()
        self.register_load_state_dict_post_hook(IntegerLayer._forget)

    def _forget(self, *_) -> None:
        """Forget what has been made of the integers for faster sums."""
        self._plain: tuple[Tensor, Tensor] | None = None
        self._packed: dict[bool, tuple[Tensor, ...]] = {}

    def __getstate__(self) -> dict:  # oneDNN's packed weights cannot be copied
        return self.__dict__ | {"_plain": None, "_packed": {}}

    def forward(self, a: Tensor) -> Tensor:
        """Return (B, out, H, W) of a (B, in, H, W), whole numbers, channels last.

        a is fp32 or fp64, or uint8 for the int8 kernel, where signed and deep activations are
        those of `stored`. The result is of a's type; of a wide layer fp32 or fp64.
        """
        if a.dtype == torch.uint8:
            return self._fused(a)
        weight = self._plain[0] if self._plain else None
        if weight is None or (weight.dtype, weight.device) != (a.dtype, a.device):
            scale = torch.exp2(-self.shift.to(a.dtype))  # changes no digit of weight and bias
            weight = self.weight * scale[:, None, None, None]
            weight = weight.contiguous(memory_format=torch.channels_last)
            self._plain = weight, self.bias * scale
        sums = F.conv2d(a, *self._plain, padding=self.edge).round_()
        return sums if self.wide else sums.clamp_(*RANGES["byte"])

    def _fused(self, a: Tensor) -> Tensor:
        """Return the same of uint8, by oneDNN's int8 kernel."""
        if self.takes != "deep":
            out = self._sums(a, self.takes == "signed", 0, self.wide)
            return out.round_() if self.wide else out
        high, low = a.chunk(2, 1)
        out = self._sums(high, True, DEEP_SHIFT, True).add_(self._sums(low, False, 0, True))
        return out.round_() if self.wide else out.round_().clamp_(*RANGES["byte"]).byte()

    def _sums(self, a: Tensor, signed: bool, left: int, wide: bool) -> Tensor:
        """Return the scaled sums times 2^left; the bias comes with the signed part, if any."""
        edges = [0 if signed else self.edge] * 2
        if signed and self.edge:
            a = F.pad(a, [self.edge] * 4, value=-RANGES["signed"][0])
            a = a.contiguous(memory_format=torch.channels_last)
        if signed not in self._packed:
            scale, zero = torch.exp2(-self.shift.float()), torch.zeros_like(self.shift).long()
            of_shape = 1.0, 0, [1, 1], edges, [1, 1], 1, list(a.shape)
            packed = torch.ops.onednn.qconv_prepack(
                self.weight.contiguous(), scale * 2**left, *of_shape
            )
            bias = self.bias if signed or self.takes == "byte" else torch.zeros_like(self.bias)
            if signed:
                offset = RANGES["signed"][0] * self.weight.sum((1, 2, 3), dtype=torch.int32)
                bias = bias + (offset << left)
            self._packed[signed] = packed, scale * 2**left, zero, bias * scale
        kind = (torch.float32, "none") if wide else (torch.uint8, "relu")
        of_shape = [1, 1], edges, [1, 1], 1, 1.0, 0
        own = self._packed[signed]
        return torch.ops.onednn.qconv_pointwise(a, 1.0, 0, *own, *of_shape, *kind, [], "")

    @torch.no_grad()
    def quantise(self, conv: nn.Conv2d, unit_in: Tensor, unit_out: Tensor) -> None:
        """Take over a float convolution; units (in,), (out,): what 1 of inputs and outputs is."""
        weight, bias, shift = integers(conv, self.takes, unit_in, unit_out)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.shift.copy_(shift)
        self._forget()
        self.check()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums = largest(self.takes) * self.weight.double().abs().sum((1, 2, 3))
        sums += self.bias.double().abs()
        if sums.max() > EXACT or not ((self.shift >= 0) & (self.shift < 24)).all():
            raise ValueError("an integer layer whose sums are not exact")


class _Nearest(torch.autograd.Function):
    """To the nearest whole number; the gradient passes."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


nearest = _Nearest.apply


def largest(takes: str) -> int:
    """Return the magnitude that bounds an activation; as bytes, signed ones go up to 255."""
    return max(255, -RANGES[takes][0])


def integers(
    conv: nn.Conv2d, takes: str, unit_in: Tensor, unit_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, bias and shift of a convolution's `IntegerLayer`, as floats with gradients."""
    unit_in, unit_out = (unit.to(conv.weight.device) for unit in (unit_in, unit_out))
    weight = conv.weight * (unit_in[:, None, None] / unit_out[:, None, None, None])
    bias = conv.bias / unit_out
    with torch.no_grad():
        steps = WEIGHT_MAX / weight.abs().amax((1, 2, 3)).clamp(min=1e-12)
        total = largest(takes) * weight.abs().sum((1, 2, 3)) + bias.abs()
        room = EXACT - largest(takes) * (weight[0].numel() / 2 + 1)  # rounding adds half a weight
        steps = torch.minimum(steps, room / total.clamp(min=1e-12))
        shift = steps.log2().floor().clamp(0, 23)
        # An output whose unit is too small for its weights, as of a dead channel, shrinks to fit.
        scale = 2**shift * steps.clamp(max=1)
    return nearest(weight * scale[:, None, None, None]), nearest(bias * scale), shift


def trained_layer(
    conv: nn.Conv2d, takes: str, a: Tensor, unit_in: Tensor, unit_out: Tensor
) -> Tensor:
    """Return what a wide `IntegerLayer` does after `quantise`, with gradients."""
    weight, bias, shift = integers(conv, takes, unit_in, unit_out)
    scale = 2**-shift
    weight = weight * scale[:, None, None, None]
    return nearest(F.conv2d(a, weight, bias * scale, padding=conv.padding))


class IntegerSynthesis(nn.Module):
    """The integer twin of roi_vbr's gain_s, s_lin and g_s; set by `measure`, then `quantise`."""

    def __init__(self, M: int, g_s: nn.Sequential):
        super().__init__()
        first, *blocks, last, _ = g_s
        N = first.out_channels
        self.register_buffer("linear", torch.zeros(3 * CELL**2, M, dtype=torch.int8))
        self.register_buffer("gain", torch.zeros(Q_MAX // GAIN_STEP + 2, M, dtype=torch.int32))
        self.register_buffer("stream_unit", torch.ones(N))
        self.register_buffer("hidden_units", torch.ones(len(blocks), 2, N // 2))
        self.first = IntegerLayer(first, "signed", wide=True)
        self.blocks = nn.ModuleList()
        for block in blocks:
            one, two, three = block.body[::2]
            layers = (one, "deep", False), (two, "byte", False), (three, "byte", True)
            self.blocks.append(nn.Sequential(*(IntegerLayer(*layer) for layer in layers)))
        self.last = IntegerLayer(last, "deep", wide=True)

    @torch.no_grad()
    def forward(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """Return the picture (3, 16 h, 16 w) uint8.

        y_hat (h, w, M) int32 in units of MEAN_UNIT; q (h, w): quality indices.
        """
        with torch.autocast(y_hat.device.type, enabled=False), nnpack.flags(enabled=False):
            kind = carrier(y_hat.device.type)
            grey = self._linear(y_hat, q).mul_(2.0**-LINEAR_SHIFT)
            stream = self.first(stored(self._input(grey, q[None, None]), "signed", kind))
            for block in self.blocks:
                stream += block(stored(self._read(stream), "deep", kind))
            correction = self.last(stored(self._read(stream), "deep", kind))
            correction = F.pixel_shuffle(correction, 8).float().mul_(2.0**-GREY_SHIFT)
            return correction.add_(grey).add_(127.5).round_().clamp_(0, 255).byte()[0]

    def trained(self, g_s: nn.Sequential, x: Tensor, q: Tensor) -> Tensor:
        """Return the correction (B, 3, H, W) of g_s as decoders compute it, with gradients.

        x (B, 3, H, W): the linear picture, 0 at middle grey, 1 from black to white; q (B, 1, H/16,
        W/16). All units must be known (`measure`).
        """
        with torch.autocast(x.device.type, enabled=False):
            first, *blocks, last, _ = g_s
            unit, fine = self.stream_unit, self.stream_unit * 2.0**-STREAM_SHIFT
            a = self._input(x.float() / GREY, q)
            stream = trained_layer(first, "signed", a, input_units(), fine)
            for block, (unit_1, unit_2) in zip(blocks, self.hidden_units, strict=True):
                one, two, three = block.body[::2]
                a = trained_layer(one, "deep", self._read(stream), unit, unit_1)
                a = trained_layer(two, "byte", a.clamp(*RANGES["byte"]), unit_1, unit_2)
                a = trained_layer(three, "byte", a.clamp(*RANGES["byte"]), unit_2, fine)
                stream = stream + a
            a = trained_layer(last, "deep", self._read(stream), unit, correction_units())
            return F.pixel_shuffle(a, 8) * (GREY * 2.0**-GREY_SHIFT)

    def _linear(self, y_hat: Tensor, q: Tensor) -> Tensor:
        """Return L (1, 3, 16 h, 16 w) fp32 of y_hat (h, w, M) and q (h, w)."""
        different, cells = q.flatten().int().unique(return_inverse=True)
        row, part = different // GAIN_STEP, (different % GAIN_STEP)[:, None]
        gains = self.gain[row] * (GAIN_STEP - part) + self.gain[row + 1] * part
        gains = gains.double() * (2.0**-GAIN_SHIFT / GAIN_STEP)
        weight = self.linear.T.double()
        chunks = zip(y_hat.flatten(0, 1).split(CHUNK_CELLS), cells.split(CHUNK_CELLS), strict=True)
        sums = torch.cat([exact_product((y * gains[own]).round_(), weight) for y, own in chunks])
        return F.pixel_shuffle(sums.view(1, *q.shape, -1).movedim(-1, 1), CELL)

    @staticmethod
    def _input(grey: Tensor, q: Tensor) -> Tensor:
        """Return the input of g_s from grey levels (B, 3, H, W) and q (B, 1, h, w)."""
        near = nearest(grey).clamp(*RANGES["signed"])
        steps = torch.floor((q.float() - Q_MIDDLE + Q_UNIT // 2) / Q_UNIT)
        fine = steps.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return cat_channels([pixel_unshuffle(near, 8), fine])

    @staticmethod
    def _read(stream: Tensor) -> Tensor:
        """Return the stream as layers read it."""
        return nearest(stream * 2.0**-STREAM_SHIFT).clamp(*RANGES["deep"])

    @property
    def measured(self) -> bool:
        """Whether the units of activations are known."""
        return bool((self.stream_unit != 1).any())

    def forget_units(self) -> None:
        """Make `measured` false: the weights will change."""
        self.stream_unit.fill_(1)

    @torch.no_grad()
    def measure(self, model: "RoiVbr", pictures: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the units of activations from their ranges over pictures, (x, q) of `forward`."""
        whole, hidden = model.g_s[:-2], [b.body[i] for b in model.g_s[1:-2] for i in (0, 2)]
        largest = {layer: torch.zeros(()) for layer in (*whole, *hidden)}

        def watch(layer: nn.Module, _, output: Tensor) -> None:
            seen = output.clamp(min=0) if layer in hidden else output.abs()
            largest[layer] = torch.maximum(largest[layer], seen.amax((0, 2, 3)))

        hooks = [layer.register_forward_hook(watch) for layer in largest]
        for x, q in pictures:
            model(x, q)
        for hook in hooks:
            hook.remove()
        stream = torch.stack([largest[layer] for layer in whole]).amax(0)
        inside = torch.stack([largest[layer] for layer in hidden])
        inside = inside.maximum(LEAST_UNIT * inside.amax(1, keepdim=True))
        self.stream_unit.copy_(stream.clamp(min=1e-6) / RANGES["deep"][1])
        self.hidden_units.copy_(
            inside.clamp(min=1e-6).view_as(self.hidden_units) / RANGES["byte"][1]
        )

    def check(self) -> None:
        """Raise ValueError unless the linear synthesis is exact."""
        if (
            self.linear.int().abs().max() > LINEAR_MAX
            or not ((self.gain >= 0) & (self.gain <= GAIN_MAX)).all()
        ):
            raise ValueError("an integer synthesis whose sums are not exact")

    @torch.no_grad()
    def quantise(self, model: "RoiVbr") -> None:
        """Take over the float networks, with the units that `measure` has found."""
        weight = model.s_lin[0].weight[:, :, 0, 0].double()
        largest = weight.abs().amax(0).clamp(min=1e-12) / LINEAR_MAX
        self.linear.copy_((weight / largest).round())
        rows = torch.arange(len(self.gain), device=weight.device) * GAIN_STEP
        gain = model.gain_s(rows[None, None, None].float())[0, :, 0].T.double() * largest
        gain *= MEAN_UNIT / GREY * 2.0 ** (LINEAR_SHIFT + GAIN_SHIFT)
        self.gain.copy_(gain.round().clamp(max=GAIN_MAX))
        first, *blocks, last, _ = model.g_s
        unit, fine = self.stream_unit, self.stream_unit * 2.0**-STREAM_SHIFT
        self.first.quantise(first, input_units(), fine)
        for block, layers, own in zip(blocks, self.blocks, self.hidden_units, strict=True):
            units = itertools.pairwise((unit, *own, fine))
            for conv, layer, pair in zip(block.body[::2], layers, units, strict=True):
                layer.quantise(conv, *pair)
        self.last.quantise(last, unit, correction_units())


def input_units() -> Tensor:
    """Return what 1 of each input of g_s is worth to the float network."""
    return torch.tensor([GREY] * 192 + [Q_UNIT / Q_SPREAD])


def correction_units() -> Tensor:
    """Return what 1 of each output of g_s is worth to the float network."""
    return torch.full((192,), GREY * 2.0**-GREY_SHIFT)


def exact_product(v: Tensor, weight: Tensor) -> Tensor:
    """Multiply v (n, k), whole numbers in fp64, by weight (k, m) int8; clamped to ±EXACT, fp32."""
    if v.device.type != "cpu":
        return (v @ weight.double()).clamp_(-EXACT, EXACT).float()
    sums = v.float() @ weight.float()
    # Seldom are a cell's numbers so large that fp32 could round their sum.
    large = (v.abs().sum(1) * LINEAR_MAX > EXACT).nonzero()[:, 0]
    if len(large):
        sums[large] = (v[large] @ weight.double()).clamp_(-EXACT, EXACT).float()
    return sums


def stored(a: Tensor, takes: str, kind: torch.dtype) -> Tensor:
    """Return activations as layers take them in `carrier`'s type.

    In uint8, signed ones are stored + 128; deep ones are twice as many channels, the bytes above
    DEEP_SHIFT and the bits below.
    """
    if kind != torch.uint8:
        return a.to(kind)
    if takes == "deep":
        high = torch.floor(a * 2.0**-DEEP_SHIFT)
        return cat_channels([high - RANGES["signed"][0], a - high * 2**DEEP_SHIFT]).byte()
    return (a - RANGES[takes][0]).byte()


def carrier(device: str) -> torch.dtype:
    """Return the fastest type in which convolutions are exact on a kind of device."""
    if device != "cpu":
        return torch.float64  # a GPU's fp32 convolutions may use TF32 or Winograd's algorithm
    kinds = (torch.uint8, torch.float32, torch.float64)
    return next(kind for kind in kinds if _is_exact(kind, torch.backends.mkldnn.enabled))


@functools.cache
def _is_exact(kind: torch.dtype, onednn: bool) -> bool:
    """Return whether convolutions in this type keep every sum on this machine."""
    if kind == torch.uint8 and not (onednn and torch.cpu._is_vnni_supported()):
        return False  # without VNNI sums saturate at 16 bits, or int8 is slow
    for layer, a in extremes(WEIGHT_MAX):
        try:
            found = layer(stored(a, layer.takes, kind))
        except (AttributeError, RuntimeError):  # a build of torch without this kernel
            return False
        if not torch.equal(found.double(), layer(a.double())):
            return False
    return True


def extremes(weight_max: int) -> Iterator[tuple[IntegerLayer, Tensor]]:
    """Yield layers of each kind with weights up to ±weight_max, and inputs that make large sums."""
    g = torch.Generator().manual_seed(0)
    for i, o, side, takes, wide in (
        (193, 96, 3, "signed", True),
        (96, 48, 1, "deep", False),
        (48, 48, 3, "byte", False),
        (48, 96, 1, "byte", True),
        (96, 192, 3, "deep", True),
    ):
        layer = IntegerLayer(nn.Conv2d(i, o, side), takes, wide)
        weight = torch.randint(-weight_max, weight_max + 1, layer.weight.shape, generator=g)
        weight[::2] = weight_max
        share = EXACT / (1.5 * largest(takes) * weight_max * weight[0].numel())
        weight *= torch.rand(weight.shape, generator=g) < share
        room = int(EXACT - largest(takes) * weight.abs().sum((1, 2, 3)).max())
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.randint(-room, room, (o,), generator=g))
        layer.shift.copy_(torch.randint(6, 15, (o,), generator=g))
        layer.check()
        low, high = RANGES[takes]
        a = torch.randint(low, high + 1, (1, i, 9, 7), generator=g).float()
        a = torch.where(torch.rand(a.shape, generator=g) < 0.5, high, a)
        yield layer, a.contiguous(memory_format=torch.channels_last)
