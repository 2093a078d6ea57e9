"""L1 and L2-SP: which parameters they see, their values and their slopes."""

from __future__ import annotations

import pytest
import torch

from headstart.config.schema import Penalties
from headstart.errors import ConfigError
from headstart.optim.penalties import penalty, select_l1_parameters
from headstart.surgery.freeze import freeze


def test_l1_sees_the_heads_weights_all_weights_or_what_is_named(net) -> None:
    model = net(norm=True)
    assert select_l1_parameters(model, Penalties(l1=1.0)) == ("fc.weight",)
    assert select_l1_parameters(model, Penalties(l1=1.0, l1_on="all")) == ("conv1.weight", "conv2.weight", "fc.weight")
    named = select_l1_parameters(model, Penalties(l1=1.0, l1_on=("conv*.bias", "bn1.*")))
    assert named == ("conv1.bias", "bn1.weight", "bn1.bias", "conv2.bias")


def test_l1_is_the_sum_of_absolute_values_and_its_slope_the_sign(net) -> None:
    model = net().double()
    value = penalty(model, Penalties(l1=0.01, l1_on="all"), start={})
    weights = (model.conv1.weight, model.conv2.weight, model.fc.weight)
    torch.testing.assert_close(value, 0.01 * sum(weight.abs().sum() for weight in weights))
    value.backward()
    torch.testing.assert_close(model.fc.weight.grad, 0.01 * model.fc.weight.sign())
    assert model.fc.bias.grad is None


def test_l2_start_is_half_the_squared_distance_from_the_start(net) -> None:
    model = net().double()
    start = {"conv1.weight": model.conv1.weight.detach().clone() + 0.5, "conv2.bias": torch.zeros(16).double()}
    value = penalty(model, Penalties(l2_start=0.1), start=start)
    moved = model.conv1.weight.numel() * 0.25 + (model.conv2.bias**2).sum()
    torch.testing.assert_close(value, 0.05 * moved)
    value.backward()
    torch.testing.assert_close(model.conv1.weight.grad, torch.full_like(model.conv1.weight, -0.05))


def test_frozen_parameters_are_not_penalised(net) -> None:
    model = net()
    start = {name: value.detach().clone() + 1 for name, value in model.named_parameters()}
    freeze(model, names=["conv*"])
    value = penalty(model, Penalties(l1=1.0, l1_on="all", l2_start=2.0), start=start)
    expected = model.fc.weight.abs().sum() + model.fc.weight.numel() + model.fc.bias.numel()
    torch.testing.assert_close(value, expected)


def test_no_penalty_is_none(net) -> None:
    assert penalty(net(), Penalties(), start={}) is None


def test_a_glob_that_matches_nothing_is_refused(net) -> None:
    with pytest.raises(ConfigError, match=r"penalties.l1_on: 'layer9\*' matches no parameter; `headstart describe`"):
        select_l1_parameters(net(), Penalties(l1=1.0, l1_on=("conv*", "layer9*")))
