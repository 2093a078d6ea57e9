"""Arithmetic of the forward pass: fp32, bf16, or fp16 with a scaled loss. Weights and losses stay fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, Literal

import torch

from headstart.distributed.processes import in_environment
from headstart.errors import ConfigError
from headstart.wording import option

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_SCALE = 2.0**16  # torch's own start; halved at each overflow
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which the forward pass runs in ``precision``."""
    if precision == "fp32":
        return nullcontext()
    return _Autocast(device.type, dtype=_DTYPES[precision])


class _Autocast(torch.autocast):
    """An autocast that forgets the weights that it has cast when it ends, also within the caller's ``torch.autocast``,
    where torch's own keeps them: an optimizer step later they would be old.
    """

    def __exit__(self, *error: Any) -> Any:
        try:
            return super().__exit__(*error)
        finally:
            torch.clear_autocast_cache()


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself, without emulation."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """The loss scaler that fp16 needs (its gradients underflow below 6e-8); None for the others."""
    if precision != "fp16":
        return None
    return torch.amp.GradScaler(device.type, init_scale=LARGEST_SCALE)


def device_of(module: torch.nn.Module) -> torch.device:
    """Where the module's parameters are, or its buffers where it has none; the CPU where it has neither."""
    return next((value.device for value in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """What the module computes with, outside autocast."""
    return next((value.dtype for value in module.parameters() if value.is_floating_point()), torch.float32)


@contextmanager
def keep_kernels() -> Iterator[None]:
    """Within, ``usable_device`` may set how torch chooses its kernels on CUDA; afterwards it does so as before."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        if before != (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32):
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def _find_device(name: str, found: torch.device | None) -> torch.device:
    """The device of a name; ``gpu`` and a number alone are this machine's accelerator, whatever its kind.

    Raises: RuntimeError: there is no such device.
    """
    plain = name.strip().lower()
    if plain == "gpu" or plain.isdigit():
        if found is None:
            raise RuntimeError("no accelerator is found")
        return torch.device(found.type, int(plain)) if plain.isdigit() else found
    if plain.replace(",", "").isdigit():
        raise RuntimeError(f"for several, leave it out and write {option('devices', plain.count(',') + 1)}")
    return torch.device(plain)


def usable_device(wanted: str) -> torch.device:
    """The device that ``auto`` means (the accelerator if there is one), or the one named, set to exact arithmetic.

    Of several processes each takes the one of its local rank, unless the name has a number.

    Raises: ConfigError: it is not there.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = (accelerator or torch.device("cpu")) if wanted == "auto" else _find_device(wanted, accelerator)
        ours = in_environment()
        if ours.is_distributed and ":" not in str(device) and device.type != "cpu":
            device = torch.device(device.type, ours.local_rank)
            torch.accelerator.set_device_index(ours.local_rank)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError(
            f"device: {wanted!r} cannot be used here ({reason}); give cpu, an accelerator that is there, or auto"
        ) from error
    if device.type == "cuda":
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    return device
