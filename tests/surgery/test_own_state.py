"""What a module of one's own holds outside of its state dict is read as plain values and put back."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from headstart.surgery.own_state import OwnState, covers, read_own_state, restore_own_state


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.calls, self.share, self.seen = 3, 0.1, [1, 2.5, (3, "x")]
        self.limit, self.size = float("inf"), np.float32(0.3)
        self.facts = {"a": [1], "b": None}
        self.shift = torch.tensor([1.5, float("nan")])
        self.python, self.numpy = random.Random(4), np.random.default_rng(5)
        self.torch = torch.Generator().manual_seed(6)
        self.register_buffer("passing", torch.arange(3.0), persistent=False)
        self.register_buffer("kept", torch.ones(1))
        self.strange = object()


def draws(own: Own) -> list[float]:
    return [own.python.random(), float(own.numpy.random()), float(torch.rand(1, generator=own.torch))]


def test_everything_plain_comes_back_through_json_and_the_objects_stay():
    own = Own()
    read = read_own_state(own)
    assert set(read.tensors) == {"shift", "passing"}
    assert "strange" not in read.values and "inner" not in read.values
    values = json.loads(json.dumps(read.values, allow_nan=False))
    seen, facts, expected = own.seen, own.facts, draws(own)
    own.calls, own.share, own.limit, own.size = 9, 0.7, 1.0, np.float32(9)
    own.seen.append(7)
    own.facts["c"] = 1
    own.shift = own.shift * 2
    own.passing += 1
    restore_own_state(own, OwnState(values=values, tensors=read.tensors))
    assert (own.calls, own.share, own.limit, own.size) == (3, 0.1, float("inf"), np.float32(0.3))
    assert type(own.size) is np.float32
    assert own.seen is seen and own.seen == [1, 2.5, (3, "x")]
    assert own.facts is facts and own.facts == {"a": [1], "b": None}
    assert torch.equal(own.shift.nan_to_num(7), torch.tensor([1.5, 7.0]))
    assert torch.equal(own.passing, torch.arange(3.0))
    assert draws(own) == expected


@pytest.mark.parametrize(("name", "is_covered"), [("calls", True), ("buffer passing", True), ("strange", False)])
def test_what_is_read_covers_names_of_differences(name: str, is_covered: bool):
    assert covers(read_own_state(Own()), name) == is_covered


def test_modules_of_libraries_hold_nothing_of_the_users():
    assert read_own_state(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))) == OwnState()
