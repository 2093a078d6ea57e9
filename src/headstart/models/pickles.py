"""What a pickle holds, read from its instructions, of which none is followed: for the advice in an error message."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in torch's old format
_PICKLES_BEFORE = 3  # in the old format: magic number, version, facts of the machine
_MAPPINGS = ("dict", "collections OrderedDict", "collections defaultdict")
_MODELS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "net", "network", "module")
_MOST = 200_000  # instructions that are looked at


@dataclass
class _Thing:
    """A value that the instructions would make: its kind ("text" has a ``value``), and what a dictionary holds."""

    kind: str
    value: object = None
    items: dict[str, _Thing] = field(default_factory=dict)


def reason(error: Exception) -> str:
    """Why torch did not read a file, without its advice to read it unsafely."""
    text = str(error)
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {wanted[1]}, which is no tensor"
    if operand := re.search(r"Unsupported operand (\d+)", text):
        return f"it is no file of torch.save, or a damaged one: operand {operand[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "weights_only" not in line]
    return lines[0][:200] if lines else type(error).__name__


def how_to_save(data: bytes) -> str:
    """What to run where a file was made, so that its weights can be read here."""
    root = _outline(data)
    items = root.items if root else {}
    key = next((key for key in _MODELS if key in items and _is_model(items[key])), None)
    if key is None:
        return "Where it was made, run: torch.save(model.state_dict(), 'weights.pth')"
    state = f"checkpoint[{key!r}]" + ("" if items[key].kind in _MAPPINGS else ".state_dict()")
    return f"Where it was made, load it as there into checkpoint, and run: torch.save({state}, 'weights.pth')"


def _is_model(thing: _Thing) -> bool:
    """Whether it can be a state dict or a module."""
    return thing.kind in _MAPPINGS or " " in thing.kind


def _outline(data: bytes) -> _Thing | None:
    """The value that a file of torch.save, or a pickle, stands for; None where that cannot be followed."""
    stream = io.BytesIO(data)
    try:
        if zipfile.is_zipfile(stream):
            return _follow(io.BytesIO(_read_pickle_in_archive(stream)))
        stream.seek(0)
        root = _follow(stream)
        for _ in range(_PICKLES_BEFORE if root.value == _TORCH_MAGIC else 0):
            root = _follow(stream)
    except (ValueError, IndexError, KeyError, StopIteration, OSError, zipfile.BadZipFile, AttributeError):
        return None  # damaged, or made by hand
    return root


def _read_pickle_in_archive(stream: io.BytesIO) -> bytes:
    """Raises: ValueError: the pickle is packed, which torch never does: it may unpack to any size."""
    with zipfile.ZipFile(stream) as archive:
        inside = next(each for each in archive.infolist() if each.filename.rpartition("/")[2] == "data.pkl")
        if inside.compress_type != zipfile.ZIP_STORED:
            raise ValueError("packed")
        return archive.read(inside)


def _follow(stream: io.BytesIO) -> _Thing:
    """What stays on the stack at the end of one pickle, by name and kind; nothing is imported, called or made."""
    stack: list[_Thing] = []
    memo: dict[object, _Thing] = {}
    for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _MOST:
            raise ValueError("too many instructions")
        match code.name:
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Thing("mark"))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], iter([key, value]))
            case "SETITEMS":
                things = _pop_to_mark(stack)
                _set_items(stack[-1], iter(things))
            case _:
                _step(stack, code, argument)
    raise ValueError("no end")


def _step(stack: list[_Thing], code: Any, argument: object) -> None:
    """Follow any other instruction: it takes as many values as it does, and makes a thing of a kind."""
    taken: list[_Thing] = []
    for kind in reversed(code.stack_before):
        if kind is pickletools.markobject:
            continue
        taken = _pop_to_mark(stack) if kind is pickletools.stackslice else [stack.pop(), *taken]
    if code.name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD"):
        stack.append(taken[0])
        return
    for result in code.stack_after:
        if code.name == "GLOBAL":
            stack.append(_Thing(f"class {argument}"))
        elif code.name == "STACK_GLOBAL":
            stack.append(_Thing(f"class {taken[0].value} {taken[1].value}"))
        elif code.name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            kind = taken[0].kind if taken[0].kind.startswith("class ") else "class of a module"  # torch's old format
            stack.append(_Thing(kind.removeprefix("class ")))
        elif result is pickletools.pydict:
            stack.append(_Thing("dict"))
        else:
            stack.append(_Thing(result.name, argument))


def _pop_to_mark(stack: list[_Thing]) -> list[_Thing]:
    items: list[_Thing] = []
    while (thing := stack.pop()).kind != "mark":
        items.append(thing)
    return items[::-1]


def _set_items(holder: _Thing, things: Iterator[_Thing]) -> None:
    for key, value in zip(things, things, strict=False):
        if isinstance(key.value, str):
            holder.items[key.value] = value
