"""What operations of torch a piece of code uses, seen where they are executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headstart.private_names import TorchDispatchMode
from headstart.surgery.per_image_ops import is_fixed

_ROOM = ("aten::empty", "aten::new_empty")  # what counts is what is written there
_CONSTANTS = frozenset(
    ("aten::arange", "aten::as_strided_", "aten::eye", "aten::full", "aten::linspace", "aten::logspace", "aten::ones",
     "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices", "aten::zeros")
)  # fmt: skip
"""Numbers that follow from a call's arguments alone, and another look at the same memory."""


class OperationWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own has no types
    """Within it, ``unknown`` collects the names of operations that are not known to give the same every time and for
    each image alone, in the order of their execution.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Execute the operation, its name noted where it is not on the list."""
        kwargs = kwargs or {}
        made, name = func(*args, **kwargs), func._schema.name
        is_constant = name.startswith(_ROOM) or name in _CONSTANTS
        if not is_constant and not is_fixed(func, args, kwargs):
            self.unknown.append(str(func))
        return made
