"""A module of the user's own: a run works on a copy of it, or on the module itself, once."""

from __future__ import annotations

import weakref

from torch import nn

from headstart.errors import ModelError
from headstart.events import Decision
from headstart.machine import available_bytes
from headstart.planning.draft import Draft
from headstart.surgery.layout import iterate_tensors
from headstart.surgery.module_copy import InPlace, can_copy, copy_module
from headstart.surgery.own_state import read_saved_tensors
from headstart.surgery.whole_module import refuse_repeating, refuse_wrapped

_INSTEAD = "train the module itself: hs.train(config, model=hs.InPlace(module))"
_COPY = ", or give a copy: model=copy.deepcopy(module) as it is now, or one made before the first call"
_changed: list[weakref.ref[nn.Module]] = []  # no set: a module may have an equality of its own


def copy_own(own: nn.Module | InPlace) -> nn.Module:
    """A copy of the module, or itself where that is what the caller wants.

    Raises: ModelError: it was trained in place before (see ``mark_changed``); or it cannot be copied.
    """
    module = own.module if isinstance(own, InPlace) else own
    if any(ref() is module for ref in _changed):
        raise ModelError(
            "model: this module was trained in place before, so that another run would not begin where the first one "
            f"began; make it anew{_COPY if can_copy(module) else ''}"
        )
    refuse_wrapped(module)
    empty = [name for name, value, _ in iterate_tensors(module) if value.is_meta]
    if empty:
        raise ModelError(
            f"model: {empty[0]} is on the meta device and has no values; make the module outside of "
            "torch.device('meta'), or give it values: module.to_empty(device='cpu') and load_state_dict"
        )
    refuse_repeating(module)
    if isinstance(own, InPlace):
        return module
    if not any(nn.parameter.is_lazy(value) for value in module.parameters()):
        read_saved_tensors(module)  # what cannot be saved cannot be copied either, and is then no reason to go without
    return copy_module(module, free_bytes=available_bytes(), instead=_INSTEAD)


def mark_changed(module: nn.Module) -> None:
    """Have ``copy_own`` refuse this module from now on: it is no longer as it was given."""
    _changed[:] = [ref for ref in _changed if ref() is not None]
    _changed.append(weakref.ref(module))


def explain_fixed(draft: Draft) -> Draft:
    """The draft with a decision on parameters that stay frozen although no rule says so."""
    parameters, fixed = draft.module.named_parameters(), draft.fixed.tensors
    names = [name for name, _ in parameters if name.replace(".base_layer.", ".") in fixed]
    if not names:
        return draft
    shown = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    why = "requires_grad was False in the module when it was given; requires_grad_(True) before makes them train"
    return draft.decide(Decision("stays frozen", f"{len(names)} parameter{'s' * (len(names) != 1)}: {shown}", why))
