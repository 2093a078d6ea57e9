"""Write docs/reference/options.md from the schema: every option with its flag, values, default and meaning.

python scripts/make_options.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from headstart.config.leaves import Leaf, default_kinds, default_of, hints, leaves, members, options
from headstart.config.problems import describe_accepted
from headstart.config.rules import ACCEPTED as FREEZE_RULES
from headstart.config.schema import Config, ImageFormat, Names, Phase
from headstart.config.yaml import dump_yaml

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "options.md"
HEAD = """# Options

```sh
headstart train photos/ --optimizer.kind sgd --lr 0.01 --batch.clip_norm 1.0    # one flag per option
headstart train photos/ --config run.yaml --epochs 20                           # a file; flags win over it
headstart train --help                                                          # the same list
```

The same tree as YAML, as flags and in Python. A run writes its own, every default filled in, to `config.yaml`:

```yaml
model: {name: timm/resnet50.a1_in1k}
optimizer: {kind: sgd, lr: 0.01, momentum: 0.9}
phases: [{freeze: backbone, epochs: 3}, {freeze: "until:layer2", epochs: 7, layer_decay: 0.75}]
```

```python
import headstart as hs

config = hs.load_config({"data": {"source": "photos/"}, "optimizer": {"kind": "sgd", "lr": 0.01}}, flags={"epochs": 20})
```

Hyphens and underscores are both taken. An option that the chosen `kind` does not have is refused by name, an unknown
one with a suggestion, and all mistakes are told at once. This page is made from the schema by
`scripts/make_options.py`.
"""


def page() -> str:
    """The whole page."""
    found = leaves()
    plain = [leaf for path, leaf in found.items() if "." not in path]
    parts = [HEAD, "## The run\n\n" + _table(plain)]
    for section, hint in hints(Config).items():
        inside = [leaf for path, leaf in found.items() if path.startswith(f"{section}.")]
        if inside:
            parts.append(f"## {section}\n\n{_about(hint)}{_table(inside)}")
    parts.append("## In each of `phases`\n\n" + _nested(Phase))
    parts.append("## In `model.preprocess`\n\n" + _nested(ImageFormat))
    return "\n".join(parts)


def _about(hint: Any) -> str:
    """A section's docstring, or one line per kind."""
    kinds = members(hint)
    if not kinds:
        return f"{_inline(str(hint.__doc__))}\n\n"
    lines = (f"- `kind: {kind}`: {_inline(str(cls.__doc__))}" for kind, cls in kinds.items())
    return "\n".join(lines) + "\n\n"


def _table(rows: list[Leaf]) -> str:
    lines = ["| option | flag | takes | default | meaning |", "|---|---|---|---|---|"]
    for leaf in rows:
        flag = "`DATA`, the argument" if leaf.path == "data.source" else f"`{leaf.flag}`"
        meaning = _inline(leaf.help) + (f" *Only {', '.join(leaf.kinds)}.*" if leaf.kinds else "")
        cells = (f"`{leaf.path}`", flag, _takes(leaf.annotation), _defaults(leaf), meaning)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _nested(cls: type) -> str:
    """The fields of a mapping that stands within an option."""
    told = TypeAdapter(Config).json_schema()["$defs"][cls.__name__]["properties"]
    lines = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for item, annotation in zip(fields(cls), hints(cls).values(), strict=True):
        meaning = _inline(told[item.name].get("description", "")) or _same_as(item.name)
        cells = (f"`{item.name}`", _takes(annotation), _text(default_of(item)), meaning)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _same_as(name: str) -> str:
    """Where a phase's field is told: at the option of the same name."""
    return next(f"as `{path}`" for path in leaves() if path.rpartition(".")[2] == name)


def _takes(annotation: object) -> str:
    choices = options(annotation)
    if any(option.type is Names for option in choices):
        auto = "auto, " if any("auto" in option.values for option in choices) else ""
        return auto + FREEZE_RULES
    item = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    if item is not None and is_dataclass(item):
        return f"a list of mappings ({', '.join(part.name for part in fields(item))})"
    return describe_accepted(annotation)


def _defaults(leaf: Leaf) -> str:
    """The default; of each kind, where they differ."""
    section, _, name = leaf.path.rpartition(".")
    texts = {kind: _text(value) for kind, value in leaf.defaults.items()}
    usual = texts.get(default_kinds().get(section, ""), next(iter(texts.values())))
    others = dict(_others(texts, usual)) if name != "kind" else {}
    return usual + "".join(f"; {kind}: {text}" for kind, text in others.items())


def _others(texts: Mapping[str, str], usual: str) -> Iterator[tuple[str, str]]:
    return ((kind, text) for kind, text in texts.items() if text != usual)


def _text(value: object) -> str:
    if value is MISSING:
        return "required"
    if value is None or value == ():
        return "none"
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, list | dict):
        return f"`{plain}`"
    return f"`{dump_yaml(plain).removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


def _inline(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
