"""An optimizer of one's own goes on to the same bits, wherever it keeps what it counts and averages."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, StorageError


class Containers(torch.optim.Optimizer):
    """Tensors in lists, dictionaries and tuples of ``state[parameter]``, and a tensor under a key of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        shared = self.state.setdefault("shared", {"count": 0, "sum": torch.zeros(1)})
        shared["count"] += 1
        for parameter in self.param_groups[0]["params"]:
            kept = self.state[parameter]
            kept["last"] = [*kept.get("last", []), parameter.grad.clone()][-3:]
            kept["mean"] = {"m": 0.9 * kept.get("mean", {"m": 0.0})["m"] + parameter.grad, "none": None}
            kept["steps"] = (kept.get("steps", (torch.zeros(()),))[0] + 1,)
            shared["sum"] = 0.9 * shared["sum"] + parameter.grad.abs().sum()
            move = sum(kept["last"]) / len(kept["last"]) + kept["mean"]["m"] / kept["steps"][0]
            parameter.sub_(self.param_groups[0]["lr"] * move / (1 + shared["sum"] / shared["count"]))


class Attributes(torch.optim.Optimizer):
    """A counter, buffers and a generator as attributes."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self._count, self.buffers, self.draw = 0, list[Tensor](), random.Random(3)
        self.all = self.param_groups[0]["params"]
        self.notify: Callable[[], None] = lambda: None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self._count += 1
        self.buffers = self.buffers or [torch.zeros_like(parameter) for parameter in self.all]
        for parameter, buffer in zip(self.all, self.buffers, strict=True):
            buffer.mul_(0.9).add_(parameter.grad)
            parameter.sub_(0.1 * self.draw.random() * buffer / self._count)


class Lookahead:
    """Around another optimizer, whose groups and state it shows as its own."""

    def __init__(self, parameters: Any) -> None:
        self.base = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.count, self.slow = 0, [value.detach().clone() for value in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self) -> None:
        self.base.step()
        self.count += 1
        if self.count % 3 == 0:
            for fast, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                fast.copy_(slow.lerp_(fast, 0.5))


def timms_lookahead(parameters: Any) -> torch.optim.Optimizer:
    return timm.optim.create_optimizer_v2([{"params": [*parameters]}], opt="lookahead_adamw", lr=0.01)


def trained(state: hs.TrainState, noise: Any, *, until: int) -> list[float]:
    return [hs.train_step(state, noise(8, seed=step), rules=hs.StepRules()).loss for step in range(state.step, until)]


@pytest.mark.parametrize("make", [Containers, Attributes, Lookahead, timms_lookahead])
def test_what_an_optimizer_keeps_goes_on_as_if_nothing_had_been(make: Any, net, noise, tmp_path: Path) -> None:
    states = []
    for seed in (0, 0, 1):
        model = net(seed=seed)
        states.append(hs.TrainState(model, make(model.parameters())))
    whole, first, second = states
    expected = trained(whole, noise, until=10)
    found = trained(first, noise, until=7)
    hs.save(first, tmp_path)
    trained(second, noise, until=2)
    hs.restore(second, tmp_path)
    assert [*found, *trained(second, noise, until=10)] == expected
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_restore_that_fails_leaves_an_optimizer_of_ones_own_as_it_was(net, noise, tmp_path: Path) -> None:
    model = net()
    state = hs.TrainState(model, Attributes(model.parameters()))
    trained(state, noise, until=2)
    hs.save(state, tmp_path)
    trained(state, noise, until=3)

    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            raise ValueError("no")

    state.model.load_state_dict = Refusing().load_state_dict  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        hs.restore(state, tmp_path)
    assert state.optimizer._count == 3  # type: ignore[attr-defined]


def test_what_a_checkpoint_could_not_put_back_is_refused_by_name(net, noise, tmp_path: Path) -> None:
    model = net()
    optimizer = Attributes(model.parameters())
    optimizer.by_parameter = {value: torch.zeros_like(value) for value in model.parameters()}  # type: ignore[attr-defined]
    state = hs.TrainState(model, optimizer)
    trained(state, noise, until=1)
    with pytest.raises(ConfigError, match=r"\.by_parameter \(Attributes\) is a dictionary by parameter"):
        hs.save(state, tmp_path)
    del optimizer.by_parameter  # type: ignore[attr-defined]
    optimizer.state[model.fc.bias]["graph"] = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"keeps a value of type Linear for fc.bias under graph, which a checkpoint"):
        hs.save(state, tmp_path)
    assert not [*tmp_path.iterdir()]
