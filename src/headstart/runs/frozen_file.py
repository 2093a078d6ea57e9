"""The tensors of a checkpoint that do not train: written twice, and then one more name of a file that is there.

Of two checkpoints that follow one another each has a file of its own, so that a disk that damages one leaves the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from headstart.pieces import Content
from headstart.runs.tensor_file import in_pieces
from headstart.storage import Again

FROZEN = "frozen.safetensors"
_WORTH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A file, and what its tensors were: places in memory, and how often each had been written to."""

    path: Path
    size: int
    sha256: str
    tensors: tuple[tuple[object, ...], ...]


_written: WeakKeyDictionary[nn.Module, deque[_Written]] = WeakKeyDictionary()  # of a model's last two checkpoints


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of the model's state does not train, statistics in eval mode included; nothing where that is little."""
    learns = {name for name, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    moves = {
        f"{path}.{name}" if path else name
        for path, part in model.named_modules(remove_duplicate=False)
        if part.training
        for name in part._buffers
    }
    found = {name: value for name, value in model.state_dict().items() if name not in learns | moves}
    return found if sum(value.nbytes for value in found.values()) >= _WORTH_BYTES else {}


def frozen_file(model: nn.Module, frozen: Mapping[str, Tensor], root: Path) -> Content | Again:
    """The file's content; where nothing has changed since, the file of the last checkpoint but one in ``root``."""
    known, now = tuple(_written.get(model, ())), _places(frozen)
    if len(known) < 2 or any(one.tensors != now or one.path.parent.parent != root for one in known):
        return in_pieces(frozen)
    older = known[0]
    return Again(like=older.path, size=older.size, sha256=older.sha256, made=lambda: in_pieces(frozen))


def remember_frozen(model: nn.Module, path: Path, *, size: int, sha256: str) -> None:
    """To be called when the file is written, before a tensor changes."""
    made = _Written(path=path, size=size, sha256=sha256, tensors=_places(frozen_tensors(model)))
    _written.setdefault(model, deque(maxlen=2)).append(made)


def _places(tensors: Mapping[str, Tensor]) -> tuple[tuple[object, ...], ...]:
    """Equal while nothing is written to the tensors (one of inference mode does not count that)."""
    return tuple(
        (name, value.data_ptr(), object() if value.is_inference() else value._version, value.dtype, value.stride())
        for name, value in tensors.items()
    )
