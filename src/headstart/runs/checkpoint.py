"""Checkpoints: safetensors and JSON under a manifest, whole or not at all; the newest good one is where a run goes on.

checkpoints/step-00001234/{model,optimizer,average}.safetensors + state.json + MANIFEST.json
    frozen.safetensors: what of the model does not train, from 1 MiB on; the same file (a hard link) as in the
    checkpoint before the last one while nothing of it has changed
    of a model that is shared out among N processes: {model,optimizer}-0000R-of-0000N.safetensors, the whole shapes in
    state.json
checkpoints/{last,best}.json name folders for people and other tools; headstart itself reads the folders
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from headstart.disk import DISK, Disk
from headstart.errors import StorageError
from headstart.parallel.messages import files_to_first
from headstart.parallel.processes import current
from headstart.parallel.shards import (
    is_sharded,
    is_shared_out,
    joined_parts,
    like_parameter,
    part_again,
    parts,
    put,
)
from headstart.pieces import Content
from headstart.runs.frozen_file import FROZEN, frozen_file, frozen_tensors, remember_frozen
from headstart.runs.tensor_file import in_pieces, packed
from headstart.storage import MANIFEST, Again, explained, json_bytes, read_folder, write_folder, write_json
from headstart.train.state import Best, TrainState

_COUNTERS = (
    "step", "epochs_done", "epoch_step", "phase", "stale_epochs", "stopped", "epoch_loss", "epoch_weight",
    "micro_batches",
)  # fmt: skip
_FOLDER = re.compile(r"step-([0-9]+)")


def save(state: TrainState, folder: str | Path, *, keep: int = 2, disk: Disk = DISK) -> Path:
    """Write a checkpoint of ``state`` into ``folder``; older ones than the ``keep`` newest go, the best stays.

    Those of later steps go too: they belong to a course that was given up.

    Raises: StorageError: the disk is full or read-only; earlier checkpoints are intact.
    """
    root = Path(folder)
    target = root / _folder_name(state.step)
    files = _contents(state, target)
    if is_sharded(state.model):
        files = {**files_to_first({name: bytes(data) for name, data in files.items()})}
        if not current().is_first:
            return target
    needed = sum(map(len, files.values()))
    hashes = write_folder(target, files, disk=disk)
    if FROZEN in files:
        remember_frozen(state.model, target / FROZEN, sha256=hashes[FROZEN])
    write_json(root / "last.json", {"folder": target.name, "step": state.step}, disk=disk, needed=needed)
    if state.best is not None:
        best = {"folder": _folder_name(state.best.step), **asdict(state.best)}
        write_json(root / "best.json", best, disk=disk, needed=needed)
    with explained(root, needed=needed):
        _drop_old(root, state, keep=keep, disk=disk)
    return target


def _contents(state: TrainState, target: Path) -> dict[str, Content | Again]:
    """The files of a checkpoint; of a model that is shared out, those of this process."""
    part_again(state.model)
    tensors, plain = _optimizer_state(state)
    kinds = {"model": state.model.state_dict(), "optimizer": tensors}
    frozen = {} if is_sharded(state.model) else frozen_tensors(state.model)
    kinds["model"] = {name: value for name, value in kinds["model"].items() if name not in frozen}
    if state.average is not None:
        kinds["average"] = state.average.module.state_dict()
    if not is_sharded(state.model):
        whole: dict[str, Content | Again] = {f"{kind}.safetensors": in_pieces(values) for kind, values in kinds.items()}
        whole |= {FROZEN: frozen_file(state.model, frozen, target / FROZEN)} if frozen else {}
        return whole | {"state.json": json_bytes(_counters(state) | {"optimizer": plain})}
    ours, shapes = current(), {}
    files: dict[str, Content | Again] = {}
    for kind, values in kinds.items():
        mine, shapes[kind] = parts(values)
        files[_part_name(kind, ours.rank, ours.world_size)] = packed(mine)
    shared = {"processes": ours.world_size, "shapes": shapes}
    state_file = json_bytes(_counters(state) | {"optimizer": plain, "shared_out": shared})
    return files | ({"state.json": state_file} if ours.is_first else {})


def _part_name(kind: str, rank: int, processes: int) -> str:
    return f"{kind}-{rank + 1:05d}-of-{processes:05d}.safetensors"


def _tensors(found: Mapping[str, bytes], kind: str) -> dict[str, Tensor]:
    """The whole tensors of one kind, from one file or from each process's part."""
    if f"{kind}.safetensors" in found:
        frozen = read_tensors(found[FROZEN]) if kind == "model" and FROZEN in found else {}
        return read_tensors(found[f"{kind}.safetensors"]) | frozen
    shared = json.loads(found["state.json"])["shared_out"]
    count = int(shared["processes"])
    read = [read_tensors(found[_part_name(kind, rank, count)]) for rank in range(count)]
    return joined_parts(read, shared["shapes"][kind])


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _counters(state: TrainState) -> dict[str, Any]:
    scaler = state.scaler.state_dict() if state.scaler is not None else None
    return {name: getattr(state, name) for name in _COUNTERS} | {
        "best": asdict(state.best) if state.best is not None else None,
        "scaler": scaler,
    }


def _optimizer_state(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``PARAMETER//KEY`` or ``//GROUP//KEY``, and what is not a tensor: per parameter, and per group."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for name, values in _by_name(state):
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}//{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    for number, group in enumerate(state.optimizer.param_groups):
        tensors |= {f"//{number}//{key}": value for key, value in group.items() if isinstance(value, Tensor)}
        groups.append({key: value for key, value in group.items() if isinstance(value, int | float | str | bool)})
    return tensors, {"plain": plain, "groups": groups}


def _by_name(state: TrainState) -> Iterator[tuple[str, dict[str, Any]]]:
    found = {
        name: parameter for name, parameter in state.model.named_parameters() if parameter in state.optimizer.state
    }
    assert len(found) == len(state.optimizer.state), f"{len(state.optimizer.state)} states, {len(found)} parameters"
    for name, parameter in found.items():
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
    skipped: list[str] = []
    for path in [root] if (root / MANIFEST).exists() else _by_step(root).values():
        try:
            files = read_folder(path)
            counters = _read_counters(files, path)
            _check_name(path, int(counters["step"]))
            return FoundCheckpoint(path, files, counters, tuple(skipped))
        except StorageError as error:
            skipped.append(str(error))
    if skipped:
        raise StorageError("no checkpoint is whole: " + "; ".join(skipped))
    return None


def _check_name(path: Path, step: int) -> None:
    """Refuse a checkpoint under another one's name: it would be taken for newer or older than it is."""
    match = _FOLDER.fullmatch(path.name)
    if match and int(match[1]) != step:
        raise StorageError(f"{path}: holds the checkpoint of step {step}; rename it to {_folder_name(step)}")


def _read_counters(files: Mapping[str, bytes], path: Path) -> dict[str, Any]:
    """The content of state.json.  Raises: StorageError: it is missing, or not what ``save`` writes."""
    if "state.json" not in files:
        raise StorageError(f"{path}: is no checkpoint, it has no state.json")
    try:
        counters: dict[str, Any] = json.loads(files["state.json"])
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path / 'state.json'}: not valid JSON ({error})") from error
    match counters:
        case {
            "best": None | {"step": int()},
            "scaler": None | dict(),
            "optimizer": {"plain": dict(), "groups": list()},
        }:
            numbers = [counters.get(name) for name in _COUNTERS]
            whole = all(isinstance(counters.get(name), int) for name in ("step", "epochs_done", "epoch_step", "phase"))
            if whole and all(isinstance(number, int | float) and number >= -1 for number in numbers):  # phase: none yet
                return dict(counters)
    raise StorageError(f"{path / 'state.json'}: holds other things than headstart writes")


def _by_step(root: Path) -> dict[int, Path]:
    """The checkpoint folders in ``root``, the newest first."""
    matches = ((_FOLDER.fullmatch(path.name), path) for path in root.glob("step-*"))
    return dict(sorted(((int(match[1]), path) for match, path in matches if match), reverse=True))


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint there, by its name; None where there is none."""
    return next(iter(_by_step(folder)), None)


def restore(state: TrainState, folder: str | Path) -> tuple[str, ...]:
    """Put the newest whole checkpoint in ``folder`` (or the one that it is) into ``state``; why newer ones were
    passed over.

    The state's model must be built and frozen, and its optimizer grouped, as they were when it was saved.

    Raises: StorageError: there is no whole checkpoint, or it belongs to another model.
    """
    found = read_checkpoint(folder)
    if found is None:
        raise StorageError(f"{folder}: there is no checkpoint")
    restore_found(state, found)
    return found.skipped


def restore_found(state: TrainState, found: FoundCheckpoint) -> None:
    """Put a checkpoint that was read into ``state``.  Raises: StorageError: it belongs to another model."""
    try:
        _restore(state, found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise StorageError(
            f"{found.path}: is not a checkpoint of this run ({type(error).__name__}: {error}); remove it, or start a "
            "new run with another --out"
        ) from error


def _restore(state: TrainState, found: FoundCheckpoint) -> None:
    where, counters = found.path, found.counters
    for name, ours, theirs in (
        ("average", state.average is not None, any(name.startswith("average") for name in found.files)),
        ("scaler", state.scaler is not None, counters["scaler"] is not None),
    ):
        if ours != theirs:
            raise StorageError(
                f"{where}: was saved with{'' if theirs else 'out'} state.{name}; restore it into a state that is "
                "made the same way"
            )
    _load_into(state.model, _tensors(found.files, "model"), where=where)
    if state.average is not None:
        _load_into(state.average.module, _tensors(found.files, "average"), where=where)
    _restore_optimizer(state, _tensors(found.files, "optimizer"), counters["optimizer"], where=where)
    for name in _COUNTERS:
        setattr(state, name, counters[name])
    best = counters["best"]
    state.best = Best(**(best | {"score": tuple(best["score"])})) if best else None
    if state.scaler is not None:
        state.scaler.load_state_dict(counters["scaler"])


def _load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str | Path) -> None:
    own = module.state_dict()
    wrong = sorted(set(tensors) ^ set(own)) or [name for name in own if tensors[name].shape != own[name].shape]
    if wrong:
        raise StorageError(f"{where}: belongs to another model: {', '.join(wrong[:5])} differ ({len(wrong)} tensors)")
    if not is_sharded(module):
        module.load_state_dict(tensors)
        return
    for name, value in own.items():
        put(value, tensors[name])


def _restore_optimizer(
    state: TrainState, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], *, where: Path
) -> None:
    parameters, groups = dict(state.model.named_parameters()), state.optimizer.param_groups
    saved, ours = ([group.get("name") for group in some] for some in (rest["groups"], groups))
    if saved != ours:
        raise StorageError(f"{where}: has the parameter groups {saved}, and the state's optimizer {ours}")
    state.optimizer.state.clear()
    for full, value in tensors.items():
        name, _, key = full.rpartition("//")
        if name.startswith("//"):
            groups[int(name[2:])][key] = value
        else:
            state.optimizer.state[parameters[name]][key] = _placed(value, key, like=parameters[name])
    for name, values in rest["plain"].items():
        state.optimizer.state[parameters[name]].update(values)
    for group, values in zip(groups, rest["groups"], strict=True):
        group.update({key: value for key, value in values.items() if key not in ("fused", "foreach")})  # the device's


def _placed(value: Tensor, key: str, *, like: Tensor) -> Tensor:
    """On its parameter's device and in its memory order; counters of steps stay on the CPU, as in torch."""
    if key == "step":
        return value
    if value.shape != like.shape:
        return value.to(like.device)
    if is_shared_out(like):
        return like_parameter(value, like)
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def _drop_old(root: Path, state: TrainState, *, keep: int, disk: Disk) -> None:
    found = _by_step(root)
    newest = [step for step in found if step <= state.step][:keep]
    best = None if state.best is None else state.best.step
    for step, path in found.items():
        if step not in newest and step != best:
            disk.remove(path)


def drop_later(folder: Path, step: int, *, disk: Disk = DISK) -> None:
    """Remove the checkpoints of later steps than this one.  Raises: StorageError."""
    with explained(folder, needed=0):
        for number, path in _by_step(folder).items():
            if number > step:
                disk.remove(path)


def load_best(state: TrainState, folder: Path, *, into: nn.Module) -> None:
    """Put the best epoch's weights (trained or averaged) into a model.  Raises: StorageError."""
    assert state.best is not None
    files = read_folder(folder / _folder_name(state.best.step))
    name = "average" if state.best.weights == "average" else "model"
    _load_into(into, _tensors(files, name), where=folder)
