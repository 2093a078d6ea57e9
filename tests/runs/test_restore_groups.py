"""Rates and counters of an optimizer's groups: what a restored group takes over, and what it is refused for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import StorageError
from headstart.runs.optimizer_state import optimizer_contents, read_optimizer

Groups = list[dict[str, Any]]


@pytest.fixture
def make(net) -> Callable[..., hs.TrainState]:
    """An AdamW over the groups that are given: names of parameters, with what else is in each."""

    def state(*groups: tuple[str, dict[str, Any]], seed: int = 0, **options: Any) -> hs.TrainState:
        model = net(norm=True, seed=seed)
        named = dict(model.named_parameters())
        made = [{"params": [named[name] for name in names.split()]} | rest for names, rest in groups]
        return hs.TrainState(model, torch.optim.AdamW(made or model.parameters(), lr=0.01, **options))

    return state


NORM, HEAD, REST = "bn1.weight bn1.bias", "fc.weight fc.bias", "conv1.weight conv1.bias conv2.weight conv2.bias"


def train(state: hs.TrainState, noise, steps: int = 2) -> hs.TrainState:
    for _ in range(steps):
        hs.train_step(state, noise(6, seed=state.step), rules=hs.StepRules(seed=5))
    return state


def saved(state: hs.TrainState, noise, tmp_path) -> hs.TrainState:
    hs.save(train(state, noise), tmp_path)
    return state


def test_a_group_keeps_its_name_and_what_belongs_to_its_device(make, noise, tmp_path) -> None:
    """Its rates and everything else come from the checkpoint."""
    theirs = {"lr": 0.3, "betas": (0.5, 0.6), "amsgrad": False, "note": "mine", "name": "theirs"}
    before = [(f"{REST} {HEAD}", theirs), (NORM, {"lr": 0.1, "name": "norm"})]
    saved(make(*before, foreach=False, fused=False), noise, tmp_path)
    again = make((NORM, {"name": "ours"}), (f"{REST} {HEAD}", {}), foreach=True, fused=None)
    hs.restore(again, tmp_path)
    norm, rest = again.optimizer.param_groups
    assert [norm["name"], norm["lr"], norm["foreach"], norm["fused"]] == ["ours", 0.1, True, None]
    assert [rest["lr"], rest["betas"], rest["note"], rest["foreach"]] == [0.3, (0.5, 0.6), "mine", True]
    assert "name" not in rest


def test_a_group_without_parameters_keeps_what_it_has(make, noise, tmp_path) -> None:
    saved(make(), noise, tmp_path)
    again = make()
    again.optimizer.add_param_group({"params": [], "lr": 0.7})
    hs.restore(again, tmp_path)
    assert [group["lr"] for group in again.optimizer.param_groups] == [0.01, 0.7]


TENSOR = torch.tensor([0.01])
UNLIKE = {
    "lr": ({"lr": 0.01}, {"lr": 0.02}),
    "betas": ({"betas": (0.9, 0.9)}, {"betas": (0.9, 0.8)}),
    "weight_decay": ({"weight_decay": 1.0}, {"weight_decay": 1}),
    "mine": ({}, {"mine": 3}),
    "theirs": ({"theirs": 3}, {}),
    "rate": ({"rate": TENSOR}, {"rate": TENSOR + 1}),
    "one": ({"one": TENSOR}, {"one": 0.01}),
    "other": ({"other": 0.01}, {"other": TENSOR}),
}


@pytest.mark.parametrize("key", UNLIKE)
def test_parameters_of_groups_that_were_unlike_cannot_be_in_one(make, noise, tmp_path, key) -> None:
    """It is said in what they differed, and which groups these were."""
    one, other = UNLIKE[key]
    saved(make((REST, {"name": "rest"} | one), (HEAD, one), (NORM, other)), noise, tmp_path)
    for joined, names in ((f"{REST} {NORM}", "'rest' and 'that of bn1.weight'"), (f"{NORM} {HEAD}", None)):
        left = HEAD if names else REST
        state = make((joined, {}), (left, {}))
        labels = names or "'that of fc.weight' and 'that of bn1.weight'"
        about = f"group 'without a name' were in groups with other values of {key} ({labels}); group them as they"
        with pytest.raises(StorageError) as refused:
            hs.restore(state, tmp_path)
        assert about in str(refused.value)


def test_parameters_of_groups_that_were_alike_can_be_in_one(make, noise, tmp_path) -> None:
    """Numbers, rows of numbers, and tensors, of which the one group then has its own."""
    alike = {"lr": 0.3, "betas": (0.5, 0.6)}
    given = [alike | {"rate": torch.tensor([1.0, 2.0])} for _ in range(2)]
    state = saved(make((f"{REST} {HEAD}", given[0]), (NORM, given[1])), noise, tmp_path)
    again = make()
    hs.restore(again, tmp_path)
    (group,) = again.optimizer.param_groups
    assert [group["lr"], group["betas"], group["rate"].tolist()] == [0.3, (0.5, 0.6), [1.0, 2.0]]
    train(state, noise)
    train(again, noise)
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (f"{REST} {HEAD}", "bn1.weight, bn1.bias"), (f"{REST} bn1.bias fc.bias", "fc.weight, bn1.weight"),
        (f"{REST} fc.bias", "fc.weight, bn1.weight, bn1.bias"),
        (f"{REST}", "fc.weight, fc.bias, bn1.weight and 1 more"),
        ("conv2.bias", "conv1.weight, conv1.bias, conv2.weight and 4 more"),
    ],
)  # fmt: skip
def test_three_parameters_that_differ_are_named_and_the_others_counted(make, noise, tmp_path, left, said) -> None:
    everything, some = make((f"{REST} {HEAD} {NORM}", {})), make((left, {}))
    hs.save(everything, tmp_path / "all")
    with pytest.raises(StorageError) as refused:
        hs.restore(some, tmp_path / "all")
    assert f"the optimizer trained other parameters; missing: {said}; freeze and group them as" in str(refused.value)
    hs.save(some, tmp_path / "some")
    with pytest.raises(StorageError) as refused:
        hs.restore(everything, tmp_path / "some")
    assert f"the optimizer trained other parameters; new: {said}; freeze and group them as they" in str(refused.value)


def test_state_that_nobody_has_any_more_does_not_hide_the_others(make, noise, tmp_path) -> None:
    """A part that was replaced stands first in the optimizer's state."""
    state = train(make(), noise)
    known = dict(state.optimizer.state)
    state.optimizer.state.clear()
    state.optimizer.state[nn.Parameter(torch.zeros(2))]["exp_avg"] = torch.zeros(2)
    state.optimizer.state.update(known)
    hs.save(state, tmp_path)
    again = train(make(), noise, 1)
    hs.restore(again, tmp_path)
    theirs, ours = ({name: one.optimizer.state[value] for name, value in one.model.named_parameters()}
                    for one in (state, again))  # fmt: skip
    for name, values in theirs.items():
        assert values.keys() == ours[name].keys() > {"exp_avg"}
        assert all(torch.equal(value, ours[name][key]) for key, value in values.items())


def test_what_is_no_tensor_in_a_parameters_state_comes_back_too(make, noise, tmp_path) -> None:
    """As the numbers that some optimizers of timm count; parameters without any are not listed."""
    state = train(make(), noise)
    state.optimizer.state[state.model.fc.weight]["mine"] = 3
    place = hs.save(state, tmp_path)
    assert json.loads((place / "state.json").read_text())["optimizer"]["plain"] == {"fc.weight": {"mine": 3}}
    again = make()
    hs.restore(again, tmp_path)
    assert again.optimizer.state[again.model.fc.weight]["mine"] == 3


def test_a_tensor_of_the_parameters_shape_comes_back_in_its_order_and_one_of_another_as_it_was(make, noise, tmp_path):
    """Averages of rows, for one, which Adafactor holds."""
    states = make(), make()
    for each in states:
        each.model.to(memory_format=torch.channels_last)
    state, again = states
    train(state, noise).optimizer.state[state.model.conv2.weight]["rows"] = torch.arange(3.0)
    hs.save(state, tmp_path)
    hs.restore(again, tmp_path)
    ours, theirs = (one.optimizer.state[one.model.conv2.weight] for one in (again, state))
    assert ours["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours["exp_avg"], theirs["exp_avg"]) and torch.equal(ours["rows"], theirs["rows"])


def test_a_state_without_steps_leaves_nothing_of_the_ones_that_were_done(make, noise, tmp_path) -> None:
    hs.save(make(), tmp_path)
    state = train(make(), noise)
    hs.restore(state, tmp_path)
    assert not state.optimizer.state


def test_averages_go_to_the_parameters_device_and_counters_stay_on_the_cpu(make) -> None:
    """As in torch; here the device is one that holds no numbers."""
    state = make()
    state.optimizer.zero_grad()
    state.model(torch.zeros(2, 3, 16, 16)).sum().backward()
    state.optimizer.step()
    tensors, about = optimizer_contents(state.model, state.optimizer)
    model = make().model.to("meta")
    again = hs.TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    read_optimizer(again.model, again.optimizer, tensors, about, where=Path()).put_into(again.optimizer)
    devices = {key: value.device.type for key, value in again.optimizer.state[model.fc.weight].items()}
    assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
