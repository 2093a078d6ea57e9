"""Options in messages: ``--batch-size 8`` for who types commands, ``batch_size=8`` for who writes Python.

A message names an option by ``option`` or ``switch``, which write it as the caller of this process would type it. A
whole command (``headstart train photos --resume``) and options of other programs are text like any other.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Style = Literal["flags", "arguments"]
Value = str | Path | bool | int | float | Mapping[str, object]

_style: Style = "arguments"  # of the process, not of a thread: threads and loading processes write messages too


@contextmanager
def write_options_as(style: Style) -> Iterator[None]:
    """Within, messages name options in this style: a command of headstart says ``flags`` for its time."""
    global _style
    before, _style = _style, style
    try:
        yield
    finally:
        _style = before


def option(name: str, *values: Value, fill: str = "") -> str:
    """An option in a message, as the caller types it: with its value, several values, or none.

    In Python ``NAME=value`` stands for ``{"NAME": value}`` in ``hs.load_config(..., flags=...)``, and for the argument
    of this name where a function has one.

    Args:
        ``name``: The name as it is typed in Python: ``batch_size``, ``data.range``.
        ``values``: What to give.
        ``fill``: Words that stand for what the reader has to fill in, instead of values: ``"LOW HIGH"``.
    """
    if _style == "flags":
        return " ".join([_flag(name), *map(_type_value, values), *fill.split()])
    words = [*map(_write_value, values), *fill.split()]
    if len(words) > 1:
        return f"{name}=({', '.join(words)})"
    return "=".join([name, *words])


def switch(name: str) -> str:
    """An option that is off unless it is typed, in a message: ``--resume``, or ``resume=True``."""
    return _flag(name) if _style == "flags" else f"{name}=True"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _type_value(value: Value) -> str:
    """A value as a shell takes it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return _format_number(value)
        case Mapping():
            return shlex.quote("{" + ", ".join(f"{name}: {json.dumps(each)}" for name, each in value.items()) + "}")
    return shlex.quote(str(value))


def _write_value(value: Value) -> str:
    """A value as Python takes it."""
    match value:
        case bool():
            return str(value)
        case int() | float():
            return _format_number(value)
        case Mapping():
            return "{" + ", ".join(f'"{name}": {each!r}' for name, each in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False)


def _format_number(value: float) -> str:
    """The shorter of 0.0001 and 1e-4."""
    plain = f"{value:.12g}"
    digits, _, exponent = f"{value:.6e}".partition("e")
    short = f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return short if abs(value) < 1 and float(short) == value and len(short) < len(plain) else plain
