"""An optimizer's state as a checkpoint holds it: by the names of the parameters, whatever the order of its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.distributed.fsdp import is_sharded_tensor, like_parameter
from headstart.errors import ConfigError, StorageError
from headstart.optim.optimizers import check_optimizer
from headstart.runs.optimizer_own import iterate_inner, own_now, put_own, read_own, write_own
from headstart.surgery.own_state import NotWritable, read_value, write_value

_NAMES, _INNER, _ASIDE, _CPU = "parameters", ">>", "#", torch.device("cpu")
_OWN = (_NAMES, "name", "fused", "foreach")  # of a group, and not put into another one: its label, and the device's
_STEP = "step"  # counters of steps stay on the CPU, as in torch
_PLAIN = (int, float, str, bool)


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What an optimizer is to hold, for each parameter, for each of its groups and besides; and what those are to hold
    that it was made around.
    """

    parameters: Mapping[Tensor, Mapping[str, Any]]
    groups: Sequence[tuple[dict[str, Any], Mapping[str, Any]]]
    own: Mapping[str, Any] = field(default_factory=dict)
    inner: Sequence[tuple[Any, OptimizerState]] = ()

    def put_into(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the optimizer's state, and the groups' rates and counters."""
        optimizer.state.clear()
        for parameter, values in self.parameters.items():
            optimizer.state[parameter].update(values)
        for group, values in self.groups:
            group.update(values)
        put_own(optimizer, self.own)
        for inner, held in self.inner:
            held.put_into(inner)


def state_now(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The state that an optimizer has now, to be put back later."""
    return _state_now(optimizer, [(inner, _state_now(inner)) for _, inner in _iterate_apart(optimizer)])


def _state_now(optimizer: torch.optim.Optimizer, inner: Sequence[tuple[Any, OptimizerState]] = ()) -> OptimizerState:
    state = optimizer.state.items()
    return OptimizerState(
        parameters={parameter: dict(values) for parameter, values in state if isinstance(parameter, Tensor)},
        groups=[(group, dict(group)) for group in optimizer.param_groups],
        own=own_now(optimizer),
        inner=inner,
    )


def _iterate_apart(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """Iterate over the optimizers that this one was made around and whose state is not its own."""
    for path, inner in iterate_inner(optimizer):
        if inner.state is not optimizer.state:
            yield path, inner


def optimizer_contents(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's tensors by ``PARAMETER//KEY`` or ``//GROUP//KEY``, and its other values per parameter and per
    group, with the names of the group's parameters.

    Raises: ConfigError: the optimizer has a parameter that is not the model's, or keeps what cannot be written.
    """
    check_optimizer(optimizer)
    tensors, rest = _contents(model, optimizer)
    for path, inner in _iterate_apart(optimizer):
        more, about = _contents(model, inner)
        tensors |= {f"{path}{_INNER}{name}": value for name, value in more.items()}
        rest.setdefault("inner", {})[path] = about
    return tensors, rest


def _contents(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    names = _names(model)
    _check_names(optimizer, names)
    for parameter, values in optimizer.state.items():
        if parameter not in names:  # of a part that was replaced: nobody's
            continue
        name = names[parameter]
        tensors |= {f"{name}//{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        for key, value in values.items():
            if not isinstance(value, Tensor):
                plain.setdefault(name, {})[key], inside = _write(value, f"{name}//{key}", optimizer)
                tensors |= inside
    for number, group in enumerate(optimizer.param_groups):
        tensors |= {f"//{number}//{key}": value for key, value in group.items() if isinstance(value, Tensor)}
        kept = {key: value for key, value in group.items() if isinstance(value, _PLAIN) or _is_row(value)}
        groups.append(kept | {_NAMES: [names[parameter] for parameter in group["params"]]})
    own, inside = write_own(optimizer, model)
    tensors |= inside
    about = {"class": type(optimizer).__name__, "plain": plain, "groups": groups}
    return tensors, about | ({"own": own} if own else {})


def _write(value: object, name: str, optimizer: torch.optim.Optimizer) -> tuple[Any, dict[str, Tensor]]:
    try:
        return write_value(value, name)
    except NotWritable as error:
        raise ConfigError(
            f"state.optimizer ({type(optimizer).__name__}) keeps {error} for {name.replace('//', ' under ')}, which a "
            "checkpoint cannot hold; have it keep numbers, tensors, and lists, tuples and dictionaries of these"
        ) from error


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _is_row(value: object) -> bool:
    """Whether a value is a tuple of numbers, as betas are."""
    return isinstance(value, tuple) and all(isinstance(number, int | float) for number in value)


def _check_names(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strange = [parameter for parameter in listed if parameter not in names]
    if strange:
        raise ConfigError(
            f"state.optimizer has a parameter of shape {list(strange[0].shape)} that is not one of state.model's: a "
            "checkpoint could not put it back; make the optimizer after the last change of the model, or make what it "
            "trains a part of the model, e.g. model.loss = my_loss"
        )


def read_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    *,
    where: Path,
) -> OptimizerState:
    """The state in what ``optimizer_contents`` gave, for this optimizer over this model; nothing is put into it yet.

    Raises: StorageError: the parameters or the optimizer are others, or groups that differed are one group now.
    """
    state = _read(model, optimizer, {name: value for name, value in tensors.items() if _INNER not in name}, rest, where)
    inner = list[tuple[Any, OptimizerState]]()
    for path, other in _iterate_apart(optimizer):
        if path not in rest.get("inner", {}):
            raise StorageError(f"{where}: was saved without the state of state.optimizer.{path}; begin anew without it")
        start = f"{path}{_INNER}"
        given = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        inner.append((other, _read(model, other, given, rest["inner"][path], where)))
    return replace(state, inner=inner)


def _read(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any],
    where: Path,
) -> OptimizerState:  # fmt: skip
    kind = type(optimizer).__name__
    if rest.get("class", kind) != kind:
        raise StorageError(f"{where}: was saved with the optimizer {rest['class']}, and the state's is {kind}")
    by_name = dict(model.named_parameters())
    by_parameter: dict[Tensor, dict[str, Any]] = {}
    saved = [dict(group) for group in rest["groups"]]
    aside = {name: value for name, value in tensors.items() if _ASIDE in name.rpartition("//")[2]}
    for full, value in tensors.items():
        name, _, key = full.rpartition("//")
        if full in aside:
            continue
        if name.startswith("//"):
            saved[int(name[2:])][key] = value
        else:
            by_parameter.setdefault(by_name[name], {})[key] = (
                value if key == _STEP else place_like(value, like=by_name[name])
            )
    for name, values in rest["plain"].items():
        placed = {
            full: place_like(value, like=by_name[name]) for full, value in aside.items() if full.startswith(f"{name}//")
        }
        read = {key: read_value(value, placed) for key, value in values.items()}
        by_parameter.setdefault(by_name[name], {}).update(read)
    device = next((parameter.device for group in optimizer.param_groups for parameter in group["params"]), _CPU)
    groups = [
        (group, _values(group, [saved[number] for number in sources], where=where))
        for group, sources in _sources(model, optimizer, saved, where)
    ]
    own = read_own(optimizer, rest.get("own", {}), aside, device=device)
    return OptimizerState(parameters=by_parameter, groups=groups, own=own)


def _sources(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]], where: Path
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Each group of the optimizer with the saved groups that its parameters were in."""
    groups, names = optimizer.param_groups, _names(model)
    if any(_NAMES not in group for group in saved):  # as headstart wrote until 0.1: by place
        before, ours = ([group.get("name") for group in some] for some in (saved, groups))
        if before != ours:
            raise StorageError(f"{where}: has the parameter groups {before}, and the state's optimizer {ours}")
        yield from ((group, [number]) for number, group in enumerate(groups))
        return
    homes = {name: number for number, group in enumerate(saved) for name in group[_NAMES]}
    now = [names.get(parameter, "one that is not the model's") for group in groups for parameter in group["params"]]
    added, gone = [name for name in now if name not in homes], [name for name in homes if name not in set(now)]
    if added or gone:
        others = _list_names("; new", added) + _list_names("; missing", gone)
        raise StorageError(
            f"{where}: the optimizer trained other parameters{others}; "
            "freeze and group them as they were when it was saved"
        )
    for group in groups:
        yield group, sorted({homes[names[parameter]] for parameter in group["params"]})


def _list_names(word: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{word}: {', '.join(names[:3])}{more}" if names else ""


def _values(group: Mapping[str, Any], sources: Sequence[Mapping[str, Any]], *, where: Path) -> dict[str, Any]:
    """The rates and counters of the saved groups that became this one; they were the same in all."""
    if not sources:
        return {}
    shared = [{key: value for key, value in one.items() if key not in _OWN} for one in sources]
    first = shared[0]
    for number, other in enumerate(shared):
        unlike = [key for key in first.keys() | other.keys() if not _equal(first.get(key), other.get(key))]
        if unlike:
            raise StorageError(
                f"{where}: the parameters of group {group.get('name', 'without a name')!r} were in groups with other "
                f"values of {', '.join(sorted(unlike))} ({_label(sources[0])} and {_label(sources[number])}); group "
                "them as they were when it was saved"
            )
    return {key: _own_copy(value) for key, value in first.items()}


def _label(group: Mapping[str, Any]) -> str:
    return repr(group.get("name") or f"that of {group[_NAMES][0]}")


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def _own_copy(value: object) -> object:
    """The value as a group's own: a tensor is copied, a list is the tuple that JSON made a list of."""
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(value) if isinstance(value, list) else value


def place_like(value: Tensor, *, like: Tensor) -> Tensor:
    """The value on the device of its parameter, sharded as that is, and in its memory order."""
    if value.shape != like.shape:
        return value.to(like.device)
    if is_sharded_tensor(like):
        return like_parameter(value, like)
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
