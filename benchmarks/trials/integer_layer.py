"""One exact integer layer for all of roi_vbr 2: entropy networks, synthesis, for speed analysis.

    u8 a ─► Σ weight[s8] · a + bias ─► · 2^-shift[c] (+ residual) ─► nearest even ─► clamp ─► u8

Fixed-point formats
- Activations: uint8, 0 … 255, channels last. What 1 is worth differs by channel; the next layer's
  weights take it up. Those behind a ReLU have their ReLU in the clamp at 0.
- Values that can be negative are stored + 128: logarithms of y_hat, quality, the linear picture.
  128 · Σ weight leaves the bias; borders are 128 there, not 0.
- Weights: int8, -WEIGHT_MAX … WEIGHT_MAX. Bias: an integer. Shift: 0 … 23 a channel. With
  255 · Σ |weight| + |bias| ≤ 2^23 each sum is exact in fp32, in any order; so is its multiple by
  2^-shift, and that plus a residual.
- Residual: the uint8 input of a block is added before rounding. A trunk has one unit a channel from
  its first to its last block, so nothing is rescaled there.
- Last layers (scales, means, the picture's correction) are wide: whole numbers in fp32, shifted but
  not clamped, in units that the caller chooses.

`fused` is oneDNN's int8 kernel, one pass over memory a layer; `plain` is the same on fp32, on any
processor or GPU, where fp32 carries the uint8, so that nothing is converted in between.
`fused_is_exact` finds out once if int8 products keep every sum: VNNI does, AVX2 saturates pairs of
products at 16 bits (255 · 127 · 2 does not fit, 255 · 63 · 2 does). Rounding happens once a layer,
to the nearest even, in both.

    python integer_layer.py       # checks both against fp64, and times them
"""

import functools
import itertools
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ZERO, LARGEST, SUM_MAX, WEIGHT_MAX = 128, 255, 2**23, 127


class IntegerConv(nn.Module):
    """An nn.Conv2d of stride 1 and an odd kernel, dense or depthwise; empty until `quantise`.

    Args:
        wide: int32 sums instead of uint8.
        signed_border: all inputs are stored + 128, and what lies beyond the border is 128.
    """

    def __init__(self, conv: nn.Conv2d, wide=False, signed_border=False):
        super().__init__()
        edge = conv.kernel_size[0] // 2
        self.around, self.edge = (edge, 0) if signed_border else (0, edge)
        self.groups, self.wide = conv.groups, wide
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(conv.out_channels, dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(conv.out_channels, dtype=torch.int32))
        self._packed = self._scaled = None

    def forward(self, a: Tensor, residual: Tensor | None = None) -> Tensor:
        """a (B, in, H, W), channels last, uint8 or fp32 that carries it → (B, out, H, W) as a is.

        A wide layer's outputs are fp32 in any case.
        """
        if self.around:
            a = F.pad(a, [self.around] * 4, value=ZERO)
            a = a.contiguous(memory_format=torch.channels_last)
        return (self.fused if a.dtype == torch.uint8 else self.plain)(a, residual)

    def plain(self, a: Tensor, residual: Tensor | None = None) -> Tensor:
        """By fp32 sums: the weights carry the shift, which changes no digit of them."""
        if self._scaled is None:
            scale = torch.exp2(-self.shift.float())
            weight = self.weight.float() * scale[:, None, None, None]
            weight = weight.contiguous(memory_format=torch.channels_last)
            self._scaled = weight, self.bias.float() * scale
        sums = F.conv2d(a, *self._scaled, padding=self.edge, groups=self.groups)
        if residual is not None:
            sums.add_(residual)
        return sums.round_() if self.wide else sums.round_().clamp_(0, LARGEST)

    def fused(self, a: Tensor, residual: Tensor | None = None) -> Tensor:
        """By one call of oneDNN."""
        if self._packed is None:
            self._packed = self._pack(a.shape)
        packed, scale, zero, bias = self._packed
        own = [1, 1], [self.edge] * 2, [1, 1], self.groups, 1.0, 0
        if residual is None:
            kind = (torch.float32, "none") if self.wide else (torch.uint8, "relu")
            conv = torch.ops.onednn.qconv_pointwise
            out = conv(a, 1.0, 0, packed, scale, zero, bias, *own, *kind, [], "")
            return out.round_() if self.wide else out
        out = residual.clone(memory_format=torch.channels_last)
        conv = torch.ops.onednn.qconv2d_pointwise.binary
        more = torch.uint8, 1.0, 0, "sum", 1.0, "relu", [], ""
        return conv(a, 1.0, 0, packed, scale, zero, out, bias, *own, *more)

    def _pack(self, shape: torch.Size) -> tuple[Tensor, ...]:
        scale = torch.exp2(-self.shift.float())
        edges = [1, 1], [self.edge] * 2, [1, 1], self.groups
        packed = torch.ops.onednn.qconv_prepack(self.weight, scale, 1.0, 0, *edges, list(shape))
        zero = torch.zeros(len(scale), dtype=torch.int64)
        return packed, scale, zero, self.bias.float() * scale

    @torch.no_grad()
    def quantise(
        self, conv: nn.Conv2d, unit_in: Tensor, unit_out: Tensor, signed: Tensor | None = None
    ) -> None:
        """Take over a float convolution.

        Args:
            unit_in, unit_out: what 1 of the inputs and outputs is worth (in,), (out,).
            signed: of 0 and 1 (in,), inputs that are stored + 128.
        """
        own = (
            unit_in.double()[:, None, None, None]
            if self.groups > 1
            else unit_in.double()[:, None, None]
        )
        weight = conv.weight.double() * own / unit_out.double()[:, None, None, None]
        bias = conv.bias.double() / unit_out.double()
        room = WEIGHT_MAX / weight.abs().amax((1, 2, 3)).clamp(min=1e-12)
        total = (LARGEST + ZERO) * weight.abs().sum((1, 2, 3)) + bias.abs()
        finest = torch.minimum(room, 0.98 * SUM_MAX / total.clamp(min=1e-12))
        shift = finest.log2().floor().clamp(0, 23)
        steps = 2**shift
        weight = (weight * steps[:, None, None, None]).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
        self.weight.copy_(weight)
        if signed is not None:
            bias = bias - ZERO * (weight * signed[:, None, None]).sum((1, 2, 3)) / steps
        self.bias.copy_((bias * steps).round())
        self.shift.copy_(shift)
        self._packed = self._scaled = None
        self.check()

    def check(self) -> None:
        """Raise ValueError unless every sum this layer can make is exact."""
        sums = LARGEST * self.weight.double().abs().sum((1, 2, 3)) + self.bias.double().abs()
        if sums.max() > SUM_MAX or not ((self.shift >= 0) & (self.shift < 24)).all():
            raise ValueError("an integer layer whose sums are not exact")


@functools.cache
def fused_is_exact() -> bool:
    """Whether this machine's fused kernel keeps the largest sums, and rounds as it should."""
    try:
        return all(
            torch.equal(layer(a, residual).float(), layer(*_carried(a, residual)))
            for layer, a, residual in _extremes(WEIGHT_MAX)
        )
    except RuntimeError:  # a build or a processor without this kernel
        return False


def _carried(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if v is None else v.float() for v in tensors]


def _extremes(largest: int):
    """Layers of each kind, with weights up to ±largest, and inputs that make large sums."""
    g = torch.Generator().manual_seed(0)
    for i, o, k, groups, wide, more in (
        (256, 128, 1, 1, False, False),
        (128, 128, 1, 1, False, True),
        (64, 64, 3, 1, False, False),
        (96, 96, 5, 96, False, False),
        (128, 192, 1, 1, True, False),
    ):
        conv = nn.Conv2d(i, o, k, padding=k // 2, groups=groups)
        layer = IntegerConv(conv, wide)
        weight = torch.randint(-largest, largest + 1, layer.weight.shape, generator=g)
        weight[::2] = largest
        keep = SUM_MAX / (1.01 * LARGEST * largest * weight[0].numel())
        weight *= torch.rand(weight.shape, generator=g) < min(1, 0.9 * keep)
        layer.weight.copy_(weight)
        room = SUM_MAX - LARGEST * layer.weight.double().abs().sum((1, 2, 3)).max()
        layer.bias.copy_(torch.randint(-int(room), int(room), (o,), generator=g))
        layer.shift.copy_(torch.randint(6, 15, (o,), generator=g))
        layer.check()
        a = torch.randint(0, 256, (1, i, 9, 7), generator=g)
        a = torch.where(torch.rand(a.shape, generator=g) < 0.5, LARGEST, a).to(torch.uint8)
        residual = torch.randint(0, 256, (1, o, 9, 7), generator=g, dtype=torch.uint8)
        a, residual = (v.contiguous(memory_format=torch.channels_last) for v in (a, residual))
        yield layer, a, residual if more else None


def reference(layer: IntegerConv, a: Tensor, residual: Tensor | None) -> Tensor:
    """The layer on whole numbers of 53 bits, halves to even."""
    weight, bias = layer.weight.double(), layer.bias.double()
    sums = F.conv2d(a.double(), weight, bias, padding=layer.edge, groups=layer.groups)
    scaled = sums * torch.exp2(-layer.shift.double())[:, None, None]
    scaled = scaled if residual is None else scaled + residual.double()
    return (scaled.round() if layer.wide else scaled.round().clamp(0, LARGEST)).float()


def main() -> None:
    """Check against fp64; with weights to 63, too, which no machine's int8 products saturate."""
    torch.set_num_threads(1)
    for largest in (WEIGHT_MAX, WEIGHT_MAX // 2):
        for layer, a, residual in _extremes(largest):
            exact = reference(layer, a, residual)
            outs = layer(*_carried(a, residual)), layer(a, residual).float()
            same = [torch.equal(out, exact) for out in outs]
            print(largest, tuple(layer.weight.shape), "plain, fused same:", *same)
    print("fused kernel exact here:", fused_is_exact())
    for i, o, k, groups, h, w in (
        (128, 256, 1, 1, 48, 156),
        (256, 256, 3, 256, 48, 156),
        (865, 256, 1, 1, 24, 78),
        (128, 128, 5, 128, 24, 78),
    ):
        conv = nn.Conv2d(i, o, k, padding=k // 2, groups=groups)
        layer = IntegerConv(conv)
        layer.quantise(conv, torch.full((i,), 1 / 128), torch.full((o,), 1 / 128))
        a = torch.randint(0, 256, (1, i, h, w), dtype=torch.uint8)
        a = a.contiguous(memory_format=torch.channels_last)
        times = []
        for b in (a, a.float()):
            starts = [time.process_time()]
            for _ in range(8):
                layer(b)
                starts.append(time.process_time())
            times.append(1e3 * min(y - x for x, y in itertools.pairwise(starts)))
        gmac = layer.weight.numel() * h * w / 1e9
        print(f"{i} → {o} {k}x{k} {h}x{w}: {gmac:.2f} GMAC; fused, plain ms:", *times)


if __name__ == "__main__":
    main()
