"""Each option of the schema changed, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import headstart as hs
from headstart.config.leaves import Leaf, leaves, options
from headstart.errors import ConfigError
from tests.reliability.resume_changes.worlds import Change, Given, World

_BY_HAND: dict[str, list[Any]] = {
    "data.source": ["ELSEWHERE"], "data.images": ["ELSEWHERE"], "data.split": ["part"], "data.group": ["patient"],
    "model.name": ["timm/resnet18"], "model.weights": ["none", "ELSEWHERE/weights.safetensors"],
    "model.preprocess": [{"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2]}], "model.options": [{"drop_rate": 0.1}],
    "head.at": ["fc"], "head.hidden": [[4]], "penalties.l1_on": ["all"], "optimizer.betas": [[0.8, 0.9]],
    "freeze": ["backbone"], "phases": [[{"epochs": 3}]], "norm_statistics": ["frozen"], "lora.targets": [["fc"]],
    "optimizer.name": ["lamb"], "optimizer.options": [{"eps": 1e-5}], "stop.patience": [3],
}  # fmt: skip
_CANDIDATES = (True, False, 1, 2, 3, 5, 0.3, 0.03, 0.7, 1.5, "x", ["first"], {"red": 2.0}, ["fc*"])


def config_changes() -> Iterator[Change]:
    """One change per option; what the schema has no second value for is left out."""
    for path, leaf in leaves().items():
        if path != "out":  # another folder is another run
            yield Change(path, lambda world, given, leaf=leaf: _change(world, given, leaf), (path.split(".")[0],))


def _change(world: World, given: Given, leaf: Leaf) -> None:
    before = hs.load_config(given.sections)
    for value in _values(world, leaf):
        sections = _with(given.sections, leaf, value)
        try:
            if hs.load_config(sections) != before:
                given.sections = sections
                return
        except ConfigError:
            continue
    raise AssertionError(f"{leaf.path}: no other value was found")


def _values(world: World, leaf: Leaf) -> Iterator[Any]:
    for value in _BY_HAND.get(leaf.path, []):
        yield value.replace("ELSEWHERE", str(world.root / "elsewhere")) if isinstance(value, str) else value
    for option in options(leaf.annotation):
        yield from option.values
    yield from _CANDIDATES


def _with(sections: dict[str, Any], leaf: Leaf, value: Any) -> dict[str, Any]:
    section, _, name = leaf.path.partition(".")
    if not name:
        rest = {key: one for key, one in sections.items() if key not in ("recipe", "epochs") or section != "phases"}
        return rest | {section: value}
    inner = dict(sections.get(section, {}))
    if section == "lora":
        sections = sections | {"recipe": "lora"}
    if leaf.kinds and inner.get("kind") not in leaf.kinds:
        inner = {"kind": leaf.kinds[0]} | ({"name": "lamb", "lr": 0.01} if leaf.kinds == ("timm",) else {})
    return sections | {section: inner | {name: value}}
