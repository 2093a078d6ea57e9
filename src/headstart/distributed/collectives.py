"""What the processes of a run tell each other. Values travel as JSON bytes in tensors: no pickle.

Every function is called by all ranks in the same order; alone, each gives back what it was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headstart.distributed.processes import current
from headstart.errors import Error, OthersFailed

_E = TypeVar("_E", bound=Error)
_counters: list[Callable[[], None]] = []


@contextmanager
def count_messages(counter: Callable[[], None]) -> Iterator[None]:
    """Within, ``counter`` is called before every message: ranks that are behind can be found."""
    _counters.append(counter)
    try:
        yield
    finally:
        _counters.remove(counter)


def all_gather_object(value: object) -> list[Any]:
    """The values that all ranks gave, by rank; each is any that JSON can hold.

    Raises: OthersFailed: a rank has sent an error instead (see ``collective_errors``).
    """
    return _all_gather_object({"value": value}) if current().is_distributed else [value]


def _all_gather_object(message: Mapping[str, object]) -> list[Any]:
    data = json.dumps(message).encode("utf-8", "surrogateescape")
    messages = [json.loads(received.decode("utf-8", "surrogateescape")) for received in _exchange_bytes(data)]
    failed = [rank for rank, received in enumerate(messages) if "failed" in received]
    if failed and current().rank != failed[0]:
        raise OthersFailed(exit_code=messages[failed[0]]["failed"])
    return [received.get("value") for received in messages]


def _exchange_bytes(data: bytes) -> list[bytes]:
    where = _device()
    sizes = _all_gather(torch.tensor([len(data)], device=where))
    room = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8, device=where)
    if data:
        room[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(where)
    parts = zip(_all_gather(room), sizes, strict=True)
    return [part[: int(size)].cpu().numpy().tobytes() for part, size in parts]


def _all_gather(value: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    _count()
    dist.all_gather(gathered, value)
    return gathered


def all_gather(value: Tensor) -> list[Tensor]:
    """The equally shaped tensors of all ranks, by rank, on the device of this rank's."""
    if not current().is_distributed:
        return [value]
    return [other.to(value.device) for other in _all_gather(value.contiguous().to(_device()))]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all ranks; every rank gets the same bits."""
    if current().is_distributed:
        _count()
        total = values.to(_device())
        dist.all_reduce(total)
        return total.to(values.device)
    return values


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set on any rank."""
    if not current().is_distributed:
        return flags
    return tuple(bool(count > 0) for count in all_reduce_sum(torch.tensor(flags, dtype=torch.float64)))


def broadcast_object(value: object) -> Any:
    """The first rank's value (JSON), on every rank."""
    return all_gather_object(value if current().is_first else None)[0] if current().is_distributed else value


def broadcast_files(files: Mapping[str, bytes] | None) -> dict[str, bytes] | None:
    """The first rank's files, on every rank; the others give None."""
    if not current().is_distributed:
        return None if files is None else dict(files)
    names = broadcast_object(None if files is None else {name: len(data) for name, data in files.items()})
    if names is None:
        return None
    received: dict[str, bytes] = {}
    for name, size in names.items():
        data = torch.zeros(size, dtype=torch.uint8)
        if files is not None:
            data = torch.frombuffer(bytearray(files[name]), dtype=torch.uint8) if size else data
        received[name] = _broadcast(data.to(_device())).cpu().numpy().tobytes() if size else b""
    return received


def gather_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of all ranks, on the first one; the others get none. Names differ from rank to rank."""
    names = all_gather_object({name: len(data) for name, data in files.items()})
    room = max(sum(sizes.values()) for sizes in names)
    data = torch.zeros(room, dtype=torch.uint8)
    joined = b"".join(files.values())
    data[: len(joined)] = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
    sent, first = data.to(_device()), current().is_first
    received = [torch.empty_like(sent) for _ in names] if first else None
    _count()
    dist.gather(sent, received, dst=0)
    gathered: dict[str, bytes] = {}
    for sizes, part in zip(names, received or (), strict=first):
        whole, start = part.cpu().numpy().tobytes(), 0
        for name, size in sizes.items():
            gathered[name] = whole[start : start + size]
            start += size
    return gathered


def _broadcast(value: Tensor) -> Tensor:
    _count()
    dist.broadcast(value, src=0)
    return value


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with the first rank's, in one message per kind of number."""
    if not current().is_distributed:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for same in kinds.values():
        flat = _broadcast(torch.cat([tensor.detach().reshape(-1) for tensor in same]))
        for tensor, part in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))


def broadcast_model(module: nn.Module) -> None:
    """Make weights and buffers those of the first rank; what else a state dict may hold stays each rank's own."""
    broadcast_tensors(value for value in module.state_dict().values() if isinstance(value, Tensor))


@contextmanager
def collective_errors() -> Iterator[None]:
    """Within, an ``Error`` of any rank ends all of them: at their next exchange, or at the end of the block.

    The first rank that failed raises its own; the others raise ``OthersFailed`` with its exit code.
    """
    try:
        yield
    except OthersFailed:
        raise
    except Error as error:
        if current().is_distributed:
            _all_gather_object({"failed": error.exit_code})
        raise
    all_gather_object(None)


@contextmanager
def raise_together(kind: type[_E]) -> Iterator[None]:
    """Within, an error of this ``kind`` of any rank is raised by all at the end of the block, so that ranks which catch
    it and go on do so alike. Ranks that have none raise the first one's.
    """
    own: _E | None = None
    try:
        yield
    except kind as error:
        own = error
    if any(any_of(own is not None)):
        texts = all_gather_object(None if own is None else str(own))
        raise own or kind(next(text for text in texts if text is not None))


def _device() -> torch.device:
    """The device on which the group's messages have to be."""
    gloo = dist.get_backend() == "gloo"
    accelerator = None if gloo else torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _count() -> None:
    for counter in _counters:
        counter()
