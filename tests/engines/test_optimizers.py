"""The optimizer that trains convolutions by Muon and the rest by AdamW."""

import copy

import pytest
import torch
from torch import nn

from roilib.engines.optimizers import MuonAdamW, orthogonal, takes_muon


def steps(net, optimizer, count=5):
    """Train a net on noise that depends on the step alone."""
    for i in range(count):
        x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (net(x) - x.mean(1, keepdim=True)).pow(2).mean().backward()
        optimizer.step()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))


def groups(net):
    weights = list(net.parameters())
    return [
        {"params": [v for v in weights if takes_muon(v)], "muon": True, "lr": 0.01},
        {"params": [v for v in weights if not takes_muon(v)]},
    ]


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_singular_values_become_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    result = orthogonal(matrix)
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() < values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(result.flatten(), (u @ v).flatten(), 0) > 0.97


def test_matrices_of_some_size_are_muons():
    assert [takes_muon(v) for v in net().parameters()] == [True, False, False, False]


def test_the_other_groups_take_adamws_step():
    ours, plain = net(), net()
    optimizer = MuonAdamW([{"params": list(ours.parameters())}], lr=0.01)
    assert len(optimizer.param_groups) == 1
    steps(ours, optimizer)
    steps(plain, torch.optim.AdamW(plain.parameters(), lr=0.01))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


def test_a_muon_step_has_the_size_of_its_learning_rate():
    ours = net()
    before = ours[0].weight.detach().clone()
    steps(ours, MuonAdamW(groups(ours), lr=1e-3), count=1)
    rms = (ours[0].weight.detach() - before).pow(2).mean().sqrt()
    assert rms == pytest.approx(0.01 * 0.2, rel=0.25)  # an AdamW step's usual size


def test_state_resumes():
    whole, halves = net(), net()
    steps(whole, MuonAdamW(groups(whole), lr=1e-3), 5)
    first = MuonAdamW(groups(halves), lr=1e-3)
    steps(halves, first, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True)
    )
    other = copy.deepcopy(halves)
    second = MuonAdamW(groups(other), lr=1e-3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(halves, first, 3)
    steps(other, second, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), halves.parameters(), strict=True)
    )
