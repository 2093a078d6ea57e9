"""The examples in an error message: what a reader would type, read as the command reads it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module

from headstart.cli.main import VERBS
from headstart.config.flags import EVERY, parse_args
from headstart.config.leaves import leaves
from headstart.config.load import load_config
from headstart.errors import Error

_VALUE = r"(?:'[^']*'|\{[^}]*\}|\[[^\]]*\]|[^\s;,()'\"?-][^\s;,()'\"?]*)"
_OPTION = rf"--[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9](?: {_VALUE})*"
_OPTIONS = re.compile(rf"(?<![\w.'-]){_OPTION}(?: {_OPTION})*")
_COMMAND = re.compile(rf"(?<!python -m )\bheadstart ((?!:)[a-z_-]+(?: (?:{_OPTION}|{_VALUE}))*)")
_PROSE = """
and as compiles computes e.g for gives goes has in is it leaves lists may names on or out says starts takes the there to
trains where which with
"""
_NOUNS = ("run", "bundle", "reads", "wrote")  # a headstart run
_SECTIONS = {"train": EVERY, "plan": EVERY, "evaluate": ("data",)}


_WITH_MOMENTUM = ("--optimizer.kind", "sgd")  # what the line in question had chosen


def refused_examples(said: str) -> list[str]:
    """The examples in a message that the command would not take."""
    if not said.startswith("headstart: "):  # the parser's own, about the shape of a line
        return []
    refused = []
    for example in _iterate_commands(said):
        if not _is_command(shlex.split(example)):
            refused.append(f"headstart {example}")
    rest = _COMMAND.sub(" ", said)
    for match in _OPTIONS.finditer(rest):
        if rest[match.end() : match.end() + 1] != ":" and not _is_taken(match[0]):  # "--lrr: unknown option"
            refused.append(match[0])
    return refused


def _iterate_commands(said: str) -> Iterator[str]:
    for match in _COMMAND.finditer(said.removeprefix("headstart: ")):
        if match[1].partition(" ")[0] not in _NOUNS:
            yield match[1].rstrip(".:")


def _is_command(words: list[str]) -> bool:
    verb, rest = words[0], [re.sub(r"^N$", "1", word) for word in words[1:]]
    return verb in VERBS and _parses(verb, rest)


def _is_taken(example: str) -> bool:
    """Whether a verb has these options with these values; what follows a value and is no option is prose."""
    try:
        words = shlex.split(example)
    except ValueError:
        return False
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    pairs = [words[start:end][:2] for start, end in zip(starts, [*starts[1:], len(words)], strict=True)]
    return any(_verb_takes(verb, pairs) for verb in VERBS)


def _verb_takes(verb: str, pairs: list[list[str]]) -> bool:
    alone = [pair for pair in pairs if len(pair) == 1 or pair[1].rstrip(".") in _PROSE.split()]
    needs = {"train": ["photos"], "plan": ["photos"], "evaluate": ["run", "photos"], "predict": ["run", "new"]}
    first = needs.get(verb, ["x"] if verb in ("describe", "report", "finish") else [])
    words = [_fill(word) for pair in pairs for word in pair]
    if _parses(verb, [*first, *words]) or (_SECTIONS.get(verb) and _parses(verb, [*first, *_WITH_MOMENTUM, *words])):
        return True
    if any(pair[0].replace("_", "-") not in _flags(verb) for pair in alone):
        return False
    return _parses(verb, [*first, *(_fill(word) for pair in pairs if pair not in alone for word in pair)])


def _flags(verb: str) -> set[str]:
    own = getattr(import_module(f"headstart.cli.{verb}"), verb.capitalize(), None)
    names = [item.name for item in fields(own)] if own is not None else []
    found = {f"--{name.replace('_', '-')}" for name in names}
    if _SECTIONS.get(verb) == EVERY:
        found |= {leaf.flag for leaf in leaves().values()} | {f"--{path.replace('_', '-')}" for path in leaves()}
    return found


def _fill(word: str) -> str:
    return "1" if word == "N" else word


def _parses(verb: str, words: list[str]) -> bool:
    module = import_module(f"headstart.cli.{verb}")
    kind = getattr(module, verb.capitalize(), None)
    if kind is None:
        return False
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            _, flags = parse_args(kind, words, prog=f"headstart {verb}", sections=_SECTIONS.get(verb, ()))
            load_config(flags=flags)
    except (Error, SystemExit):
        return False
    return True
