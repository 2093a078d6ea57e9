"""Options in messages: ``--data.group prefix`` for who types commands, ``data.group="prefix"`` for who writes Python.

Messages are written with flags, and said as the caller speaks: a command of headstart sets flags for its time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WITH_FLAGS: ContextVar[bool] = ContextVar("headstart_flags", default=False)
_VERBS = "train|plan|finish|evaluate|predict|describe|models|report|cache|demo"
_COMMAND = rf"`[^`]*`|\bheadstart (?:{_VERBS})\b[^;)\n]*"  # to be typed into a shell as it is
_NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
_PAIR = rf"(?:{_NUMBER} {_NUMBER}(?![\w%])|LOW HIGH)"  # of a range
_FLAG = r"(?<![\w-])--(?P<name>[a-z][a-z0-9_.-]*[a-z0-9])(?: (?P<value>'[^']*'|\{[^}]*\}|" + _PAIR + r"|[^\s;)]+))?"
_PATTERN = re.compile(f"(?P<command>{_COMMAND})|{_FLAG}")
_SWITCHES = ("resume", "allow_inexact", "include_trained")
_OTHERS = ("shm_size", "nproc_per_node", "index_url")  # options of other programs
_NO_VALUES = frozenset(
    [
        "again",
        "alone",
        "and",
        "another",
        "answers",
        "are",
        "as",
        "at",
        "beside",
        "by",
        "does",
        "for",
        "from",
        "give",
        "goes",
        "has",
        "in",
        "instead",
        "is",
        "it",
        "leaves",
        "makes",
        "names",
        "on",
        "one",
        "or",
        "out",
        "says",
        "so",
        "takes",
        "that",
        "the",
        "to",
        "trains",
        "where",
        "which",
        "with",
        "you",
    ]
)


@contextmanager
def speaking_flags() -> Iterator[None]:
    """Within, messages name options as they are typed on the command line."""
    token = _WITH_FLAGS.set(True)
    try:
        yield
    finally:
        _WITH_FLAGS.reset(token)


def say(text: str) -> str:
    """A message as the caller speaks: as it is within a command, with arguments in Python.

    ``NAME="value"`` stands for ``{"NAME": "value"}`` in ``hs.load_config(..., flags=...)``, and for the argument of
    this name where a function has one. Whole commands of headstart stay as they are.
    """
    return text if _WITH_FLAGS.get() else _PATTERN.sub(_write_argument, text)


def _write_argument(match: re.Match[str]) -> str:
    if match["command"] is not None:
        return match["command"]
    name, value = match["name"].replace("-", "_"), match["value"]
    if name in _OTHERS:
        return match[0]
    rest = f" {value}" if value is not None else ""
    if name in _SWITCHES:
        return f"{name}=True{rest}"
    plain = (value or "").rstrip(",.:")
    if not plain or plain in _NO_VALUES or plain.startswith("("):
        return f"{name}{rest}"
    after = (value or "")[len(plain) :]
    return f"{name}={_write_value(plain)}{after}"


def _write_value(word: str) -> str:
    """A value as Python writes it: numbers, true and false, mappings; placeholders (FILE, N) as they are; else text."""
    if word in ("true", "false"):
        return word.capitalize()
    if re.fullmatch(_PAIR, word):
        return f"({word.replace(' ', ', ')})"
    if re.fullmatch(_NUMBER, word) or word.isupper():
        return word
    bare = word[1:-1] if word[0] == word[-1] == "'" else word
    return f'"{bare}"'
