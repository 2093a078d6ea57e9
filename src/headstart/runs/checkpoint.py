"""Checkpoints: safetensors and JSON under a manifest, whole or not at all; the newest good one is where a run goes on.

checkpoints/step-00001234/{model,optimizer,average}.safetensors + state.json + MANIFEST.json
    frozen.safetensors: what of the model does not train, from 1 MiB on; the same file (a hard link) as in the
    checkpoint before the last one while nothing of it has changed; own.safetensors: tensors that the user's own modules
    hold outside of their state dict; start.safetensors: where a penalty pulls to (L2-SP)
    of a model that is sharded among N processes: {model,optimizer}-0000R-of-0000N.safetensors, the whole shapes in
    state.json
checkpoints/{last,best}.json name folders for people and other tools; headstart itself reads the folders
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from headstart.config.home import expand_home
from headstart.distributed.collectives import gather_files
from headstart.distributed.fsdp import (
    is_sharded,
    join_parts,
    part_again,
    parts,
    put,
)
from headstart.distributed.processes import current
from headstart.errors import StorageError
from headstart.isolation import in_own_arithmetic
from headstart.runs.frozen_file import FROZEN, START, frozen_tensors, remember_file, reuse_or_write
from headstart.runs.optimizer_state import optimizer_contents, place_like, read_optimizer, state_now
from headstart.runs.own_file import own_files, restore_own
from headstart.storage.buffers import Content
from headstart.storage.disk import DISK, Disk
from headstart.storage.durable import (
    MANIFEST,
    HardLink,
    explain_os_errors,
    json_bytes,
    read_folder,
    write_folder,
    write_json,
)
from headstart.storage.tensors import make_buffers, pack_tensors
from headstart.surgery.own_state import (
    has_own_code,
    load_tensors,
    read_own_state,
    read_saved_tensors,
    restore_own_state,
)
from headstart.training.precision import device_of, make_scaler
from headstart.training.state import Best, TrainState
from headstart.wording import option

_COUNTERS = (
    "step", "epochs_done", "epoch_step", "phase", "stale_epochs", "stopped", "epoch_loss", "epoch_weight",
    "micro_batches",
)  # fmt: skip
_FOLDER = re.compile(r"step-([0-9]+)")


def save(state: TrainState, folder: str | Path, *, keep: int = 2, run: str | None = None, disk: Disk = DISK) -> Path:
    """Write a checkpoint of a state into a folder, whole or not at all.

    Older checkpoints than the ``keep`` newest are removed, and the best one stays. Checkpoints of later steps are
    removed, too: they belong to an attempt that was given up.

    Args:
        ``state``: The model, its optimizer and the counters.
        ``folder``: The folder that holds the checkpoints; it is made where it is missing.
        ``keep``: How many of the newest checkpoints stay.
        ``run``: A name of the run that the checkpoint belongs to, which a resume compares.
        ``disk``: How files are written; tests put a failing disk here.

    Returns:
        The path of the new checkpoint.

    Raises:
        StorageError: The disk is full or read-only; earlier checkpoints are intact.
        ConfigError: The optimizer has a parameter that is not the model's.

    Example:
        >>> import headstart as hs, torch
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> state = hs.TrainState(net, torch.optim.SGD(net.parameters(), lr=0.01))
        >>> hs.save(state, "checkpoints").is_dir()
        True
    """
    root = expand_home(folder)
    target = root / _folder_name(state.step)
    files = _contents(state, target, {} if run is None else {"run": run})
    if is_sharded(state.model):
        files = {**gather_files({name: bytes(data) for name, data in files.items()})}
        if not current().is_first:
            return target
    needed = sum(map(len, files.values()))
    hashes = write_folder(target, files, disk=disk)
    for name in (FROZEN, START):
        if name in files:
            remember_file(state.model, target / name, sha256=hashes[name])
    write_json(root / "last.json", {"folder": target.name, "step": state.step}, disk=disk, needed=needed)
    if state.best is not None:
        best = {"folder": _folder_name(state.best.step), **asdict(state.best)}
        write_json(root / "best.json", best, disk=disk, needed=needed)
    with explain_os_errors(root, needed=needed):
        _drop_old(root, state, keep=keep, disk=disk)
    return target


def _contents(state: TrainState, target: Path, more: Mapping[str, str]) -> dict[str, Content | HardLink]:
    """The files of a checkpoint; of a sharded model, those of this process."""
    part_again(state.model)
    tensors, plain = optimizer_contents(state.model, state.optimizer)
    counters = _counters(state) | {"optimizer": plain, **more}
    kinds = {"model": read_saved_tensors(state.model), "optimizer": tensors}
    tensors_file, own = own_files(_modules(state.model, state.average))
    counters |= {"own": own} if own else {}
    frozen = {} if is_sharded(state.model) else frozen_tensors(state.model)
    kinds["model"] = {name: value for name, value in kinds["model"].items() if name not in frozen}
    if state.average is not None:
        kinds["average"] = read_saved_tensors(state.average.module)
    if not is_sharded(state.model):
        whole: dict[str, Content | HardLink] = {
            f"{kind}.safetensors": make_buffers(values) for kind, values in kinds.items()
        }
        fixed = {FROZEN: frozen, START: state.start}
        whole |= {name: reuse_or_write(state.model, values, target / name) for name, values in fixed.items() if values}
        return whole | tensors_file | {"state.json": json_bytes(counters)}
    kinds |= {"start": state.start} if state.start else {}
    ours, shapes = current(), {}
    files: dict[str, Content | HardLink] = {}
    for kind, values in kinds.items():
        mine, shapes[kind] = parts(values)
        files[_part_name(kind, ours.rank, ours.world_size)] = pack_tensors(mine)
    shared = {"processes": ours.world_size, "shapes": shapes}
    if not ours.is_first:  # what its own modules hold besides is the first process's, as of a model that is whole
        return files
    return files | tensors_file | {"state.json": json_bytes(counters | {"shared_out": shared})}


def _modules(model: nn.Module, average: ModelEmaV3 | None) -> dict[str, nn.Module]:
    """The modules that a checkpoint holds, by kind."""
    return {"model": model} | ({"average": average.module} if average is not None else {})


def _part_name(kind: str, rank: int, processes: int) -> str:
    return f"{kind}-{rank + 1:05d}-of-{processes:05d}.safetensors"


def _tensors(files: Mapping[str, bytes], kind: str) -> dict[str, Tensor]:
    """The whole tensors of one kind, from one file or from each process's part."""
    if f"{kind}.safetensors" in files:
        frozen = read_tensors(files[FROZEN]) if kind == "model" and FROZEN in files else {}
        return read_tensors(files[f"{kind}.safetensors"]) | frozen
    shared = json.loads(files["state.json"])["shared_out"]
    count = int(shared["processes"])
    by_rank = [read_tensors(files[_part_name(kind, rank, count)]) for rank in range(count)]
    return join_parts(by_rank, shared["shapes"][kind])


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _counters(state: TrainState) -> dict[str, Any]:
    used = _scaler_of(state)
    scaler = None if used is None else used.state_dict()
    return {name: getattr(state, name) for name in _COUNTERS} | {
        "best": asdict(state.best) if state.best is not None else None,
        "scaler": scaler,
        "average_decay": state.average_decay,
    }


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
    root = expand_home(folder)
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


@in_own_arithmetic
def restore(state: TrainState, folder: str | Path) -> tuple[str, ...]:
    """Put the newest whole checkpoint of a folder into a state.

    The state's model must be built and frozen as it was when it was saved, and its optimizer must train the same
    parameters: each finds its state by its name, and each group its rates by its parameters' names, however the groups
    are ordered, called and split. A restore that fails leaves the state as it was.

    Args:
        ``state``: The state that is overwritten.
        ``folder``: A folder of checkpoints, or one checkpoint.

    Returns:
        Sentences that say why newer checkpoints were passed over; none where the newest one was whole.

    Raises:
        StorageError: There is no whole checkpoint, it belongs to another model or optimizer, or parameters that had
            other rates are in one group.

    Example:
        >>> import headstart as hs, torch
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> state = hs.TrainState(net, torch.optim.SGD(net.parameters(), lr=0.01))
        >>> folder = hs.save(state, "checkpoints")
        >>> hs.restore(state, "checkpoints")
        ()
    """
    found = read_checkpoint(folder)
    if found is None:
        raise StorageError(f"{folder}: there is no checkpoint")
    restore_checkpoint(state, found)
    return found.skipped


def restore_checkpoint(state: TrainState, found: FoundCheckpoint) -> None:
    """Put a checkpoint that was read into ``state``.  Raises: StorageError: it belongs to another model."""
    try:
        _restore(state, found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise StorageError(
            f"{found.path}: is not a checkpoint of this run ({type(error).__name__}: {error}); remove it, or start a "
            f"new run with another {option('out')}"
        ) from error


def _restore(state: TrainState, found: FoundCheckpoint) -> None:
    """Read and compare everything first, and only then put it into the state; or put nothing."""
    where, counters = found.path, found.counters
    average, scaler = _find_average(state, found), _find_scaler(state, found)
    modules = _modules(state.model, average)
    tensors = {kind: _tensors(found.files, kind) for kind in modules}
    for kind, module in modules.items():
        _check_fits(module, tensors[kind], where=where)
    optimizer = read_optimizer(
        state.model, state.optimizer, _tensors(found.files, "optimizer"), counters["optimizer"], where=where
    )
    start = _read_start(state, found)
    best = counters["best"]
    best = Best(**(best | {"score": tuple(best["score"])})) if best else None
    numbers = {name: counters[name] for name in _COUNTERS}
    with _all_or_nothing(state, modules):
        for kind, module in modules.items():
            _put(module, tensors[kind])
            restore_own(module, kind, found.files, counters.get("own"))
        optimizer.put_into(state.optimizer)
        if scaler is not None and scaler.is_enabled():
            scaler.load_state_dict(counters["scaler"])
    for name, value in numbers.items():
        setattr(state, name, value)
    state.best, state.start, state.average, state.scaler = best, start, average, scaler
    state.average_decay = counters.get("average_decay")
    state.own_state = read_own_state(state.model) if has_own_code(state.model) else None


def _find_average(state: TrainState, found: FoundCheckpoint) -> ModelEmaV3 | None:
    """The state's average; a new one where ``average_steps`` of the rules made the one that was saved."""
    saved, decay = any(name.startswith("average") for name in found.files), found.counters.get("average_decay")
    if saved and state.average is None and isinstance(decay, float):
        return ModelEmaV3(state.model, decay=decay)
    if not saved and state.average_decay and not found.counters["step"]:
        return None  # the rules make it again at the first step
    _check_made_alike("average", saved=saved, there=state.average is not None, where=found.path)
    return state.average


def _find_scaler(state: TrainState, found: FoundCheckpoint) -> torch.amp.GradScaler | None:
    """The state's loss scaler; a new one where only the checkpoint has one: ``precision`` fp16 made it."""
    saved = found.counters["scaler"] is not None
    if saved and state.scaler is None:
        return make_scaler(device_of(state.model), "fp16")
    if not saved and not found.counters["step"]:
        return None
    _check_made_alike("scaler", saved=saved, there=_scaler_of(state) is not None, where=found.path)
    return state.scaler


def _scaler_of(state: TrainState) -> torch.amp.GradScaler | None:
    """Its loss scaler; none where it is switched off."""
    return state.scaler if state.scaler is not None and state.scaler.is_enabled() else None


def _check_made_alike(name: str, *, saved: bool, there: bool, where: Path) -> None:
    if saved != there:
        raise StorageError(
            f"{where}: was saved with{'' if saved else 'out'} state.{name}; restore it into a state that is made the "
            "same way"
        )


def _read_start(state: TrainState, found: FoundCheckpoint) -> dict[str, Tensor]:
    """The values that the run began with, on the parameters' devices; the state's own where the checkpoint has none."""
    if not any(name.startswith("start") for name in found.files):
        return state.start
    parameters, tensors = dict(state.model.named_parameters()), _tensors(found.files, "start")
    strange = [name for name in tensors if name not in parameters or tensors[name].shape != parameters[name].shape]
    if strange:
        raise StorageError(f"{found.path}: began with another model: {strange[0]} differs")
    return {name: place_like(value, like=parameters[name]) for name, value in tensors.items()}


@contextmanager
def _all_or_nothing(state: TrainState, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """A failure within (a module's own way of loading, a scaler of another kind) leaves the state as it was."""
    tensors = [
        (value, value.detach().clone()) for module in modules.values() for value in read_saved_tensors(module).values()
    ]
    optimizer = state_now(state.optimizer)
    used = _scaler_of(state)
    scaler = None if used is None else (used, used.state_dict())
    own = [(module, read_own_state(module)) for module in modules.values()]

    def put_back() -> None:
        with torch.no_grad():
            for value, before in tensors:
                value.copy_(before)
        for module, held in own:
            restore_own_state(module, held)
        optimizer.put_into(state.optimizer)
        if scaler:
            scaler[0].load_state_dict(scaler[1])

    with ExitStack() as failing:
        failing.callback(put_back)
        yield
        failing.pop_all()


def _check_fits(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str | Path) -> None:
    own = read_saved_tensors(module)
    wrong = sorted(set(tensors) ^ set(own)) or [
        name for name in own if (tensors[name].shape, tensors[name].dtype) != (own[name].shape, own[name].dtype)
    ]
    if wrong:
        raise StorageError(f"{where}: belongs to another model: {', '.join(wrong[:5])} differ ({len(wrong)} tensors)")


def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    if not is_sharded(module):
        load_tensors(module, tensors)
        return
    for name, value in read_saved_tensors(module).items():
        put(value, tensors[name])


def _drop_old(root: Path, state: TrainState, *, keep: int, disk: Disk) -> None:
    found = _by_step(root)
    newest = [step for step in found if step <= state.step][:keep]
    best = None if state.best is None else state.best.step
    for step, path in found.items():
        if step not in newest and step != best:
            disk.remove(path)


def drop_later(folder: Path, step: int, *, disk: Disk = DISK) -> None:
    """Remove the checkpoints of later steps than this one.  Raises: StorageError."""
    with explain_os_errors(folder, needed=0):
        for number, path in _by_step(folder).items():
            if number > step:
                disk.remove(path)


def load_best(state: TrainState, folder: Path, *, into: nn.Module) -> None:
    """Put the best epoch's weights (trained or averaged) into a model.  Raises: StorageError."""
    assert state.best is not None
    files = read_folder(folder / _folder_name(state.best.step))
    name = "average" if state.best.weights == "average" else "model"
    tensors = _tensors(files, name)
    _check_fits(into, tensors, where=folder)
    _put(into, tensors)
    restore_own(into, name, files, json.loads(files["state.json"]).get("own"))
