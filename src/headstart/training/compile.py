"""torch.compile around a step's forward and backward pass. Validation, the cache and the bundle never go through it, so
that what was validated stays what predicts, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from headstart.errors import RunError
from headstart.wording import option

Compile = Literal["never", "default", "reduce-overhead"]


@dataclass(frozen=True)
class Compiled:
    """What computes a ``module``: ``call``, compiled (as ``how`` says) at its first batch and again for another shape
    or mode.
    """

    module: nn.Module
    how: Compile
    call: Callable[..., Any]


def compile_module(module: nn.Module, before: Compiled | None, how: Compile) -> Compiled:
    """The module as it is (``never``) or compiled, ``before`` where it is that already."""
    if before is not None and before.module is module and before.how == how:
        return before
    if how == "never":
        return Compiled(module, how, module)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing CUDA on a CPU
    call = torch.compile(module, mode=None if how == "default" else how, dynamic=False)
    return Compiled(module, how, _mark_cudagraph_steps(call) if how == "reduce-overhead" else call)


def _mark_cudagraph_steps(call: Callable[..., Any]) -> Callable[..., Any]:
    """Mark each call's begin: CUDA graphs write outputs where the last ones were, once these are done with."""

    def call_marked(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return call(*arguments)

    return call_marked


@contextmanager
def compiler_errors(how: Compile) -> Iterator[None]:
    """Within, an error of the compiler says that it was one, and what to type.  Raises: RunError."""
    if how == "never":
        yield
        return
    from headstart.private_names import find_compiler_errors

    try:
        yield
    except find_compiler_errors() as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RunError(
            f"compile: torch cannot compile this model here ({first}); give {option('compile', 'never')}"
        ) from error
