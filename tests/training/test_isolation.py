"""What surrounds a call does not reach into it: steps, epochs, evaluation, prediction have the bits of a bare call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import headstart as hs
from headstart.errors import RunError
from headstart.isolation import own_arithmetic
from tests.arithmetic import default_dtype


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def kept_out() -> Iterator[None]:
    """As ``hs.train`` begins: many steps within one block."""
    with torch.autocast("cpu", torch.bfloat16), own_arithmetic():
        yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "double": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
}


def surrounded() -> tuple[object, ...]:
    return (
        torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.get_default_dtype(), torch.empty(0).device.type,
    )  # fmt: skip


def trained(model: torch.nn.Module, images: Any, precision: Any) -> list[object]:
    """Everything that a small training of one's own gives, as numbers and bits."""
    state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    rules, around = hs.StepRules(precision=precision, clip_norm=1.0), surrounded()
    found: list[object] = []
    for event in hs.fit(state, images.train, rules=rules, epochs=2):
        assert surrounded() == around, "the caller's own code runs in the caller's surroundings"
        found.append(event.loss if isinstance(event, hs.StepDone) else event.train_loss)
    judged = hs.evaluate(state.model, images.val, precision=precision)
    found += [judged.metrics, judged.truth, judged.predictions.outputs]
    found.append(hs.predict(state.model, images.val, precision=precision).outputs)
    found.append(hs.train_step(state, next(images.train.epoch(0)), rules=rules).loss)
    assert surrounded() == around
    return [*found, *state.model.state_dict().values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_in_any_surroundings_has_the_bits_of_training_in_none(net, images, precision) -> None:
    model = net(norm=True, dropout=0.5)
    expected = trained(copy.deepcopy(model), images, precision)
    for name, surroundings in {**SURROUNDINGS, "kept out": kept_out}.items():
        given = copy.deepcopy(model)
        with surroundings():
            found = trained(given, images, precision)
        for ours, theirs in zip(found, expected, strict=True):
            if isinstance(theirs, torch.Tensor):
                assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
            else:
                assert ours == theirs, name


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_own_arithmetic_keeps_the_callers_out_and_gives_it_back(name) -> None:
    bare = surrounded()
    with SURROUNDINGS[name]():
        around = surrounded()
        assert around != bare
        with own_arithmetic():
            assert surrounded() == bare
            with own_arithmetic():
                assert surrounded() == bare
        assert surrounded() == around
    assert surrounded() == bare


def test_tensors_without_values_are_refused_by_name(net, images, tmp_path) -> None:
    model = net()
    state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
    hs.save(state, tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: next(iter(hs.fit(state, images.train, rules=hs.StepRules(), epochs=1))),
        lambda: hs.predict(model, images.val),
        lambda: hs.restore(state, tmp_path),
        lambda: hs.replace_head(model, outputs=4),
    ]
    for call in calls:
        with FakeTensorMode(), pytest.raises(RunError, match="torch makes FakeTensors here, which have no values to"):
            call()
        call()


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_head_that_is_made_in_any_surroundings_trains(net, noise, name) -> None:
    made = []
    for around in (SURROUNDINGS[name], nullcontext):
        model = net()
        with around():
            torch.manual_seed(3)
            hs.replace_head(model, outputs=3, hidden=(4,), dropout=0.1)
        state = hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))
        made.append(hs.train_step(state, noise(8), rules=hs.StepRules()).loss)
    assert made[0] == made[1]


def test_another_threads_default_dtype_is_not_a_runs_and_is_kept() -> None:
    with torch.no_grad(), own_arithmetic():
        torch.set_default_dtype(torch.float64)  # as another thread may
        with own_arithmetic():
            assert torch.empty(0).dtype is torch.float32
    assert torch.get_default_dtype() is torch.float64
    torch.set_default_dtype(torch.float32)
    with torch.no_grad(), own_arithmetic():
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() is torch.float64
    torch.set_default_dtype(torch.float32)
