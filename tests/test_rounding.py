"""Stochastic rounding to float16: no direction, nothing lost that float16 can hold."""

import pytest
import torch

from dpo.rounding import round_stochastically


def rounded(weights, seed=0):
    return round_stochastically(weights, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("value", [0.03 + 1e-6, -0.03 - 1e-6, 1.0003, -77.01, 3e-4])
def test_the_mean_of_many_is_the_weight_and_each_is_a_neighbour_of_it(value):
    weights = torch.full((200_000,), value)
    found = rounded(weights).float()
    step = 2.0 ** (torch.tensor(abs(value)).log2().floor().item() - 10)
    assert (found - weights).abs().max() < step
    assert len(found.unique()) == 2
    assert abs(found.double().mean() - weights[0].double()) < 0.01 * step


def test_what_float16_holds_stays_as_it_is():
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    edges = torch.tensor([0.0, -0.0, 65504.0, -65504.0, 2.0**-14, 2.0**-24, 1.0])
    for exact in (weights[weights.abs() > 1e-3], edges):
        assert torch.equal(rounded(exact).float(), exact)


def test_below_the_smallest_normal_number_it_is_the_nearest():
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(2)) * 2.0**-14
    assert torch.equal(rounded(weights), weights.to(torch.float16))


def test_the_same_seed_gives_the_same_weights():
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rounded(weights), rounded(weights))
    assert not torch.equal(rounded(weights), rounded(weights, seed=1))
