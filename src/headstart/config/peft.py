"""Parameter-efficient fine-tuning (PEFT): the recipes lora, bias and norm, and what does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from headstart.config.lora import Lora
from headstart.config.rules import But, PeftKind
from headstart.config.schema import Config
from headstart.wording import option

RECIPES = get_args(PeftKind)
LONG_NAME = "parameter-efficient fine-tuning"


def wants_lora(config: Config) -> bool:
    """Whether some phase trains adapters."""
    rules = (config.freeze, *(phase.freeze for phase in config.phases))
    return config.recipe == "lora" or But(but="lora") in rules


def contradictions(tree: Mapping[str, Any]) -> dict[str, str]:
    """What of a configuration does not go with parameter-efficient fine-tuning, or with its absence, by path."""
    given = tree.get("phases")
    phases = {f"phases[{place}].": phase for place, phase in enumerate(given)} if isinstance(given, list) else {}
    holders = {path: holder for path, holder in ({"": tree} | phases).items() if isinstance(holder, Mapping)}
    kinds = {path: kind for path, holder in holders.items() if (kind := _kind(holder))}
    recipe = tree.get("recipe")
    return (
        (_about_recipe(tree, str(recipe)) if recipe in RECIPES else {})
        | _about_statistics(holders, kinds)
        | (_about_lora(tree.get("lora")) if "lora" not in kinds.values() else {})
    )


def _kind(holder: Mapping[str, Any]) -> str | None:
    """What trains beside the head, by the recipe or the freeze rule."""
    rule = holder.get("freeze")
    found = holder.get("recipe") if holder.get("recipe") in RECIPES else None
    return rule.get("but") if isinstance(rule, Mapping) and "but" in rule else found


def _about_recipe(tree: Mapping[str, Any], recipe: str) -> dict[str, str]:
    problems = {}
    if tree.get("freeze", "auto") != "auto":
        instead = f"leave freeze out, or use {option('recipe', 'lp_ft')} {option('freeze', f'except:{recipe}')}"
        problems["freeze"] = f"freeze: recipe {recipe} says itself what trains; {instead}"
    model = tree.get("model")
    if isinstance(model, Mapping) and model.get("weights") == "none":
        problems["recipe"] = explain_unpretrained(recipe)
    return problems


def explain_unpretrained(recipe: str) -> str:
    """The sentence for parameter-efficient fine-tuning of random weights."""
    return (
        f"recipe: {recipe} keeps the backbone's weights, and these are random; use {option('recipe', 'full')}, or "
        "pretrained weights"
    )


def _about_statistics(holders: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str]) -> dict[str, str]:
    sentence = f"batch does not go with {LONG_NAME}, which keeps BatchNorm's pretrained statistics; leave it out"
    paths = {*kinds, ""} if kinds else set()
    return {
        f"{path}norm_statistics": f"{path}norm_statistics: {sentence}"
        for path in sorted(paths)
        if holders[path].get("norm_statistics") == "batch"
    }


def _about_lora(section: object) -> dict[str, str]:
    if not isinstance(section, Mapping):
        return {}
    changed = [item.name for item in fields(Lora) if section.get(item.name, item.default) != item.default]
    return {f"lora.{name}": f"lora.{name}: belongs to recipe lora ({option('recipe', 'lora')})" for name in changed}
