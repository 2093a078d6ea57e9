"""What a person calls a thing that a module reaches: ``tail.calls``, ``closure of the hook on tail: seen``."""

from __future__ import annotations

import re
from typing import Any

HOOKS = re.compile(r"^_(?!non_persistent).*hooks(_|$)")
"""Names of the dictionaries in which a module or a tensor keeps its hooks."""
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_REGISTRIES = {"_parameters": "parameter ", "_buffers": "buffer ", "_modules": ""}


def child_name(kind: str, name: str, label: Any) -> str:
    """The name of what an object of this kind and name refers to under ``label``."""
    if isinstance(label, tuple) and label and label[0] in ("attribute", "buffer"):
        return f"{name}.{label[1]}" if name else str(label[1])
    match kind:
        case "module":
            return _of_module(name, label)
        case "object":
            return f"{name}.{label}" if name else str(label)
        case "tensor":
            return f"{label.strip('_')} of {name}"
        case "dict":
            return _of_dict(name, label)
        case "function":
            return _of_function(name, label)
        case "class":
            return f"{name}.{label}" if isinstance(label, str) else name
        case "cell" | "method" | "partial":
            return name
    return f"{name}[{label!r}]"


def _of_module(path: str, label: str) -> str:
    if label in _REGISTRIES:
        return f"{_REGISTRIES[label]}{path}{'.' if path else ''}"
    if HOOKS.match(label):
        return f"the hook on {path or 'the model'}"
    return f"{path}.{label}" if path else label


def _of_dict(name: str, label: Any) -> str:
    if name.startswith("the hook on "):
        return name
    if isinstance(label, str):
        return f"{name}{'' if name.endswith((' ', '.')) or not name else '.'}{label}"
    return f"{name}[{label!r}]"


def _of_function(name: str, label: Any) -> str:
    match label:
        case ("closure", variable):
            return f"closure of {name}: {variable}"
        case ("default", place):
            return f"default of {name}: {place}"
        case ("global", variable, space):
            return f"global {variable} of {space}"
    return f"{name}[{label!r}]"
