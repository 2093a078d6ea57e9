"""What is wrong with a configuration, as sentences: where, what was found, what is accepted, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from headstart.config.leaves import Leaf, Option, hints, leaves, members, options
from headstart.config.rules import ACCEPTED as FREEZE_RULES
from headstart.config.schema import Config, Names
from headstart.config.sizes import Form
from headstart.config.synonyms import SYNONYMS, list_advice
from headstart.wording import Value, option

EXAMPLES: dict[str, Value] = {
    "epochs": 5,
    "optimizer.lr": 1e-4,
    "optimizer.head_lr": 1e-3,
    "optimizer.layer_decay": 0.75,
    "optimizer.name": "lamb",
    "model.image_size": 224,
    "model.options": {"drop_path_rate": 0.1},
    "loss.class_weights": "balanced",
    "batch.size": 64,
    "batch.clip_norm": 1.0,
    "batch.clip_value": 0.5,
    "workers": 4,
}
_NOUNS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a mapping",
    type(None): "null",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a problem in the tree: its path, and what the schema expects there (None: no such option)."""

    path: str
    annotation: Any
    section: Any = None
    kind: str = ""


def find_place(tree: Mapping[str, Any], location: Sequence[int | str]) -> Place:
    """The place of a pydantic error: its location, without pydantic's labels of unions and tags."""
    annotation: Any = Config
    value: Any = tree
    place = Place(path="", annotation=Config)
    rest = list(location)
    while rest:
        classes = members(annotation)
        if classes:
            place = Place(path=place.path, annotation=annotation, kind=str(rest[0]))
            annotation = classes[str(rest.pop(0))]
        elif (cls := _dataclass_in(annotation, value)) is not None:
            if annotation is not cls:
                rest.pop(0)  # the label of the union's branch
            if not rest:
                break
            name = str(rest.pop(0))
            path = f"{place.path}.{name}".removeprefix(".")
            annotation = hints(cls).get(name)
            value = value.get(name) if isinstance(value, Mapping) else None
            place = Place(path=path, annotation=annotation, section=cls, kind=place.kind)
        elif get_origin(annotation) is tuple and is_dataclass(get_args(annotation)[0]) and isinstance(value, list):
            index = int(rest.pop(0))
            annotation, value = get_args(annotation)[0], value[index]
            place = Place(path=f"{place.path}[{index}]", annotation=annotation)
        else:
            break
    return place


def sentence(place: Place, value: object, *, error: str) -> str:
    """One problem in one line; ``error`` is pydantic's type of it."""
    if place.annotation is None:
        return unknown(place)
    if error == "missing":
        return f"{place.path}: missing; give {describe_accepted(place.annotation)}{_example(place.path)}"
    if error.startswith("union_tag"):
        return wrong_kind(place, value)
    if is_dataclass(place.annotation) or members(place.annotation):
        return _no_section(place, value)
    return f"{place.path}: {_fault(place.annotation, value)}{_example(place.path)}"


def _no_section(place: Place, value: object) -> str:
    known = fields_of(place.annotation)
    main = next((name for name in ("kind", "name", "source", "size", "preset") if name in known), "NAME")
    example = f"{{{main}: {value if isinstance(value, str | int | float) and main != 'NAME' else 'VALUE'}}}"
    accepted = f"accepted: {', '.join(known)}"
    return f"{place.path}: {format_value(value)} is no section; write {place.path}: {example} ({accepted})"


def wrong_kind(place: Place, value: object) -> str:
    """The sentence for a ``kind`` that does not exist."""
    kind = value.get("kind") if isinstance(value, Mapping) else value
    kinds = list(members(place.annotation))
    near = _near(kind, kinds)
    timms = (
        f"; timm's others: {option('optimizer.kind', 'timm')} {option('optimizer.name', 'lamb')} {option('lr', 1e-3)}"
    )
    more = timms if place.path == "optimizer" and not near else ""
    return f"{place.path}.kind: {format_value(kind)} is unknown{near} (accepted: {', '.join(kinds)}{more})"


def unknown(place: Place) -> str:
    """The sentence for a name that the schema has nowhere, or only for other kinds of its section."""
    section, _, name = place.path.rpartition(".")
    leaf = leaves().get(place.path)
    if leaf is not None and leaf.kinds:
        kinds = leaf.kinds
        how = option(f"{section}.kind", kinds[0])
        return f"{place.path}: {place.kind} has no {name}; it belongs to {_and(kinds)} ({how})"
    known = fields_of(place.section)
    advice = list_advice().get(name.lower())
    if advice and name.lower() not in SYNONYMS:
        return f"{place.path}: unknown; {advice} (accepted: {', '.join(known)})"
    meant = suggest_option(name, siblings=known)
    ask = f"; did you mean {meant}?" if meant else ";"
    return f"{place.path}: unknown{ask} (accepted: {', '.join(known)})".replace(";;", ";").replace("; (", " (")


def suggest_option(name: str, *, siblings: Sequence[str] = ()) -> str | None:
    """The option that was probably meant: a synonym, the same name in another section, or a near name."""
    name = name.replace("-", "_").lower()
    tail = name.rpartition(".")[2]
    synonym = SYNONYMS.get(tail)
    if synonym:
        return synonym
    near = difflib.get_close_matches(tail, siblings, n=1, cutoff=0.7)
    if near:
        return near[0]
    every = {path.rpartition(".")[2]: path for path in reversed(leaves()) if not path.endswith((".kind", ".name"))}
    found = difflib.get_close_matches(tail, every, n=1, cutoff=0.75)
    return every[found[0]] if found else None


def fields_of(annotation: Any) -> list[str]:
    """Names that may stand in a section."""
    cls = annotation if is_dataclass(annotation) else None
    classes = [cls] if cls else list(members(annotation).values())
    return list(dict.fromkeys(item.name for c in classes for item in fields(c)))


def describe_accepted(annotation: object) -> str:
    """What an option takes, in words: ``auto or a number above 0``."""
    return _or(_words(choice) for choice in options(annotation))


def bounds(choice: Option) -> str:
    """The range of a number in words, e.g. ``at least 1``; empty when it has none."""
    low = next((b for b in choice.bounds if isinstance(b, Ge | Gt)), None)
    high = next((b for b in choice.bounds if isinstance(b, Le | Lt)), None)
    texts = []
    if isinstance(low, Gt):
        texts.append(f"above {low.gt}")
    elif isinstance(low, Ge):
        texts.append(f"at least {low.ge}")
    if isinstance(high, Le):
        texts.append(f"at most {high.le}")
    elif isinstance(high, Lt) and high.lt != float("inf"):
        texts.append(f"below {high.lt}")
    return " and ".join(texts)


def format_value(value: object) -> str:
    """A value as YAML would show it, cut to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dataclass_in(annotation: object, value: object) -> Any:
    """The dataclass that ``value`` was validated as: the annotation itself, or a union's branch for a mapping."""
    if is_dataclass(annotation):
        return annotation
    found = [choice.type for choice in options(annotation) if is_dataclass(choice.type)]
    return found[0] if found and isinstance(value, Mapping) else None


def _words(choice: Option) -> str:
    if choice.values:
        return _or(str(v) for v in choice.values)
    if is_dataclass(choice.type):
        return FREEZE_RULES if choice.type is Names else f"a mapping ({', '.join(fields_of(choice.type))})"
    form = next((bound.text for bound in choice.bounds if isinstance(bound, Form)), None)
    noun = form or _NOUNS.get(choice.type)
    if noun is None:
        origin = get_origin(choice.type)
        first, last = get_args(choice.type)[0], get_args(choice.type)[-1]
        if origin is dict:
            return "a mapping" if last is Any else f"a mapping of names to {describe_accepted(last)}"
        return (
            f"a list, each {describe_accepted(first)}"
            if last is Ellipsis
            else f"two values, each {describe_accepted(first)}"
        )
    return f"{noun} {bounds(choice)}".replace("number at least", "number of at least").strip()


def _fault(annotation: object, value: object) -> str:
    """What is wrong with a value, and what to give instead."""
    choices = options(annotation)
    number = next((o for o in choices if o.type in (int, float)), None)
    give = describe_accepted(annotation)
    if number and isinstance(value, int | float) and not isinstance(value, bool):
        if number.type is int and isinstance(value, float):
            return f"{format_value(value)} is not a whole number; give {give}"
        only = bounds(number) if len(choices) == 1 else ""
        return f"{format_value(value)} is {_out_of(number, value)}; give {only or give}"
    words = [str(v) for o in choices for v in o.values]
    if isinstance(value, str) and number and not _near(value, words):
        return f"{format_value(value)} is not a number; give {give}"
    if isinstance(value, str) and words and not any(o.type is str for o in choices):
        near = _near(value, words)
        return (
            f"{format_value(value)} is unknown{near} (accepted: {give})"
            if near
            else f"{format_value(value)} is unknown; give {give}"
        )
    if isinstance(value, bool | int | float) and any(o.type is str for o in choices):
        return f"{format_value(value)} is not text; quote it: '{format_value(value)}'"
    return f"{format_value(value)} is not accepted; give {give}"


def _out_of(number: Option, value: float) -> str:
    limits = [b.gt for b in number.bounds if isinstance(b, Gt)] + [b.ge for b in number.bounds if isinstance(b, Ge)]
    low: Any = limits[0] if limits else float("-inf")
    if value <= low or value < low:
        if low in (0, 1) and value <= 0:
            return (
                "negative"
                if value < 0 and low == 0 and not any(isinstance(b, Gt) for b in number.bounds)
                else "not positive"
            )
        return "too small"
    return "too large"


def _near(value: object, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _example(path: str) -> str:
    leaf: Leaf | None = leaves().get(path)
    if leaf is None:
        return ""
    default = next(iter(leaf.defaults.values()), None)
    value = EXAMPLES.get(path)
    if value is None and isinstance(default, str | int | float) and not isinstance(default, bool):
        value = default
    return f", e.g. {option(leaf.name, value)}" if value not in (None, "", "auto") else ""


def _and(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _or(items: Iterable[str]) -> str:
    parts = list(dict.fromkeys(items))
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
