"""Checkpoints: safetensors and JSON under a manifest, whole or not at all; the newest good one is where a run goes on.

checkpoints/step-00001234/{model,optimizer,average}.safetensors + state.json + MANIFEST.json
checkpoints/{last,best}.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from headstart.errors import StorageError
from headstart.storage import DISK, Disk, json_bytes, read_folder, read_json, write_folder, write_json
from headstart.train.state import Best, TrainState

_COUNTERS = ("step", "epochs_done", "epoch_step", "phase", "stale_epochs", "stopped", "epoch_loss", "epoch_weight")
_PREFIX = "step-"


def save(state: TrainState, folder: str | Path, *, keep: int = 2, disk: Disk = DISK) -> Path:
    """Write a checkpoint of ``state`` into ``folder``; older ones than the ``keep`` newest go, the best stays.

    Raises: StorageError: the disk is full or read-only; earlier checkpoints are intact.
    """
    root = Path(folder)
    target = root / f"{_PREFIX}{state.step:08d}"
    files = {"model.safetensors": packed(state.model.state_dict())}
    tensors, plain = _optimizer_state(state)
    files["optimizer.safetensors"] = packed(tensors)
    if state.average is not None:
        files["average.safetensors"] = packed(state.average.module.state_dict())
    files["state.json"] = json_bytes(_counters(state) | {"optimizer": plain})
    write_folder(target, files, disk=disk)
    write_json(root / "last.json", {"folder": target.name, "step": state.step}, disk=disk)
    if state.best is not None and state.best.step == state.step:
        write_json(root / "best.json", {"folder": target.name, **asdict(state.best)}, disk=disk)
    _drop_old(root, keep=keep, disk=disk)
    return target


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes without metadata (its order is random).

    Equal tensors give equal bytes; shared ones are stored each.
    """
    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        ready[name] = (
            plain.clone() if plain.data_ptr() in seen or plain.untyped_storage().nbytes() > plain.nbytes else plain
        )
        seen.add(ready[name].data_ptr())
    return tensor_bytes(ready)


def _counters(state: TrainState) -> dict[str, Any]:
    scaler = state.scaler.state_dict() if state.scaler is not None else None
    return {name: getattr(state, name) for name in _COUNTERS} | {
        "best": asdict(state.best) if state.best is not None else None,
        "scaler": scaler,
    }


def _optimizer_state(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``PARAMETER//KEY``, and what is not a tensor: per parameter, and per group (beside its rates)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, values in _by_name(state):
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}//{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    groups = [
        {key: value for key, value in group.items() if isinstance(value, int | float | str | bool)}
        for group in state.optimizer.param_groups
    ]
    return tensors, {"plain": plain, "groups": groups}


def _by_name(state: TrainState) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, parameter in state.model.named_parameters():
        if parameter in state.optimizer.state:
            yield name, state.optimizer.state[parameter]


@dataclass(frozen=True)
class FoundCheckpoint:
    """A whole checkpoint, its files checked, and why newer ones were passed over."""

    path: Path
    files: Mapping[str, bytes]
    counters: Mapping[str, Any]
    skipped: tuple[str, ...]


def read_checkpoint(folder: str | Path) -> FoundCheckpoint | None:
    """The newest whole checkpoint in ``folder``, or the one that it is; None if there is none.

    Raises: StorageError: there are some, and all are damaged.
    """
    root = Path(folder)
    found = [root] if root.name.startswith(_PREFIX) else sorted(root.glob(_PREFIX + "*"), reverse=True)
    skipped: list[str] = []
    for path in found:
        try:
            files = read_folder(path)
            return FoundCheckpoint(path, files, json.loads(files["state.json"]), tuple(skipped))
        except StorageError as error:
            skipped.append(str(error))
    if skipped:
        raise StorageError("no checkpoint is whole: " + "; ".join(skipped))
    return None


def restore(state: TrainState, folder: str | Path) -> tuple[str, ...]:
    """Put the newest whole checkpoint in ``folder`` (or the one that it is) into ``state``; why newer ones were
    passed over.

    The state's model must be built and frozen, and its optimizer grouped, as they were when it was saved.

    Raises: StorageError: there is no whole checkpoint, or it belongs to another model.
    """
    found = read_checkpoint(folder)
    if found is None:
        raise StorageError(f"{folder}: there is no checkpoint")
    _load_into(state.model, found.files["model.safetensors"], where=folder)
    if state.average is not None:
        _load_into(state.average.module, found.files["average.safetensors"], where=folder)
    _restore_optimizer(state, read_tensors(found.files["optimizer.safetensors"]), found.counters["optimizer"])
    for name in _COUNTERS:
        setattr(state, name, found.counters[name])
    best = found.counters["best"]
    state.best = Best(**(best | {"score": tuple(best["score"])})) if best else None
    if state.scaler is not None and found.counters["scaler"]:
        state.scaler.load_state_dict(found.counters["scaler"])
    return found.skipped


def _load_into(module: nn.Module, data: bytes, *, where: str | Path) -> None:
    tensors, own = read_tensors(data), module.state_dict()
    wrong = sorted(set(tensors) ^ set(own)) or [name for name in own if tensors[name].shape != own[name].shape]
    if wrong:
        raise StorageError(f"{where}: belongs to another model: {', '.join(wrong[:5])} differ ({len(wrong)} tensors)")
    module.load_state_dict(tensors)


def _restore_optimizer(state: TrainState, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    parameters = dict(state.model.named_parameters())
    state.optimizer.state.clear()
    for full, value in tensors.items():
        name, _, key = full.rpartition("//")
        like = parameters[name]
        if value.shape == like.shape:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)  # on its device, in its memory order
        state.optimizer.state[like][key] = value
    for name, values in rest["plain"].items():
        state.optimizer.state[parameters[name]].update(values)
    assert len(rest["groups"]) == len(state.optimizer.param_groups), "the checkpoint has other parameter groups"
    for group, values in zip(state.optimizer.param_groups, rest["groups"], strict=True):
        group.update(values)


def _drop_old(root: Path, *, keep: int, disk: Disk) -> None:
    best = read_json(root / "best.json")["folder"] if (root / "best.json").exists() else None
    for path in sorted(root.glob(_PREFIX + "*"), reverse=True)[keep:]:
        if path.name != best:
            disk.remove(path)


def load_best(state: TrainState, folder: Path) -> None:
    """Put the best epoch's weights (trained or averaged) into the state's model.  Raises: StorageError."""
    assert state.best is not None
    files = read_folder(folder / str(read_json(folder / "best.json")["folder"]))
    name = "average" if state.best.weights == "average" else "model"
    _load_into(state.model, files[f"{name}.safetensors"], where=folder)
