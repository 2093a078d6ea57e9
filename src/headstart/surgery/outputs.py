"""Which of a module's outputs are scores: one tensor, known heads, or what the user says. Nothing is guessed.

B batch, K outputs of the head
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from headstart.errors import DataError, ModelError
from headstart.wording import option

_DECLARED = "headstart_scores"  # on a module: a name, a number or "all"
_AUXILIARY_WEIGHT = 0.3  # of auxiliary heads, in training only (Szegedy et al. 2015, section 5)


def declare_scores(model: nn.Module, scores: str | int) -> None:
    """Say which of the outputs that a model returns are its scores.

    Training, evaluation and prediction take that output and leave the others alone. The module and its copies remember
    it.

    Args:
        ``model``: The model, which returns several outputs.
        ``scores``: A key of the dictionary, a field of the named tuple, or a number that counts from 0; all: each of
            them, as equal heads; auto: forget what was declared.

    Example:
        >>> import headstart as hs, torch
        >>> class TwoOutputs(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(3, 2)
        ...     def forward(self, images):
        ...         features = images.mean((2, 3))
        ...         return {"features": features, "logits": self.fc(features)}
        >>> net = TwoOutputs()
        >>> hs.declare_scores(net, "logits")
        >>> hs.find_head(net, example=torch.zeros(2, 3, 8, 8)).paths
        ('fc',)
    """
    vars(model).pop(_DECLARED, None)
    if scores != "auto":
        vars(model)[_DECLARED] = scores


def read_declared_scores(model: nn.Module) -> str | int:
    """The output that was declared, or ``auto``."""
    declared: str | int = vars(model).get(_DECLARED, "auto")
    return declared


def name_outputs(outputs: object) -> dict[str, Any]:
    """The outputs that a module returned, by name or number; empty for what is neither a sequence nor a mapping nor a
    value.
    """
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return dict(zip(outputs._fields, outputs, strict=True))
    if isinstance(outputs, (tuple, list)):
        return {str(place): value for place, value in enumerate(outputs)}
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return {}


def pick_output(outputs: object, scores: str | int) -> Any:
    """The output that was declared.  Raises: ModelError: there is none of that name or number."""
    named = name_outputs(outputs)
    if not named:
        return outputs
    name = str(scores)
    if name not in named and name.isdigit() and int(name) < len(named):
        return list(named.values())[int(name)]
    if name not in named:
        raise ModelError(
            f"head.scores: the model gives {_list_outputs(named)}, and none is {name!r}; name one of them, e.g. "
            f"{option('head.scores', next(iter(named)))}"
        )
    return named[name]


def scores_of(outputs: object, *, scores: str | int = "auto", equal_heads: int = 1) -> list[tuple[float, Tensor]]:
    """The share of the loss and the scores (B, K) of each output that is a head's, the main one first.

    ``scores``: what was declared; ``equal_heads``: how many the module is known to have, which it returns as a plain
    tuple in training.

    Raises: DataError, ModelError: no tensor, or several and it is not known which are scores.
    """
    if isinstance(outputs, Tensor):
        return [(1.0, outputs)]
    if scores not in ("auto", "all"):
        return [(1.0, _tensor(pick_output(outputs, scores), scores))]
    named = {name: value for name, value in name_outputs(outputs).items() if isinstance(value, Tensor)}
    tensors = list(named.values())
    shapes = {tuple(value.shape) for value in tensors}
    if scores == "all" and tensors and len(shapes) == 1:
        return [(1 / len(tensors), value) for value in tensors]
    if scores == "auto" and (scored := _find_known(outputs, named, equal_heads=equal_heads)):
        return scored
    if not isinstance(outputs, tuple) or not tensors:
        hint = f", or say which of its outputs is with {_how(named)}" if named else ""
        raise DataError(
            f"the model returns {type(outputs).__name__}, not a tensor of scores; wrap it so that forward returns "
            f"(B, K){hint}"
        )
    raise DataError(
        f"the model returns {_list_outputs(named)}; which one is the scores? Say it with {_how(named)}; the others get "
        "no loss"
    )


def is_auxiliary(outputs: object) -> bool:
    """Whether outputs are a named tuple of main and auxiliary scores, as torchvision's models return in training."""
    fields = tuple(getattr(outputs, "_fields", ()))
    return len(fields) > 1 and fields[0] == "logits" and all(name.startswith("aux_logits") for name in fields[1:])


def _find_known(outputs: object, named: Mapping[str, Tensor], *, equal_heads: int) -> list[tuple[float, Tensor]]:
    """The scores that need no declaration: torchvision's, those of transformers, known equal heads."""
    tensors = list(named.values())
    if any(kind.__module__.startswith("transformers.") for kind in type(outputs).__mro__) and "logits" in named:
        return [(1.0, named["logits"])]
    if not isinstance(outputs, tuple) or len({tuple(value.shape) for value in tensors}) != 1:
        return []
    if is_auxiliary(outputs) and "logits" in named:
        return [(1.0, tensors[0]), *((_AUXILIARY_WEIGHT, value) for value in tensors[1:])]
    if len(tensors) == 1 or (len(tensors) == equal_heads and not hasattr(outputs, "_fields")):
        return [(1 / len(tensors), value) for value in tensors]
    return []


def _tensor(value: object, scores: str | int) -> Tensor:
    if not isinstance(value, Tensor):
        raise ModelError(
            f"head.scores {scores}: that output is a {type(value).__name__}; name one that is a tensor (B, K)"
        )
    return value


def _list_outputs(outputs: Mapping[str, Any]) -> str:
    shown = [
        f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} ({type(value).__name__})"
        for name, value in outputs.items()
    ]
    return f"{len(outputs)} outputs: {', '.join(shown)}"


def _how(outputs: Mapping[str, Any]) -> str:
    first = next(iter(outputs))
    value = first if first.isdigit() else f'"{first}"'
    return f"{option('head.scores', first)}, or hs.declare_scores(model, {value}) in your own loop"
