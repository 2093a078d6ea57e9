"""The schema as a flat list of options: what flags, messages and documentation are made from."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from headstart.config import lora, optimizers, schema

FLAT = {  # what people type most, without its section
    "model": "model.name",
    "weights": "model.weights",
    "recipe": "recipe",
    "epochs": "epochs",
    "lr": "optimizer.lr",
    "batch_size": "batch.size",
    "weight_decay": "optimizer.weight_decay",
    "freeze": "freeze",
    "precision": "precision",
    "memory_format": "memory_format",
    "image_size": "model.image_size",
    "workers": "workers",
    "val": "data.val",
    "seed": "seed",
    "out": "out",
}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One option; ``kinds``: those of its section's kinds that have it (empty: all); ``defaults``: by kind."""

    path: str
    annotation: Any
    defaults: Mapping[str, object]
    help: str
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The option as people type it, without its section where that is left out: ``lr``, ``data.val``."""
        return next((name for name, path in FLAT.items() if path == self.path), self.path)

    @property
    def flag(self) -> str:
        """The option as it is typed on the command line, e.g. ``--lr``."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One alternative of an annotation: a type with its bounds, or the values of a Literal."""

    type: Any
    bounds: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()


def options(annotation: object) -> tuple[Option, ...]:
    """The alternatives of a union, bounds and literal values included."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *bounds = get_args(annotation)
        return tuple(Option(type=o.type, bounds=(*bounds, *o.bounds), values=o.values) for o in options(inner))
    if origin in (Union, types.UnionType):
        return tuple(option for part in get_args(annotation) for option in options(part))
    if origin is Literal:
        return (Option(type=Literal, values=get_args(annotation)),)
    return (Option(type=annotation),)


@cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a schema class, by field name."""
    return get_type_hints(cls, include_extras=True)


def members(annotation: object) -> dict[str, type]:
    """The classes of a tagged union by their kind; empty for anything else."""
    if get_origin(annotation) is not Annotated or not any(
        getattr(m, "discriminator", None) for m in get_args(annotation)[1:]
    ):
        return {}
    return {options(hints(cls)["kind"])[0].values[0]: cls for cls in get_args(get_args(annotation)[0])}


def is_section(annotation: object) -> bool:
    """Whether fields stand below it: a dataclass or a tagged union of them."""
    return is_dataclass(annotation) or bool(members(annotation))


def default_of(item: Field[Any]) -> object:
    """A field's default, or MISSING."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


@cache
def default_kinds() -> dict[str, str]:
    """Kind that a section without ``kind`` has, for every tagged union."""
    default = schema.Config()
    return {name: getattr(default, name).kind for name, hint in hints(schema.Config).items() if members(hint)}


@cache
def leaves() -> dict[str, Leaf]:
    """Every option by its dotted path, in the order of the schema."""
    found: dict[str, Leaf] = {}
    for name, hint in hints(schema.Config).items():
        classes = members(hint)
        if classes:
            _add_union(found, name, classes)
        elif is_dataclass(hint):
            for part in fields(hint):
                path = f"{name}.{part.name}"
                found[path] = _leaf(path, [("", hint)])  # type: ignore[list-item]
        else:
            found[name] = _leaf(name, [("", schema.Config)])
    return found


def _add_union(found: dict[str, Leaf], name: str, classes: Mapping[str, type]) -> None:
    for cls in classes.values():
        for part in fields(cls):
            path = f"{name}.{part.name}"
            having = [(kind, c) for kind, c in classes.items() if part.name in hints(c)]
            if path not in found:
                found[path] = _leaf(path, having, of=classes)


def _leaf(path: str, having: list[tuple[str, type]], of: Mapping[str, type] | None = None) -> Leaf:
    field_name = path.rpartition(".")[2]
    defaults = {kind: default_of(f) for kind, cls in having for f in fields(cls) if f.name == field_name}
    annotation = hints(having[0][1])[field_name]
    if of and field_name == "kind":
        annotation = Literal[tuple(of)]
    text = next((t for _, cls in having if (t := _docs().get((cls.__name__, field_name)))), "")
    kinds = tuple(kind for kind, _ in having) if of and len(having) < len(of) else ()
    return Leaf(path=path, annotation=annotation, defaults=defaults, help=text, kinds=kinds)


@cache
def _docs() -> dict[tuple[str, str], str]:
    """The docstring under each field of the schema, by (class, field)."""
    found = {}
    for cls in chain.from_iterable(ast.parse(inspect.getsource(file)).body for file in (schema, optimizers, lora)):
        if not isinstance(cls, ast.ClassDef):
            continue
        for item, after in pairwise(cls.body):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[cls.name, ast.unparse(item.target)] = " ".join(str(after.value.value).split())
    return found
