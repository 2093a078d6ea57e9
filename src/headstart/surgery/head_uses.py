"""Whether a layer is the head and nothing else, so that another one can take its place; and putting that one there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from headstart.errors import ModelError
from headstart.surgery.head_search import calls_inside
from headstart.surgery.naming import HOOKS
from headstart.surgery.origins import is_librarys_hook
from headstart.surgery.own_state import has_own_code
from headstart.surgery.reach import Content, Copying, read_graph
from headstart.surgery.trace import Trace
from headstart.surgery.uses import find_uses


def refuse_other_uses(module: nn.Module, trace: Trace, paths: Sequence[str]) -> None:
    """Raises: ModelError: a layer of the head, or its weight, is used elsewhere too, or computes in its own way."""
    heads = {path: module.get_submodule(path) for path in paths}
    for path, part in heads.items():
        _refuse_ties(module, path, part)
        if "forward" in vars(part):
            raise ModelError(
                f"model: {path}, the head, has a forward of its own, which a new layer would not have; register what "
                f"it does as a hook (model.{path}.register_forward_hook(...): hooks stay), and del model.{path}.forward"
            )
    if not has_own_code(module):
        return
    try:
        uses = find_uses(module, heads, tensors=lambda part: part.parameters())
    except ModelError:  # it does not run on zeros; the check of its output's shape will say so
        return
    inside = calls_inside(module, trace, paths)
    for path in paths:
        if path in uses.elsewhere:
            raise ModelError(
                f"model: {path}, the head, is used elsewhere too: other code computes with its weights; give that code "
                f"a parameter of its own, e.g. self.other = torch.nn.Parameter(self.{path}.weight.detach().clone()); "
                f"code that makes the scores is the head: have it in a layer that is called, e.g. a hook on {path}"
            )
        if path in inside or (trace.graph is None and uses.calls.get(path, 0) > 1):
            raise ModelError(
                f"model: {path}, the head, is used elsewhere too: what it gives goes into other layers; call a layer "
                f"of its own there, e.g. self.inner = copy.deepcopy(self.{path})"
            )


def _refuse_ties(module: nn.Module, path: str, part: nn.Module) -> None:
    own = {id(value): name for name, value in part.named_parameters()}
    inside = tuple(name + "." for name in names_of(module, part))
    for name, value in module.named_parameters(remove_duplicate=False):
        if id(value) in own and not name.startswith(inside):
            holder, _, local = name.rpartition(".")
            raise ModelError(
                f"model: {path}, the head, is used elsewhere too: its {own[id(value)]} is also {name}, and a new head "
                f"would cut that tie; untie them first: part = model.get_submodule({holder!r}); "
                f"part.{local} = torch.nn.Parameter(part.{local}.detach().clone())"
            )


def names_of(module: nn.Module, part: nn.Module) -> tuple[str, ...]:
    """Every path under which a module is registered."""
    return tuple(path for path, other in module.named_modules(remove_duplicate=False) if other is part)


def put_everywhere(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever the module holds ``old``: under each of its names, in lists, dictionaries and closures."""
    places = read_graph(module, Copying(values=False, parameters=False)).values() if has_own_code(module) else ()
    for path in names_of(module, old):
        set_part(module, path, new)
    for content in places:
        for label, value in zip(content.labels, content.values, strict=True):
            if value is old:
                _put_in(content, label, new)


def set_part(module: nn.Module, path: str, new: nn.Module) -> None:
    """Put ``new`` at the path.  Raises: ModelError: a ``__setattr__`` of the user's own does not take it."""
    parent, _, name = path.rpartition(".")
    holder = module.get_submodule(parent)
    try:
        setattr(holder, name, new)
        said = "" if module.get_submodule(path) is new else "it is not there afterwards"
    except Exception as error:  # a ``__setattr__`` of the user's own may raise anything
        said = f"{type(error).__name__}: {error}"
    if said:
        raise ModelError(
            f"model: the __setattr__ of {type(holder).__name__} does not take a new {path} ({said}); have it pass "
            "torch.nn.Module values on: super().__setattr__(name, value)"
        )


def _put_in(content: Content, label: Any, new: nn.Module) -> None:
    match content.kind:
        case "list" | "dict" if not isinstance(label, tuple):
            content.target[label] = new
        case "cell":
            content.target.cell_contents = new
        case "module" | "object":
            object.__setattr__(content.target, label, new)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Move the user's own hooks: they stay in the dictionaries that their handles know, and leave with these."""
    for name, hooks in vars(old).items():
        is_filled = bool(HOOKS.match(name)) and isinstance(hooks, dict) and bool(hooks)
        if is_filled and name in vars(new) and not any(is_librarys_hook(hook) for hook in hooks.values()):
            vars(new)[name] = hooks
