"""A model across processes: gradients are averaged over the ranks in the backward pass of a step's last micro-batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from headstart.distributed.collectives import broadcast_tensors
from headstart.distributed.fsdp import is_sharded, reduce_next


@dataclass(frozen=True)
class Replica:
    """A model in torch's wrapper: the ``module``, and the parameters that were ``trained`` when it was made."""

    module: DistributedDataParallel
    trained: tuple[nn.Parameter, ...]


def replicate(module: nn.Module, before: Replica | None) -> Replica:
    """The module in DistributedDataParallel over the parameters that train now; ``before`` where it fits still.

    Buffers are not sent at each forward pass (see ``share_statistics``). Unused parameters are looked for at every
    step: this also keeps the buckets, and so the order of sums, from changing after the first one, and a resumed run
    at the same bits.
    """
    trained = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
    same = before is not None and before.module.module is module
    if before is not None and same and [*map(id, before.trained)] == [*map(id, trained)]:
        return before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broadcast_buffers has another name from torch 2.14 on
        wrapped = DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    return Replica(wrapped, trained)


def reducing(forward: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Within, a forward and backward pass whose gradients are averaged over the ranks only if it is the ``last``."""
    if isinstance(forward, DistributedDataParallel) or is_sharded(forward):
        return _reducing(forward, last=last)
    return nullcontext()


@contextmanager
def _reducing(forward: nn.Module, *, last: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        if isinstance(forward, DistributedDataParallel) and not last:
            with forward.no_sync():
                yield
            return
        if is_sharded(forward):
            reduce_next(forward, reduce=last)
        yield


def share_statistics(module: nn.Module) -> None:
    """Make every rank's BatchNorm statistics (and other float buffers of modules in training) those of the first."""
    broadcast_tensors(
        buffer
        for part in module.modules()
        if part.training
        for buffer in part.buffers(recurse=False)
        if buffer.is_floating_point()
    )
