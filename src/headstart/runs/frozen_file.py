"""The tensors of a checkpoint that do not train: written twice, and then one more name of a file that is there.

Of two checkpoints that follow one another each has a file of its own, so that a disk that damages one leaves the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from headstart.pieces import Content
from headstart.runs.tensor_file import in_pieces
from headstart.storage import Again, Stamp, stamp_of

FROZEN = "frozen.safetensors"
_WORTH_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A file, and what its tensors were: places in memory, and how often each had been written to."""

    path: Path
    stamp: Stamp
    sha256: str
    tensors: tuple[tuple[object, ...], ...]


_written: WeakKeyDictionary[nn.Module, list[_Written]] = WeakKeyDictionary()  # of a model's last two checkpoints


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of the model's state does not train, statistics in eval mode included; nothing where that is little."""
    still = {name: value for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    for path, part in model.named_modules(remove_duplicate=False):
        for name, value in {} if part.training else part._buffers.items():
            if value is not None:
                still[f"{path}.{name}" if path else name] = value
    found = {
        name: value
        for name, value in model.state_dict().items()
        if name in still and value.data_ptr() == still[name].data_ptr()  # a model may give others than its own
    }
    return found if sum(value.nbytes for value in found.values()) >= _WORTH_BYTES else {}


def frozen_file(model: nn.Module, frozen: Mapping[str, Tensor], path: Path) -> Content | Again:
    """What ``path`` (CHECKPOINTS/STEP/NAME) is to hold; where nothing has changed since, the file of the last
    checkpoint but one, and of the last one where that is written again.
    """
    known, now = _written.get(model, []), _places(frozen)
    same = [one for one in known if one.tensors == now and one.path.parent.parent == path.parent.parent]
    again = bool(same) and same[-1].path == path
    if not again and len(same) < 2:
        return in_pieces(frozen)
    like = same[-1] if again else same[0]
    return Again(like=like.path, stamp=like.stamp, sha256=like.sha256, made=lambda: in_pieces(frozen))


def remember_frozen(model: nn.Module, path: Path, *, sha256: str) -> None:
    """To be called when the file is written, before a tensor changes."""
    try:
        stamp = stamp_of(path)
    except OSError:  # then the next one is written anew
        _written.pop(model, None)
        return
    made = _Written(path=path, stamp=stamp, sha256=sha256, tensors=_places(frozen_tensors(model)))
    before = [one for one in _written.get(model, []) if one.path != path]
    _written[model] = [*before, made][-2:]


def _places(tensors: Mapping[str, Tensor]) -> tuple[tuple[object, ...], ...]:
    """Equal while nothing is written to the tensors (one of inference mode does not count that)."""
    return tuple(
        (name, value.data_ptr(), object() if value.is_inference() else value._version, value.dtype, value.stride())
        for name, value in tensors.items()
    )
