"""Low-rank adapters (Hu et al. 2021) beside a model's layers, by peft; merged into the weights at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from headstart.errors import ConfigError, ModelError
from headstart.isolation import in_own_arithmetic
from headstart.surgery.head_uses import set_part
from headstart.surgery.layout import renew_layout
from headstart.surgery.lora_targets import LoraPlan, find_lora_targets
from headstart.surgery.trace import find_adapted_layers

_ADAPTER = "default"


@in_own_arithmetic
def add_lora(
    module: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Literal["auto"] | Sequence[str] = "auto",
) -> LoraPlan:
    """Put low-rank adapters beside the backbone's layers, in place; the outputs stay as they are, to the bit.

    An adapter gives ``alpha / rank * B(A(dropout(x)))`` (LoRA, Hu et al. 2021, arXiv:2106.09685). B starts as zero, and
    A comes from torch's global generator: seed it. What trains is for ``hs.freeze(module, rule="except:lora")`` to say.
    It needs peft.

    Args:
        ``module``: The model.
        ``rank``: The size between A and B, at least 1.
        ``alpha``: The scale of what adapters give.
        ``dropout``: The share of an adapter's inputs that training sets to zero, 0 to 1.
        ``targets``: Globs over module names; auto takes every linear layer and convolution of the backbone.

    Returns:
        The ``rank``, the paths of the ``layers`` that got adapters, and the ``skipped`` layers with reasons.

    Raises:
        ConfigError: peft is not installed, a glob matches no layer, or the rank is above a layer's size.
        ModelError: The model has adapters already, or its head is not clear.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> made = hs.add_lora(net, rank=2, alpha=4, targets=["layer4"])
        >>> made.layers[0]
        'layer4.0.conv1'
    """
    if find_adapted_layers(module):
        raise ModelError("lora: the model has adapters already; merge_lora(model) makes plain layers of them")
    try:
        import peft  # 3 s, and only for this recipe
    except ImportError as error:
        raise ConfigError("recipe: lora needs peft; install it with: pip install 'headstart[lora]'") from error
    plan = find_lora_targets(module, rank=rank, targets=targets)
    names = _list_names(module, plan.layers)
    modes = {path: module.get_submodule(path).training for path in plan.layers}
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    exact = "|".join(re.escape(path) for path in plan.layers)  # a list would match the ends of other names, too
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=f"(?:{exact})", **options), module, _ADAPTER)
    for path, others in names.items():
        adapted = module.get_submodule(path)
        adapted.train(modes[path])
        for other in others:
            set_part(module, other, adapted)
    assert set(find_adapted_layers(module)) == {name for every in names.values() for name in every}
    renew_layout(module, replaced=plan.layers)
    return plan


@in_own_arithmetic
def merge_lora(module: nn.Module) -> tuple[str, ...]:
    """Add what adapters give to the weights of their layers, in place, and put the plain layers back.

    The outputs stay but for rounding; names of weights are those from before ``hs.add_lora``. It does not need peft.

    Args:
        ``module``: A model with adapters.

    Returns:
        The paths of the layers that had adapters.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> made = hs.add_lora(net, rank=2, alpha=4, targets=["layer4"])
        >>> hs.merge_lora(net) == made.layers
        True
    """
    paths = find_adapted_layers(module)
    plain = {path: module.get_submodule(path) for path in paths}
    for part in dict.fromkeys(plain.values()):
        part.merge()  # type: ignore[operator]  # peft's
    for path, part in plain.items():
        set_part(module, path, part.get_submodule("base_layer"))
    if paths and hasattr(module, "peft_config"):
        del module.peft_config
    renew_layout(module, replaced=paths)
    return paths


def adapter_size(module: nn.Module) -> int:
    """How many of the module's numbers are the adapters'."""
    within = tuple(f"{path}." for path in find_adapted_layers(module))
    base = tuple(f"{path}base_layer." for path in within)
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if name.startswith(within) and not name.startswith(base)
    )


def _list_names(module: nn.Module, paths: Sequence[str]) -> dict[str, list[str]]:
    """All the names of each of these modules, by path."""
    by_module = {id(module.get_submodule(path)): path for path in paths}
    names: dict[str, list[str]] = {path: [] for path in paths}
    for name, part in module.named_modules(remove_duplicate=False):
        if id(part) in by_module:
            names[by_module[id(part)]].append(name)
    return names
