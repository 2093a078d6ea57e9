"""Where the state dict lies in what a training script saved: under which key, and whether it is an average."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from headstart.errors import ModelError, name_some
from headstart.models.foreign import ACCEPTED
from headstart.wording import option

CHOICES = ("auto", "averaged", "raw")
_RAW = (  # what scripts call the trained weights, those of timm, torchvision, Lightning and tutorials first
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "net_state_dict",
    "network",
    "weights",
    "params",
    "module",
)
_AVERAGED = {"ema", "averaged", "avg", "swa"}
_NOT_A_MODEL = {
    *("optimizer", "optimizers", "optim", "opt", "scheduler", "schedulers", "sched", "scaler", "criterion", "loss"),
    *("callbacks", "loops", "rng", "metrics", "args", "config", "hyper", "discriminator"),
}
_DEPTH = 3  # {"ema": {"module": {NAME: TENSOR}}}


@dataclass(frozen=True)
class Part:
    """A state dict of a file; ``wanted``: what is still to be chosen among its names (see ``fit_names``)."""

    tensors: Mapping[str, Tensor]
    wanted: str
    notes: tuple[str, ...] = ()


def select_part(loaded: object, *, wanted: str, where: str) -> Part:
    """The state dict that is meant: ``wanted`` is auto (an average before the raw weights, as timm has it), averaged,
    raw, or a key of the file or a prefix of its names.

    Raises: ModelError: there is none, or several and it is not known which.
    """
    parts = dict(_state_dicts(loaded))
    if not parts:
        raise ModelError(f"weights {where}: {_explain(loaded)}")
    if wanted in parts:
        return Part(parts[wanted], "auto", (f"taken from the file's {wanted!r}",))
    if "" in parts:
        return Part(parts[""], wanted)
    averaged = [key for key in parts if is_averaged(key)]
    raw = [key for key in parts if key not in averaged]
    if wanted == "raw" and not raw:
        raise ModelError(
            f"weights {where}: it holds averaged weights alone ({', '.join(averaged)}); give "
            f"{option('model.weights_part', 'auto')}"
        )
    chosen = averaged if averaged and wanted != "raw" else _most_usual(raw)
    if len(chosen) > 1:
        raise ModelError(
            f"weights {where}: it holds {len(chosen)} state dicts, {name_some(chosen)}; name one of them, e.g. "
            f"{option('model.weights_part', chosen[0])}"
        )
    key = chosen[0]
    note = f"taken from the file's {key!r}"
    if key in averaged:
        note += ", the averaged weights"
        note += f" (the raw ones: {option('model.weights_part', _most_usual(raw)[0])})" if raw else ""
    elif averaged:
        note += f", the raw weights (the averaged ones: {option('model.weights_part', averaged[0])})"
    return Part(parts[key], "auto" if wanted == "averaged" and averaged else wanted, (note,))


def is_averaged(name: str) -> bool:
    """Whether a key or prefix says that weights are an average, as ``state_dict_ema`` does."""
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _state_dicts(value: object, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every mapping of names to tensors within, by its dotted key."""
    if not isinstance(value, Mapping) or not value or depth > _DEPTH:
        return
    if all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()):
        yield key, value
        return
    for name, item in value.items():
        words = re.split(r"[^a-z]+", str(name).lower())
        if isinstance(name, str) and _NOT_A_MODEL.isdisjoint(words):
            yield from _state_dicts(item, f"{key}.{name}".removeprefix("."), depth + 1)


def _most_usual(keys: Collection[str]) -> list[str]:
    """The key that scripts use for the model, where there is one of them; else all."""
    for known in _RAW:
        found = [key for key in keys if key == known] or [key for key in keys if key.startswith(f"{known}.")]
        if found:
            return found
    return list(keys)


def _explain(loaded: object) -> str:
    """What a file holds instead of names and tensors, and what to do."""
    if not isinstance(loaded, Mapping) or not loaded:
        return f"holds a {type(loaded).__name__}, not names and tensors; {ACCEPTED}"
    if "param_groups" in loaded:
        return "it is an optimizer's state; the model's weights are in another file, mostly beside it"
    strange = [str(name) for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    return (
        f"{len(strange)} entries are not tensors: {name_some(strange)}; save the model's state dict alone, e.g. "
        "torch.save(model.state_dict(), 'weights.pth')"
    )
