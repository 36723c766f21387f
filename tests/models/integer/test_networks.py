"""roilib.models.integer.networks: near the float network, and exact in any order of its sums."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roilib.models.integer import networks as integer
from roilib.models.integer.networks import (
    BIAS_MAX,
    LARGEST,
    MAX,
    PLANE_SHIFT,
    SUM_MAX,
    ZERO,
    IntegerConv,
    IntegerNet,
    int8_products_are_exact,
    patches,
    product,
)


def hyper_like():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 32, 3, padding=1),
        nn.PixelShuffle(2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
    )


def head_like():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(10, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1))


def symbols(*shape):
    return torch.randint(-12, 13, shape, generator=torch.Generator().manual_seed(2)).float()


def integers(a):
    """(B, C, H, W) of floats that are integers → what an IntegerNet takes, (B, H, W, C)."""
    return a.movedim(1, -1).to(torch.int8)


def whole(layer):
    """An IntegerConv's weights (side² in, out), their two parts together."""
    high, low = layer.weight.double().chunk(2, 1) if layer.fine else (0, layer.weight.double())
    return high * 2**PLANE_SHIFT + low


@pytest.fixture(params=[False, True], ids=["plain", "fine"])
def quantised(request):
    """A network without a last ReLU, its twin, the units of its inputs, its outputs' unit."""
    net, units = head_like(), torch.tensor([0.5] * 5 + [0.01] * 5)
    twin = IntegerNet(net, signed=range(10), fine=request.param)
    twin.quantise(
        net, [symbols(4, 10, 9, 9) * units[:, None, None]], units, torch.full((8,), 1 / 64)
    )
    return net, twin, units, 1 / 64


def test_it_follows_the_float_network(quantised):
    net, twin, units, unit = quantised
    a = symbols(4, 10, 9, 9)  # what it was made for: larger activations would be cut
    wanted, got = net(a * units[:, None, None]), twin(integers(a)).movedim(-1, 1) * unit
    assert (wanted - got).abs().max() < 0.02 * wanted.abs().max() + unit
    other = symbols(2, 10, 7, 5)  # some activations are larger than those that it was made for
    wanted, got = net(other * units[:, None, None]), twin(integers(other)).movedim(-1, 1) * unit
    assert (wanted - got).abs().max() < 0.05 * wanted.abs().max() + unit


@torch.no_grad()
@pytest.mark.parametrize("largest", [1 / 16, 8.0])
def test_fine_weights_follow_it_closer(largest):
    """Also beside inputs of large units, which leave plain weights no precision for the others."""
    net, units = head_like(), torch.tensor([1 / 16] * 7 + [largest] * 3)
    a, off = (
        symbols(4, 10, 9, 9) * (torch.arange(10) < 7)[:, None, None],
        [],
    )  # the large ones are seldom there
    for fine in (False, True):
        twin = IntegerNet(net, range(10), fine)
        twin.quantise(
            net, [symbols(4, 10, 9, 9) * units[:, None, None]], units, torch.full((8,), 2.0**-9)
        )
        off.append(
            float(
                (net(a * units[:, None, None]) - twin(integers(a)).movedim(-1, 1) * 2.0**-9)
                .abs()
                .mean()
            )
        )
    assert off[1] < 0.7 * off[0], off
    everything = symbols(4, 10, 9, 9)
    wanted, got = (
        net(everything * units[:, None, None]),
        twin(integers(everything)).movedim(-1, 1) * 2.0**-9,
    )
    assert (wanted - got).abs().mean() < 0.01 * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("size", [1, 1e-3, 1e-5, 0])
def test_a_bias_that_outweighs_all_else_is_kept(fine, size):
    net = head_like()
    net[-1].weight.mul_(size)
    net[-1].bias.fill_(1)
    twin, a = IntegerNet(net, signed=range(10), fine=fine), symbols(4, 10, 9, 9)
    twin.quantise(net, [a], torch.ones(10), torch.full((8,), 1 / 64))
    assert (net(a) - twin(integers(a)).movedim(-1, 1) / 64).abs().max() < 0.02 * net(
        a
    ).abs().max() + 1 / 64


@torch.no_grad()
@pytest.mark.parametrize(("fine", "bits"), [(False, 6), (True, 12)])
def test_weights_keep_that_many_bits(fine, bits):
    net = nn.Sequential(nn.Conv2d(10, 24, 3, padding=1))
    layer = IntegerConv(net[0], torch.zeros(10, dtype=torch.int8), fine)
    layer.quantise(net[0], torch.ones(10), torch.ones(24), torch.full((24,), 2.0**-7), 1)
    steps = net[0].weight.permute(2, 3, 1, 0).flatten(0, 2) * 2.0 ** (7 + layer.shift)
    assert (whole(layer) - steps).abs().max() <= 0.5  # to the nearest
    assert (steps.abs().amax(0) > 2**bits).all()


def test_a_network_that_ends_in_a_relu_tells_its_units():
    net = hyper_like()
    twin, a = IntegerNet(net, signed=range(6)), symbols(4, 6, 5, 6)
    units = twin.quantise(net, [a], torch.ones(6))
    assert units.shape == (16,)
    wanted, got = net(a), (twin(integers(a)).movedim(-1, 1).float() - ZERO) * units[:, None, None]
    assert got.shape == (4, 16, 10, 12)
    assert (wanted - got).abs().max() < 0.03 * wanted.max()
    assert twin(integers(a)).dtype == torch.int8


def test_no_sum_is_too_large_to_be_exact(quantised):
    _, twin, _, _ = quantised
    for layer in (twin.layers[0], twin.layers[2]):
        # The range is used. Up to a power of two lies between the finest steps and those needed.
        assert layer.weight.abs().max() > MAX // 2
        assert layer.weight.abs().double().sum(0).max() * -ZERO <= SUM_MAX
        assert layer.bias.abs().max() <= BIAS_MAX < 2**31 - SUM_MAX * (1 + 2**PLANE_SHIFT)


def test_patches_are_what_a_convolution_sees():
    torch.manual_seed(0)
    a, conv = (
        torch.randint(-5, 6, (2, 6, 7, 4), dtype=torch.int8),
        nn.Conv2d(4, 3, 3, padding=1, bias=False),
    )
    conv.weight.data.round_()
    got = patches(a, 3, torch.zeros(4, dtype=torch.int8)).float() @ conv.weight.permute(
        2, 3, 1, 0
    ).flatten(0, 2)
    assert torch.allclose(got.movedim(-1, 1), conv(a.movedim(-1, 1).float()), atol=1e-5)


@pytest.mark.parametrize("side", [3, 5])
def test_patches_of_some_cells_are_those_of_all(side):
    a, zero = (
        torch.randint(-5, 6, (2, 6, 7, 4), dtype=torch.int8),
        torch.tensor([0, ZERO, 1, 2], dtype=torch.int8),
    )
    cells = np.array([0, 5, 6, 7, 20, 41])
    assert torch.equal(
        patches(a, side, zero, cells), patches(a, side, zero).flatten(1, 2)[:, cells]
    )


def test_no_order_of_sums_changes_a_result(quantised, monkeypatch):
    _, twin, _, _ = quantised
    a = torch.randint(
        ZERO, MAX + 1, (1, 33, 65, 10), generator=torch.Generator().manual_seed(3), dtype=torch.int8
    )
    wanted = a.movedim(-1, 1).double()  # exact by its 53 bits
    for layer in twin.layers:
        if isinstance(layer, IntegerConv):
            weight = whole(layer).unflatten(0, (layer.side, layer.side, -1)).permute(3, 2, 0, 1)
            sums = F.conv2d(wanted, weight, layer.bias.double(), padding=layer.side // 2)
            wanted = torch.floor(sums * 2.0 ** -layer.shift[:, None, None].double())
        else:
            wanted = wanted.clamp(0, LARGEST) + ZERO
    variants = {
        "plain": twin(a),
        "strided": twin(a.movedim(-1, 1).contiguous().movedim(1, -1)),
        "in a batch": twin(torch.cat([a.flip(2), a]))[1:],
        "a part of it": torch.cat([twin(a[:, :, :34])[:, :, :33], twin(a[:, :, 32:])[:, :, 1:]], 2),
    }
    with torch.backends.mkldnn.flags(enabled=False):
        variants["without mkldnn"] = twin(a)
    with torch.autocast("cpu", torch.bfloat16):
        variants["autocast"] = twin(a)
        monkeypatch.setattr(integer, "int8_products_are_exact", lambda: False)
        variants["in fp32"] = twin(a)
    for name, got in variants.items():
        assert torch.equal(got.movedim(-1, 1).double(), wanted), name


@pytest.mark.slow
def test_int8_products_are_used_only_where_they_keep_every_bit():
    largest = torch.full((8, 1000), MAX, dtype=torch.int8)
    wanted = (largest.double() @ largest.T.double()).int()
    assert torch.equal(product(largest, largest.T.contiguous()), wanted)
    code = (
        "from roilib.models.integer.networks import *; "
        "a = torch.full((8, 1000), 127, dtype=torch.int8); "
        "print(int(product(a, a.T.contiguous()).max()))"
    )
    for isa in ("SSE41", "AVX2", "AVX512_CORE"):  # the first ones saturate
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == int(wanted.max()), (isa, int8_products_are_exact())


def test_products_of_narrow_pictures_are_exact():
    for width in (1, 2):
        a, b = (
            torch.randint(-MAX, MAX + 1, shape, dtype=torch.int8)
            for shape in ((1, 5, width, 10), (90, 7))
        )
        rows = patches(a, 3, torch.zeros(10, dtype=torch.int8)).flatten(0, 2)
        assert torch.equal(product(rows, b).double(), rows.double() @ b.double())


def test_a_layer_whose_sums_could_round_is_refused(quantised):
    _, twin, _, _ = quantised
    twin.layers[0].bias.fill_(2**30)
    with pytest.raises(ValueError, match="not exact"):
        twin.layers[0].check()
    twin.layers[2].shift.fill_(-1)
    with pytest.raises(ValueError, match="not exact"):
        twin.layers[2].check()


def test_it_stays_where_and_what_it_is(quantised):
    _, twin, _, _ = quantised
    a = integers(symbols(1, 10, 4, 4))
    wanted = twin(a)
    assert torch.equal(nn.Sequential(twin).half().to("meta")(a), wanted)


def test_units_must_fit_the_network():
    for net, unit in ((hyper_like(), torch.ones(16)), (head_like(), None)):
        with pytest.raises(ValueError, match="unit_out"):
            IntegerNet(net).quantise(
                net, [symbols(1, net[0].in_channels, 4, 4)], torch.ones(net[0].in_channels), unit
            )


def test_it_keeps_its_numbers_in_a_state_dict(quantised):
    net, twin, _, _ = quantised
    again = IntegerNet(net, signed=range(10), fine=twin.layers[0].fine)
    again.load_state_dict(twin.state_dict())
    a = integers(symbols(1, 10, 4, 4))
    assert torch.equal(again(a), twin(a))
