"""Flags from the schema: every leaf as ``--section.field``, flat ones for what people type most; tyro parses them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

import tyro

from headstart.config.foreign_words import refuse_foreign, with_main_fields
from headstart.config.leaves import FLAT, Leaf, Option, default_kinds, hints, leaves, members, options
from headstart.config.problems import bounds
from headstart.config.schema import But, Config, Names, Stages, Until
from headstart.config.yaml import dump_yaml, parse_yaml, scalar

EVERY = ("", *hints(Config))  # sections to have flags for; "": the options outside sections
_NOT_FLAGS = ("data.source",)  # the positional DATA
_RULES: dict[Any, str] = {Until: "until:NAME", Stages: "stages:N", Names: "names:GLOB,...", But: "except:KIND"}
_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false", dict: "YAML"}


def parse_args(
    verb: type, argv: Sequence[str], *, prog: str, sections: tuple[str, ...] = ()
) -> tuple[Any, dict[str, object]]:
    """A verb's own arguments (an instance of the dataclass ``verb``), and the config flags given, by dotted path.

    ``sections``: those of the schema that the verb has flags for.

    Raises: ConfigError: a flag's value cannot be read.  SystemExit: --help (0), unknown or missing arguments (2).
    """
    if sections == EVERY:
        argv = with_main_fields(argv)
    own = [item.name for item in fields(verb) if "Positional" not in str(item.type)]
    refuse_foreign(argv, own=own, prog=prog, all_options=sections == EVERY)
    args: Any = tyro.cli(
        _arguments(verb, sections),
        args=_with_true(argv) if sections else argv,
        prog=prog,
        description=verb.__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return verb(**{item.name: getattr(args, item.name) for item in fields(verb)}), _select_given(args)


def value_of(text: str | Sequence[str], leaf: Leaf) -> object:
    """What a flag's text means for this option: text stays text, numbers become numbers, ``[a, b]`` a list.

    Raises: ConfigError: it is not YAML.
    """
    choices = options(leaf.annotation)
    if isinstance(text, str):
        return _single(text, choices, leaf.flag)
    if len(text) == 1:
        return _single(text[0], choices, leaf.flag)
    item = next(get_args(o.type)[0] for o in choices if get_origin(o.type) is tuple)
    return [_single(part, options(item), leaf.flag) for part in text]


def _single(text: str, choices: Sequence[Option], flag: str) -> object:
    kinds = [get_origin(o.type) or o.type for o in choices]
    if text.startswith(("{", "[")) and any(k in (dict, tuple) or is_dataclass(k) for k in kinds):
        return parse_yaml(text, where=flag)
    if str in kinds or any(is_dataclass(k) for k in kinds):
        return None if text == "null" and type(None) in kinds else text
    if tuple in kinds and not any(text in o.values for o in choices):
        item = get_args(choices[kinds.index(tuple)].type)[0]
        return [_single(text, options(item), flag)]
    return scalar(text, where=flag)


@cache
def _arguments(verb: type, sections: tuple[str, ...]) -> type:
    """A dataclass for tyro: the verb's own arguments, the flat flags, then one group per section of the schema."""
    shown = {path: leaf for path, leaf in leaves().items() if _section(path) in sections and path not in _NOT_FLAGS}
    flat = [(f"flat_{name}", *_argument(shown[path], name)) for name, path in FLAT.items() if path in shown]
    rest = {path: leaf for path, leaf in shown.items() if path not in FLAT.values()}
    top = [(path, *_argument(leaf, path)) for path, leaf in rest.items() if not _section(path)]
    groups = []
    for section, hint in hints(Config).items():
        inside = [(path.partition(".")[2], leaf) for path, leaf in rest.items() if _section(path) == section]
        if inside:
            group = make_dataclass(section, [(name, *_argument(leaf, name)) for name, leaf in inside], kw_only=True)
            group.__doc__ = _title(hint)
            named = Annotated[group, tyro.conf.arg(name=section)]  # type: ignore[valid-type]
            groups.append((f"section_{section}", named, field(default_factory=group)))
    return make_dataclass("Arguments", [*flat, *top, *groups], bases=(verb,), kw_only=True, frozen=True)


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def _argument(leaf: Leaf, name: str) -> tuple[Any, Any]:
    """tyro's annotation and default of one option: text, or several texts, or None when it is not given."""
    choices = options(leaf.annotation)
    several = any(get_origin(o.type) is tuple and not is_dataclass(get_args(o.type)[0]) for o in choices)
    kind: Any = tuple[str, ...] | None if several else str | None
    flat = FLAT.get(name) == leaf.path and name != leaf.path
    arg = tyro.conf.arg(
        name=name,
        help=leaf.help.replace("``", ""),
        metavar=_metavar(choices),
        help_behavior_hint=_hint(leaf, choices),
        aliases=(f"--{leaf.path.replace('_', '-')}",) if flat else None,
    )
    return Annotated[kind, arg], field(default=None)


def _hint(leaf: Leaf, choices: Sequence[Option]) -> str:
    """Which kinds have the option, its range, and its default (of each kind, where they differ)."""
    section, _, name = leaf.path.rpartition(".")
    texts = {kind: _plain_text(value) for kind, value in leaf.defaults.items() if value is not MISSING}
    default = texts.get(default_kinds().get(section, ""), next(iter(texts.values()), ""))
    others = [f"{kind} {text}" for kind, text in texts.items() if text != default and name != "kind"]
    parts = [" and ".join(leaf.kinds) + " only"] if leaf.kinds else []
    parts += [text for option in choices if option.type in (int, float) and (text := bounds(option))]
    if default != "null":
        parts.append(f"default: {default}" if texts else "required")
    elif "default:" not in leaf.help:
        parts.append("not set by default")
    return f"({'; '.join([*parts, *others])})" if parts else ""


def _plain_text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return dump_yaml(value).removesuffix("\n").removesuffix("\n...")


def _metavar(choices: Sequence[Option]) -> str:
    words = [str(value) for o in choices for value in o.values]
    for option in choices:
        origin = get_origin(option.type)
        if origin is tuple:
            item = get_args(option.type)[0]
            words.append("YAML" if is_dataclass(item) else f"{_metavar(options(item))} ...")
        elif is_dataclass(option.type):
            words.append(_RULES.get(option.type, "YAML"))
        elif option.type in _METAVARS or origin is dict:
            words.append(_METAVARS[origin or option.type])
    return "|".join(dict.fromkeys(words))


def _title(hint: Any) -> str:
    """A section's first docstring line; for a choice of kinds, one line of all."""
    classes = members(hint)
    if not classes:
        return str(hint.__doc__)
    return "; ".join(f"{kind}: {str(cls.__doc__).rstrip('.').replace('``', '')}" for kind, cls in classes.items()) + "."


def _select_given(args: Any) -> dict[str, object]:
    """The config flags that were given, by dotted path, in the schema's order."""
    found = {}
    flat = {path: name for name, path in FLAT.items()}
    for path, leaf in leaves().items():
        section, _, name = path.rpartition(".")
        holder = getattr(args, f"section_{section}", None) if section and path not in flat else args
        text = getattr(holder, f"flat_{flat[path]}" if path in flat else name, None)
        if text is not None and path not in _NOT_FLAGS:
            found[path] = value_of(text, leaf)
    return found


def _with_true(argv: Sequence[str]) -> list[str]:
    """``--data.log`` alone means ``--data.log true``."""
    switches = {leaf.flag for leaf in leaves().values() if any(o.type is bool for o in options(leaf.annotation))}
    completed = []
    for index, word in enumerate(argv):
        completed.append(word)
        after = argv[index + 1] if index + 1 < len(argv) else "-"
        if word.replace("_", "-") in switches and (after.startswith("-") or os.path.lexists(after)):
            completed.append("true")
    return completed
