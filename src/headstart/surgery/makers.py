"""Which layers make a module's outputs, read from the gradient's graph where torch.fx cannot trace the module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.surgery.no_trace import no_trace
from headstart.surgery.outputs import name_outputs


@dataclass(frozen=True, kw_only=True)
class Maker:
    """``layers``: paths of the last layers with weights before an output; ``functions``: what follows them, by name."""

    layers: tuple[str, ...]
    functions: tuple[str, ...]


def find_makers(module: nn.Module, images: Tensor) -> dict[str, Maker]:
    """The makers of each output by name, or of the only one under the empty name, in evaluation mode."""
    made_by: dict[Any, str] = {}

    def hook(path: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            found = [outputs, *name_outputs(outputs).values()]
            made_by.update({value.grad_fn: path for value in found if isinstance(value, Tensor) and value.grad_fn})

        return note

    with no_trace(module), torch.enable_grad():
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for path, part in module.named_modules():
            if any(True for _ in part.parameters(recurse=False)):
                part.register_forward_hook(hook(path))
        outputs = module(images)
        found = {"": outputs} if isinstance(outputs, Tensor) else name_outputs(outputs)
        return {
            name: _walk(value.grad_fn, made_by)
            for name, value in found.items()
            if isinstance(value, Tensor) and value.grad_fn is not None
        }


def _walk(start: Any, made_by: Mapping[Any, str]) -> Maker:
    layers, functions = dict[str, None](), dict[str, None]()
    waiting, seen = [start], set[Any]()
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node in made_by:
            layers[made_by[node]] = None
        else:
            functions[node.name().removesuffix("0").removesuffix("Backward").lower()] = None
            waiting += [source for source, _ in node.next_functions if source is not None]
    return Maker(layers=tuple(layers), functions=tuple(functions))
