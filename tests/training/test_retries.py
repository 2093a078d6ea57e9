"""A step that is tried again, or not taken, leaves nothing of its failed tries in a module of the user's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from headstart.errors import NonFiniteError
from headstart.training.precision import make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step

CPU = torch.device("cpu")


def counting() -> Callable[..., None]:
    """A hook that counts its calls, which nothing but the place where it is registered knows of."""

    def hook(*about: Any) -> None:
        hook.calls += 1

    hook.calls = 0
    return hook


class Restless(nn.Module):
    """Every forward pass moves everything that it can: attributes, closures, generators, buffers, a parameter. What it
    gives depends on how often it was called.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.most = inner, 1000
        self.calls, self.seen, self.table = 0, [], {"calls": 0}
        self.draws, self.nothing = random.Random(1), None
        self.register_buffer("filled", None)
        self.register_buffer("beside", torch.zeros(1), persistent=False)
        self.prototype = nn.Parameter(torch.zeros(2), requires_grad=False)
        cell = 0

        def count() -> int:
            nonlocal cell
            cell += 1
            return cell

        self.count, self.peek = count, lambda: cell
        inner.fc.register_forward_hook(counting())
        inner.fc.weight.register_hook(counting())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(len(images))
        self.table["calls"] += 1
        self.nothing = "something"
        self.filled = torch.ones(1) if self.filled is None else self.filled + 1
        self.beside.add_(1)
        self.prototype.data.add_(1)
        made = self.inner(images) * (1 + self.calls / 10 + self.count() / 10 + self.draws.random() / 10)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return made

    def moved(self) -> dict[str, Any]:
        """All that forward moves."""
        return {
            "plain": (self.calls, list(self.seen), dict(self.table), self.nothing, self.peek()),
            "draws": self.draws.getstate(),
            "hooks": [hook.calls for hook in self.inner.fc._forward_hooks.values()],
            "gradients": [hook.calls for hook in self.inner.fc.weight._backward_hooks.values()],
            "tensors": [None if value is None else value.tolist() for value in (self.filled, self.beside)],
            "prototype": self.prototype.tolist(),
        }


def started(net: Callable[..., nn.Module]) -> TrainState:
    model = Restless(net(norm=True))
    trained = [value for value in model.parameters() if value.requires_grad]
    return TrainState(model, torch.optim.SGD(trained, lr=0.1))


def check_moved(one: TrainState, other: TrainState) -> None:
    found, expected = one.model.moved(), other.model.moved()
    assert {name: found[name] for name in found if found[name] != expected[name]} == {}


def check_same(one: TrainState, other: TrainState) -> None:
    check_moved(one, other)
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_after_an_overflow_nothing_of_the_failed_tries_is_left(net, noise, steps: int) -> None:
    """The scaler begins where it overflows at the last of ``steps`` steps, or where it does not."""
    state, steady = started(net), started(net)
    for each in (state, steady):
        each.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    rules = StepRules(precision="fp16")
    for seed in range(steps):
        if seed == steps - 1:
            state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        done, expected = (train_step(each, noise(8, seed=seed), rules=rules) for each in (state, steady))
    assert 2.0**8 < state.scaler.get_scale() < 2.0**22, "it overflowed, and a step was taken"
    assert done.loss == expected.loss
    check_moved(state, steady)
    for name, value in steady.model.state_dict().items():  # two scales round differently
        torch.testing.assert_close(state.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("steps", [1, 2])
def test_after_memory_ran_out_nothing_of_the_failed_tries_is_left(net, noise, steps: int) -> None:
    state, steady = started(net), started(net)
    steady.micro_batches = 4
    for seed in range(steps):
        if seed == steps - 1:
            state.micro_batches = 0
            state.model.most = steady.model.most = 3
        else:
            state.micro_batches = 4
        done, expected = (train_step(each, noise(12, seed=seed), rules=StepRules()) for each in (state, steady))
    assert done.loss == expected.loss
    check_same(state, steady)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_is_not_taken_leaves_nothing(net, noise, steps: int) -> None:
    state, steady = started(net), started(net)
    for seed in range(steps):
        for each in (state, steady):
            train_step(each, noise(8, seed=seed), rules=StepRules())
    with pytest.raises(NonFiniteError):
        train_step(state, noise(8), rules=StepRules(loss=lambda outputs, targets: outputs.sum(1) * float("nan")))
    check_same(state, steady)


def test_a_loss_that_counts_counts_a_step_that_is_tried_again_once(net, noise) -> None:
    seen: list[int] = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(outputs))
        return nn.functional.cross_entropy(outputs, targets, reduction="none") * len(seen)

    state = TrainState(model := net(), torch.optim.SGD(model.parameters(), lr=0.1))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    train_step(state, noise(8), rules=StepRules(loss=loss, precision="fp16"))
    assert state.scaler.get_scale() < 2.0**22, "it overflowed"
    assert seen == [8]


def test_an_overflow_without_end_leaves_nothing(net, noise) -> None:
    state, steady = started(net), started(net)
    for each in (state, steady):
        each.scaler = make_scaler(CPU, "fp16")
        with torch.no_grad():
            each.model.inner.fc.weight.mul_(1e20)
    with pytest.raises(NonFiniteError):
        train_step(state, noise(8), rules=StepRules(precision="fp16"))
    check_same(state, steady)
