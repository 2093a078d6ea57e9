"""Freezing: weights that do not train, buffers that do not move, modules that stay in evaluation mode."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from headstart.config.rules import freeze_rule, freeze_text
from headstart.config.schema import But, FreezeRule, Names, NormStatistics, Stages, Until
from headstart.errors import ConfigError, ModelError
from headstart.private_names import NORMS_WITH_STATISTICS
from headstart.surgery.head import find_head
from headstart.surgery.layout import Layout, TensorPlace, find_layout, iterate_tensors
from headstart.wording import option

_OWN = "own"  # under this name a pin keeps the ``train`` that the user gave the instance


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a freeze rule holds still in a module.

    Attributes:
        ``rule``: The rule as text, e.g. ``until:layer3``.
        ``tensors``: The names of the frozen parameters and buffers.
        ``modules``: The paths of the modules that are kept in evaluation mode.
        ``parameters``: How many parameters are frozen, counted by value.
        ``of``: How many there are.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> frozen = hs.freeze(net, until="layer1")
        >>> frozen.rule, frozen.tensors[0], frozen.parameters < frozen.of
        ('until:layer1', 'conv1.weight', True)
    """

    rule: str
    tensors: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What a user froze in a module before it was given: ``tensors`` that do not train, or move, whatever a rule says,
    and ``modules`` that ``freeze`` keeps in evaluation mode.
    """

    tensors: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()

    def without(self, names: Iterable[str]) -> Fixed:
        """The same but for these tensors."""
        return replace(self, tensors=self.tensors.difference(names))


NOTHING_FIXED = Fixed()


def find_frozen(module: nn.Module) -> Fixed:
    """Parameters that do not train now, and what ``freeze`` keeps in evaluation mode, with its buffers."""
    eval_modules = {path: part for path, part in module.named_modules(remove_duplicate=False) if _pin(part) is not None}
    still = {f"{path}.{name}" for path, part in eval_modules.items() for name, _ in part.named_buffers()}
    parameters = module.named_parameters(remove_duplicate=False)
    still |= {name for name, value in parameters if value.is_floating_point() and not value.requires_grad}
    return Fixed(tensors=frozenset(still), modules=frozenset(eval_modules))


def freeze(
    module: nn.Module,
    *,
    rule: str | None = None,
    until: str | None = None,
    stages: int | None = None,
    names: Sequence[str] = (),
    norm_statistics: NormStatistics = "batch",
) -> Frozen:
    """Freeze a part of a model, in place, by exactly one of ``rule``, ``until``, ``stages`` and ``names``.

    A frozen parameter neither trains nor moves; a frozen module stays in evaluation mode when the model trains.

    Args:
        ``module``: The model.
        ``rule``: A rule as text, such as backbone, norm, except:bias (all but biases) or until:layer3.
        ``until``: The path of a module or stage: everything before it is frozen.
        ``stages``: How many stages are frozen, counted from the input.
        ``names``: Globs over parameter names, such as ``layer1.*``.
        ``norm_statistics``: batch: BatchNorm layers that train normalise with their batch; frozen: they keep their
            running statistics, too.

    Returns:
        What was frozen: the ``rule``, names of ``tensors`` and ``modules``, and how many ``parameters`` ``of`` all.

    Raises:
        ModelError: None or several rules are given, or one that matches nothing or leaves nothing to train.

    Example:
        >>> import headstart as hs
        >>> net = hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}).module
        >>> frozen = hs.freeze(net, rule="backbone")
        >>> [name for name, value in net.named_parameters() if value.requires_grad]
        ['fc.weight', 'fc.bias']
    """
    given: list[FreezeRule] = []
    if rule is not None:
        given.append(_plain(rule))
    if until is not None:
        given.append(Until(until=until))
    if stages is not None:
        given.append(Stages(stages=stages))
    if names:
        given.append(Names(names=tuple(names)))
    if len(given) != 1:
        raise ModelError(
            "freeze: give exactly one of rule, until, stages and names, e.g. freeze(model, until='layer3')"
        )
    return freeze_by(module, given[0], norm_statistics=norm_statistics)


def freeze_by(
    module: nn.Module, rule: FreezeRule, *, norm_statistics: NormStatistics = "batch", fixed: Fixed = NOTHING_FIXED
) -> Frozen:
    """Make exactly what the rule names, and what is ``fixed``, frozen and everything else trainable.

    Frozen modules are put in evaluation mode and stay there through ``train()``, in copies of the model too; with
    ``norm_statistics`` frozen, and by the rules ``except:KIND``, so do BatchNorm layers whose weights train.
    """
    frozen = what_freezes(module, rule, norm_statistics=norm_statistics, fixed=fixed)
    names = set(frozen.tensors)
    unfreeze(module)
    for name, parameter in module.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    for name in frozen.modules:
        part = module.get_submodule(name)
        pin = functools.partial(stay_in_eval, part)
        vars(pin).update({_OWN: vars(part)["train"]} if "train" in vars(part) else {})
        part.train = pin  # type: ignore[method-assign]
        part.training = False
    return frozen


def stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    """What ``train`` is on a frozen module: evaluation mode, whatever is asked."""
    type(module).train(module, False)  # the class's own: some of timm's clear a cache there
    return module


def what_freezes(
    module: nn.Module, rule: FreezeRule, *, norm_statistics: NormStatistics = "batch", fixed: Fixed = NOTHING_FIXED
) -> Frozen:
    """What ``freeze_by`` would freeze; changes nothing.  Raises: ModelError as it does."""
    layout = find_layout(module)
    ruled = _with_other_names(module, _choose_by_rule(module, layout, rule))
    given = {place.name for place in layout.tensors if _plain_name(place.name) in fixed.tensors}
    chosen = _with_other_names(module, ruled | given)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    frozen = sum(sizes.get(name, 0) for name in chosen)
    total = sum(sizes.values())
    if frozen == total:
        raise ModelError(
            f"freeze {freeze_text(rule)}: freezes all {total:,} parameters, the head too: nothing is left to train"
        )
    _check_head_trains(layout, rule, chosen)
    norms = _with_statistics(module) if norm_statistics == "frozen" or isinstance(rule, But) else {}
    eval_modules = {*_eval_modules(module, layout, ruled, _boundary(layout, rule, ruled)), *norms, *fixed.modules}
    still = chosen.union(*norms.values())
    return Frozen(
        rule=freeze_text(rule),
        tensors=tuple(place.name for place in layout.tensors if place.name in still),
        modules=tuple(path for path, _ in module.named_modules() if path in eval_modules),
        parameters=frozen,
        of=total,
    )


def _with_other_names(module: nn.Module, names: set[str]) -> set[str]:
    """These tensors under each of their names: what stays under one stays under all."""
    chosen = {id(tensor) for name, tensor, _ in iterate_tensors(module) if name in names}
    return {name for name, tensor, _ in iterate_tensors(module) if id(tensor) in chosen}


def _check_head_trains(layout: Layout, rule: FreezeRule, chosen: set[str]) -> None:
    """A new head with nothing in it that trains, or one of its layers as a depth, is not meant."""
    head = [place.name for place in layout.tensors if place.kind == "head" and not place.is_buffer]
    if head and chosen.issuperset(head):
        raise ModelError(
            f"freeze {freeze_text(rule)}: freezes the head, {' and '.join(layout.heads)}, which is new and has to "
            f"train; freeze layers before it, e.g. {option('freeze', 'backbone')}"
        )


def _with_statistics(module: nn.Module) -> dict[str, list[str]]:
    """Modules that keep running statistics, with the names of these."""
    statistics = {}
    for path, part in module.named_modules():
        if isinstance(part, NORMS_WITH_STATISTICS) and part.track_running_stats:
            statistics[path] = [f"{path}.{name}" for name, _ in part.named_buffers()]
    return statistics


def _plain(rule: str) -> FreezeRule:
    try:
        return freeze_rule(rule)
    except ConfigError as error:
        raise ModelError(f"freeze: {error}") from error


def _choose_by_rule(module: nn.Module, layout: Layout, rule: FreezeRule) -> set[str]:
    match rule:
        case "none":
            return set()
        case "backbone":
            find_head(module)  # says which layers could be the head when it is not clear
            return {place.name for place in layout.tensors if place.kind != "head"}
        case "conv" | "norm":
            return _choose_kind(layout, rule)
        case Until(until=name):
            return _choose_until(module, layout, name)
        case Stages(stages=count):
            return _choose_stages(layout, count)
        case Names(names=globs):
            return _match_globs(module, layout, globs)
        case But(but=kind):
            return _choose_all_but(module, layout, kind)


def _choose_kind(layout: Layout, kind: str) -> set[str]:
    chosen = {place.name for place in layout.tensors if place.kind == kind}
    if not chosen:
        kinds = ", ".join(sorted({place.kind for place in layout.tensors}))
        raise ModelError(f"freeze {kind}: the model has no {kind} layers; its tensors are: {kinds}")
    return chosen


def _choose_all_but(module: nn.Module, layout: Layout, kind: str) -> set[str]:
    """The names of all tensors but the head's and, in the backbone, biases, norms' weights and biases, or adapters."""
    find_head(module)
    trained = {place.name for place in layout.tensors if not place.is_buffer and _trains(place, kind)}
    if not trained and kind == "lora":
        raise ModelError(
            f"freeze except:lora: the model has no adapters; add them with add_lora, or {option('recipe', 'lora')}"
        )
    if not trained:
        word = {"bias": "biases", "norm": "norm layers with weights"}[kind]
        raise ModelError(
            f"freeze except:{kind}: the model's backbone has no {word}; use {option('recipe', 'probe')} or "
            f"{option('recipe', 'lora')}"
        )
    return {place.name for place in layout.tensors if place.kind != "head" and place.name not in trained}


def _trains(place: TensorPlace, kind: str) -> bool:
    match kind:
        case "bias":
            return place.kind != "head" and place.name.endswith("bias")
        case "norm":
            return place.kind == "norm"
        case _:
            return place.kind == "adapter"


def _choose_stages(layout: Layout, count: int) -> set[str]:
    known = len(layout.stages)
    if not 1 <= count <= known:
        names = ", ".join(stage.name for stage in layout.stages)
        raise ModelError(f"freeze stages:{count}: the model has {known} stages ({names}); give 1 to {known}")
    return {place.name for place in layout.tensors if place.stage < count}


def _choose_until(module: nn.Module, layout: Layout, name: str) -> set[str]:
    if any(f"{name}.".startswith(f"{head}.") for head in layout.heads):
        last_stage = f"until:{layout.stages[-1].name}" if layout.stages else "backbone"
        raise ModelError(
            f"freeze until:{name}: it is of the head, which has to train; nothing is left to train behind it; give a "
            f"layer before it, e.g. {last_stage}"
        )
    for stage in layout.stages:
        if stage.name == name:
            return _choose_stages(layout, stage.index + 1)
    inside = [place for place in layout.tensors if place.name == name or place.name.startswith(name + ".")]
    if inside:
        last = max(place.order for place in inside)
    elif name in layout.last_calls:
        last = layout.last_calls[name]
    elif name in dict(module.named_modules(remove_duplicate=False)):
        raise ModelError(
            f"freeze until:{name}: it holds no weights, so nothing says where it executes; name a module with "
            f"weights, e.g. {option('freeze', f'until:{layout.tensors[0].module}')}"
        )
    else:
        known = [*(stage.name for stage in layout.stages), *(path for path, _ in module.named_modules() if path)]
        raise ModelError(f"freeze until:{name}: the model has no such module; {near_names(name, known)}")
    return {place.name for place in layout.tensors if place.order <= last}


def _match_globs(module: nn.Module, layout: Layout, globs: Sequence[str]) -> set[str]:
    parts = [path for path, _ in module.named_modules(remove_duplicate=False) if path]
    chosen: set[str] = set()
    for glob in globs:
        matched = tuple(path + "." for path in parts if fnmatchcase(path, glob))
        found = {p.name for p in layout.tensors if fnmatchcase(p.name, glob) or p.name.startswith(matched)}
        if not found:
            known = [*parts, *(place.name for place in layout.tensors)]
            raise ModelError(f"freeze names:{glob}: matches no parameter and no module; {near_names(glob, known)}")
        chosen |= found
    return chosen


def near_names(name: str, known: Sequence[str]) -> str:
    """A hint to follow a name that the model does not have."""
    unique = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, unique, n=4, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(near)}?"
    return f"names look like {', '.join(unique[:6])}; `headstart describe` shows them all"


def _boundary(layout: Layout, rule: FreezeRule, chosen: set[str]) -> int:
    """The position in the execution up to which nothing is random any more; 0 for rules that are not about a prefix."""
    if rule == "backbone" or isinstance(rule, (Until, Stages)):
        return max((place.order for place in layout.tensors if place.name in chosen), default=0)
    return 0


def _eval_modules(module: nn.Module, layout: Layout, chosen: set[str], boundary: int) -> tuple[str, ...]:
    """Modules whose tensors are all frozen, with everything inside them, and parameterless ones up to ``boundary``."""
    trainable = _holders(place for place in layout.tensors if place.name not in chosen)
    frozen = _holders(place for place in layout.tensors if place.name in chosen) - trainable
    return tuple(
        path
        for path, _ in module.named_modules()
        if path not in trainable
        and (any(around in frozen for around in _upwards(path)) or layout.last_calls.get(path, boundary) < boundary)
    )


def _holders(places: Iterable[TensorPlace]) -> set[str]:
    return {path for place in places for path in _upwards(place.module)}


def _upwards(path: str) -> Iterator[str]:
    """A module's path and those of the modules around it, without the whole."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def unfreeze(module: nn.Module, *, fixed: Fixed = NOTHING_FIXED) -> None:
    """Make every parameter trainable, but for those that are ``fixed``, and every module follow ``train()`` again."""
    for part in module.modules():
        pin = _pin(part)
        if pin is not None:
            del part.train
            vars(part).update({"train": vars(pin)[_OWN]} if _OWN in vars(pin) else {})
            part.training = module.training
    for name, tensor, is_buffer in iterate_tensors(module):
        if not is_buffer and tensor.is_floating_point():
            tensor.requires_grad_(_plain_name(name) not in fixed.tensors)


def _pin(part: nn.Module) -> functools.partial[nn.Module] | None:
    """What ``freeze_by`` has put in the place of the module's ``train``; None where it has not."""
    found = vars(part).get("train")
    return found if isinstance(found, functools.partial) and found.func is stay_in_eval else None


def _plain_name(name: str) -> str:
    """A tensor's name without the adapters around its layer."""
    return name.replace(".base_layer.", ".")
