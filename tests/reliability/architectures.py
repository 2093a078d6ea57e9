"""Heads, layout, freezing, boundary and groups of any architecture of timm and torchvision, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from headstart.surgery.freeze import Frozen


HEADS: dict[str, dict[str, Any]] = {
    "linear": {"outputs": 7},
    "mlp": {"outputs": 7, "hidden": (16,), "dropout": 0.2},
    "number": {"outputs": 1},
    "tags": {"outputs": 5},
}
DEPTHS = {"quarter": 0.25, "half": 0.5, "three quarters": 0.75}
LR, HEAD_LR, LAYER_DECAY, WEIGHT_DECAY = 1e-3, 1e-2, 0.75, 0.05
NEVER_DECAYED = ("norm", "token", "embedding", "adapter")


class Refuted(Exception):
    """A check found what must not be."""


def names() -> list[str]:
    """Every classification architecture, as library/NAME."""
    import timm

    from headstart.models.origins import torchvision_names

    return [*(f"timm/{name}" for name in timm.list_models()), *(f"torchvision/{name}" for name in torchvision_names())]


def family(name: str) -> str:
    """The module that defines an architecture."""
    library, _, plain = name.partition("/")
    if library == "timm":
        from timm.models import _registry

        return str(_registry._model_to_module[plain])
    import torchvision

    return str(torchvision.models.get_model_builder(plain).__module__.rpartition(".")[2])


def build(name: str) -> nn.Module:
    """The architecture on ``meta``, with 1000 classes."""
    from timm.models import PretrainedCfg, get_pretrained_cfg

    from headstart.models.factory import Architecture, sketch

    library, _, plain = name.partition("/")
    cfg = asdict(get_pretrained_cfg(plain) or PretrainedCfg()) if library == "timm" else {}
    return sketch(Architecture(library=library, name=plain, cfg=cfg), outputs=1000)  # type: ignore[arg-type]


def examine(name: str) -> dict[str, Any]:
    """All checks of one architecture: ``pass`` or the reason, by check."""
    from headstart.surgery.layout import find_layout

    module = build(name)
    row: dict[str, Any] = {"name": name, "family": family(name)}
    row["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    layout = find_layout(module)
    row |= {"layout": layout.how, "why": layout.reason, "stages": len(layout.stages), "head": list(layout.heads)}
    row["order"] = verdict(lambda: check_order(module))
    row["heads"] = {kind: verdict(lambda kind=kind: check_head(module, kind)) for kind in HEADS}  # type: ignore[misc]
    row["freeze"], row["boundary"] = {}, {}
    for depth, share in DEPTHS.items():
        row["freeze"][depth] = verdict(lambda share=share: check_freeze(module, share))  # type: ignore[misc]
        row["boundary"][depth] = verdict(lambda share=share: check_boundary(module, share))  # type: ignore[misc]
    row["groups"] = verdict(lambda: check_groups(module))
    return row


def verdict(check: Callable[[], None]) -> str:
    """``pass``, or why not."""
    from headstart.errors import Error

    try:
        check()
    except (Refuted, Error, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "pass"


def images(module: nn.Module, *, grad: bool = False) -> Tensor:
    """Two images of the model's own size, where its weights are."""
    import torch

    from headstart.surgery.trace import input_shape

    device = next(module.parameters()).device
    return torch.randn(2, *input_shape(module), device=device, requires_grad=grad)


def check_order(module: nn.Module) -> None:
    """The layout's order is that in which hooks see the layers called."""
    import torch

    from headstart.surgery.layout import find_layout

    orders: dict[str, int] = {}
    for place in find_layout(module).tensors:
        orders.setdefault(place.module, place.order)
    seen: dict[str, None] = {}
    leaves = {path: part for path, part in module.named_modules() if path in orders and not any(part.children())}
    handles = [
        part.register_forward_pre_hook(lambda _part, _inputs, path=path: seen.setdefault(path))  # type: ignore[misc]
        for path, part in leaves.items()
    ]
    try:
        with torch.no_grad():
            module.eval()(images(module))
    finally:
        for handle in handles:
            handle.remove()
    called = [orders[path] for path in seen]
    if called != sorted(called) or not called:
        late = next(path for path, before, after in zip(seen, called, sorted(called), strict=True) if before != after)
        raise Refuted(f"{late} is called at another place than the layout says")


def check_head(module: nn.Module, kind: str) -> None:
    """A new head gives the right shape, gets a gradient, and leaves every other tensor the object that it was."""
    import torch

    from headstart.surgery.freeze import freeze
    from headstart.surgery.head import find_head, head_parameters, model_scores, replace_head
    from headstart.surgery.layout import iterate_tensors

    options = HEADS[kind]
    paths = tuple(path + "." for path in find_head(module).paths)
    others = {path: tensor for path, tensor, _ in iterate_tensors(module) if not path.startswith(paths)}
    swap = replace_head(module, **options)
    now = {path: tensor for path, tensor, _ in iterate_tensors(module) if not path.startswith(paths)}
    if now.keys() != others.keys() or any(now[path] is not others[path] for path in now):
        raise Refuted("a tensor outside the head was replaced")
    if (swap.path, *swap.others) != tuple(path.removesuffix(".") for path in paths) or swap.now != options["outputs"]:
        raise Refuted(f"HeadSwap says {swap}")
    freeze(module, rule="backbone")
    for mode in (False, True) if kind == "linear" else (True,):  # replace_head itself looks at evaluation's shape
        outputs = model_scores(module, module.train(mode)(images(module)))
        if any(tuple(scores.shape) != (2, options["outputs"]) for _, scores in outputs):
            raise Refuted(f"two images give {[tuple(scores.shape) for _, scores in outputs]}, training {mode}")
    torch.stack([scores.sum() for _, scores in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    parameters = dict(module.named_parameters())
    main = [path for path in head_parameters(module) if path.startswith(swap.path + ".")]
    without = [path for path in main if parameters[path].grad is None]
    if without or not main:
        raise Refuted(f"no gradient reaches {', '.join(without) or 'the head'}")
    module.zero_grad()


def at_depth(module: nn.Module, share: float) -> Frozen:
    """Freeze that share of the stages."""
    from headstart.surgery.freeze import freeze
    from headstart.surgery.layout import find_layout

    return freeze(module, stages=max(1, round(share * len(find_layout(module).stages))))


def check_freeze(module: nn.Module, share: float) -> None:
    """What executes first is frozen, all of it and nothing else, and stays in eval through ``train()``."""
    from headstart.surgery.layout import find_layout, iterate_tensors

    frozen, layout = at_depth(module, share), find_layout(module)
    until = max(1, round(share * len(layout.stages)))
    if set(frozen.tensors) != {place.name for place in layout.tensors if place.stage < until}:
        raise Refuted("other tensors are frozen than those of the first stages")
    trainable = {path for path, parameter in module.named_parameters() if parameter.requires_grad}
    if trainable & set(frozen.tensors) or not trainable:
        raise Refuted(f"trainable and frozen: {sorted(trainable & set(frozen.tensors))[:3]}")
    module.train()
    still = {id(tensor) for path, tensor, _ in iterate_tensors(module) if path in frozen.tensors}
    for path, part in module.named_modules():
        inside = {id(tensor) for _, tensor, _ in iterate_tensors(part)}
        if inside and inside <= still and part.training:
            raise Refuted(f"{path} is all frozen, and in training mode")
    if any(module.get_submodule(path).training for path in frozen.modules):
        raise Refuted("a module that is said to be in eval is in training")


def check_boundary(module: nn.Module, share: float) -> None:
    """The graph is cut behind all that is frozen, and both halves together give the model's shapes."""
    import torch

    from headstart.surgery.boundary import find_boundary
    from headstart.surgery.head import model_scores
    from headstart.surgery.layout import find_layout, iterate_tensors

    frozen = at_depth(module, share)
    boundary = find_boundary(module, frozen)
    inside = {id(tensor) for _, tensor, _ in iterate_tensors(boundary.prefix)}
    executed = set(find_layout(module).modules)
    left = [
        path
        for path, parameter in module.named_parameters()
        if path in frozen.tensors and path.rpartition(".")[0] in executed and id(parameter) not in inside
    ]
    if left:
        raise Refuted(f"frozen, but behind the cut: {len(left)} of {len(frozen.tensors)} tensors, e.g. {left[0]}")
    with torch.no_grad():
        activations = boundary.prefix.eval()(images(module))
        halves = (boundary.eval_suffix.eval(), boundary.train_suffix)
        for suffix in halves if share == DEPTHS["half"] else halves[:1]:
            outputs = model_scores(module, suffix(*activations))
            if any(tuple(scores.shape) != (2, HEADS["tags"]["outputs"]) for _, scores in outputs):
                raise Refuted(f"the halves give {[tuple(scores.shape) for _, scores in outputs]}")


def check_groups(module: nn.Module) -> None:
    """Each trainable tensor is in one group; rates do not fall from input to output; norms and biases do not decay."""
    from headstart.optim.groups import param_groups
    from headstart.surgery.freeze import freeze
    from headstart.surgery.head import head_parameters
    from headstart.surgery.layout import find_layout

    freeze(module, rule="none")
    groups = param_groups(module, lr=LR, head_lr=HEAD_LR, layer_decay=LAYER_DECAY, weight_decay=WEIGHT_DECAY)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    if len(grouped) != len(set(grouped)) or set(grouped) != {id(parameter) for parameter in module.parameters()}:
        raise Refuted("a parameter is in no group, or in two")
    facts = {path: (group["lr"], group["weight_decay"]) for group in groups for path in group["names"]}
    places = [place for place in find_layout(module).tensors if place.name in facts]
    heads = set(head_parameters(module))
    body = [facts[place.name][0] for place in places if place.name not in heads]
    if body != sorted(body) or any(facts[path][0] != HEAD_LR for path in heads) or max(body, default=0.0) > LR:
        raise Refuted("a rate falls from input to output")
    if len(set(body)) != len(find_layout(module).stages):
        raise Refuted(f"{len(set(body))} rates for {len(find_layout(module).stages)} stages")
    parameters = dict(module.named_parameters())
    listed = getattr(module, "no_weight_decay", None)
    unwanted = set(listed()) if callable(listed) else set()  # what the model's author leaves out
    for place in places:
        plain = parameters[place.name].ndim > 1 and place.kind in ("conv", "linear")
        exempt = parameters[place.name].ndim <= 1 or place.kind in NEVER_DECAYED or place.name in unwanted
        decay = facts[place.name][1]
        if (exempt and decay) or (plain and not exempt and not decay):
            raise Refuted(f"{place.name} ({place.kind}) has decay {decay}")


def verdicts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(check, verdict) of every check of an architecture."""
    yield "order", row["order"]
    for group in ("heads", "freeze", "boundary"):
        for name, result in row[group].items():
            yield f"{group} {name}", result
    yield "groups", row["groups"]
