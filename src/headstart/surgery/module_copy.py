"""A copy of a module that has nothing in common with it: weights, buffers, attributes, hooks and what these refer to.

``copy.deepcopy`` alone leaves functions as they are: a hook, or a replaced ``forward``, that was made around the module
still speaks to the original; gradients' hooks and attributes of parameters are dropped; and tensors that share memory
with a parameter share it no longer.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.rewiring import Rewiring
from headstart.surgery.values import same_bytes

_COMPUTING = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")


@dataclass(frozen=True)
class InPlace:
    """A module that is to be changed itself: ``hs.train`` and ``hs.open_run`` make no copy of it, as they do otherwise.

    Attributes:
        ``module``: The module that is changed.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> hs.InPlace(net).module is net
        True
    """

    module: nn.Module


def copy_module(module: nn.Module, *, free_bytes: int | None, instead: str) -> nn.Module:
    """An equal module that shares nothing with ``module``, which stays as it is.

    Hooks and replaced methods of the copy speak to the copy where those of ``module`` spoke to ``module`` or its parts.
    ``free_bytes``: memory that can be had, if it is known; ``instead``: what a user can type where nothing is copied.

    Raises: ModelError: it cannot be copied, by the name of what stands in the way; or memory forbids it.
    """
    storages = _storages(module)
    needed = sum(storage.nbytes() for storage in storages.values())
    if free_bytes is not None and needed > free_bytes:
        raise ModelError(
            f"model: a copy of the module takes {needed / 1e9:,.1f} GB of memory, {free_bytes / 1e9:,.1f} GB are free; "
            f"{instead}"
        )
    memo = _copy_parameters(module)
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:  # a ``__deepcopy__`` of the user's own may raise anything
        raise ModelError(f"model: the module cannot be copied: {_obstacle(module, error, instead)}") from error
    move = Rewiring(module, memo, memory=frozenset(storages), instead=instead)
    for part in module.modules():
        if id(part) in memo:
            _carry_slots(part, memo[id(part)], memo)
    for path, part in copied.named_modules():
        move.inside(vars(part), path or "the module")
    move.check_classes(type(part) for part in module.modules())
    for name, parameter in module.named_parameters():
        if id(parameter) in memo:
            _carry_over(parameter, memo[id(parameter)], move, name)
    _check_equal(module, copied, instead=instead)
    return copied


def _check_equal(module: nn.Module, copied: nn.Module, *, instead: str) -> None:
    """Raises: ModelError: a ``__deepcopy__`` of the user's own made something else."""
    theirs = {name: value for name, value, _ in iterate_tensors(copied)}
    for name, value, _ in iterate_tensors(module):
        other = theirs.get(name)
        if nn.parameter.is_lazy(value):
            continue
        if other is None or (other.shape, other.dtype) != (value.shape, value.dtype) or not same_bytes(value, other):
            raise ModelError(
                f"model: the module cannot be copied: {name} of a copy.deepcopy of it is not as in the module; have "
                f"__deepcopy__ copy it, or {instead}"
            )


def can_copy(module: nn.Module) -> bool:
    """Whether ``copy.deepcopy`` makes another module of it; plain tensors are not copied for the answer."""
    tensors = [value for _, value, _ in iterate_tensors(module) if _is_plain(value)]
    try:
        copied = copy.deepcopy(module, {id(value): value for value in tensors})
    except Exception:
        return False
    return not {*map(id, copied.modules())} & {*map(id, module.modules())}


def _storages(module: nn.Module) -> dict[int, torch.UntypedStorage]:
    """The memory of parameters and buffers on the CPU, by address."""
    tensors = [value for value in (*module.parameters(), *module.buffers()) if _is_plain(value)]
    return {value.untyped_storage().data_ptr(): value.untyped_storage() for value in tensors if value.is_cpu}


def _is_plain(value: Tensor) -> bool:
    """Whether it is what its storage, shape and strides say, and no more."""
    return type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta


def _copy_parameters(module: nn.Module) -> dict[int, Any]:
    """The memo for deepcopy with copies of all parameters, over copied storages: what shared memory still does.

    Weights that a hook of torch's computes anew in each forward pass (old-style weight and spectral norm, pruning) come
    without their history, and tensors that were made in ``inference_mode`` can be trained with.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter and _is_plain(parameter) and not parameter.is_quantized:
            storage = copy.deepcopy(parameter.untyped_storage(), memo)
            with torch.no_grad():
                copied = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
                copied.set_(storage, parameter.storage_offset(), parameter.shape, parameter.stride())
            memo[id(parameter)] = nn.Parameter(copied, requires_grad=parameter.requires_grad)
    for part in module.modules():
        for value in (*part._buffers.values(), *vars(part).values()):
            if isinstance(value, Tensor) and _is_plain(value) and value.is_inference():
                memo[id(value)] = value.clone()
        memo |= {id(value): value for value in vars(part).values() if isinstance(value, types.ModuleType)}
        for hook in part._forward_pre_hooks.values():
            name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            if type(hook).__module__ in _COMPUTING and name:
                value = getattr(part, name)
                memo[id(value)] = value.detach().clone()
    return memo


def _carry_slots(part: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> None:
    """Copy what a class of the user's keeps in slots, which a module's copy lacks."""
    for kind in type(part).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(part, name) and not hasattr(copied, name):
                setattr(copied, name, copy.deepcopy(getattr(part, name), memo))


def _carry_over(parameter: nn.Parameter, copied: Tensor, move: Rewiring, name: str) -> None:
    """Copy the parameter's attributes and the hooks on its gradient, which deepcopy drops."""
    for key, value in vars(parameter).items():
        if key not in vars(copied):
            setattr(copied, key, move.outside(copy.deepcopy(value, move.memo), f"{name}.{key}"))
    where = f"a hook on the gradient of {name}"
    for hook in (parameter._backward_hooks or {}).values():
        copied.register_hook(move.outside(hook, where))  # type: ignore[no-untyped-call]
    for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
        copied.register_post_accumulate_grad_hook(move.outside(hook, where))  # type: ignore[no-untyped-call]


def _obstacle(module: nn.Module, error: Exception, instead: str) -> str:
    """Which attribute cannot be copied, why, and what to type."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            where = f"{path}.{name}" if path else name
            if isinstance(value, Tensor) and value.grad_fn is not None:
                return (
                    f"{where} is a tensor with a history (it was computed while autograd recorded); keep "
                    f"{name}.detach() there, or set it to None before; {instead}"
                )
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(one): one for one in (*module.modules(), *module.parameters())})
            except Exception as own:
                about = f"{where} ({type(value).__name__}: {_first_line(own)}); "
                kept = "keep numbers, lists or tensors there, or, if forward leaves it alone, "
                return f"{about}{kept if isinstance(value, Iterator) else ''}{instead}"
    return f"{_first_line(error)}; {instead}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
