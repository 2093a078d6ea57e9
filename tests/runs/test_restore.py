"""A state is restored by names: each parameter's, each group's by its parameters; and wholly, or not at all."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.config.schema import AdamW, Optimizer, Penalties, RmsProp, Sgd, TimmOptimizer
from headstart.errors import ConfigError, StorageError
from headstart.optim.optimizers import make_optimizer
from headstart.training.precision import make_scaler
from headstart.training.state import make_average
from tests.runs.edits import edit_state

RULES = hs.StepRules(seed=5)
OPTIMIZERS = [AdamW(), Sgd(), RmsProp(momentum=0.9), TimmOptimizer(name="lamb", lr=0.1)]
Group = dict[str, Any]


@pytest.fixture
def make(net) -> Callable[..., hs.TrainState]:
    """A state whose groups are what ``regrouped`` makes of headstart's own."""

    def state(options: Optimizer | None = None, *, regrouped=lambda groups: groups, classes: int = 3) -> hs.TrainState:
        model = net(norm=True, classes=classes)
        groups = hs.param_groups(model, lr=0.01, head_lr=0.03, layer_decay=0.5, weight_decay=0.1)
        return hs.TrainState(model, make_optimizer(regrouped(groups), options or AdamW()))

    return state


def train(state: hs.TrainState, noise, steps: int = 2) -> hs.TrainState:
    for _ in range(steps):
        hs.train_step(state, noise(6, seed=state.step), rules=RULES)
    return state


def by_name(state: hs.TrainState) -> dict[str, object]:
    """Every parameter with its optimizer state and what its group says, and the buffers."""
    found: dict[str, object] = {name: value.tolist() for name, value in state.model.state_dict().items()}
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    for group in state.optimizer.param_groups:
        plain = {key: value for key, value in group.items() if key not in ("params", "names", "name")}
        for parameter in group["params"]:
            values = state.optimizer.state.get(parameter, {})
            kept = {key: value.tolist() if torch.is_tensor(value) else value for key, value in values.items()}
            found[f"{names[parameter]} trained"] = kept, plain
    return found


def reordered(groups: list[Group]) -> list[Group]:
    return groups[::-1]


def renamed(groups: list[Group]) -> list[Group]:
    return [group | {"name": f"mine {number}"} for number, group in enumerate(groups)]


def swapped_names(groups: list[Group]) -> list[Group]:
    return [group | {"name": other["name"]} for group, other in zip(groups, groups[::-1], strict=True)]


def without_names(groups: list[Group]) -> list[Group]:
    return [{key: value for key, value in group.items() if key not in ("name", "names")} for group in groups]


def shuffled(groups: list[Group]) -> list[Group]:
    draw = random.Random(3)
    for group in groups:
        draw.shuffle(group["params"])
    return draw.sample(without_names(groups), len(groups))


def split(groups: list[Group]) -> list[Group]:
    return [group | {"params": [parameter]} for group in groups for parameter in group["params"]]


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda one: one.kind)
@pytest.mark.parametrize("regrouped", [reordered, renamed, swapped_names, without_names, shuffled, split])
def test_groups_are_matched_by_their_parameters_names(make, noise, tmp_path, options, regrouped) -> None:
    state = train(make(options), noise)
    for number, group in enumerate(state.optimizer.param_groups):
        group["lr"] *= 1 + number / 7  # what a schedule had made of them
    hs.save(state, tmp_path)
    again = make(options, regrouped=regrouped)
    assert hs.restore(again, tmp_path) == ()
    assert by_name(again) == by_name(state)
    assert by_name(train(again, noise)) == by_name(train(state, noise))


def test_groups_that_were_alike_may_be_one_now_and_others_are_refused(make, noise, tmp_path) -> None:
    def one_rate(groups: list[Group]) -> list[Group]:
        return [group | {"lr": 0.02, "initial_lr": 0.02, "weight_decay": 0.0} for group in groups]

    def joined(groups: list[Group]) -> list[Group]:
        return [one_rate(groups)[0] | {"params": [parameter for group in groups for parameter in group["params"]]}]

    state = train(make(regrouped=one_rate), noise)
    hs.save(state, tmp_path / "alike")
    again = make(regrouped=joined)
    hs.restore(again, tmp_path / "alike")
    assert by_name(again) == by_name(state)
    hs.save(train(make(), noise), tmp_path / "unlike")
    with pytest.raises(StorageError, match=r"were in groups with other values of weight_decay \(.*; group them as"):
        hs.restore(make(regrouped=joined), tmp_path / "unlike")


def test_what_the_optimizer_holds_is_saved_with_tuples_and_tensors(net, noise, tmp_path) -> None:
    """A rate that is a tensor (for CUDA graphs), betas that a schedule moves."""

    def made() -> hs.TrainState:
        model = net()
        groups = [{"params": [parameter], "lr": torch.tensor(0.01)} for parameter in model.parameters()]
        return hs.TrainState(model, torch.optim.AdamW(groups, lr=torch.tensor(0.01)))

    state = train(made(), noise)
    for number, group in enumerate(state.optimizer.param_groups):
        group["betas"] = (0.8, 0.99 - number / 100)
        group["lr"] = torch.tensor(0.01 * number)
    hs.save(state, tmp_path)
    again = made()
    again.optimizer.param_groups.reverse()
    hs.restore(again, tmp_path)
    assert by_name(again) == by_name(state)
    lasting = [group["lr"] for group in again.optimizer.param_groups]
    assert len({value.data_ptr() for value in lasting}) == len(lasting)


def test_what_steps_make_is_saved_and_made_again_by_restore(make, noise, tmp_path) -> None:
    """The scaler of fp16, the start of L2-SP, an average: a new state has none of them before its first step."""
    rules = hs.StepRules(seed=5, precision="fp16", penalties=Penalties(l2_start=0.5), average_steps=3.0)

    def stepped(state: hs.TrainState) -> hs.TrainState:
        hs.train_step(state, noise(6, seed=state.step), rules=rules)
        return state

    state = stepped(stepped(make()))
    state.scaler.update(new_scale=2.0**9)
    hs.save(state, tmp_path)
    again = make()
    assert hs.restore(again, tmp_path) == ()
    assert (again.scaler.get_scale(), again.average.decay) == (2.0**9, state.average.decay)
    assert {name: value.tolist() for name, value in again.start.items()} == {
        name: value.tolist() for name, value in state.start.items()
    }
    for one in (state, again):
        stepped(one)
    assert by_name(again) == by_name(state)
    pairs = zip(again.average.module.state_dict().values(), state.average.module.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_parameter_of_the_optimizer_that_is_not_the_models_is_refused_when_saved(make, tmp_path) -> None:
    """A loss's own weights; what is left of a part that was replaced, in no group any more, is not kept."""
    state = make(Sgd(momentum=0.0))
    state.optimizer.state[nn.Parameter(torch.zeros(7, 2))]["momentum_buffer"] = torch.zeros(7, 2)
    assert b"momentum_buffer" not in (hs.save(state, tmp_path / "left") / "optimizer.safetensors").read_bytes()
    state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(7, 2))]})
    with pytest.raises(ConfigError, match=r"parameter of shape \[7, 2\] that is not one of state.model's"):
        hs.save(state, tmp_path)
    assert not list(tmp_path.glob("step-*"))


class Stubborn(nn.Conv2d):
    """Cannot be loaded, which it says late."""

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        super()._load_from_state_dict(*given, **named)
        raise RuntimeError("not today")


def stubborn(state: hs.TrainState) -> None:
    state.model.conv2.__class__ = Stubborn


def narrower(state: hs.TrainState) -> None:
    state.model.fc = nn.Linear(16, 3)


def of_half_precision(state: hs.TrainState) -> None:
    state.model.conv2.half()


def with_another_optimizer(state: hs.TrainState) -> None:
    state.optimizer = make_optimizer(without_names(state.optimizer.param_groups), Sgd())


def with_a_parameter_more(state: hs.TrainState) -> None:
    state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def with_a_parameter_less(state: hs.TrainState) -> None:
    del state.optimizer.param_groups[0]


def with_an_average(state: hs.TrainState) -> None:
    state.average = make_average(state.model, half_life=0.5, total_steps=10)


def with_a_scaler(state: hs.TrainState) -> None:
    state.scaler = make_scaler(torch.device("cpu"), "fp16")


REFUSED = {
    stubborn: r"not today", narrower: r"fc.weight, fc.bias differ",
    of_half_precision: r"conv2.weight, conv2.bias differ",
    with_another_optimizer: r"was saved with the optimizer AdamW, and the state's is SGD",
    with_a_parameter_more: r"trained other parameters; new: one that is not the model's; freeze and group",
    with_a_parameter_less: r"trained other parameters; missing: conv1.bias, bn1.weight",
    with_an_average: r"was saved without state.average;", with_a_scaler: r"was saved without state.scaler;",
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_a_restore_that_fails_leaves_the_state_as_it_was(make, noise, tmp_path, change) -> None:
    hs.save(train(make(classes=5 if change is narrower else 3), noise, 3), tmp_path)
    state = train(make(), noise, 1)
    change(state)
    state.epoch_loss, state.epochs_done = 0.7, 4
    before, counters = copy.deepcopy(by_name_but_strangers(state)), (state.step, state.epoch_loss, state.best)
    with pytest.raises((StorageError, RuntimeError), match=REFUSED[change]):
        hs.restore(state, tmp_path)
    assert by_name_but_strangers(state) == before
    assert (state.step, state.epoch_loss, state.best) == counters


class Counting(nn.Conv2d):
    """Holds a number outside of its state dict."""

    calls = 1


def test_a_restore_that_fails_late_puts_back_what_a_module_holds_outside_of_its_state_dict(
    make, noise, tmp_path
) -> None:
    def made() -> hs.TrainState:
        state = make()
        state.model.conv1.__class__, state.model.conv1.calls = Counting, 1
        with_an_average(state)
        return state

    state = train(made(), noise, 1)
    state.model.conv1.calls = 5
    hs.save(state, tmp_path)
    again = made()
    again.average.module.conv2.__class__ = Stubborn
    with pytest.raises(RuntimeError, match="not today"):
        hs.restore(again, tmp_path)
    assert (again.model.conv1.calls, again.step) == (1, 0)
    again.average.module.conv2.__class__ = nn.Conv2d
    hs.restore(again, tmp_path)
    assert (again.model.conv1.calls, again.step) == (5, 1)


def by_name_but_strangers(state: hs.TrainState) -> dict[str, object]:
    own = set(state.model.parameters())
    known = hs.TrainState(state.model, copy.copy(state.optimizer))
    known.optimizer.param_groups = [
        group | {"params": [parameter for parameter in group["params"] if parameter in own]}
        for group in state.optimizer.param_groups
    ]
    return by_name(known)


@pytest.mark.parametrize("key", ["epoch_loss", "best", "stopped"])
def test_a_counter_that_is_missing_is_found_before_anything_is_put_back(make, noise, tmp_path, key) -> None:
    saved = hs.save(train(make(), noise, 3), tmp_path)
    edit_state(saved, lambda counters: counters.pop(key))
    state = train(make(), noise, 1)
    before = by_name(state)
    with pytest.raises(StorageError):
        hs.restore(state, tmp_path)
    assert by_name(state) == before


def test_a_checkpoint_from_before_groups_had_their_parameters_names_still_restores(make, noise, tmp_path) -> None:
    state = train(make(), noise)
    saved = hs.save(state, tmp_path)

    def as_it_was(counters: dict[str, Any]) -> None:
        del counters["optimizer"]["class"]
        for group in counters["optimizer"]["groups"]:
            del group["parameters"], group["betas"]

    edit_state(saved, as_it_was)
    again = make()
    hs.restore(again, tmp_path)
    assert by_name(again) == by_name(state)
    with pytest.raises(StorageError, match=r"has the parameter groups \['conv1 \(no decay\)', .*, and the state's"):
        hs.restore(make(regrouped=reordered), tmp_path)


def test_a_loss_scaler_that_is_switched_off_is_none(net, noise, tmp_path):
    states = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), None):
        model = net()
        state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        state.scaler = scaler
        states.append(state)
    losses = [hs.train_step(state, noise(8), rules=hs.StepRules()).loss for state in states]
    assert losses[0] == losses[1]
    for saved, other in (states, states[::-1]):
        hs.save(saved, tmp_path / str(id(saved)))
        for state in (saved, other):
            hs.restore(state, tmp_path / str(id(saved)))
