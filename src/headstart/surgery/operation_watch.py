"""What operations of torch a piece of code uses, seen where they are executed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from headstart.surgery.per_image_ops import is_fixed

_ROOM = (
    "aten::empty",
    "aten::new_empty",
)  # what counts is what is written there


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
        made = func(*args, **kwargs)
        is_room = func._schema.name.startswith(_ROOM)
        if not is_room and not is_fixed(func, args, kwargs):
            self.unknown.append(str(func))
        return made
