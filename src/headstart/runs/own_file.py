"""What a user's own modules hold outside of their state dict, in the files of a checkpoint and of a bundle.

Plain values stand in the JSON file, under the kind of module (``model``, ``average``), tensors in ``own.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from headstart.storage.buffers import Content
from headstart.storage.tensors import make_buffers
from headstart.surgery.own_state import OwnState, read_own_state, restore_own_state

OWN = "own.safetensors"


def own_files(modules: Mapping[str, nn.Module]) -> tuple[dict[str, Content], dict[str, Any]]:
    """The file of tensors, where there are some, and the values for the JSON file, of modules by their kind."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for kind, module in modules.items():
        state = read_own_state(module)
        tensors |= {f"{kind}//{name}": value for name, value in state.tensors.items()}
        values |= {kind: state.values} if state.values else {}
    return ({OWN: make_buffers(tensors)} if tensors else {}), values


def restore_own(module: nn.Module, kind: str, files: Mapping[str, bytes], values: object) -> None:
    """Put back what a module of this kind held; what the files do not say stays as it is."""
    found = read_tensors(files[OWN]) if OWN in files else {}
    tensors = {name.partition("//")[2]: value for name, value in found.items() if name.startswith(f"{kind}//")}
    own = values.get(kind) if isinstance(values, Mapping) else None
    restore_own_state(module, OwnState(values=own if isinstance(own, dict) else {}, tensors=tensors))
