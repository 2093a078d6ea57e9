"""Where a run begins: as its plan says, or as its newest whole checkpoint of this very run says; on every rank."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from headstart.distributed.fsdp import is_sharded, whole
from headstart.distributed.processes import current
from headstart.errors import StorageError
from headstart.planning.preflight import Prepared, prepare
from headstart.runs.checkpoint import save
from headstart.runs.resume import begin
from headstart.training.boundary_proof import prove_boundary
from headstart.training.phases import enter_phase
from headstart.training.state import TrainState

PLAIN: dict[str, Any] = {
    "precision": "fp32", "memory_format": "contiguous", "cache": {"use": "never"}, "augment": {"preset": "none"},
}  # fmt: skip


@pytest.fixture
def ready(settings) -> Callable[..., Prepared]:
    """A run of two phases (a head, then all) that is prepared."""

    def make(**sections: Any) -> Prepared:
        torch.manual_seed(0)
        config = hs.load_config(settings(**PLAIN | sections))
        return prepare(config, module=None, loss=None, emit=lambda event: None)

    return make


def saved(run: Path, prepared: Prepared, *, phase: int = 0, step: int = 3, name: str | None = None) -> TrainState:
    """A checkpoint of the run, after which its weights are others again."""
    state, _ = begin(run / "nothing", prepared)
    enter_phase(state, prepared.training_plan, min(max(phase, 0), 1))
    state.phase, state.step = phase, step
    with torch.no_grad():
        for value in state.model.parameters():
            value.add_(1.0)
    save(state, run / "checkpoints", run=name)
    with torch.no_grad():
        for value in state.model.parameters():
            value.sub_(0.5)
    return state


def total(module: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(whole(value).double().sum() for value in module.parameters()))


def test_before_the_first_step_there_is_what_the_plan_says(ready, tmp_path) -> None:
    """An optimizer that moves nothing until the first phase makes its own, no average, no start."""
    state, notes = begin(tmp_path, ready())
    assert notes == ()
    assert (state.step, state.phase, state.average, state.start, state.unsharded) == (0, -1, None, {}, None)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.0]
    assert not is_sharded(state.model)
    assert {type(part) for part in state.model.modules()} >= {nn.BatchNorm2d}
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in state.model.modules())


def test_the_average_and_the_start_of_a_penalty_are_made_as_the_plan_says(ready, tmp_path) -> None:
    """The half-life is a share of all phases' steps; the head, which is new, is not pulled anywhere."""
    prepared = ready(average={"kind": "ema", "half_life": 0.5}, penalties={"l2_start": 0.1}, epochs=4)
    state, _ = begin(tmp_path, prepared)
    steps = sum(phase.epochs for phase in prepared.training_plan.phases) * len(prepared.images.train)
    assert steps > 12
    assert state.average.decay == 0.5 ** (1 / (steps / 2))
    named = {name: value for name, value in state.model.named_parameters() if not name.startswith("fc.")}
    assert state.start.keys() == named.keys()
    for name, value in named.items():
        assert torch.equal(state.start[name], value)
        assert state.start[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize("phase", [0, 1])
def test_a_run_goes_on_in_the_phase_of_its_newest_whole_checkpoint(ready, tmp_path, phase) -> None:
    """With the groups and what is frozen as that phase has them; what is not exact and what was damaged is said."""
    prepared = ready()
    saved(tmp_path, prepared, phase=phase, step=3)
    expected = total(prepared.opened.module) + 0.5 * sum(p.numel() for p in prepared.opened.module.parameters())
    (tmp_path / "checkpoints" / "step-00000004").mkdir()
    state, notes = begin(tmp_path, prepared, ["torch was 1, is 2", "x was 3, is 4"])
    assert (state.step, state.phase) == (3, phase)
    assert total(state.model) == pytest.approx(expected)
    assert [name for name, value in state.model.named_parameters() if not value.requires_grad] == [
        name for name, _ in state.model.named_parameters() if phase == 0 and not name.startswith("fc.")
    ]
    trained = sum(len(group["params"]) for group in state.optimizer.param_groups)
    assert trained == sum(value.requires_grad for value in state.model.parameters())
    last = tmp_path / "checkpoints" / "step-00000003"
    passed, inexact, going_on = [note.text for note in notes]
    assert passed.startswith(f"passed over: {tmp_path / 'checkpoints' / 'step-00000004' / 'MANIFEST.json'}: cannot")
    assert inexact == "this resume is not exact to the bit: torch was 1, is 2; x was 3, is 4"
    assert going_on == f"going on from step 3 ({last})"
    (tmp_path / "checkpoints" / "step-00000004").rmdir()
    assert [note.text for note in begin(tmp_path, prepared)[1]] == [going_on]


@pytest.mark.parametrize("phase", [-1, 2])
def test_a_checkpoint_in_a_phase_that_the_run_does_not_have_is_refused(ready, tmp_path, phase) -> None:
    prepared = ready()
    saved(tmp_path, prepared, phase=phase)
    before = total(prepared.opened.module)
    with pytest.raises(StorageError, match=rf"is in phase {phase + 1} of a run with 2; remove it, or start a new run"):
        begin(tmp_path, prepared)
    assert total(prepared.opened.module) == before


def test_a_checkpoint_of_another_run_is_refused(ready, tmp_path) -> None:
    prepared = ready()
    saved(tmp_path, prepared, name="theirs")
    for plan in ({}, {"run": "ours"}):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(StorageError, match="is a checkpoint of another run; remove it, or start a new run"):
            begin(tmp_path, prepared)
    (tmp_path / "plan.json").write_text(json.dumps({"run": "theirs"}))
    assert begin(tmp_path, prepared)[0].step == 3
    saved(tmp_path, prepared, step=4)  # as they were before runs had names
    assert begin(tmp_path, prepared)[0].step == 4


def test_a_boundary_that_was_proved_before_is_proved_anew_on_the_restored_state(ready, tmp_path) -> None:
    prepared = ready()
    saved(tmp_path, prepared)

    def proved() -> object:
        frozen = enter_phase(TrainState(module, torch.optim.SGD(module.parameters())), prepared.training_plan, 0)
        return prove_boundary(module, frozen, prepared.images.train, prepared.training_plan.rules)

    module = prepared.opened.module
    first = proved()
    assert proved() is first
    begin(tmp_path, prepared)
    assert proved() is not first


def test_every_rank_goes_on_from_the_checkpoint_that_only_the_first_one_sees(ready, on_two_ranks, tmp_path) -> None:
    prepared = ready()
    run = tmp_path / "run"
    saved(run, prepared)
    (run / "checkpoints" / "step-00000004").mkdir()

    def work(rank: int) -> Any:
        state, notes = begin(tmp_path / "elsewhere" if rank else run, prepared)
        return [state.step, state.phase, total(state.model), len(notes)]

    first, other = on_two_ranks(work)
    assert first[:3] == other[:3]
    assert [first[0], first[3], other[3]] == [3, 2, 1]


def test_where_there_is_nothing_to_go_on_from_every_rank_begins_anew(ready, on_two_ranks, tmp_path) -> None:
    """With statistics over all processes where they are asked for, and only there."""
    prepared = [ready(), ready()]
    own = prepared[1].config
    synced = dataclasses.replace(own, parallel=dataclasses.replace(own.parallel, sync_norm=True))
    prepared[1] = dataclasses.replace(prepared[1], config=synced)
    alone, _ = begin(tmp_path, prepared[1])
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in alone.model.modules())

    def work(rank: int) -> Any:
        found = []
        for one in prepared:
            state, notes = begin(tmp_path, one)
            synced = sum("SyncBatchNorm" in type(part).__name__ for part in state.model.modules())
            found.append([state.step, len(notes), synced > 0, is_sharded(state.model)])
        return found

    assert on_two_ranks(work) == [[[0, 0, False, False], [0, 0, True, False]]] * 2


def test_a_model_that_is_shared_out_is_kept_whole_beside_it(ready, on_two_ranks, tmp_path) -> None:
    prepared = dataclasses.replace(ready(), sharded=True)
    before = total(prepared.opened.module)

    def work(rank: int) -> Any:
        state, _ = begin(tmp_path, prepared)
        plain = state.unsharded
        return [is_sharded(state.model), is_sharded(plain), total(state.model), total(plain), current().is_distributed]

    found = on_two_ranks(work)
    assert found == [[True, False, pytest.approx(before), pytest.approx(before), True]] * 2
