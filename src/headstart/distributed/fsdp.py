"""A sharded model: each process holds a part of every parameter (FSDP2, ``fully_shard``).

Each parameter is cut along its first dimension into as many parts as there are processes, as ``torch.chunk`` cuts; what
is whole here is whole on every process (buffers, counters).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from headstart.distributed.processes import current
from headstart.private_names import BATCH_NORMS

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_SHARDS_RIGHTLY = (2, 14)  # of torch: seen right there, and wrong in 2.8, where a step's numbers were others
_SHARE_OF_ALL = 64  # a block with at least so many-th of the parameters is gathered by itself


def can_shard() -> bool:
    """Whether a sharded model is known to train rightly with this torch."""
    return tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2]) >= _SHARDS_RIGHTLY


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard the parameters, in place: block by block, so that one block is whole at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (current().world_size,))
    for block in _find_blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _find_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated parts: members of sequences with a good share of the parameters, none inside another."""
    least = sum(parameter.numel() for parameter in module.parameters()) / _SHARE_OF_ALL
    blocks: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        if not isinstance(part, nn.Sequential | nn.ModuleList):
            continue
        for name, child in part.named_children():
            own, size = f"{path}.{name}" if path else name, sum(p.numel() for p in child.parameters())
            if size >= least and not isinstance(child, nn.Sequential | nn.ModuleList):
                blocks[own] = child
    return [part for path, part in blocks.items() if not any(path.startswith(f"{other}.") for other in blocks)]


def plain_type(module: nn.Module) -> type[object]:
    """A module's class as it is without FSDP2, which puts its own before it, and SyncBatchNorm, which replaces it."""
    if isinstance(module, BATCH_NORMS):
        return BATCH_NORMS[0]
    return next(kind for kind in type(module).__mro__ if not _is_of_fsdp(kind))


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's parameters are sharded."""
    return _is_of_fsdp(type(module))


def _is_of_fsdp(kind: type[object]) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who shards a module has imported it; others save 0.2 s
    return fsdp is not None and issubclass(kind, fsdp.FSDPModule)


def is_sharded_tensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process holds a part of the tensor."""
    tensors = sys.modules.get("torch.distributed.tensor")  # as above
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def reduce_next(module: nn.Module, *, reduce: bool) -> None:
    """Set whether the next backward pass averages the gradients over the processes."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(reduce)


def part_again(module: nn.Module) -> None:
    """Cut the model into its parts again: a forward pass without a backward one leaves the outermost parameters whole,
    and their names then stand for other tensors than the optimizer's.
    """
    if not is_sharded(module):
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part, or the tensor itself."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (all processes call it), or the tensor itself."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor


def like_parameter(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as ``like`` is; every process has the same one, and nothing is sent."""
    if not is_sharded_tensor(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def put(into: Tensor, value: Tensor) -> None:
    """Overwrite a tensor, sharded or not, with a whole one."""
    with torch.no_grad():
        into.copy_(like_parameter(value, into))


def parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The parts of tensors that this process writes, and the whole shapes of those that are sharded.

    Whole tensors are written by the first process alone.
    """
    shapes = {name: list(value.shape) for name, value in sorted(tensors.items()) if is_sharded_tensor(value)}
    for name in shapes:
        value = tensors[name]
        assert is_sharded_tensor(value) and [place.is_shard(0) for place in value.placements] == [True], name
    mine = {name: local(value) for name, value in tensors.items() if name in shapes or current().is_first}
    return mine, shapes


def join_parts(files: Sequence[Mapping[str, Tensor]], shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """The whole tensors from the parts of all processes, in their order."""
    wholes = dict(files[0])
    for name, shape in shapes.items():
        wholes[name] = torch.cat([part[name] for part in files]).reshape(shape)
    return wholes
