"""A checkpoint of a model that is shared out: each rank's part, and on any number of processes the whole again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import headstart as hs
from headstart.distributed.fsdp import is_sharded, shard, whole
from headstart.runs.checkpoint import load_best
from headstart.training.state import Best


@pytest.fixture
def stepped(net) -> Callable[..., hs.TrainState]:
    """A state whose optimizer was given gradients by hand: its ranks are forks, which run no backward pass."""

    def make(*, steps: int, shared: bool, scale: float = 1.0) -> hs.TrainState:
        model = net(norm=True)
        if shared:
            shard(model, torch.device("cpu"))
        state = hs.TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        for _ in range(steps):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = parameter.detach() * scale + number
            state.optimizer.step()
            state.step += 1
        return state

    return make


def held(state: hs.TrainState) -> list[Any]:
    """Weights and buffers, the optimizer's state and the start, whole."""
    found = {name: whole(value).tolist() for name, value in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        kept = state.optimizer.state.get(parameter, {})
        found |= {f"{name}//{key}": whole(value).tolist() for key, value in kept.items()}
    return [found, {name: whole(value).tolist() for name, value in state.start.items()}, state.step]


@pytest.mark.parametrize("starts", [True, False])
def test_what_two_ranks_save_two_ranks_and_one_process_restore(stepped, on_two_ranks, tmp_path, starts) -> None:
    """After a forward pass, which leaves the outermost parameters whole; the first rank alone knows the run's name."""
    folder = tmp_path / "checkpoints"

    def work(rank: int) -> Any:
        state = stepped(steps=2, shared=True)
        if starts:
            state.start = {name: value.detach() * 2 for name, value in state.model.named_parameters()}
        state.best = Best(score=(1.0,), step=2, epoch=1, weights="trained")
        expected = held(state)
        state.model.eval()
        with torch.no_grad():
            state.model(torch.zeros(1, 3, 16, 16))
        place = hs.save(state, folder if rank == 0 else tmp_path / "not on this disk", run=None if rank else "ours")
        again = stepped(steps=1, shared=True, scale=3.0)
        dist.barrier()  # until the first rank has written
        hs.restore(again, folder)
        return [expected, held(again), place.name, is_sharded(again.model)]

    first, other = on_two_ranks(work)
    assert first == other
    expected, found, place, sharded = first
    assert found == expected
    assert (place, sharded) == ("step-00000002", True)
    assert not (tmp_path / "not on this disk").exists()
    files = {path.name for path in (folder / place).iterdir()} - {"MANIFEST.json", "state.json"}
    kinds = ["model", "optimizer", *(["start"] if starts else [])]
    assert files == {f"{kind}-0000{rank}-of-00002.safetensors" for kind in kinds for rank in (1, 2)}
    assert json.loads((folder / place / "state.json").read_text())["run"] == "ours"
    alone = stepped(steps=1, shared=False, scale=3.0)
    hs.restore(alone, folder)
    assert held(alone) == expected
    into = stepped(steps=0, shared=False).model
    load_best(alone, folder, into=into)
    assert {name: value.tolist() for name, value in into.state_dict().items()}.items() <= expected[0].items()


class Remembering(nn.Module):
    """Holds what no state dict of tensors has: extra state with a tensor in it, a counter, a buffer that passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.calls = nn.Linear(8, 8), 0
        self.register_buffer("passing", torch.zeros(8), persistent=False)
        self._history: dict[str, Any] = {"seen": [], "sums": [torch.zeros(8)]}

    def get_extra_state(self) -> Any:
        return self._history | {"norm": self.linear.weight.detach().norm()}  # of sharded weights all ranks compute it

    def set_extra_state(self, state: Any) -> None:
        self._history = {name: state[name] for name in ("seen", "sums")}

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.passing += 1
        self._history["seen"].append(self.calls)
        self._history["sums"][0] += 2
        return self.linear(features)

    def held(self) -> list[Any]:
        return [self.calls, self.passing.tolist(), self._history["seen"], self._history["sums"][0].tolist()]


def test_what_own_modules_hold_besides_tensors_is_in_the_checkpoint_of_a_sharded_model(on_two_ranks, tmp_path) -> None:
    def make() -> hs.TrainState:
        model = Remembering()
        if dist.is_initialized():
            shard(model, torch.device("cpu"))
        return hs.TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def work(rank: int) -> Any:
        state = make()
        state.best = Best(score=(1.0,), step=0, epoch=1, weights="trained")
        with torch.no_grad():
            for _ in range(3):
                state.model(torch.zeros(2, 8))
        hs.save(state, tmp_path / "checkpoints")
        dist.barrier()
        again = make()
        hs.restore(again, tmp_path / "checkpoints")
        return again.model.held()

    expected = [3, [3.0] * 8, [1, 2, 3], [6.0] * 8]
    assert on_two_ranks(work) == [expected] * 2
    alone = make()
    hs.restore(alone, tmp_path / "checkpoints")
    assert alone.model.held() == expected
    into = Remembering()
    load_best(alone, tmp_path / "checkpoints", into=into)
    assert into.held() == expected


def test_two_ranks_restore_what_one_process_saved(stepped, on_two_ranks, tmp_path) -> None:
    alone = stepped(steps=2, shared=False)
    hs.save(alone, tmp_path / "checkpoints")

    def work(rank: int) -> Any:
        state = stepped(steps=1, shared=True, scale=3.0)
        hs.restore(state, tmp_path / "checkpoints")
        return held(state)

    assert on_two_ranks(work) == [json.loads(json.dumps(held(alone)))] * 2
