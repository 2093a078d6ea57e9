"""Whether a module runs on images of a shape, and which of its parts does not: mostly by shapes alone."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from headstart.lazy_imports import is_compiler_loaded
from headstart.surgery.trace import MODEL_FAILURES, meta_copies, place_like_weights, preserve_module
from headstart.timing import is_out_of_memory

_CHEAP_WORK = 50_000_000 * 224 * 224  # parameters times pixels: less than a second of one core


@dataclass(frozen=True)
class Failure:
    """A forward pass that ended in an ``error``: the path of the part whose code raised it ("" for the model itself),
    and what it said, in a line.
    """

    path: str
    text: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.text} (in {self.path})" if self.path else self.text


def find_failure(
    module: nn.Module, shape: tuple[int, int, int, int], *, training: bool = False, images: Tensor | None = None
) -> Failure | None:
    """Why the module does not run on images of ``shape`` (B, C, H, W); None where it does. It is left as it was.

    It runs on ``meta``, which takes no memory; where that fails, on its own weights, for some code needs values: on
    ``images``, or on zeros. With ``training`` it is in training mode, but for what is frozen in evaluation mode.

    Raises: RuntimeError: memory ran out.
    """
    with preserve_module(module):
        module.train(training)
        if not _is_cheap(module, shape) and runs_on_meta(module, shape):
            return None
        images = torch.zeros(shape) if images is None else images
        try:
            module(place_like_weights(module, images))
        except MODEL_FAILURES as error:
            if is_out_of_memory(error):
                raise
            return _read_failure(module, error)
    return None


def _is_cheap(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a real pass takes less time than torch's compiler, which the first operation on meta loads: 1.2 s."""
    if is_compiler_loaded():
        return False
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return parameters * shape[0] * math.prod(shape[2:]) <= _CHEAP_WORK and math.prod(shape) <= 2**20


def runs_on_meta(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a forward pass without values ends well; some code that needs values runs on real weights alone."""
    meta, dtype = meta_copies(module)
    try:
        functional_call(module, meta, (torch.empty(shape, dtype=dtype, device="meta"),), tie_weights=False)
    except MODEL_FAILURES:
        return False
    return True


def _read_failure(module: nn.Module, error: BaseException) -> Failure:
    """The innermost part of the module whose code was running, and the first line of the error."""
    paths = {id(part): path for path, part in module.named_modules()}
    holders = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    part = next((paths[id(holder)] for holder in reversed(holders) if id(holder) in paths), "")
    said = str(error).strip().splitlines()
    return Failure(part, said[0].rstrip(". ") if said else type(error).__name__, error)
