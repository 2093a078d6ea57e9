"""What a checkpoint's files say is what is put back; files that ``save`` does not write are refused by name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.config.schema import AdamW, Penalties
from headstart.errors import StorageError
from headstart.optim.optimizers import make_optimizer
from headstart.runs.checkpoint import drop_later, load_best, newest_step, read_checkpoint
from headstart.storage.disk import DISK
from headstart.storage.durable import write_folder
from headstart.training.precision import make_scaler
from headstart.training.state import Best, make_average
from tests.runs.edits import edit_state

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def make(net) -> Callable[..., hs.TrainState]:
    def state(*, classes: int = 3) -> hs.TrainState:
        model = net(norm=True, classes=classes)
        groups = hs.param_groups(model, lr=0.01, head_lr=0.03, layer_decay=0.5, weight_decay=0.1)
        return hs.TrainState(model, make_optimizer(groups, AdamW()))

    return state


def train(state: hs.TrainState, noise, steps: int = 2, **rules: Any) -> hs.TrainState:
    for _ in range(steps):
        hs.train_step(state, noise(6, seed=state.step), rules=hs.StepRules(seed=5, **rules))
    return state


def everything(state: hs.TrainState) -> list[Any]:
    """Weights, buffers, the optimizer's state and its groups' numbers, the scaler's and the counters."""
    held = [*state.model.state_dict().values()]
    for parameter in state.model.parameters():
        held += [value for _, value in sorted(state.optimizer.state.get(parameter, {}).items())]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state.optimizer.param_groups]
    scaler = state.scaler.state_dict() if state.scaler is not None else None
    return [[value.tolist() for value in held], groups, scaler, state.step, state.epoch_loss, state.best]


def test_only_folders_with_a_steps_number_are_checkpoints(make, tmp_path) -> None:
    """What else lies there is left alone; two are kept where nothing else is said."""
    for name in ("step-", "step-x", "step-00000009.old", "notes"):
        (tmp_path / name).mkdir()
    assert (read_checkpoint(tmp_path), newest_step(tmp_path)) == (None, None)
    state = make()
    for step in (1, 2, 3):
        state.step = step
        hs.save(state, tmp_path)
    assert newest_step(tmp_path) == 3
    found = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert found == {"step-", "step-x", "step-00000009.old", "notes", "step-00000002", "step-00000003"}


def test_a_checkpoint_that_was_copied_elsewhere_restores_under_any_name_but_another_steps(make, noise, tmp_path):
    saved = hs.save(train(make(), noise), tmp_path / "run")
    again = make()
    assert hs.restore(again, saved.rename(tmp_path / "the good one")) == ()
    assert again.step == 2
    with pytest.raises(
        StorageError, match=r"step-00000007: holds the checkpoint of step 2; rename it to step-00000002"
    ):
        hs.restore(again, (tmp_path / "the good one").rename(tmp_path / "step-00000007"))


def test_the_checkpoints_of_later_steps_are_dropped(make, tmp_path) -> None:
    state = make()
    for step in (1, 2, 3, 4):
        state.step = step
        hs.save(state, tmp_path, keep=4)

    class Full:
        def remove(self, path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with pytest.raises(StorageError, match=r"step-00000004: cannot be written: Read-only file system \([\d,]+ bytes f"):
        drop_later(tmp_path, 2, disk=Full())
    drop_later(tmp_path, 2, disk=DISK)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]


def test_a_checkpoint_says_which_run_it_is_of_where_that_is_known(make, tmp_path) -> None:
    state = make()
    assert "run" not in json.loads((hs.save(state, tmp_path / "a") / "state.json").read_text())
    assert json.loads((hs.save(state, tmp_path / "b", run="mine") / "state.json").read_text())["run"] == "mine"
    assert "own" not in json.loads((tmp_path / "b" / "step-00000000" / "state.json").read_text())


UNREADABLE = {
    "no state.json": (None, r"is no checkpoint, it has no state.json"),
    "no JSON": (b"{", r"state.json: not valid JSON"),
    "another value": (b"[]", r"state.json: holds other things than headstart writes"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_folder_with_a_manifest_that_is_no_checkpoint_is_refused(make, tmp_path, kind) -> None:
    content, why = UNREADABLE[kind]
    write_folder(tmp_path / "step-00000001", {"a": b"b"} if content is None else {"state.json": content})
    with pytest.raises(StorageError, match=why):
        hs.restore(make(), tmp_path)


WRONG: dict[str, Edit] = {
    "half a step": lambda counters: counters.update(epochs_done=1.5),
    "below every count": lambda counters: counters.update(epoch_step=-2),
    "text": lambda counters: counters.update(epoch_loss="much"),
    "no groups": lambda counters: counters.update(optimizer={"plain": {}}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_counters_that_are_none_are_refused(make, noise, tmp_path, kind) -> None:
    edit_state(hs.save(train(make(), noise), tmp_path), WRONG[kind])
    state = make()
    before = everything(state)
    with pytest.raises(StorageError, match=r"state.json: holds other things than headstart writes"):
        hs.restore(state, tmp_path)
    assert everything(state) == before


def test_what_belongs_to_nothing_of_the_state_is_refused(make, noise, tmp_path) -> None:
    edit_state(
        hs.save(train(make(), noise), tmp_path), lambda state: state["optimizer"]["plain"].update(nobody={"x": 1})
    )
    state = make()
    before = everything(state)
    with pytest.raises(StorageError, match=r"is not a checkpoint of this run \(KeyError: 'nobody'\); remove it, or st"):
        hs.restore(state, tmp_path)
    assert everything(state) == before


@pytest.mark.parametrize("scaler", [{}, {"scale": 4.0}])
def test_a_scaler_that_cannot_be_put_back_leaves_all_as_it_was(make, noise, tmp_path, scaler) -> None:
    """It is the last thing that is put back, so that weights and optimizer were the checkpoint's already."""
    edit_state(hs.save(train(make(), noise, 3, precision="fp16"), tmp_path), lambda found: found.update(scaler=scaler))
    state = train(make(), noise, 1, precision="fp16")
    state.scaler.update(new_scale=2.0**7)
    before = everything(state)
    with pytest.raises((StorageError, RuntimeError), match=r"source state dict is empty|KeyError: 'growth_factor'"):
        hs.restore(state, tmp_path)
    assert everything(state) == before


def test_the_states_own_scaler_and_average_are_those_that_are_put_back(make, noise, tmp_path) -> None:
    def made() -> hs.TrainState:
        state = make()
        state.average = make_average(state.model, half_life=0.5, total_steps=10)
        state.scaler = make_scaler(torch.device("cpu"), "fp16")
        return state

    hs.save(train(made(), noise, 2, precision="fp16"), tmp_path)
    again = made()
    average, scaler = again.average, again.scaler
    hs.restore(again, tmp_path)
    assert again.average is average
    assert again.scaler is scaler


def test_going_back_to_before_the_first_step_forgets_what_the_steps_made(make, noise, tmp_path) -> None:
    """The loss scaler of fp16 and the average are made again, and the same numbers come of it."""
    rules = {"precision": "fp16", "average_steps": 3.0}
    state = make()
    hs.save(state, tmp_path)
    first = everything(train(state, noise, 3, **rules))
    average = [value.tolist() for value in state.average.module.state_dict().values()]
    hs.restore(state, tmp_path)
    assert (state.average, state.scaler, state.step) == (None, None, 0)
    assert everything(train(state, noise, 3, **rules)) == first
    assert [value.tolist() for value in state.average.module.state_dict().values()] == average


def test_an_average_that_steps_made_is_not_taken_for_one_of_a_checkpoint_without(make, noise, tmp_path) -> None:
    hs.save(train(make(), noise), tmp_path)
    state = train(make(), noise, average_steps=3.0)
    with pytest.raises(StorageError, match=r"was saved without state.average; restore it into a state that is made"):
        hs.restore(state, tmp_path)
    state = train(make(), noise, precision="fp16")
    with pytest.raises(StorageError, match=r"was saved without state.scaler; restore it into a state that is made"):
        hs.restore(state, tmp_path)


def test_the_decay_of_an_average_that_steps_made_comes_back(make, noise, tmp_path) -> None:
    state = train(make(), noise, average_steps=3.0)
    hs.save(state, tmp_path)
    again = make()
    hs.restore(again, tmp_path)
    assert again.average_decay == state.average_decay == 0.5 ** (1 / 3)


def test_a_start_that_a_checkpoint_does_not_hold_stays_and_one_of_another_model_is_refused(make, noise, tmp_path):
    hs.save(train(make(), noise), tmp_path / "without")
    state = train(make(), noise, 1, penalties=Penalties(l2_start=0.1))
    before = dict(state.start)
    assert before
    hs.restore(state, tmp_path / "without")
    assert state.start is not None
    assert all(state.start[name] is value for name, value in before.items())
    for number, strange in enumerate(({"fc.weight": torch.zeros(2)}, {"fc.gone": torch.zeros(2)})):
        other = train(make(), noise)
        other.start = strange
        hs.save(other, tmp_path / str(number))
        assert len(list((tmp_path / str(number)).rglob("start.safetensors"))) == 1
        with pytest.raises(StorageError, match=rf"began with another model: {next(iter(strange))} differs"):
            hs.restore(state, tmp_path / str(number))


class Counting(nn.Conv2d):
    """Holds a number outside of its state dict."""

    calls = 1

    def forward(self, pixels: Tensor) -> Tensor:
        """A convolution's, by the number of calls."""
        return super().forward(pixels) * self.calls


def test_the_best_epochs_weights_come_with_what_their_module_holds(make, noise, tmp_path) -> None:
    state = make()
    state.model.conv1.__class__, state.model.conv1.calls = Counting, 3
    state.best = Best(score=(1.0,), step=2, epoch=1, weights="trained")
    hs.save(train(state, noise), tmp_path)
    into = make().model
    into.conv1.__class__, into.conv1.calls = Counting, 1
    load_best(state, tmp_path, into=into)
    assert into.conv1.calls == 3
    for name, value in into.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name])
    for other in (make(classes=5).model, make().model.half()):
        with pytest.raises(StorageError, match=r"belongs to another model: "):
            load_best(state, tmp_path, into=other)
