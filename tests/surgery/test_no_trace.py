"""Looking at a module leaves no trace, whatever its code keeps; one that cannot be looked at is refused by name."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import headstart as hs
from headstart.errors import ModelError
from headstart.isolation import own_turn
from headstart.models.describe import describe
from headstart.surgery.head import find_head
from headstart.surgery.layout import find_layout
from headstart.surgery.module_state import differences, read_state, restore_state
from headstart.surgery.trace import run_for_shapes

TOTAL = 0


class Tail(nn.Module):
    """It counts in every way; ``branches``: on the values of images, so that torch.fx cannot trace it."""

    seen = 0

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.linear = nn.Linear(8, 8)
        self.calls, self.history, self.cache = 0, list[int](), dict[str, torch.Tensor]()
        self.register_buffer("n", torch.zeros(1))
        self.register_buffer("anew", torch.zeros(1))
        self.draw = random.Random(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global TOTAL
        TOTAL += 1
        Tail.seen += 1
        self.calls += 1
        self.n += 1
        self.anew = self.anew + 1
        self.history.append(self.calls)
        self.cache["last"] = x
        self.linear.weight.data.mul_(0.5)
        self.linear.bias.data = self.linear.bias.data + 1
        self.linear.eval()
        random.random(), np.random.rand(), torch.rand(1), self.draw.random()
        if self.branches and x.sum() > 1e9:
            return x
        return self.linear(x)


class Net(nn.Module):
    def __init__(self, *, branches: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.tail = Tail(branches=branches)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.tail(torch.relu(self.conv(x)).mean((2, 3))))


LOOKS: dict[str, Callable[[nn.Module], object]] = {
    "find_head": find_head,
    "find_layout": find_layout,
    "describe": describe,
    "a run for shapes": lambda net: run_for_shapes(net, names={"fc"}),
    "a run for shapes on real values": lambda net: run_for_shapes(net, names={"fc"}, values=True),
    "what a rule freezes": lambda net: hs.surgery.freeze.what_freezes(net, "backbone"),
}


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "hooks"])
@pytest.mark.parametrize("name", LOOKS)
def test_looking_changes_nothing(name: str, branches: bool) -> None:
    net, seen = Net(branches=branches), list[int]()
    net.register_forward_hook(lambda *_: seen.append(1))
    net.tail.linear.bias.grad = torch.ones(8)
    before, again = read_state(net, parameters=True), torch.get_rng_state()
    LOOKS[name](net)
    assert differences(before, read_state(net, parameters=True)) == ()
    assert (net.tail.calls, net.tail.n.item(), seen, TOTAL, Tail.seen) == (0, 0.0, [], 0, 0)
    assert torch.equal(again, torch.get_rng_state())
    assert find_layout(net).how == ("hooks" if branches else "fx")


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "hooks"])
def test_a_new_head_changes_nothing_else(branches: bool) -> None:
    net = Net(branches=branches)
    net.num_classes = 10
    before, old = read_state(net, parameters=True), net.fc
    hs.replace_head(net, outputs=3)
    new, net.fc, net.num_classes = net.fc, old, 10
    torch.set_rng_state(before.generators["torch's"])
    assert (new.out_features, differences(before, read_state(net, parameters=True))) == (3, ())


@pytest.mark.parametrize("branches", [False, True], ids=["fx", "hooks"])
def test_freezing_moves_no_counter(branches: bool) -> None:
    net = Net(branches=branches)
    before = read_state(net, parameters=True)
    hs.freeze(net, rule="backbone")
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    changed = differences(before, read_state(net, parameters=True))
    assert all(name.endswith(".training") for name in changed), changed
    restore_state(net, before)


def test_a_module_whose_look_would_last_is_refused_by_name_and_helped_by_the_sentence() -> None:
    class Counted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.counter = itertools.count()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            next(self.counter)
            return super().forward(x)

    class Helped(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    with pytest.raises(ModelError, match=r"running it once changes counter, .* self\.calls \+= 1 in place of next"):
        hs.replace_head(Counted(), outputs=3)
    net = Helped()
    hs.replace_head(net, outputs=3)
    assert net.calls == 0


def test_looking_while_others_draw_and_train_says_nothing_of_them() -> None:
    """A module that another thread's loop shares, and generators that other threads draw from."""
    module = Net()
    module.tail = nn.Linear(8, 8)  # nothing is its own but the class
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            random.random(), np.random.rand(), torch.rand(1)
            with own_turn():
                module.conv.weight.requires_grad_(False)
                module.conv.weight.data.mul_(1.01)
                module.conv.weight.requires_grad_(True)

    thread = threading.Thread(target=meddle, daemon=True)
    thread.start()
    try:
        for _ in range(10):
            assert find_head(module).paths
    finally:
        done.set()
        thread.join()
