"""YAML, flags and Python to one checked ``Config``, and back to YAML."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.config import peft
from headstart.config.home import expand_home
from headstart.config.leaves import FLAT, default_kinds, hints, is_section, leaves, options
from headstart.config.problems import find_place, format_value, sentence, suggest_option
from headstart.config.rules import freeze_rule
from headstart.config.schema import Config
from headstart.config.sizes import format_size, read_size
from headstart.config.yaml import dump_yaml, read_yaml
from headstart.errors import ConfigError
from headstart.wording import option

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Tree = dict[str, Any]
_WORDS_FIRST = ("metric",)  # text, but a word of the list where it is one
_PATHS = ("data.source", "data.images", "model.name", "model.weights", "out")


def load_config(
    source: str | Path | Mapping[str, object] | None = None, *, flags: Mapping[str, object] | None = None
) -> Config:
    """Return the configuration from a YAML file or a mapping, with flags over it and defaults under it.

    Args:
        ``source``: The path of a YAML file, or a mapping of the same shape; None takes the defaults alone.
        ``flags``: Values by dotted names (``optimizer.lr``) or flat ones (``lr``), which win over ``source``.

    Returns:
        A checked, frozen ``hs.Config``.

    Raises:
        ConfigError: Something is wrong; the message lists every problem at once, one per line.

    Example:
        >>> import headstart as hs
        >>> config = hs.load_config({"data": {"source": "photos"}, "epochs": 3}, flags={"lr": 0.001})
        >>> config.epochs, config.optimizer.lr
        (3, 0.001)
    """
    where = ""
    if source is None:
        given: object = {}
    elif isinstance(source, Mapping):
        given = source
    else:
        where = f"{source}: "
        file = expand_home(source)
        given = _at_home(read_yaml(file), file)
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}{format_value(given)} is no configuration; write NAME: VALUE lines, e.g. epochs: 5")
    tree = plain(given)
    spread = _spread(flags or {})
    problems = _merge_flags(tree, spread)
    config, found = _validate(tree)
    problems |= found
    if config is None or problems:
        lines = (text if _from_flags(path, spread) else where + text for path, text in problems.items())
        raise ConfigError("\n".join(dict.fromkeys(lines)))
    return config


def _at_home(given: object, file: Path) -> object:
    """The options of a file; of a run's own ``config.yaml`` with ``out`` where it lies now, should it have moved."""
    if isinstance(given, Mapping) and isinstance(given.get("out"), str) and is_of_run(file):
        moved = os.path.realpath(given["out"]) != os.path.realpath(file.parent)
        return {**given, "out": str(file.parent)} if moved else given
    return given


def is_of_run(file: Path) -> bool:
    """Whether it is the record of a run, in the run's folder."""
    return file.name == "config.yaml" and (file.parent / "plan.json").is_file()


def check(config: Config) -> Config:
    """A configuration built in Python, validated like a file.

    Raises: ConfigError: every problem at once, one per line.
    """
    checked, problems = _validate(_drop_defaults_beside_phases(plain(config)))
    if checked is None or problems:
        raise ConfigError("\n".join(dict.fromkeys(problems.values())))
    return checked


def write_yaml(config: Config) -> str:
    """The configuration with every default filled in; ``load_config`` reads it back as an equal one."""
    tree = _drop_defaults_beside_phases(plain(config))
    for holder in (tree, *tree["phases"]):
        match holder.get("freeze"):
            case {"but": kind}:
                holder["freeze"] = {"except": kind}
    return dump_yaml(tree)


def plain(value: object) -> Any:
    """Config values as dicts, lists and scalars; a freeze rule in its mapping form."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _drop_defaults_beside_phases(tree: Tree) -> Tree:
    """Drop recipe, epochs and freeze at their defaults where phases say it all."""
    if not tree.get("phases"):
        return tree
    unused = {"recipe": "auto", "epochs": Config().epochs, "freeze": "auto"}
    return {name: value for name, value in tree.items() if name not in unused or value != unused[name]}


def _spread(flags: Mapping[str, object]) -> Tree:
    """Flags by dotted path, hyphens as underscores and flat names resolved."""
    names = {name: name.replace("-", "_") for name in flags}
    return {FLAT.get(names[name], names[name]): plain(value) for name, value in flags.items()}


def _from_flags(path: str, spread: Mapping[str, object]) -> bool:
    return any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in spread)


def _merge_flags(tree: Tree, spread: Mapping[str, object]) -> dict[str, str]:
    problems = {}
    for path, value in spread.items():
        section, dot, name = path.partition(".")
        if not dot:
            tree[section] = value
        elif not is_section(hints(Config).get(section)):
            meant = suggest_option(path)
            problems[path] = f"{path}: unknown" + (f"; did you mean {meant}?" if meant else "")
        elif isinstance(tree.setdefault(section, {}), dict):
            tree[section][name] = value
    return problems


def _validate(tree: Tree) -> tuple[Config | None, dict[str, str]]:
    """The configuration (None when there are problems), and one sentence per problem by its path."""
    problems: dict[str, str] = {}
    tree = _clean_value(tree, "", problems)
    for name, kind in default_kinds().items():
        if isinstance(tree.get(name), dict):
            tree[name] = {"kind": kind, **tree[name]}
    _write_as_meant(tree)
    problems |= _freeze_forms(tree) | _size_forms(tree)
    config, found = _build_config(tree)
    for path, text in (found | _contradictions(tree) | peft.contradictions(tree)).items():
        problems.setdefault(path, text)
    return (None if problems else config), problems


def _write_as_meant(tree: Tree) -> None:
    """Put words of a choice in any case (AdamW, BF16, macro-F1) as the schema has them; the home folder for ``~``."""
    for path, leaf in leaves().items():
        section, _, name = path.rpartition(".")
        holder = tree.get(section) if section else tree
        value = holder.get(name) if isinstance(holder, dict) else None
        if path == "trackers" and isinstance(value, list):
            holder[name] = [each.lower() if isinstance(each, str) else each for each in value]  # type: ignore[index]
        if not isinstance(value, str):
            continue
        if path in _PATHS and value.startswith("~"):
            holder[name] = str(expand_home(value))  # type: ignore[index]  # value came from it
        choices = options(leaf.annotation)
        words = {_fold(str(word)): word for choice in choices for word in choice.values}
        is_open = path not in _WORDS_FIRST and any(choice.type is str for choice in choices)
        if not is_open and _fold(value) in words:
            holder[name] = words[_fold(value)]  # type: ignore[index]


def _fold(word: str) -> str:
    """A word of a choice as it is compared: ``Macro F1`` and ``macro-f1`` are ``macro_f1``."""
    return word.lower().replace("-", "_").replace(" ", "_")


def _build_config(tree: Tree) -> tuple[Config | None, dict[str, str]]:
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(json.dumps(tree), strict=True), {}
    except ValidationError as error:
        problems: dict[str, str] = {}
        for found in error.errors(include_url=False, include_context=False):
            place = find_place(tree, found["loc"])
            problems.setdefault(place.path, sentence(place, _at(tree, place.path), error=found["type"]))
        return None, {path: text for path, text in problems.items() if not _has_inner(path, problems)}


def _has_inner(path: str, problems: Mapping[str, str]) -> bool:
    """Whether a problem lies within this path: of a union's branches, the one that fits says more."""
    return any(other.startswith((f"{path}.", f"{path}[")) for other in problems)


@cache
def _adapter() -> TypeAdapter[Config]:
    from pydantic import TypeAdapter  # 0.1 s: not for --help

    return TypeAdapter(Config)


def _clean_value(value: object, path: str, problems: dict[str, str]) -> Any:
    """``value`` with what no option accepts (NaN, infinity, undecodable text, objects) noted and made text."""
    if isinstance(value, dict):
        return {key: _clean_value(item, f"{path}.{key}".removeprefix("."), problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_value(item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        problems[path] = f"{path}: {value} is not a finite number"
    elif isinstance(value, str) and not _is_text(value):
        problems[path] = f"{path}: {value!r} is not Unicode text; rename it"
    elif not isinstance(value, str | int | float | None):
        problems[path] = f"{path}: a {type(value).__name__} is no value; give text, a number, a list or a mapping"
    return ascii(value) if path in problems else value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: a file name or argument that is not UTF-8
        return False
    return True


def _freeze_forms(tree: Tree) -> dict[str, str]:
    """Texts like until:layer3 to their mapping form, in place; what is no rule is a problem and becomes none."""
    phases = tree.get("phases")
    places = [("freeze", tree)] if tree.get("freeze", "auto") != "auto" else []
    places += [(f"phases[{i}].freeze", phase) for i, phase in enumerate(phases if isinstance(phases, list) else [])]
    problems = {}
    for path, holder in places:
        if not isinstance(holder, dict) or "freeze" not in holder:
            continue
        try:
            holder["freeze"] = plain(freeze_rule(holder["freeze"]))
        except ConfigError as error:
            problems[path] = f"{path}: {error}"
            holder["freeze"] = "none"
    return problems


def _size_forms(tree: Tree) -> dict[str, str]:
    """A size's text in one form, in place: 224 as a number, 320x192; what is no size is a problem and becomes auto."""
    model = tree.get("model")
    text = model.get("image_size") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(text, str) or text == "auto":
        return {}
    try:
        size = read_size(text)
    except ConfigError as error:
        model["image_size"] = "auto"
        return {"model.image_size": str(error)}
    if size is None:
        model["image_size"] = "auto"
    else:
        model["image_size"] = size[0] if size[0] == size[1] else format_size(size)
    return {}


def _contradictions(tree: Tree) -> dict[str, str]:
    if tree.get("phases"):
        clash = "and phases exclude each other; say it in the phases, or leave them out"
        given = (name for name in ("recipe", "epochs", "freeze") if name in tree)
        return {name: f"{name}: {format_value(tree[name])} {clash}" for name in given}
    if tree.get("recipe") == "probe" and tree.get("freeze", "auto") != "auto":
        return {
            "freeze": "freeze: recipe probe trains the head alone; leave freeze out, or use "
            f"{option('recipe', 'lp_ft')}"
        }
    return {}


def _at(tree: object, path: str) -> object:
    for part in path.replace("[", ".[").split("."):
        if part.startswith("[") and isinstance(tree, list):
            tree = tree[int(part[1:-1])]
        elif isinstance(tree, dict):
            tree = tree.get(part)
    return tree
