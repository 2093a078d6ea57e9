"""Whether a module is whole: every weight is there and registered, so that it can be trained, moved and saved."""

from __future__ import annotations

import re
import weakref

import torch
from torch import Tensor, nn

from headstart.distributed.fsdp import is_sharded_tensor
from headstart.errors import ModelError
from headstart.storage.tensors import repeats_itself
from headstart.surgery.own_state import has_own_code
from headstart.surgery.reach import Copying, attributes_of, iterate_modules, read_graph
from headstart.surgery.uses import find_uses
from headstart.wording import option


def refuse_lazy(module: nn.Module) -> None:
    """Raises: ModelError: layers wait for a first batch to get their weights."""
    lazy = [name for name, value in module.named_parameters() if nn.parameter.is_lazy(value)]
    paths = list(dict.fromkeys(name.rpartition(".")[0] or "the model" for name in lazy))
    if paths:
        raise ModelError(
            f"model: {', '.join(paths)} {'are' if len(paths) > 1 else 'is'} lazy and without weights until a first "
            "batch: run one before, e.g. model(torch.zeros(2, 3, 224, 224))"
        )


def refuse_repeating(module: nn.Module) -> None:
    """Raises: ModelError: some numbers of a parameter or buffer are one place in memory, which no step can write."""
    for kind, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, value in tensors:
            plain = value.layout is torch.strided and not nn.parameter.is_lazy(value) and not is_sharded_tensor(value)
            if plain and repeats_itself(value):
                path, _, local = name.rpartition(".")
                part = f"model.get_submodule({path!r})"
                raise ModelError(
                    f"model: {name} is a {kind} of shape {tuple(value.shape)} whose numbers share places in memory, as "
                    "after expand(), so that none can be written by itself; keep it small and expand it in forward, or "
                    f"give each number its place: {part}.{local}.data = {part}.{local}.detach().clone()"
                )


def refuse_half(module: nn.Module) -> None:
    """Raises: ModelError: weights that are to train are kept in half precision."""
    half = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
    found = {name: half[p.dtype] for name, p in module.named_parameters() if p.requires_grad and p.dtype in half}
    if found:
        name, kind = next(iter(found.items()))
        short = "bf16" if kind == "bfloat16" else "fp16"
        raise ModelError(
            f"model: {len(found)} of its parameters are {kind}, e.g. {name}: updates smaller than their last digit "
            f"are lost; call model.float() first ({option('precision', short)}, in your own loop "
            f"hs.StepRules(precision='{short}'), computes in that precision with float32 weights); "
            "requires_grad_(False) on those that are to stay as they are"
        )


def refuse_wrapped(module: nn.Module) -> None:
    """Raises: ModelError: the module is another one in a wrapper, it holds a proxy of one, or it or a part of it is
    compiled by torch.jit or torch.compile.
    """
    _refuse_proxies(module)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ModelError(
            f"model: the module is wrapped in {type(module).__name__}; give the one inside, module.module "
            f"({option('devices', fill='N')} trains it in several processes)"
        )
    if isinstance(getattr(module, "_orig_mod", None), nn.Module):
        raise ModelError(
            "model: the module was compiled by torch.compile; give the one that it was made of, module._orig_mod "
            f"({option('compile', 'default')} compiles the steps)"
        )
    parts = [path for path, part in module.named_modules() if isinstance(getattr(part, "_orig_mod", None), nn.Module)]
    if parts:
        raise ModelError(
            f"model: its part {parts[0]} was compiled by torch.compile, which hides its layers; put the part that it "
            f"was made of in its place: model.set_submodule({parts[0]!r}, "
            f"model.get_submodule({parts[0]!r})._orig_mod) ({option('compile', 'default')} compiles the steps)"
        )
    compiled = [path for path, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if compiled:
        name = f"model.{compiled[0]}" if compiled[0] else "model"
        then = f", and put it there: {name} = made" if compiled[0] else ""
        raise ModelError(
            f"model: {compiled[0] or 'the module'} is compiled by torch.jit, so that its layers cannot be looked into, "
            "frozen or replaced one by one; make the module again that it was made of, with its weights, e.g. "
            f"made = Net(); made.load_state_dict({name}.state_dict()){then}"
        )


def _refuse_proxies(module: nn.Module) -> None:
    """Raises: ModelError: a part has a ``weakref.proxy`` of a module, which torch takes for a part, without end."""
    for path, part in iterate_modules(module):
        held = attributes_of(part)
        inner = held.get("_modules")
        for name, value in {**held, **(inner if isinstance(inner, dict) else {})}.items():
            if type(value) in weakref.ProxyTypes and _is_module(value):
                where = f"{path}.{name}" if path else name
                raise ModelError(
                    f"model: {where} is a weakref.proxy of a module, which torch goes into like a part of it, without "
                    f"end; del model.{where}, keep a weakref.ref in its place, and call that in forward"
                )


def _is_module(proxy: object) -> bool:
    try:
        return isinstance(proxy, nn.Module)
    except ReferenceError:  # what it stood for is gone
        return False


def refuse_unregistered(module: nn.Module) -> None:
    """Raises: ModelError: the forward pass uses trainable parameters that the module does not know of."""
    if not has_own_code(module):
        return
    hidden = _find_unregistered(module)
    if not hidden:
        return
    try:
        used = find_uses(module, {}, tensors=lambda part: part.parameters(), others=hidden).elsewhere
    except ModelError:  # it does not run on such images: nothing is known
        return
    names = [name for name in hidden if name in used]
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ModelError(
            f"model: forward uses {shown}, which the module does not have registered, so they are neither trained nor "
            f"saved; {_remedy(module, names[0])}, or freeze them with requires_grad_(False)"
        )


def _remedy(module: nn.Module, name: str) -> str:
    """What registers the thing of this name: ``blocks[0].weight``, ``tail.heads.a.weight``."""
    path, words = "", re.split(r"[.\[]", name)
    part, place = module, 0
    while isinstance(inner := attributes_of(part).get("_modules", {}).get(words[place]), nn.Module):
        part, path, place = inner, f"{path}{words[place]}.", place + 1
    held = attributes_of(part).get(words[place])
    inside = list(held.values() if isinstance(held, dict) else held) if isinstance(held, dict | list | tuple) else []
    if not inside:
        return "make them attributes of the module itself: a torch.nn.Module or torch.nn.Parameter"
    kind = ("Module" if isinstance(inside[0], nn.Module) else "Parameter") + (
        "Dict" if isinstance(held, dict) else "List"
    )
    attribute = f"model.{path}{words[place]}"
    return f"register them, e.g. {attribute} = torch.nn.{kind}({attribute})"


def _find_unregistered(module: nn.Module) -> dict[str, Tensor]:
    known = {id(value) for value in module.parameters()}
    found: dict[str, Tensor] = {}
    for content in read_graph(module, Copying(values=False, parameters=False)).values():
        value = content.target
        if isinstance(value, nn.Parameter) and value.requires_grad and id(value) not in known:
            found[content.name.removeprefix("parameter ")] = value
    return found
