"""Checkpoints: restored bit for bit, the best and the newest kept, and never older than the last acknowledged one."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as read_tensors
from torch import nn

import headstart as hs
from headstart.config.schema import Adam, AdamW, RmsProp, Sgd, TimmOptimizer
from headstart.errors import StorageError
from headstart.optim.groups import param_groups
from headstart.optim.optimizers import make_optimizer
from headstart.runs import frozen_file
from headstart.runs.checkpoint import load_best, read_checkpoint, restore, save
from headstart.storage.disk import DISK
from headstart.storage.durable import MANIFEST, sweep
from headstart.storage.tensors import pack_tensors
from headstart.surgery.freeze import freeze
from headstart.training.precision import make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import Best, TrainState, make_average
from headstart.training.step import train_step

RULES = StepRules(seed=5)
OPTIMIZERS = {
    "adamw": AdamW(), "adam": Adam(), "sgd": Sgd(), "plain sgd": Sgd(momentum=0.0), "rmsprop": RmsProp(momentum=0.9),
    "lamb": TimmOptimizer(name="lamb", lr=0.1), "adan": TimmOptimizer(name="adan", lr=0.1),
    "adafactor": TimmOptimizer(name="adafactor", lr=0.1), "muon": TimmOptimizer(name="muon", lr=0.1),
    "nadamw": TimmOptimizer(name="nadamw", lr=0.1), "adopt": TimmOptimizer(name="adopt", lr=0.1),
}  # fmt: skip


@pytest.fixture
def make(net) -> Callable[..., TrainState]:
    def state(options=None, *, average: bool = False, precision: str = "fp32") -> TrainState:
        model = net(norm=True, dropout=0.3)
        groups = param_groups(model, lr=0.01, head_lr=0.02, layer_decay=0.5, weight_decay=0.1)
        made = TrainState(model, make_optimizer(groups, options or AdamW()))
        made.average = make_average(model, half_life=0.3, total_steps=10) if average else None
        made.scaler = make_scaler(torch.device("cpu"), precision)
        return made

    return state


def train(state: TrainState, noise, steps: int, rules: StepRules = RULES) -> TrainState:
    for _ in range(steps):
        train_step(state, noise(6, seed=state.step), rules=rules)
    return state


def bits(state: TrainState) -> dict[str, object]:
    found: dict[str, object] = dict(state.model.state_dict())
    for name, parameter in state.model.named_parameters():
        found |= {f"{name}/{key}": value for key, value in state.optimizer.state.get(parameter, {}).items()}
    for number, group in enumerate(state.optimizer.param_groups):
        found |= {f"{number}/{key}": value for key, value in group.items() if key not in ("params", "names")}
    if state.average is not None:
        found |= {f"average/{name}": value for name, value in state.average.module.state_dict().items()}
    return found | {"scaler": state.scaler.state_dict() if state.scaler else None}


def assert_same(one: TrainState, other: TrainState) -> None:
    ours, theirs = bits(one), bits(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        equal = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert equal, name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_state_goes_on_bit_for_bit(make, noise, tmp_path, name) -> None:
    state = train(make(OPTIMIZERS[name]), noise, 3)
    save(state, tmp_path)
    again = make(OPTIMIZERS[name])
    assert restore(again, tmp_path) == ()
    assert again.step == 3
    assert_same(state, again)
    assert_same(train(state, noise, 2), train(again, noise, 2))


def test_average_scaler_counters_and_best_come_back(make, noise, tmp_path) -> None:
    fp16 = StepRules(precision="fp16", seed=5)
    state = train(make(average=True, precision="fp16"), noise, 3, fp16)
    state.scaler.update(new_scale=2.0**10)
    state.epochs_done, state.epoch_step, state.phase, state.stale_epochs, state.stopped = 4, 2, 1, 3, True
    state.epoch_loss, state.epoch_weight = 0.1 + 0.2, 1 / 3
    state.best = Best(score=(0.9, -1 / 3), step=3, epoch=1, weights="average")
    save(state, tmp_path)
    again = make(average=True, precision="fp16")
    restore(again, tmp_path)
    kept = (
        "step",
        "epochs_done",
        "epoch_step",
        "phase",
        "stale_epochs",
        "stopped",
        "epoch_loss",
        "epoch_weight",
        "best",
    )
    assert [getattr(again, name) for name in kept] == [getattr(state, name) for name in kept]
    assert again.scaler.get_scale() == 2.0**10
    assert_same(train(state, noise, 2, fp16), train(again, noise, 2, fp16))


def test_a_frozen_and_channels_last_model_comes_back_as_it_is(net, noise, tmp_path) -> None:
    def made() -> TrainState:
        model = net(norm=True).to(memory_format=torch.channels_last)
        freeze(model, names=["conv1", "bn1"])
        return TrainState(model, make_optimizer(param_groups(model, lr=0.1), AdamW()))

    rules = StepRules(memory_format="channels_last")
    state = train(made(), noise, 2, rules)
    save(state, tmp_path)
    again = made()
    restore(again, tmp_path)
    assert again.optimizer.state[again.model.conv2.weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert_same(train(state, noise, 2, rules), train(again, noise, 2, rules))


def test_equal_states_give_equal_bytes(make, noise, tmp_path) -> None:
    for name in ("a", "b"):
        save(train(make(average=True), noise, 2), tmp_path / name)
    for path in (tmp_path / "a" / "step-00000002").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "step-00000002" / path.name).read_bytes()


def test_shared_tensors_and_views_are_stored_each() -> None:
    base = torch.arange(6.0)
    files = pack_tensors({"a": base, "b": base, "c": base[2:4], "d": base.view(2, 3).t(), "e": torch.tensor(3)})
    assert files == pack_tensors({"a": base.clone(), "b": base.clone(), "c": torch.tensor([2.0, 3.0]),
                            "d": torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]), "e": torch.tensor(3)})  # fmt: skip


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_the_newest_and_the_best_are_kept(make, tmp_path) -> None:
    state = make()
    for step in range(1, 7):
        state.step = step
        if step in (2, 3):
            state.best = Best(score=(float(step),), step=step, epoch=1, weights="trained")
        save(state, tmp_path, keep=2)
    assert saved_steps(tmp_path) == [3, 5, 6]
    assert json.loads((tmp_path / "last.json").read_text()) == {"folder": "step-00000006", "step": 6}
    assert json.loads((tmp_path / "best.json").read_text())["folder"] == "step-00000003"


def test_after_going_back_the_course_that_was_given_up_is_dropped(make, noise, tmp_path) -> None:
    """With keep=1 and a damaged newest checkpoint: else the damaged one would outlive every new one."""
    state = make()
    for step in (10, 20):
        state.step = step
        save(state, tmp_path, keep=2)
    (tmp_path / "step-00000020" / "model.safetensors").write_bytes(b"damaged")
    again = make()
    (why,) = restore(again, tmp_path)
    assert "step-00000020/model.safetensors: 7 bytes that do not match the manifest" in why
    again.step = 11
    save(again, tmp_path, keep=1)
    assert saved_steps(tmp_path) == [11]
    assert read_checkpoint(tmp_path).counters["step"] == 11


def test_more_than_eight_digits_of_steps_are_numbers_too(make, tmp_path) -> None:
    state = make()
    for step in (99_999_999, 100_000_000):
        state.step = step
        save(state, tmp_path, keep=2)
    assert read_checkpoint(tmp_path).counters["step"] == 100_000_000
    assert saved_steps(tmp_path) == [99_999_999, 100_000_000]


def test_a_checkpoint_is_restored_by_its_own_folder_too(make, noise, tmp_path) -> None:
    state = train(make(), noise, 1)
    first = save(state, tmp_path / "step-by-step", keep=5)
    save(train(state, noise, 1), tmp_path / "step-by-step", keep=5)
    again = make()
    restore(again, first)
    assert again.step == 1
    restore(again, tmp_path / "step-by-step")
    assert again.step == 2


def test_nothing_to_restore_is_an_error_and_nothing_to_read_is_none(make, tmp_path) -> None:
    assert read_checkpoint(tmp_path) is None
    with pytest.raises(StorageError, match="there is no checkpoint"):
        restore(make(), tmp_path)


def test_when_all_are_damaged_each_is_named(make, tmp_path) -> None:
    state = make()
    for step in (1, 2):
        state.step = step
        (save(state, tmp_path) / MANIFEST).write_text("{}")
    with pytest.raises(StorageError, match=r"no checkpoint is whole: .*step-00000002.*; .*step-00000001"):
        restore(make(), tmp_path)


def test_a_checkpoint_of_another_model_is_refused(make, noise, net, tmp_path) -> None:
    save(train(make(), noise, 1), tmp_path)
    wider = net(classes=5, norm=True)
    state = TrainState(wider, make_optimizer(param_groups(wider, lr=0.1), AdamW()))
    with pytest.raises(StorageError, match=r"belongs to another model: fc.weight, fc.bias differ \(2 tensors\)"):
        restore(state, tmp_path)


def test_a_state_made_differently_is_refused(make, noise, tmp_path) -> None:
    save(train(make(average=True), noise, 1), tmp_path)
    with pytest.raises(StorageError, match=r"was saved with state.average; restore it into a state that is made the"):
        restore(make(), tmp_path)
    with pytest.raises(StorageError, match=r"was saved without state.scaler"):
        restore(make(average=True, precision="fp16"), tmp_path)


def test_the_best_weights_are_the_trained_or_the_averaged_ones(make, noise, tmp_path) -> None:
    state = train(make(average=True), noise, 4)
    expected = {"trained": copy.deepcopy(state.model), "average": copy.deepcopy(state.average.module)}
    for weights, model in expected.items():
        state.best = Best(score=(1.0,), step=4, epoch=1, weights=weights)
        save(state, tmp_path / weights)
        loaded = make(average=True)
        loaded.best = state.best
        load_best(loaded, tmp_path / weights, into=loaded.model)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value)


class Recorder:
    """A disk that writes down what it does, and does not wait for the hardware."""

    def __init__(self) -> None:
        self.done: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def operation(*arguments: object) -> None:
            if name not in ("fsync", "fsync_dir"):
                getattr(DISK, name)(*arguments)
            self.done.append((name, arguments))

        return operation


@pytest.mark.parametrize("freezes", [False, True])
def test_no_crash_leaves_a_run_older_than_its_last_acknowledged_checkpoint(tmp_path, monkeypatch, freezes) -> None:
    """Every prefix of the operations of six saves (two of them of one step), replayed, swept, and gone on with."""
    monkeypatch.setattr(frozen_file, "_WORTH_BYTES", 1)
    state = tiny(freezes=freezes)
    disk, real = Recorder(), tmp_path / "real"
    real.mkdir()
    acknowledged = {0: (-1, -1)}  # operations done: step, epochs
    for step, epochs, is_best in ((1, 0, 0), (2, 0, 0), (2, 1, 1), (3, 1, 0), (4, 1, 0), (4, 2, 1)):
        state.step, state.epochs_done = step, epochs
        if is_best:
            state.best = Best(score=(step,), step=step, epoch=epochs, weights="trained")
        save(state, real / "checkpoints", keep=1, disk=disk)
        acknowledged[len(disk.done)] = (step, epochs)
    assert ("link" in {name for name, _ in disk.done}) == freezes
    for count in range(len(disk.done) + 1):
        folder = tmp_path / f"crash{count}"
        folder.mkdir()
        for name, arguments in disk.done[:count]:
            moved = [folder / a.relative_to(real) if isinstance(a, Path) else a for a in arguments]
            getattr(Recorder(), name)(*moved)
        newest = acknowledged[max(done for done in acknowledged if done <= count)]
        after_the_crash(folder / "checkpoints", newest, freezes=freezes)


def tiny(*, freezes: bool) -> TrainState:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if freezes:
        model[0].requires_grad_(False)
    return TrainState(model, torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1))


def after_the_crash(folder: Path, acknowledged: tuple[int, int], *, freezes: bool) -> None:
    if folder.exists():
        sweep(folder)
    found = read_checkpoint(folder)
    newest = (found.counters["step"], found.counters["epochs_done"]) if found else (-1, -1)
    assert newest >= acknowledged
    if found is None:
        return
    assert found.skipped == ()
    best = found.counters["best"]
    if best is not None:  # what it calls the best is there, and can still be loaded after the next save
        state = tiny(freezes=freezes)
        restore(state, folder)
        state.step += 1
        save(state, folder, keep=1, disk=Recorder())
        load_best(state, folder, into=state.model)
        assert json.loads((folder / "best.json").read_text())["step"] == best["step"]


@pytest.fixture
def large(noise) -> Callable[[], TrainState]:
    """More than 1 MiB of frozen layers, statistics among them, and a head that trains."""

    def state() -> TrainState:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 16, 400), nn.BatchNorm1d(400), nn.Linear(400, 200), nn.Linear(200, 3)
        )
        freeze(model, names=["1", "2", "3"])
        return TrainState(model, make_optimizer(param_groups(model, lr=0.1), AdamW()))

    return state


def inodes(folder: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted(folder.glob("step-*/frozen.safetensors"))]


def test_frozen_tensors_are_written_twice_and_then_named_again(large, noise, tmp_path) -> None:
    """Neighbours never share a file: damage to one leaves the other."""
    state = large()
    for _ in range(5):
        save(train(state, noise, 1), tmp_path, keep=9)
    one, two, three, four, five = inodes(tmp_path)
    assert one == three == five and two == four and one != two
    for step in range(1, 6):
        assert set(read_checkpoint(tmp_path / f"step-0000000{step}").files) == {
            "model.safetensors", "frozen.safetensors", "optimizer.safetensors", "state.json",
        }  # fmt: skip
    damaged = tmp_path / "step-00000005" / "frozen.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = large()
    (why,) = restore(again, tmp_path)
    assert "step-00000005/frozen.safetensors" in why and again.step == 4
    assert_same(train(again, noise, 1), state)


def test_neighbours_do_not_share_a_file_where_one_is_written_again(large, noise, tmp_path) -> None:
    """A step that is an epoch's last may be saved twice: when it is done, and with the validation."""
    state = large()
    for step in (1, 2, 3, 4, 4, 5, 6, 6, 6, 7):
        state.step = step
        save(state, tmp_path, keep=9)
    found = inodes(tmp_path)
    assert all(one != other for one, other in pairwise(found))
    assert len(set(found)) == 2
    assert [read_checkpoint(path).counters["step"] for path in sorted(tmp_path.glob("step-*"))] == [*range(1, 8)]


def test_what_happened_to_a_file_is_not_carried_on(large, noise, tmp_path) -> None:
    """In place, by something else: its size stays."""
    state = large()
    for step in range(1, 3):
        state.step = step
        path = save(state, tmp_path, keep=9) / "frozen.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    state.step = 3
    save(state, tmp_path, keep=9)
    again = large()
    assert restore(again, tmp_path) == () and again.step == 3


def _replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight * 0.9, requires_grad=False)


def _in_inference_mode(layer: nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight.copy_(layer.weight * 0.9)


BEHIND_TORCHS_BACK = {
    "data": lambda layer: layer.weight.data.mul_(0.9),
    "another tensor's data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 0.9),
    "set_": lambda layer: layer.weight.data.set_((layer.weight.data * 0.9).untyped_storage(), 0, (200, 400)),
    "NumPy": lambda layer: np.multiply(layer.weight.numpy(), 0.9, out=layer.weight.numpy()),
    "inference mode": _in_inference_mode,
    "another parameter": _replace,
    "one bit": lambda layer: layer.weight.numpy().view(np.uint8).reshape(-1).__setitem__(77, 3),
    "the last byte": lambda layer: layer.weight.numpy().view(np.uint8).reshape(-1).__setitem__(-1, 3),
    "NaN": lambda layer: layer.weight.numpy().fill(np.nan),
    "a swap": lambda layer: setattr(layer.weight, "data", layer.weight.data.flip(0)),
}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("way", BEHIND_TORCHS_BACK)
def test_what_is_saved_is_what_is_there_however_a_frozen_tensor_was_written_to(large, tmp_path, way, links) -> None:
    """None of these counts for one of the tensor's versions; a teacher that follows its student is moved so."""
    state = large()
    for step in range(1, 7):
        if step not in (2, 5):  # between two that are not equal, and between two that are
            BEHIND_TORCHS_BACK[way](state.model[3])
        state.step = step
        saved = hs.save(state, tmp_path, keep=9, **({} if links else {"disk": WithoutLinks()}))
        again = large()
        assert hs.restore(again, saved) == ()
        assert np.array_equal(bytes_of(again.model), bytes_of(state.model)), step


def bytes_of(model: nn.Module) -> np.ndarray:
    return np.concatenate([value.numpy().reshape(-1).view(np.uint8) for value in model.state_dict().values()])


@pytest.mark.parametrize("name", ["weight", "bias", "small"])
@pytest.mark.parametrize("place", [0, -1])
def test_each_tensors_first_and_last_byte_counts(tmp_path, monkeypatch, name, place) -> None:
    """Also where a tensor's size is no multiple of eight bytes."""
    monkeypatch.setattr(frozen_file, "_WORTH_BYTES", 1)
    model = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 1))
    model[0].register_buffer("small", torch.arange(3, dtype=torch.uint8))
    freeze(model, names=["0"])
    state = TrainState(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
    for step in range(1, 4):
        state.step = step
        if step == 3:
            getattr(model[0], name).detach().numpy().reshape(-1).view(np.uint8)[place] ^= 1
        saved = save(state, tmp_path, keep=9)
    stored = read_tensors((saved / "frozen.safetensors").read_bytes())[f"0.{name}"]
    assert torch.equal(stored, getattr(model[0], name))


def test_frozen_tensors_that_are_written_again_with_the_same_bytes_are_still_one_file(large, tmp_path) -> None:
    """What counts is what is there: restoring, moving there and back, new parameter objects change no byte."""
    state = large()
    for step in range(1, 7):
        state.step = step
        with torch.no_grad():
            state.model[1].weight.mul_(1.0)
        state.model[3].weight = nn.Parameter(state.model[3].weight.clone(), requires_grad=False)
        save(state, tmp_path, keep=9)
    assert len(set(inodes(tmp_path))) == 2


def test_a_frozen_tensor_that_changed_is_written_anew(large, noise, tmp_path) -> None:
    state = large()
    for _ in range(4):
        save(train(state, noise, 1), tmp_path, keep=9)
        with torch.no_grad():
            state.model[3].weight[0, 0] += 1.0
    assert len(set(inodes(tmp_path))) == 4


def test_a_frozen_tensor_that_is_another_one_is_written_anew(large, noise, tmp_path) -> None:
    state = large()
    for step in range(4):
        if step == 2:
            state.model[3].weight.data = torch.zeros_like(state.model[3].weight)
        save(train(state, noise, 1), tmp_path, keep=9)
    assert len(set(inodes(tmp_path))) == 4
    again = large()
    restore(again, tmp_path)
    assert_same(again, state)


def test_statistics_are_frozen_where_they_do_not_move(large, noise, tmp_path) -> None:
    state = large()
    freeze(state.model, names=["1", "2", "3"])
    stored = [read_tensors((save(train(state, noise, 1), tmp_path) / "frozen.safetensors").read_bytes())]
    freeze(state.model, names=["1", "3"])
    state.optimizer.add_param_group({"params": list(state.model[2].parameters()), "name": "norm"})
    stored.append(read_tensors((save(train(state, noise, 1), tmp_path) / "frozen.safetensors").read_bytes()))
    names = {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert [set(one) - names for one in stored] == [
        {"2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"},
        set(),
    ]


class WithoutLinks:
    """A file system without hard links."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(DISK, name)

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(target))


@pytest.mark.parametrize("why", ["no links", "gone", "cut", "elsewhere"])
def test_where_a_file_cannot_be_named_again_it_is_written(large, noise, tmp_path, why) -> None:
    state = large()
    for step in range(1, 5):
        if why == "gone" and step > 2:
            (tmp_path / f"step-0000000{step - 2}" / "frozen.safetensors").unlink()
        if why == "cut" and step > 2:
            os.truncate(tmp_path / f"step-0000000{step - 2}" / "frozen.safetensors", 7)
        into = tmp_path / str(step) if why == "elsewhere" else tmp_path
        save(train(state, noise, 1), into, keep=9, disk=WithoutLinks() if why == "no links" else DISK)
    again = large()
    assert restore(again, into) == ()
    assert_same(again, state)
    assert all(path.stat().st_nlink == 1 for path in tmp_path.rglob("frozen.safetensors"))
