"""torchvision and timm without torch's compiler, which their import would load: 1.2 of 3.3 CPU seconds.

torchvision's ``roi_align`` asks the compiler one question, and both mark a few functions as not to be compiled. That
can wait until they are called. Training loads the compiler anyway, at its first optimizer step.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


def load_libraries() -> None:
    """Import torchvision and timm; who imports them afterwards gets them as they are."""
    with collector_paused(), _compiler_later():
        for name in ("torchvision", "torchvision.transforms.v2", "timm"):
            import_module(name)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within, Python looks for no garbage: what is imported stays, and looking at it again and again, while it grows,
    was 0.4 of the 2.9 CPU seconds of these imports.
    """
    if not gc.isenabled():  # paused already, or the caller's own choice
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_compiler_loaded() -> bool:
    """Whether torch's compiler is there already: what needs it costs no import any more."""
    return _COMPILER in sys.modules


@contextmanager
def _compiler_later() -> Iterator[None]:
    """Within, what asks for the compiler gets something that loads it when it is used."""
    from torch import compiler

    from headstart.private_names import find_lazy_disable

    lazily = find_lazy_disable()
    if lazily is None or _COMPILER in sys.modules or "timm" in sys.modules:
        yield
        return
    later, disable = _Later(_ASKED), compiler.disable
    sys.modules[_ASKED] = later
    compiler.disable = lazily
    try:
        yield
    finally:
        compiler.disable = disable
        if sys.modules.get(_ASKED) is later:
            del sys.modules[_ASKED]


class _Later(ModuleType):
    """Stands in for the compiler's module; any other name than the one that can wait loads the real one."""

    def is_compile_supported(self, device: str) -> bool:
        """The real module's answer."""
        return bool(_real().is_compile_supported(device))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(), name)


def _real() -> ModuleType:
    if isinstance(sys.modules.get(_ASKED), _Later):
        del sys.modules[_ASKED]
    return import_module(_ASKED)
