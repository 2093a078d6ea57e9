"""The optimizer that a config names. Weight decay is what torch does: decoupled in AdamW, coupled L2 in the others."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headstart.config.schema import Adam, AdamW, Optimizer, RmsProp, Sgd, TimmOptimizer
from headstart.distributed.fsdp import is_sharded_tensor
from headstart.errors import ConfigError
from headstart.storage.tensors import is_dense

_NO_RESUME = "keeps state that a checkpoint cannot hold, so that a run could not go on after an interruption"
_UNFIT = {
    "adahessian": "needs second derivatives, which this loop does not compute",
    **dict.fromkeys(("kron", "kronc", "kronw"), _NO_RESUME),
}


def make_optimizer(groups: list[dict[str, Any]], options: Optimizer) -> torch.optim.Optimizer:
    """An optimizer over groups that already carry their rates and decays.

    Raises: ConfigError: timm does not know the name.
    """
    fused = _use_fused(groups)
    match options:
        case AdamW():
            return torch.optim.AdamW(groups, betas=options.betas, fused=fused)
        case Adam():
            return torch.optim.Adam(groups, betas=options.betas, fused=fused)
        case Sgd():
            nesterov = options.nesterov and options.momentum > 0
            sgd = torch.optim.SGD(groups, lr=groups[0]["lr"], fused=fused, momentum=options.momentum, nesterov=nesterov)
            return _begin_at_rest(sgd) if fused and options.momentum > 0 else sgd
        case RmsProp():
            return torch.optim.RMSprop(groups, momentum=options.momentum)
        case TimmOptimizer():
            return _from_timm(groups, options)


def _begin_at_rest(sgd: torch.optim.SGD) -> torch.optim.SGD:
    """The optimizer with a momentum of zero for each parameter, which gives the bits of torch's first step.

    torch's fused kernel fails where some parameters have a momentum and others have none yet: a block that random depth
    leaves out has its first gradient later than the others (seen in torch 2.14).
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _use_fused(groups: list[dict[str, Any]]) -> bool | None:
    """True for plain floating parameters on the CPU, where one fused kernel takes half the time (or less, of small
    models); None elsewhere: torch's own choice. A function of the device and of where the numbers lie in memory alone,
    so that a resumed run makes the same.

    torch's fused kernel steps as many numbers as a parameter has from its first on: with others between them, it
    changes those in place of the parameter's (seen in torch 2.14).
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    return True if all(map(_is_plain, parameters)) else None


def _is_plain(value: Tensor) -> bool:
    plain = value.device.type == "cpu" and value.is_floating_point() and not is_sharded_tensor(value)
    return plain and value.layout is torch.strided and is_dense(value)


def _from_timm(groups: list[dict[str, Any]], options: TimmOptimizer) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # public, not re-exported by name

    known = [str(name) for name in list_optimizers()]
    if options.name not in known:
        near = difflib.get_close_matches(options.name, known, n=3) or ["lamb", "lion", "nadamw"]
        raise ConfigError(f"optimizer.name: timm has no optimizer {options.name!r}; near names: {', '.join(near)}")
    if options.name in _UNFIT:
        raise ConfigError(f"optimizer.name: {options.name} {_UNFIT[options.name]}; give another, e.g. nadamw")
    try:
        made = create_optimizer_v2(groups, opt=options.name, lr=options.lr, weight_decay=0.0, **options.options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"optimizer.options: timm's {options.name} with {options.options}: {error}") from error
    assert isinstance(made, torch.optim.Optimizer)
    return made


def is_optimizer(value: object) -> bool:
    """Whether it has what a step and a checkpoint need of a torch optimizer, be it one or not."""
    held = getattr(value, "param_groups", None), getattr(value, "state", None)
    return isinstance(held[0], list) and isinstance(held[1], Mapping) and callable(getattr(value, "step", None))


def check_optimizer(optimizer: object) -> None:
    """Raises: ConfigError: it is none, or its steps need a function that computes the loss again."""
    if not is_optimizer(optimizer):
        raise ConfigError(
            f"state.optimizer is {type(optimizer).__name__}, no optimizer; give one of torch's, or one with "
            "its param_groups, state and step, e.g. hs.TrainState(model, torch.optim.AdamW(model.parameters()))"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")  # type: ignore[attr-defined]
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"state.optimizer: {type(optimizer).__name__} computes the loss several times in a step, by a closure that "
            "train_step does not give; take an optimizer that needs none, e.g. torch.optim.AdamW, or write the loop "
            "yourself"
        )


def decay_kind(options: Optimizer) -> str:
    """How this optimizer applies weight decay, in words."""
    match options:
        case AdamW():
            return "decoupled"
        case TimmOptimizer():
            return f"as timm's {options.name} does it"
        case _:
            return "coupled L2"
