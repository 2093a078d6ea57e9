"""torchmetrics' functions of one kind without the rest of it, whose import would load scipy and transformers: 0.9 CPU
seconds and 85 MB, for an accuracy.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

_ROOT = "torchmetrics"
_GIVEN = {"_logger": logging.getLogger(_ROOT)}  # what its modules take from the outermost package
_lock = threading.Lock()


def functional(kind: Literal["classification", "regression"]) -> Any:
    """``torchmetrics.functional.KIND``; who imports torchmetrics gets all of it, before and afterwards."""
    with _lock:
        return _functional(kind)


@cache
def _functional(kind: str) -> ModuleType:
    name = f"{_ROOT}.functional.{kind}"
    if _ROOT not in sys.modules:
        try:
            with _bare_packages():
                return import_module(name)
        except (ImportError, AttributeError, NameError, TypeError, KeyError):  # needs more of itself
            pass
    return import_module(name)


@contextmanager
def _bare_packages() -> Iterator[None]:
    """Within, torchmetrics' outer packages are empty but for their place; afterwards nothing of it is registered."""
    found = find_spec(_ROOT)
    place = list(found.submodule_search_locations or ()) if found else []
    for name, below in ((_ROOT, ""), (f"{_ROOT}.functional", "/functional")):
        package = ModuleType(name)
        package.__path__ = [f"{folder}{below}" for folder in place]
        sys.modules[name] = package
    vars(sys.modules[_ROOT]).update(_GIVEN)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _ROOT]:
            del sys.modules[name]
