"""Strict YAML: 1.2 scalars, and no tags, anchors, aliases or duplicate keys; every refusal names file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from yaml import events

from headstart.errors import ConfigError
from headstart.wording import option

MAX_BYTES = 2**20
MAX_DEPTH = 32
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def read_yaml(path: Path) -> object:
    """The value in a YAML file.  Raises: ConfigError: it cannot be read or is not strict YAML."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{path}: it is a pipe or a device, not a file; write it into a file first")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file to {option('config')}"
        ) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB; a configuration is a few lines of YAML")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> object:
    """The value of a YAML text; ``where`` (a file, a flag) begins every message.  Raises: ConfigError."""
    stream = _check_events(text, where)
    try:
        first = next(stream, None)
        value = None if first is None else _build(first, stream, where)
        for _ in stream:  # refuses what follows the document
            pass
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = f"{error.context or ''} {error.problem or ''}".strip()
        raise ConfigError(f"{where}:{mark.line + 1 if mark else 1}: not YAML: {found}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where}:{line}: not YAML: {error.reason}") from error


def dump_yaml(value: object) -> str:
    """YAML that ``parse_yaml`` reads back as the same value, types included."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def scalar(text: str, *, where: str) -> object:
    """What a plain (unquoted) scalar means: null, a boolean, a number, or itself; ``012`` is text."""
    if text in _WORDS:
        return _WORDS[text]
    if _HEX_OR_OCTAL.fullmatch(text):
        return int(text, 0)
    if _INT.fullmatch(text):
        if len(text) > 4000:  # int() itself refuses beyond 4300 digits
            raise ConfigError(f"{where}: a number of {len(text)} digits; quote it if it is a name")
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _check_events(text: str, where: str) -> Iterator[events.Event]:
    """The parser's events of one document, refusals raised before anything deeper is read."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        here = f"{where}:{_line(event)}"
        documents += isinstance(event, events.DocumentStartEvent)
        depth += isinstance(event, events.CollectionStartEvent) - isinstance(event, events.CollectionEndEvent)
        if isinstance(event, events.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{here}: anchors and aliases (&, *) are not accepted; write the value out, or quote it")
        if tag := getattr(event, "tag", None):
            raise ConfigError(f"{here}: the tag {tag!r} is not accepted; write a plain value, or quote it")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{here}: nested deeper than {MAX_DEPTH} levels")
        if documents > 1:
            raise ConfigError(f"{here}: a second document (---); give one")
        if isinstance(event, events.NodeEvent | events.CollectionEndEvent):
            yield event


def _build(event: events.Event, stream: Iterator[events.Event], where: str) -> object:
    if isinstance(event, events.MappingStartEvent):
        return _build_mapping(stream, where)
    if isinstance(event, events.SequenceStartEvent):
        items = []
        while not isinstance(event := next(stream), events.SequenceEndEvent):
            items.append(_build(event, stream, where))
        return items
    assert isinstance(event, events.ScalarEvent), event
    return scalar(event.value, where=f"{where}:{_line(event)}") if event.implicit[0] else event.value


def _build_mapping(stream: Iterator[events.Event], where: str) -> dict[str, object]:
    found: dict[str, object] = {}
    while not isinstance(event := next(stream), events.MappingEndEvent):
        if not isinstance(event, events.ScalarEvent):
            raise ConfigError(f"{where}:{_line(event)}: a list or mapping as a key; a key is a name")
        key = event.value  # as written: a class called no, 012 or 1e-3 keeps its name
        if key in found:
            raise ConfigError(f"{where}:{_line(event)}: {key} is given twice; keep one of the two")
        found[key] = _build(next(stream), stream, where)
    return found


def _line(event: events.Event) -> int:
    assert event.start_mark is not None, event
    return event.start_mark.line + 1


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would read as a number or YAML 1.1 as anything but text; never writes an alias."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Equal values are written out, not referred to."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text, quoted where a plain scalar would mean something else."""
        if not data.isprintable():  # line ends of any kind are folded in the other styles, U+0085 to a space
            return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')
        plain = not _INT.fullmatch(data) and isinstance(scalar(data, where=""), str)
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else "'")


_Dumper.add_representer(str, _Dumper.represent_str)
