"""What does not train is in a file of its own: which tensors, from which size on, and which names the file gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

import headstart as hs
from headstart.runs.checkpoint import read_checkpoint
from headstart.storage.disk import DISK

MIB = 1 << 20


class Net(nn.Module):
    """A frozen layer and its normalization, each under two names, a buffer at the root, and a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512))
        self.two = nn.Sequential(self.one[0], self.one[1], nn.BatchNorm1d(512, affine=False, track_running_stats=False))
        self.head = nn.Linear(512, 2)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        """Scores."""
        return self.head(self.two(self.one(features))) * self.scale


def state_of(model: nn.Module) -> hs.TrainState:
    return hs.TrainState(model, torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1))


@pytest.fixture
def large() -> Callable[[], hs.TrainState]:
    def make() -> hs.TrainState:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 600), nn.Linear(600, 2))
        model[0].requires_grad_(False)
        return state_of(model)

    return make


def frozen(folder: Path) -> dict[str, Tensor]:
    return read_tensors((folder / "frozen.safetensors").read_bytes())


def inodes(root: Path) -> list[int]:
    return [path.stat().st_ino for path in sorted(root.glob("step-*/frozen.safetensors"))]


def test_frozen_tensors_and_resting_buffers_are_there_under_all_of_their_names(tmp_path) -> None:
    model = Net()
    for part in (model.one, model.two):
        part.requires_grad_(False)
        part.eval()
    saved = hs.save(state_of(model), tmp_path)
    layers = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    expected = {f"{part}.{name}" for part in ("one", "two") for name in layers}
    assert frozen(saved).keys() == expected  # not the root's buffer: the root is in training mode
    assert read_tensors((saved / "model.safetensors").read_bytes()).keys() == {"head.weight", "head.bias", "scale"}
    model.training = False
    assert frozen(hs.save(state_of(model), tmp_path)).keys() == expected | {"scale"}
    again = Net()
    for part in (again.one, again.two):
        part.requires_grad_(False)
    hs.restore(state_of(again), tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("size", "apart"), [(MIB, True), (MIB - 4, False)])
def test_from_one_mebibyte_on_they_are_written_apart(tmp_path, size, apart) -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.zeros(size // 4 - 2, 1), requires_grad=False)
    model[0].bias.requires_grad_(False)
    saved = hs.save(state_of(model), tmp_path)
    assert (saved / "frozen.safetensors").exists() == apart


def test_of_two_that_follow_one_another_each_has_a_file_of_its_own(large, tmp_path) -> None:
    """Also where a step is saved again, the first one too: then its own file stays."""
    state = large()
    written = []
    for step in (1, 1, 2, 2, 3, 4, 4, 5, 6):
        state.step = step
        hs.save(state, tmp_path, keep=9)
        written.append(inodes(tmp_path)[-1])
    assert written[0] == written[1]
    assert written[2] == written[3]
    assert written[5] == written[6]
    found = inodes(tmp_path)
    assert len(found) == 6
    assert found[::2] == found[:1] * 3
    assert found[1::2] == found[1:2] * 3
    assert found[0] != found[1]


class Hiding:
    """A disk that takes the frozen file away as soon as it is there, as a network's may for a moment."""

    def __init__(self, root: Path) -> None:
        self.root, self.hidden = root, Path(f"{root}-hidden")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(DISK, name)

    def fsync_dir(self, path: Path) -> None:
        DISK.fsync_dir(path)
        if path == self.root:
            (self.root / "step-00000003" / "frozen.safetensors").rename(self.hidden)

    def put_back(self) -> None:
        self.hidden.rename(self.root / "step-00000003" / "frozen.safetensors")


def test_after_a_file_that_could_not_be_looked_at_the_next_one_is_written_anew(large, tmp_path) -> None:
    """Else it could become one more name of the file that its neighbour is."""
    root = tmp_path / "checkpoints"
    state, disk = large(), Hiding(root)
    for step in (1, 2, 4, 5):
        state.step = step
        if step == 4:
            state.step = 3
            with pytest.raises(hs.Error):
                hs.save(state, root, keep=9, disk=disk)
            disk.put_back()
            state.step = 4
        hs.save(state, root, keep=9)
    found = inodes(root)
    assert found[2] == found[0]
    assert found[3] not in found[:3]
    assert read_checkpoint(root).skipped == ()


@pytest.mark.parametrize("change", ["cut", "longer", "other bytes"])
def test_a_file_that_was_changed_is_not_named_again(large, tmp_path, change) -> None:
    state = large()
    for step in (1, 2):
        state.step = step
        hs.save(state, tmp_path, keep=9)
    file = tmp_path / "step-00000001" / "frozen.safetensors"
    content = file.read_bytes()
    changed = {"cut": content[:-4], "longer": content + b"0000", "other bytes": content[:-4] + b"0000"}[change]
    file.write_bytes(changed)
    os.utime(file, ns=(1, 1))
    state.step = 3
    saved = hs.save(state, tmp_path, keep=9)
    assert (saved / "frozen.safetensors").read_bytes() == content
    assert len(set(inodes(tmp_path))) == 3


def test_a_file_that_is_gone_is_written_anew(large, tmp_path) -> None:
    state = large()
    for step in (1, 2):
        state.step = step
        hs.save(state, tmp_path, keep=9)
    (tmp_path / "step-00000001" / "frozen.safetensors").unlink()
    state.step = 3
    saved = hs.save(state, tmp_path, keep=9)
    assert torch.equal(frozen(saved)["0.weight"], state.model[0].weight)
    assert len(set(inodes(tmp_path))) == 2


def test_every_block_of_a_large_file_counts(tmp_path) -> None:
    """Tensors of more than one block, of which one byte in one block is another one."""
    model = nn.Sequential(nn.Linear(500, 700), nn.Linear(700, 2))
    model[0].requires_grad_(False)
    state = state_of(model)
    flat = model[0].weight.detach().view(-1)
    for number, place in enumerate((0, 65_535, 65_536, 131_072, 200_000, -1)):
        for step in (1, 2):
            state.step = 10 * number + step
            hs.save(state, tmp_path, keep=99)
        flat[place] += 1.0
        state.step = 10 * number + 3
        saved = hs.save(state, tmp_path, keep=99)
        assert torch.equal(frozen(saved)["0.weight"], model[0].weight), place
