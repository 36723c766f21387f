"""roilib.integer: close to the float network, and exact however its sums are ordered."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roilib.integer import A_MAX, SUM_MAX, IntegerConv, IntegerNet


def hyper_like():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 32, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())


def head_like():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(10, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 1))


def symbols(*shape):
    return torch.randint(-12, 13, shape, generator=torch.Generator().manual_seed(2)).float()


@pytest.fixture
def quantised():
    """A network that ends without a ReLU, its twin, the units of its inputs, and its outputs' unit."""
    net, units = head_like(), torch.tensor([0.5] * 5 + [0.01] * 5)
    twin = IntegerNet(net)
    twin.quantise(net, [symbols(4, 10, 9, 9) * units[:, None, None]], units, torch.full((8,), 1 / 64))
    return net, twin, units, 1 / 64


def test_it_follows_the_float_network(quantised):
    net, twin, units, unit = quantised
    a = symbols(2, 10, 7, 5)
    wanted, got = net(a * units[:, None, None]), twin(a) * unit
    assert (wanted - got).abs().max() < 0.02 * wanted.abs().max() + unit


def test_a_network_that_ends_in_a_relu_tells_its_units():
    net = hyper_like()
    twin, a = IntegerNet(net), symbols(4, 6, 5, 6)
    units = twin.quantise(net, [a], torch.ones(6))
    assert units.shape == (16,)
    wanted, got = net(a), twin(a) * units[:, None, None]
    assert got.shape == (4, 16, 10, 12)
    assert (wanted - got).abs().max() < 0.02 * wanted.max()
    assert twin(a).max() <= A_MAX


def test_everything_is_an_integer_small_enough_to_be_exact_in_bf16_and_to_add_exactly(quantised):
    _, twin, _, _ = quantised
    for layer in (twin.layers[0], twin.layers[2]):
        assert torch.equal(layer.weight, layer.weight.bfloat16().float())
        assert torch.equal(layer.weight, layer.weight.round())
        assert (layer.weight.abs().double().sum((1, 2, 3)) * A_MAX + layer.bias.abs()).max() <= SUM_MAX
        assert torch.equal(torch.log2(layer.scale), torch.log2(layer.scale).round())


def test_no_order_of_sums_changes_a_result(quantised):
    _, twin, _, _ = quantised
    a = torch.randint(-255, 256, (1, 10, 33, 65), generator=torch.Generator().manual_seed(3)).float()
    wanted = a.double()  # exact by its 53 bits
    for layer in twin.layers:
        if isinstance(layer, IntegerConv):
            wanted = torch.floor(
                F.conv2d(wanted, layer.weight.double(), layer.bias.double(), padding=layer.padding) * layer.scale[:, None, None].double()
            )
        else:
            wanted = wanted.clamp(0, A_MAX)
    variants = {
        "plain": twin(a),
        "channels_last": twin(a.contiguous(memory_format=torch.channels_last)),
        "in a batch": twin(torch.cat([a.flip(3), a]))[1:],
        "a part of it": torch.cat([twin(a[..., :34])[..., :33], twin(a[..., 32:])[..., 1:]], 3),
    }
    with torch.backends.mkldnn.flags(enabled=False):
        variants["without mkldnn"] = twin(a)
    with torch.autocast("cpu", torch.bfloat16):
        variants["autocast"] = twin(a)
    for name, got in variants.items():
        assert torch.equal(got.double(), wanted), name


def test_a_layer_whose_sums_could_round_is_refused(quantised):
    _, twin, _, _ = quantised
    twin.layers[0].weight.fill_(255)
    twin.layers[0].bias.fill_(2.0**24 - 1)
    with pytest.raises(ValueError, match="not exact"):
        twin.layers[0].check()
    twin.layers[2].weight.fill_(0.5)
    with pytest.raises(ValueError, match="not exact"):
        twin.layers[2].check()


def test_it_stays_where_and_what_it_is(quantised):
    _, twin, _, _ = quantised
    a = symbols(1, 10, 4, 4)
    wanted = twin(a)
    assert torch.equal(nn.Sequential(twin).half().to("meta")(a), wanted)


def test_units_must_fit_the_network():
    for net, unit in ((hyper_like(), torch.ones(16)), (head_like(), None)):
        with pytest.raises(ValueError, match="unit_out"):
            IntegerNet(net).quantise(net, [symbols(1, net[0].in_channels, 4, 4)], torch.ones(net[0].in_channels), unit)


def test_it_keeps_its_numbers_in_a_state_dict(quantised):
    net, twin, _, _ = quantised
    again = IntegerNet(net)
    again.load_state_dict(twin.state_dict())
    a = symbols(1, 10, 4, 4)
    assert torch.equal(again(a), twin(a))
