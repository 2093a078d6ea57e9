"""Words of other tools on the command line: what is plain is read, the rest answered in a sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from functools import cache

from headstart.config.leaves import FLAT, leaves
from headstart.config.synonyms import MAIN_FIELDS, OTHER_VERBS, PREDICT_ADVICE, SYNONYMS, list_advice
from headstart.errors import ConfigError

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)")  # as Ultralytics and Hydra have it: epochs=3
_VAGUE = ("kind", "name", "use", "at", "keep", "size", "source")  # what says too little without its section


def with_main_fields(argv: Sequence[str]) -> list[str]:
    """The words with ``--optimizer sgd`` as ``--optimizer.kind sgd``: a section alone means its kind or preset."""
    words = []
    for word in argv:
        flag, sign, value = word.partition("=")
        main = MAIN_FIELDS.get(flag[2:].lower()) if flag.startswith("--") else None
        words.append(f"{flag.lower()}.{main}{sign}{value}" if main else word)
    return words


def refuse_foreign(argv: Sequence[str], *, own: Collection[str], prog: str, all_options: bool) -> None:
    """Raises: ConfigError: options by names that other tools have, with ours, one per line.

    ``own``: the verb's own options; ``all_options``: it has those of the schema, too.
    """
    found = []
    for place, word in enumerate(argv):
        flag = word.partition("=")[0].replace("_", "-")
        if not word.startswith("--"):
            is_value = place and argv[place - 1].startswith("--") and "=" not in argv[place - 1]
            match = None if is_value or os.path.lexists(word) else _ASSIGNMENT.fullmatch(word)
            if all_options and match:
                found.append(_explain_assignment(match[1], match[2], prog))
            continue
        name = flag[2:].replace("-", "_")
        if name in own or (all_options and flag in _all_flags()):
            continue
        answer = _answer(name.lower(), own=own, all_options=all_options)
        if answer:
            found.append(f"{flag}: unknown option; {answer}")
    if found:
        raise ConfigError("\n".join(found))


def _answer(name: str, *, own: Collection[str], all_options: bool) -> str:
    """What to type instead; empty where nothing is known, and the parser looks for near names."""
    if name in own:
        return f"did you mean --{name.replace('_', '-')}?"
    other = OTHER_VERBS.get(name)
    if other is not None and other in own:
        return f"did you mean --{other.replace('_', '-')}?"
    if {"format", "top"} <= set(own) and name in PREDICT_ADVICE:
        return PREDICT_ADVICE[name].format(name=name)
    if not all_options:
        return ""
    flag = f"--{name.replace('_', '-')}"
    if flag in _all_flags():
        return f"did you mean {flag}?"
    tail = name.rpartition(".")[2]
    path = SYNONYMS.get(tail) or _by_last_part().get(tail)
    if path:
        return f"did you mean {leaves()[path].flag}?"
    return list_advice().get(tail, "")


def _explain_assignment(name: str, value: str, prog: str) -> str:
    """The sentence for ``epochs=3``."""
    plain = name.lower().replace("-", "_")
    if plain in ("data", "source", "dataset"):
        return f"{name}={value}: write the data without a name: {prog} {value or 'photos'}"
    path = plain if plain in leaves() else FLAT.get(plain) or SYNONYMS.get(plain) or _by_last_part().get(plain)
    flag = leaves()[path].flag if path else f"--{plain.replace('_', '-')}"
    return f"{name}={value}: options begin with two hyphens; write {flag} {value}".rstrip()


@cache
def _all_flags() -> frozenset[str]:
    """Every flag of the schema, flat and in full."""
    return frozenset(
        ["--help", *(leaf.flag for leaf in leaves().values()), *(f"--{path.replace('_', '-')}" for path in leaves())]
    )


@cache
def _by_last_part() -> dict[str, str]:
    """The one option that ends with a name, for those of one section only: mixup, momentum, patience."""
    ends: dict[str, list[str]] = {}
    for path in leaves():
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    return {name: paths[0] for name, paths in ends.items() if len(paths) == 1 and name not in _VAGUE}
