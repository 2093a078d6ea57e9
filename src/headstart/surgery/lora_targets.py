"""Which layers can have low-rank adapters: those that are executed as modules, whose weight nothing else uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call

from headstart.errors import ConfigError
from headstart.surgery.freeze import near_names
from headstart.surgery.head import find_head
from headstart.surgery.trace import MODEL_FAILURES
from headstart.surgery.uses import find_uses
from headstart.wording import option

_Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, kw_only=True)
class SkippedLayer:
    """The linear layer or convolution at ``path`` that has no adapter, for this ``reason``."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LoraPlan:
    """The layers that have low-rank adapters beside them, as ``hs.add_lora`` returns them.

    Attributes:
        ``rank``: The rank of every adapter.
        ``layers``: The paths of these layers, in the order of the model's modules.
        ``skipped``: The layers without an adapter, each with its ``path`` and why.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> hs.add_lora(net, rank=2, alpha=4, targets=["layer4"]).rank
        2
    """

    rank: int
    layers: tuple[str, ...]
    skipped: tuple[SkippedLayer, ...]


def find_lora_targets(module: nn.Module, *, rank: int, targets: Literal["auto"] | Sequence[str]) -> LoraPlan:
    """The backbone's linear layers and convolutions that low-rank adapters fit beside; changes nothing.

    ``targets``: globs over module names (of layers, or of what holds them); auto: every layer.

    Raises: ConfigError: a glob matches no layer, the rank is above a layer's size, or no layer can have adapters.
    ModelError: the head is not clear.
    """
    layers = _backbone_layers(module)
    asked = layers if targets == "auto" else _match_globs(module, layers, targets)
    if not asked:
        raise ConfigError(
            f"lora: the model's backbone has no linear layer and no convolution; use {option('recipe', 'full')}"
        )
    reasons = _find_unfit(module, asked)
    fit = [path for path in asked if path not in reasons]
    if not fit:
        shown = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:3])
        raise ConfigError(f"lora: no layer can have adapters ({shown}); use {option('recipe', 'bias')}, norm or full")
    sizes = {path: _size(asked[path]) for path in fit}
    small = [path for path in fit if sizes[path] < rank]
    if len(small) == len(fit) or (small and targets != "auto"):
        raise ConfigError(_too_large(rank, small, sizes))
    reasons |= dict.fromkeys(small, "smaller than the rank")
    skipped = tuple(SkippedLayer(path=path, reason=reasons[path]) for path in asked if path in reasons)
    return LoraPlan(rank=rank, layers=tuple(path for path in fit if path not in small), skipped=skipped)


def _too_large(rank: int, small: Sequence[str], sizes: dict[str, int]) -> str:
    if len(small) == len(sizes):
        path = max(sizes, key=lambda path: sizes[path])
        return f"lora.rank: {rank} is above every layer's size; give at most {sizes[path]} (that of {path}), " + (
            f"e.g. {option('lora.rank', min(16, sizes[path]))}"
        )
    path = min(small, key=lambda path: sizes[path])
    more = f" and {len(small) - 1} more" if len(small) > 1 else ""
    return f"lora.rank: {rank} is above the size of {path} ({sizes[path]}){more}; give at most {sizes[path]}, " + (
        "or leave such layers out of lora.targets"
    )


def _backbone_layers(module: nn.Module) -> dict[str, _Layer]:
    """The linear layers and convolutions outside the head, each under the first of its names."""
    heads = find_head(module).paths
    within = tuple(f"{path}." for path in heads)
    layers = {path: part for path, part in module.named_modules() if isinstance(part, _Layer)}
    return {path: part for path, part in layers.items() if path not in heads and not path.startswith(within)}


def _match_globs(module: nn.Module, layers: dict[str, _Layer], globs: Sequence[str]) -> dict[str, _Layer]:
    names: dict[int, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(path)
    chosen = set[str]()
    for glob in globs:
        parts = [path for path in chain.from_iterable(names.values()) if path and fnmatchcase(path, glob)]
        within = tuple(f"{path}." for path in parts)
        matched = {
            path
            for path, part in layers.items()
            if any(name in parts or name.startswith(within) for name in names[id(part)])
        }
        if not matched:
            raise ConfigError(f"lora.targets: {glob!r} {_why_none(module, parts, list(layers), glob)}")
        chosen |= matched
    return {path: part for path, part in layers.items() if path in chosen}


def _why_none(module: nn.Module, parts: Sequence[str], layers: Sequence[str], glob: str) -> str:
    heads = find_head(module).paths
    if any(path in heads or path.startswith(tuple(f"{head}." for head in heads)) for path in parts):
        return f"matches the head alone, which trains whole; name layers before it, e.g. {layers[-1]}"
    if parts:
        kind = type(module.get_submodule(parts[0])).__name__
        return f"matches no linear layer or convolution ({parts[0]} is a {kind}); {near_names(glob, layers)}"
    return f"matches no module; {near_names(glob, layers)}"


def _find_unfit(module: nn.Module, layers: dict[str, _Layer]) -> dict[str, str]:
    """The layers that cannot have adapters, and why."""
    reasons = {path: reason for path, part in layers.items() if (reason := _wrong_kind(part))}
    owners: dict[int, list[str]] = {}
    for path, part in module.named_modules():
        for _, parameter in part.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    for path, part in layers.items():
        others = [other for other in owners.get(id(part.weight), ()) if other != path]
        if others:
            reasons.setdefault(path, f"{others[0]} has the same weight")
    rest = {path: part for path, part in layers.items() if path not in reasons}
    uses = find_uses(module, rest, tensors=lambda part: [part._parameters["weight"]])  # type: ignore[list-item]
    for path in rest:
        if path in uses.elsewhere:
            reasons[path] = "its weight is used without calling the layer"
        elif not uses.calls.get(path):
            reasons[path] = "it is not executed as a module"
    return reasons


def _size(part: _Layer) -> int:
    """The largest rank that an adapter makes sense with: the smaller side of the weight as a matrix."""
    return min(part.weight.shape[0], part.weight[0].numel())


def _wrong_kind(part: _Layer) -> str:
    """Why merging would not give what an adapter gives; "" where it does."""
    if "weight" not in part._parameters:
        return "its weight is computed from others"
    if isinstance(part, nn.Conv2d):
        if part.groups != 1:
            return "a grouped convolution"
        if tuple(part.dilation) != (1, 1):
            return "a dilated convolution"
        if part.padding_mode != "zeros":
            return f"a convolution with {part.padding_mode} padding"
    if type(part) in (nn.Linear, nn.Conv2d) or _adapter_equals_merge(part):
        return ""
    return f"{type(part).__name__} computes with its weight in its own way"


def _adapter_equals_merge(part: _Layer) -> bool:
    """Whether a layer of the user's own kind does with ``weight + B A`` what it does beside an adapter of A and B."""
    weight = part.weight.detach()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            down, up = _adapter_pair(part)
            down.to(weight), up.to(weight)
            delta = torch.einsum("or,ri...->oi...", up.weight.flatten(1), down.weight)
            shape = (2, part.in_features) if isinstance(part, nn.Linear) else (2, part.in_channels, 32, 32)
            inputs = torch.randn(shape).to(weight)
            merged = functional_call(part, {"weight": weight + delta}, (inputs,))
            beside = part(inputs) + up(down(inputs))
        except MODEL_FAILURES:  # its constructor is not that of its base class, or it cannot have rank 2
            return False
    return bool(merged.shape == beside.shape and torch.allclose(merged, beside, rtol=1e-3, atol=1e-4))


def _adapter_pair(part: _Layer) -> tuple[Any, Any]:
    """The two layers of an adapter of rank 2 as peft makes them: of a convolution's own type."""
    if isinstance(part, nn.Linear):
        return nn.Linear(part.in_features, 2, bias=False), nn.Linear(2, part.out_features, bias=False)
    kind: Any = type(part)
    down = kind(part.in_channels, 2, part.kernel_size, part.stride, part.padding, bias=False)
    return down, kind(2, part.out_channels, (1, 1), (1, 1), bias=False)
