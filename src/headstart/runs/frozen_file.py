"""The tensors of a checkpoint that do not change: written twice, and then one more name of a file that is there.

Of two checkpoints that follow one another each has a file of its own, so that a disk that damages one leaves the other.
Whether a file can be named again is decided by its bytes, which are read and compared with the tensors' (94 MB in
16 ms, where SHA-256 takes 48): how a tensor was written to, and by whom, does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from headstart.storage.buffers import Buffers, Content
from headstart.storage.disk import open_plainly
from headstart.storage.durable import HardLink, Stamp, stamp_of
from headstart.storage.tensors import make_buffers
from headstart.surgery.own_state import read_saved_tensors

FROZEN = "frozen.safetensors"
START = "start.safetensors"
_WORTH_BYTES = 1 << 20
_READ_BYTES = 262_144  # at a time: stays in the processor's cache, and a bytearray compares them in one call


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A file that was written for a model, and what it was then."""

    path: Path
    stamp: Stamp
    sha256: str


_written: WeakKeyDictionary[nn.Module, dict[str, list[_Written]]] = WeakKeyDictionary()
"""The files of a model's last two checkpoints, by the file's name."""


def frozen_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state that do not train, statistics in eval mode included; none where that is little."""
    untrained = {
        name: value for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad
    }
    for path, part in model.named_modules(remove_duplicate=False):
        for name, value in {} if part.training else part._buffers.items():
            if value is not None:
                untrained[f"{path}.{name}" if path else name] = value
    frozen = {
        name: value
        for name, value in read_saved_tensors(model).items()
        if name in untrained and value.data_ptr() == untrained[name].data_ptr()  # a model may give others than its own
    }
    return frozen if sum(value.nbytes for value in frozen.values()) >= _WORTH_BYTES else {}


def reuse_or_write(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> Content | HardLink:
    """What ``path`` (CHECKPOINTS/STEP/NAME) is to hold: where it holds the same bytes, the file of the last checkpoint
    but one, or of the last one where that is written again; else the tensors anew.
    """
    content = make_buffers(tensors)
    known = [file for file in _list_known_files(model, path) if file.path.parent.parent == path.parent.parent]
    is_rewritten = bool(known) and known[-1].path == path
    if not is_rewritten and len(known) < 2:
        return content
    like = known[-1] if is_rewritten else known[0]
    if not _holds(like.path, content):
        return content
    return HardLink(like=like.path, stamp=like.stamp, sha256=like.sha256, make=lambda: content)


def remember_file(model: nn.Module, path: Path, *, sha256: str) -> None:
    """Keep in mind that the file is written and what its SHA-256 is."""
    try:
        stamp = stamp_of(path)
    except OSError:  # then the next one is written anew
        _written.get(model, {}).pop(path.name, None)
        return
    before = [file for file in _list_known_files(model, path) if file.path != path]
    _written.setdefault(model, {})[path.name] = [*before, _Written(path=path, stamp=stamp, sha256=sha256)][-2:]


def _list_known_files(model: nn.Module, path: Path) -> list[_Written]:
    return _written.get(model, {}).get(path.name, [])


def _holds(path: Path, content: Buffers) -> bool:
    """Whether these are a file's bytes; that it is the one that was written is seen when it gets one more name."""
    try:
        with open(path, "rb", opener=open_plainly) as file:
            return all(bytearray(file.read(len(ours))) == ours for ours in _blocks(content))
    except OSError:  # gone, or not to be read
        return False


def _blocks(content: Buffers) -> Iterator[memoryview]:
    for part in content:
        for begin in range(0, len(part), _READ_BYTES):
            yield part[begin : begin + _READ_BYTES]
