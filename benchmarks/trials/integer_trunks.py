"""The decoder of `structures.Trunks` on integers: what it decides and what it paints is exact.

    z ─► h_s ─► h ─┬─► passes ─► scale indices, means ─► y_hat, in 1/64
                   └─► trunk 1/16 ─► trunk 1/8 ─► correction ─┐
    y_hat · gain_s, whole numbers ─► DCT⁻¹ of whole numbers ──┴─► (+) ─► uint8 picture

All networks are `integer_layer.IntegerConv`s; between them whole numbers are carried in fp32, all
below 2^24. The linear picture is in 1/64 of a grey level: values times gains are rounded once, the
DCT's matrices are whole numbers, and its products (fp64) stay below 2^53.

    python integer_trunks.py STATE     # the integer twin of a trained state against its float model
"""

import math
import sys

import harness
import torch
import torch.nn.functional as F
from integer_layer import LARGEST, ZERO, IntegerConv, fused_is_exact
from structures import (
    LINEAR,
    OCTAVES,
    Q_MIDDLE,
    Q_SPREAD,
    QUARTERS,
    SCALE_COUNT,
    SCALES_PER_OCTAVE,
    VALUE_SCALE,
    Trunks,
    _Bits,
    rdoq,
)
from torch import Tensor, nn

from roilib.models.layers import cat_channels as cat
from roilib.models.layers import pixel_unshuffle

ONE, LOG_STEPS, Q_UNIT = 64, 12, 4  # of y_hat; of its logarithms in an octave; steps of quality
SCALE_STEPS = 16  # of quality raise a scale index by one
SMALL, LARGE = 1 / 4, 2  # what 1 is worth in both parts of a value
GREY, DCT_BITS = 64, 12  # of the linear picture, of the DCT's matrices


def nearest(a: Tensor, n: int) -> Tensor:
    """a / n of whole numbers, n a power of two, to the nearest, halves up; a new tensor."""
    return (a * (1 / n)).add_(0.5).floor_()


def stored(a: Tensor) -> Tensor:
    """Signed whole numbers as layers want them; in place."""
    return kind(a.clamp_(-ZERO, LARGEST - ZERO).add_(ZERO))


def kind(a: Tensor) -> Tensor:
    """As this machine's layers want it."""
    return a.to(torch.uint8) if fused_is_exact() else a


class Trunk:
    """Blocks on a stream of one unit a channel."""

    def __init__(self, blocks: list[nn.Module], stream: Tensor, unit):
        self.layers = []
        for block in blocks:
            first, middle, last = block.body[::2]
            units, layers = [stream, unit(middle), unit(last), stream], []
            for conv, a, b in zip((first, middle, last), units, units[1:], strict=False):
                layers.append(IntegerConv(conv))
                layers[-1].quantise(conv, a, b)
            self.layers.append(layers)

    def __call__(self, a: Tensor) -> Tensor:
        for first, middle, last in self.layers:
            a = last(middle(first(a)), a)
        return a


class Pass:
    """A pass's network, its two first convolutions joined: scales in steps of quality, means."""

    def __init__(self, base: nn.Conv2d, net: nn.Module, unit_in: Tensor, signed: Tensor, unit):
        weight, bias = base.weight, base.bias + net.bias.flatten()
        if net.known is not None:
            more = net.known.weight
            if more.shape[1] < len(unit_in) - base.in_channels:  # small and large parts of values
                more = torch.cat([more, more[:, -LINEAR:]], 1)
            weight, bias = torch.cat([weight, more], 1), bias + net.known.bias
        joined = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        joined.weight.data, joined.bias.data = weight.detach(), bias.detach()
        convs, self.layers = [joined, *net.rest[::2]], []
        outs = torch.full(
            (2, convs[-1].out_channels // 2), 1 / (OCTAVES * SCALES_PER_OCTAVE * SCALE_STEPS)
        )
        outs[1] = 1 / ONE
        units = [unit_in[: weight.shape[1]], *(unit(conv) for conv in convs[1:]), outs.flatten()]
        for conv, a, b in zip(convs, units, units[1:], strict=False):
            self.layers.append(IntegerConv(conv, wide=conv is convs[-1]))
            own = signed[: weight.shape[1]] if conv is joined else None
            self.layers[-1].quantise(conv, a, b, own)

    def __call__(self, a: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            a = layer(a)
        return a.chunk(2, 1)


class IntegerTrunks:
    """samples: some (x, q) of `forward`, to see how large activations get."""

    @torch.no_grad()
    def __init__(self, model: Trunks, samples: list[tuple[Tensor, Tensor]]):
        self.m, largest = model.eval(), {}

        def note(module, inputs):
            most = inputs[0].amax((0, 2, 3))
            largest[module] = torch.maximum(largest[module], most) if module in largest else most

        convs = [v for v in model.modules() if isinstance(v, nn.Conv2d)]
        hooks = [v.register_forward_pre_hook(note) for v in convs]
        for x, q in samples:
            model(x, q)
        for hook in hooks:
            hook.remove()
        # a channel that is next to never active has no unit of its own
        self.unit = lambda conv: (
            largest[conv].clamp(min=0.01 * float(largest[conv].max())) / LARGEST
        )
        steps = (1 + torch.arange(2**16, dtype=torch.float64) / ONE).log2() * LOG_STEPS
        self.logs = steps.round().clamp(max=LARGEST - ZERO).float().numpy()
        tables = model.tables
        whole = lambda v: (v.double() * 2**DCT_BITS).round()  # noqa: E731
        self.rows, self.axes, self.back = whole(tables.rows), whole(tables.axes), tables.back
        self._hyper(), self._entropy(), self._synthesis()

    def _hyper(self) -> None:
        first, second = self.m.h_s[0], self.m.h_s[3]
        self.unit_h = self.unit(self.m.base[0])[:-1]
        one, middle = torch.ones(first.in_channels), self.unit(second)
        self.h_first, self.h_second = IntegerConv(first, signed_border=True), IntegerConv(second)
        self.h_first.quantise(first, one, middle.repeat_interleave(4), one)
        self.h_second.quantise(second, middle, self.unit_h.repeat_interleave(4))

    def _entropy(self) -> None:
        m, (n0, n1) = self.m, self.m.slices[:2]
        n, log, ones, zeros = len(self.unit_h), 1 / LOG_STEPS, torch.ones, torch.zeros
        unit = torch.cat([self.unit_h, torch.tensor([Q_UNIT / Q_SPREAD])])
        sign = F.pad(zeros(n), (0, 1), value=1)
        values = torch.tensor([SMALL, LARGE]).repeat_interleave(LINEAR) / VALUE_SCALE

        def logs(k: int, signed: bool) -> list[Tensor]:
            return [torch.full((k,), log), (ones if signed else zeros)(k)]

        self.passes = []
        of_0, of_1 = ([logs(k, True), logs(k, False)] for k in (n0, n1 - n0))
        for nets, base, inputs in (
            (m.e0, m.base[0], [*of_0, [values, ones(2 * LINEAR)]]),
            (m.e1, m.base[1], [*of_0, *of_1]),
            ([m.e2], m.base[2], [logs(n1, False)]),
        ):
            units, signs = zip([unit, sign], *inputs, strict=True)
            units, signs = torch.cat(units), torch.cat(signs)
            self.passes.append([Pass(base, net, units, signs, self.unit) for net in nets])

    def _synthesis(self) -> None:
        m, log, q = self.m, 1 / LOG_STEPS, torch.tensor([Q_UNIT / Q_SPREAD])
        first, up, last = m.s16[0], m.s16[-3], m.s8[-2]
        blocks16, blocks8 = list(m.s16[2:-3]), list(m.s8[1:-2])
        stream16 = torch.stack([self.unit(c) for c in (*(b.body[0] for b in blocks16), up)]).amax(0)
        stream8 = torch.stack([self.unit(c) for c in (*(b.body[0] for b in blocks8), last)]).amax(0)
        units = torch.cat([torch.full((m.M,), log), self.unit_h, q])
        signed = torch.cat([torch.ones(m.M), torch.zeros(len(self.unit_h)), torch.ones(1)])
        self.s16_in, self.up = IntegerConv(first), IntegerConv(up)
        self.s16_in.quantise(first, units, stream16, signed)
        self.up.quantise(up, stream16, stream8.repeat_interleave(4))
        self.trunk16 = Trunk(blocks16, stream16, self.unit)
        self.s8_in, self.s8_out = IntegerConv(m.s8_in), IntegerConv(last, wide=True)
        units = torch.cat([torch.full((192,), 1 / 255), q])
        self.s8_in.quantise(m.s8_in, units, stream8, torch.ones(193))
        self.trunk8 = Trunk(blocks8, stream8, self.unit)
        self.s8_out.quantise(last, stream8, torch.full((192,), 1 / 255 / GREY))

    def _log(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of y_hat (in 1/64), signed and not, as stored."""
        places = y.abs().clamp_(max=len(self.logs) - 1).int().movedim(1, -1).numpy()
        size = torch.from_numpy(self.logs.take(places)).movedim(-1, 1)
        return kind(size.copysign(y).add_(ZERO)), kind(size)

    @staticmethod
    def _values(y: Tensor) -> Tensor:
        """Both parts of the first channels' values, as stored."""
        y = y[:, :LINEAR]
        most = 127 * SMALL * ONE
        small = y.clamp(-most, most)
        parts = [nearest(small, int(SMALL * ONE)), nearest(y - small, LARGE * ONE)]
        return stored(cat(parts))

    @torch.no_grad()
    def code_slices(self, z: Tensor, q: Tensor, code) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y_hat, scale indices, means (1, M, h, w; y_hat and means in 1/64) and h, pass by pass.

        z: symbols (1, C, h/4, w/4); q (1, 1, h, w); code(channels, scale_indices, means) gives the
        symbols of a pass, of which those that its mask names are kept. All whole numbers, in fp32.
        """
        a = F.pixel_shuffle(self.h_first(stored(z.float())), 2)
        h = F.pixel_shuffle(self.h_second(last_channels(a)), 2)
        steps = q.float() - Q_MIDDLE
        h = cat([h, stored(nearest(steps, Q_UNIT))])
        shape, (n0, n1) = q.shape[2:], self.m.slices[:2]
        place = torch.arange(shape[0])[:, None] % 2 * 2 + torch.arange(shape[1]) % 2
        quarters = (torch.arange(n0)[:, None, None] % 4) ^ place
        halves = (torch.arange(n1 - n0)[:, None, None] + place // 2 + place) % 2
        masks = [[quarters == t for t in QUARTERS], [halves == t for t in range(2)], [None]]
        seen, found, sizes = h, [], []
        for k, (passes, own) in enumerate(zip(self.passes, masks, strict=True)):
            part = slice(self.m.slices[k - 1] if k else 0, self.m.slices[k])
            parts = None
            for net, mask in zip(passes, own, strict=True):
                known = []
                if parts is not None:
                    known = [*self._log(parts[0])] + ([self._values(parts[0])] if k == 0 else [])
                scale, mean = net(cat([seen, *known]) if known else seen)
                scale_index = nearest(scale.add_(steps), SCALE_STEPS).clamp_(0, SCALE_COUNT - 1)
                y_hat = torch.add(mean, code(part, scale_index, mean), alpha=ONE)
                new = [y_hat, scale_index, mean]
                if mask is not None:
                    old = parts or [torch.zeros_like(v) for v in new]
                    new = [torch.where(mask, a, b) for a, b in zip(new, old, strict=True)]
                parts = new
            found.append(parts)
            if k < 2:
                signed, size = self._log(parts[0])
                sizes.append(size)
                seen = cat([h, *([signed] if k == 0 else []), *sizes])
        return *(cat(v) for v in zip(*found, strict=True)), h

    def gains(self, q: Tensor) -> Tensor:
        """Of each cell and channel: 2^12 times the linear picture's units a unit of y_hat."""
        gain = self.m._gain(q.float())[1].double()
        return (gain * (255 * GREY * 2**12 / ONE)).round()

    @torch.no_grad()
    def paint(self, y_hat: Tensor, gains: Tensor, h: Tensor) -> Tensor:
        """uint8 picture (1, 3, H, W)."""
        v = nearest(y_hat * gains, 2**12)  # fp64: gains are
        height, width = y_hat.shape[2:]
        v = v.movedim(1, -1).reshape(-1, 768).t().contiguous().index_select(0, self.back)
        v = v.view(3, 16, 16, height, width).permute(0, 3, 1, 4, 2).contiguous()
        v = nearest(v @ self.rows, 2**DCT_BITS).view(3, height, 16, width * 16)
        v = nearest(self.rows.T @ v, 2**DCT_BITS).view(3, -1)
        linear = nearest(self.axes.T @ v, 2**DCT_BITS).float().view(1, 3, height * 16, width * 16)
        near = last_channels(pixel_unshuffle(stored(nearest(linear, GREY)), 8))
        a = self.trunk16(self.s16_in(cat([self._log(y_hat)[0], h])))
        added = last_channels(F.pixel_shuffle(self.up(a), 2))
        fine = h[:, -1:].repeat_interleave(2, 2).repeat_interleave(2, 3)
        a = self.trunk8(self.s8_in(cat([near, fine]), added))
        picture = F.pixel_shuffle(self.s8_out(a), 8).add_(linear).add_(255 * GREY // 2)
        return nearest(picture, GREY).clamp_(0, 255).to(torch.uint8)


def last_channels(a: Tensor) -> Tensor:
    """Channels side by side in memory."""
    return a.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def compare(model: Trunks, images: list, lmbda: float, twin: IntegerTrunks) -> list[float]:
    """bpp and PSNR of the float model and of its twin."""
    sums = torch.zeros(5, dtype=torch.float64)
    index = round(64 * math.log2(lmbda / harness.quality.LMBDA_LEAST))
    for image in images:
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        q = torch.full((1, 1, x.shape[2] // 16, x.shape[3] // 16), index)
        out = model(x, q.float())
        float_picture = (out["x_hat"].clamp(0, 1) * 255).round()
        condition = (q.float() - Q_MIDDLE) / Q_SPREAD
        y = model.analysis(x, condition) * model._gain(q.float())[0]
        z = model.h_a(torch.cat([(y.abs() + 0.01).log(), condition], 1))
        medians = model.entropy_bottleneck.quantiles[:, 0, 1][:, None, None]

        def code(part, scale_index, mean, y=y):
            return rdoq(y[:, part] - mean / ONE, scale_index.long())

        y_hat, scale_indices, means, h = twin.code_slices((z - medians).round(), q, code)
        octaves, zero = scale_indices / SCALES_PER_OCTAVE, torch.zeros_like(y)
        bits = _Bits.apply(zero, (y_hat - means) / ONE, octaves, zero).sum()
        bits += out["bits"]["z"].sum()
        pictures = float_picture, twin.paint(y_hat, twin.gains(q), h).float()
        errors = [float((v - 255 * x).square().sum()) / 3 for v in pictures]
        own = [sum(float(v.sum()) for v in out["bits"].values()), errors[0], float(bits), errors[1]]
        own.append(x[0, 0].numel())
        sums += torch.tensor(own, dtype=torch.float64)
    psnr = lambda e: 10 * math.log10(255**2 / float(e))  # noqa: E731
    a = sums / sums[4]
    return [float(a[0]), psnr(a[1]), float(a[2]), psnr(a[3])]


@torch.no_grad()
def same_elsewhere(model: Trunks, twin: IntegerTrunks, x: Tensor) -> bool:
    """Whether symbols and picture come out the same with two threads, and without oneDNN."""
    q = torch.full((1, 1, x.shape[2] // 16, x.shape[3] // 16), 500)
    y = model.analysis(x, (q.float() - Q_MIDDLE) / Q_SPREAD) * model._gain(q.float())[0]
    z = torch.randint(-3, 4, (1, model.h_s[0].in_channels, x.shape[2] // 64, x.shape[3] // 64))

    def run() -> tuple[Tensor, ...]:
        def code(part, scale_index, mean):
            return rdoq(y[:, part] - mean / ONE, scale_index.long())

        y_hat, scale_indices, means, h = twin.code_slices(z, q, code)
        return y_hat, scale_indices, means, twin.paint(y_hat, twin.gains(q), h)

    first = run()
    torch.set_num_threads(2)
    second = run()
    torch.set_num_threads(1)
    with torch.backends.mkldnn.flags(enabled=False):
        third = run()
    return all(
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(first, second, third, strict=True)
    )


def main() -> None:
    torch.set_num_threads(1)
    model = harness.build("Trunks", {})
    if len(sys.argv) > 1:
        model.load_state_dict(torch.load(sys.argv[1], weights_only=False)["ema"])
    held = [images[0] for images in harness.held_out().values()]
    samples = []
    for image in held:
        x = torch.from_numpy(image[:256, :256].copy()).permute(2, 0, 1)[None].float() / 255
        samples += [(x, torch.full((1, 1, 16, 16), float(q))) for q in (128, 300, 450, 600, 786)]
    twin = IntegerTrunks(model, samples)
    x = torch.from_numpy(held[0][:128, :256].copy()).permute(2, 0, 1)[None].float() / 255
    print("other threads, no oneDNN: same", same_elsewhere(model, twin, x))
    for lmbda in harness.LMBDAS:
        print(lmbda, compare(model, [v[:256, :256] for v in held], lmbda, twin))


if __name__ == "__main__":
    main()
