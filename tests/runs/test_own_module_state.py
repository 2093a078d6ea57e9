"""State of an own module outside of its parameters and buffers: resumed, in the bundle, or said to be lost."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, ModelError


class Tail(nn.Module):
    """Counts its calls in training in several kinds of places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 8)
        self.calls, self.seen, self.draws = 0, [0.0], random.Random(3)
        self.register_buffer("passing", torch.zeros(1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.seen[0] += self.draws.random()
            self.passing += 1
        return self.linear(features) * (1 + self.calls / 50) + self.passing / 90 + self.seen[0] / 70


class Net(nn.Module):
    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.conv, self.tail, self.fc = nn.Conv2d(3, 8, 3, 4), tail, nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.tail(torch.relu(self.conv(images)).mean((2, 3))))


class Stop(Exception):
    pass


@pytest.fixture
def trained(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Any]:
    def run(name: str, tail: nn.Module, *, stop_at: int = 0, **options: Any) -> Any:
        def watch(event: object) -> None:
            if type(event).__name__ == "Saved" and event.step >= stop_at > 0:
                raise Stop

        given = settings(
            recipe="full", freeze="until:conv", epochs=3, out=str(tmp_path / name), augment={"preset": "none"},
            average={"kind": "ema"}, precision="fp32", memory_format="contiguous", checkpoint={"every_steps": 1},
        )  # fmt: skip
        given["model"] = {"image_size": 32}
        torch.manual_seed(0)
        return hs.train(hs.load_config(given), model=Net(tail), watch=watch, **options)

    return run


def test_a_resume_and_the_bundle_have_the_counters_that_the_run_had(trained, tmp_path: Path):
    whole = trained("whole", Tail())
    with pytest.raises(Stop):
        trained("cut", Tail(), stop_at=5)
    cut = trained("cut", Tail(), resume=True)
    assert all(torch.equal(value, cut.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    files = [(tmp_path / name / "predictions.csv").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]
    opened = hs.open_run(tmp_path / "cut", model=Net(Tail())).model
    mine, theirs = (vars(model.tail) for model in (opened, whole.model))
    assert mine["calls"] == theirs["calls"] > 0
    assert mine["seen"] == theirs["seen"]
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(opened(images), whole.model(images))


class Table(nn.Module):
    """Is filled by the first batch after ``train``, which empties it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 8)
        self.table: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Table:
        super().train(mode)
        self.table.clear()
        return self

    def forward(self, features: Tensor) -> Tensor:
        made = self.linear(features)
        if "mean" not in self.table:
            self.table["mean"] = made.detach().mean(0)
        return made + self.table["mean"]


@pytest.mark.parametrize("stop_at", [6, 8], ids=["within an epoch", "between two epochs"])
def test_a_resume_has_what_entering_training_mode_empties(trained, tmp_path: Path, stop_at: int):
    trained("whole", Table())
    assert '"steps_per_epoch": 4' in (tmp_path / "whole/plan.json").read_text()
    with pytest.raises(Stop):
        trained("cut", Table(), stop_at=stop_at)
    trained("cut", Table(), resume=True)
    files = [(tmp_path / name / "predictions.csv").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]


def counted_elsewhere() -> nn.Module:
    """A counter that nothing but its closure holds: an object that cannot be written to a file."""
    torch.manual_seed(1)
    tail, count = nn.Linear(8, 8), [0.0]

    def hook(_: nn.Module, __: object, made: Tensor) -> Tensor:
        count[0] += 0.01
        return made * (1 + count[0])

    tail.register_forward_hook(hook)
    return tail


def test_what_no_checkpoint_can_hold_is_named_and_its_resume_is_refused_until_it_is_allowed(trained, tmp_path: Path):
    with pytest.raises(Stop):
        trained("cut", counted_elsewhere(), stop_at=2)
    plan = (tmp_path / "cut" / "plan.json").read_text()
    assert "changed by forward and not saved" in plan
    with pytest.raises(ConfigError, match="saved in no checkpoint"):
        trained("cut", counted_elsewhere(), resume=True)
    trained("cut", counted_elsewhere(), resume=True, allow_inexact=True)


class Extra(nn.Module):
    """Keeps a history that only ``get_extra_state`` gives."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(8, 8)
        self._history = {
            "calls": 0, "sums": [torch.zeros(8, dtype=torch.bfloat16)], 3: (float("nan"), b"\0x"),
            "shape": np.ones((0, 3), np.float32), "names": {"b", "a"}, "other": OrderedDict(a=torch.ones(())), **more,
        }  # fmt: skip

    def get_extra_state(self) -> Any:
        return self._history

    def set_extra_state(self, state: Any) -> None:
        self._history = state

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self._history["calls"] += 1
            self._history["sums"][0] = self._history["sums"][0] + 1
        return self.linear(features) * (1 + self._history["calls"] / 50) + self._history["sums"][0] / 90


def test_extra_state_of_any_plain_kind_is_resumed_and_in_the_bundle(trained, tmp_path: Path):
    whole = trained("whole", Extra())
    assert "not saved" not in (tmp_path / "whole" / "plan.json").read_text()
    with pytest.raises(Stop):
        trained("cut", Extra(), stop_at=5)
    trained("cut", Extra(), resume=True)
    files = [(tmp_path / name / "predictions.csv").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]
    opened = hs.open_run(tmp_path / "cut", model=Net(Extra())).model
    mine, theirs = (model.tail.get_extra_state() for model in (opened, whole.model))
    assert list(mine) == list(theirs) and mine["calls"] == theirs["calls"] > 0
    assert torch.equal(mine["sums"][0], theirs["sums"][0]) and mine["sums"][0].dtype is torch.bfloat16
    assert mine["shape"].shape == (0, 3) and mine["names"] == {"a", "b"} and mine[3][1] == b"\0x"
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(opened(images), whole.model(images))


@pytest.mark.parametrize("value", [object(), [lambda: 0], {1: {2j}}], ids=["object", "function", "complex"])
def test_extra_state_that_cannot_be_written_is_refused_by_name_before_anything_is(trained, tmp_path: Path, value: Any):
    with pytest.raises(ModelError, match=r"get_extra_state of tail \(Extra\) gives a value of type .* is not saved"):
        trained("run", Extra(strange=value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [{"calls": 1}, torch.ones(2)], ids=["plain", "tensor"])
def test_extra_state_that_nothing_puts_back_is_refused_before_anything_is_written(trained, tmp_path: Path, value: Any):
    class OneWay(nn.Linear):
        def get_extra_state(self) -> Any:
            return value

    with pytest.raises(ModelError, match=r"tail \(OneWay\) has a get_extra_state and no set_extra_state"):
        trained("run", OneWay(8, 8))
    assert not (tmp_path / "run").exists()


def test_extra_state_is_in_a_checkpoint_of_ones_own_loop(tmp_path: Path):
    model = Net(Extra())
    state = hs.TrainState(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.zeros(2, 3, 32, 32))
    hs.save(state, tmp_path / "checkpoints")
    model(torch.zeros(2, 3, 32, 32))
    hs.restore(state, tmp_path / "checkpoints")
    assert model.tail.get_extra_state()["calls"] == 1


@pytest.mark.parametrize(
    "odd", [torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()], ids=["complex128", "sparse_coo"]
)
def test_a_tensor_that_no_file_holds_is_refused_by_name_before_anything_is_written(trained, tmp_path: Path, odd):
    tail = nn.Linear(8, 8)
    tail.register_buffer("odd", odd)
    with pytest.raises(ModelError, match=r"tail\.odd is a (complex128|sparse_coo) tensor"):
        trained("run", tail)
    assert not (tmp_path / "run").exists()


class MadeInForward(nn.Module):
    """A buffer that is not saved with the weights, made when it is first needed."""

    def forward(self, features: Tensor) -> Tensor:
        if "grid" not in self._buffers:
            self.register_buffer("grid", torch.arange(8.0) / 8, persistent=False)
        return features + self.grid


def test_a_buffer_that_forward_makes_and_no_state_dict_holds_is_a_buffer_in_the_bundle_too(trained, tmp_path: Path):
    run = trained("run", MadeInForward())
    opened = hs.open_run(run.path, model=Net(MadeInForward())).model
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(opened(images), run.model(images))


class Filled(nn.Module):
    """A buffer that is there by name alone until forward fills it, and then counts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", None, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        self.grid = torch.zeros(8) if self.grid is None else self.grid + self.training / 50
        return features + self.grid


def test_a_buffer_that_forward_fills_is_saved_and_said_to_be(trained, tmp_path: Path):
    whole = trained("whole", Filled())
    plan = (tmp_path / "whole" / "plan.json").read_text()
    assert "saved with every checkpoint" in plan and "not saved" not in plan
    with pytest.raises(Stop):
        trained("cut", Filled(), stop_at=5)
    cut = trained("cut", Filled(), resume=True)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(cut.model(images), whole.model(images))


class Renormed(nn.Module):
    """Keeps what its weight is computed from anew in every call, as torch's older ``weight_norm`` does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.v, self.kept = nn.Parameter(torch.randn(8, 8)), dict[str, Tensor]()

    def forward(self, features: Tensor) -> Tensor:
        self.weight = self.v / self.v.norm()
        self.kept["last"] = self.weight * 2
        return features @ self.weight


def test_the_model_of_a_run_has_no_history_and_can_be_copied(trained):
    run = trained("run", Renormed())
    held = run.model.tail
    assert held.weight.grad_fn is None and held.kept["last"].grad_fn is None
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(copy.deepcopy(run.model)(images), run.model(images))
