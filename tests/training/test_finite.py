"""A NaN or an infinity stops the run within its step, is named with group and files, and is never saved."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import headstart as hs
from headstart.errors import NonFiniteError
from headstart.optim.groups import param_groups
from headstart.runs.checkpoint import read_checkpoint
from headstart.training.finite import find_damaged
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step


def grouped(model: nn.Module) -> TrainState:
    groups = param_groups(model, lr=1e-2, head_lr=1e-1, layer_decay=0.5, weight_decay=0.1)
    return TrainState(model, torch.optim.AdamW(groups))


@contextlib.contextmanager
def after_each_step(call: Callable[..., None]) -> Iterator[None]:
    """Within, torch calls it after every optimizer step."""
    hook = register_optimizer_step_post_hook(call)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf])
def test_a_rate_that_is_not_finite_stops_before_the_step_with_its_group(net, noise, rate: float) -> None:
    state = grouped(net())
    before = [value.clone() for value in state.model.parameters()]
    state.optimizer.param_groups[1]["lr"] = rate
    name = state.optimizer.param_groups[1]["name"]
    with pytest.raises(NonFiniteError, match=rf"step 1: the rate of group {name} is {rate}, so .* Images: 00.png, 01"):
        train_step(state, noise(8), rules=StepRules())
    assert all(torch.equal(one, other) for one, other in zip(before, state.model.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}])
def test_only_the_group_whose_gradient_is_not_finite_is_named(net, noise, options) -> None:
    """Clipping by a norm that is NaN would make all of them NaN."""
    state = grouped(net())
    state.model.conv1.weight.register_hook(lambda gradient: gradient * math.nan)
    group = next(g for g in state.optimizer.param_groups if any(p is state.model.conv1.weight for p in g["params"]))
    with pytest.raises(NonFiniteError, match=rf"gradient norm nan: .* Gradients of: {group['name']}. Images: 00.png"):
        train_step(state, noise(8), rules=StepRules(**options))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_stops_the_step_that_made_it(net, noise, value: float) -> None:
    state = grouped(net())

    def spoil(*_: object) -> None:
        with torch.no_grad():
            state.model.fc.bias[0] = value

    with after_each_step(spoil), pytest.raises(NonFiniteError) as found:
        train_step(state, noise(8), rules=StepRules())
    assert "step 1: not finite after it: fc.bias; nothing of it is saved. Weights of: head" in str(found.value)
    assert "Images: 00.png" in str(found.value)


def test_a_batch_statistic_that_is_not_finite_stops_the_step(net, noise) -> None:
    state = grouped(net(norm=True))
    state.model.bn1.running_var[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"step 1: not finite after it: bn1\.running_var;"):
        train_step(state, noise(8), rules=StepRules())


def test_large_weights_are_finite(net, noise) -> None:
    """Their squares are not."""
    state = grouped(net())
    with torch.no_grad():
        state.model.fc.bias[:] = 1e25
    train_step(state, noise(8), rules=StepRules())
    assert state.step == 1


def nan_from(step: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy that is NaN from its call number ``step`` on."""
    calls = iter(range(1, 10_000))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return value * (math.nan if next(calls) >= step else 1.0)

    return loss


@pytest.mark.parametrize("cause", ["loss", "watcher", "rate"])
def test_what_is_not_finite_becomes_neither_best_nor_last(settings, cause: str) -> None:
    """In the second epoch; the checkpoint before it is whole, and the last."""
    own = {"name": "auto", "options": {}}
    config = hs.load_config(settings(recipe="full", model=own, checkpoint={"every_steps": 1, "keep": 99}))
    models: list[nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []

    def watch(event: object) -> None:
        if cause == "rate" and isinstance(event, hs.StepDone) and event.step == 6:
            optimizers[-1].param_groups[0]["initial_lr"] = math.inf
        if cause == "watcher" and isinstance(event, hs.StepDone) and event.step == 6:
            with torch.no_grad():
                models[0].fc.bias[0] = math.nan

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.conv, self.fc = inner.conv1, inner.fc
            models.append(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).relu().mean((2, 3)))

    inner = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
    inner.fc = nn.Linear(inner.conv1.out_channels, 3)
    loss = nan_from(6) if cause == "loss" else None
    with (
        after_each_step(lambda optimizer, *_: optimizers.append(optimizer)),
        pytest.raises(NonFiniteError, match="step 6: "),
    ):
        hs.train(config, model=hs.InPlace(Spy(inner)), loss=loss, watch=watch)
    checkpoints = Path(config.out) / "checkpoints"
    assert json.loads((checkpoints / "last.json").read_text())["step"] == 5
    assert json.loads((checkpoints / "best.json").read_text())["step"] == 4
    found = read_checkpoint(checkpoints)
    assert (found.counters["step"], found.skipped) == (5, ())
    assert not list(checkpoints.glob("step-00000006"))


def test_whole_numbers_among_the_weights_are_no_hindrance() -> None:
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.arange(4), requires_grad=False)
    assert find_damaged(model) == []
    model.weight.data[0, 0] = float("inf")
    assert find_damaged(model) == ["weight"]
