"""``headstart describe``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from headstart.cli.configured import check_model
from headstart.cli.output import table, to_json, wrap_lines, write
from headstart.config.flags import parse_args, value_of
from headstart.config.leaves import leaves
from headstart.config.load import load_config
from headstart.config.rules import FreezeRule, freeze_rule, freeze_text
from headstart.errors import ConfigError, ModelError
from headstart.reports.cells import cell

if TYPE_CHECKING:
    from torch import nn

    from headstart.config.schema import Config
    from headstart.models.describe import Description, RuleEffect
    from headstart.models.sources import OpenedModel
    from headstart.planning.groups import PhaseGroups, PlannedGroups

_LONGEST_NAME = 44


def _rate(name: str) -> Any:
    """An option of the optimizer, under the name that ``train`` has for it, too."""
    flag = f"--optimizer.{name.replace('_', '-')}"
    return tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: auto)", aliases=(flag,))


@dataclass(frozen=True, kw_only=True)
class Describe:
    """A model as a tree with shapes and parameters; its head, what freeze rules freeze, and each group's rate."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC", help_behavior_hint="")]
    """timm/NAME[.TAG], torchvision/NAME, hf-hub:ORG/NAME, a folder, or starter."""
    freeze: Annotated[str | None, tyro.conf.arg(metavar="RULE", help_behavior_hint="")] = None
    """Show what this rule freezes: backbone, conv, norm, until:NAME, stages:N, names:GLOB,..."""
    lr: Annotated[str | None, _rate("lr")] = None
    """Rate of the last backbone stage, for the table of groups."""
    head_lr: Annotated[str | None, _rate("head_lr")] = None
    """Rate of the head."""
    layer_decay: Annotated[str | None, _rate("layer_decay")] = None
    """Each stage nearer to the input trains at this times the next one's rate."""
    weights: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "none"
    """none, pretrained, or a local file."""
    weights_part: Annotated[
        str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="", aliases=("--model.weights-part",))
    ] = "auto"
    """Which of a file's weights: averaged, raw, or a key of the file or prefix of its names."""
    image_size: Annotated[
        str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="(default: the weights' own)")
    ] = None
    """Pixels per side of the input, or HEIGHTxWIDTH."""
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print one JSON object."""


def run(argv: Sequence[str]) -> int:
    """Print the description."""
    args, _ = parse_args(Describe, argv, prog="headstart describe")
    try:
        rule = freeze_rule(args.freeze) if args.freeze is not None else None
    except ConfigError as error:
        raise ConfigError(f"--freeze: {error}") from error
    config = _config(args, rule)
    check_model(args.spec)
    from headstart.models.describe import describe  # imports torch

    opened = _open_described_model(args)
    what = describe(opened, freeze=rule)
    groups = _groups(opened.module, config)
    blocks = (what.structure(), format_groups(groups), what.freezing())
    write(to_json(facts(what, groups)) if args.json else "\n\n".join(blocks))
    return 0


def format_groups(groups: PlannedGroups | ModelError) -> str:
    """The groups of the last phase as a table, the phases before it in a line."""
    if isinstance(groups, ModelError):
        return wrap_lines([f"groups  {cell(groups)}"])
    *before, last = groups.phases
    rows = [
        (_short(group.name), group.lr, "yes" if group.decays else "no", group.tensors, group.parameters)
        for group in last.groups
    ]
    lines = [f"groups  phase {last.phase}, freeze {last.freeze}; rates: {groups.reason}"]
    lines += [f"        before it, phase {phase.phase}: {_in_a_line(phase)}" for phase in before]
    header = ("group", "rate", "weight decay", "tensors", "parameters")
    return wrap_lines(lines) + "\n" + table(rows, header=header)


def facts(what: Description, groups: PlannedGroups | ModelError) -> dict[str, Any]:
    """The description for ``--json``; shapes without the batch."""
    known = asdict(what)
    plain = ("name", "library", "traced", "images", "preprocess", "parameters", "multiply_adds", "head")
    return {name: known[name] for name in plain} | {
        "stages": known["rows"],
        "rules": [_effect(effect) for effect in what.rules],
        "freeze": None if what.chosen is None else _effect(what.chosen) | {"frozen": known["chosen"]["frozen"]},
        "phases": [] if isinstance(groups, ModelError) else [asdict(phase) for phase in groups.phases],
        "rates": str(groups) if isinstance(groups, ModelError) else groups.reason,
    }


def _effect(effect: RuleEffect) -> dict[str, Any]:
    frozen = None if effect.frozen is None else effect.frozen.parameters
    return {"rule": effect.rule, "frozen_parameters": frozen, "reason": effect.reason}


def _config(args: Describe, rule: FreezeRule | None) -> Config:
    """The configuration that ``train`` would have.  Raises: ConfigError: a rate is wrong."""
    rates = {name: text for name in ("lr", "head_lr", "layer_decay") if (text := getattr(args, name)) is not None}
    found = leaves()
    flags = {f"optimizer.{name}": value_of(text, found[f"optimizer.{name}"]) for name, text in rates.items()}
    return load_config(flags=flags if rule is None else flags | {"freeze": freeze_text(rule)})


def _open_described_model(args: Describe) -> OpenedModel:
    """The model with random weights unless asked; a bundle with its own: its architecture includes their head."""
    from headstart.models.folder import BUNDLE, model_folder
    from headstart.models.sources import open_model
    from headstart.models.spec import FolderSpec, parse_spec

    parsed = parse_spec(args.spec)
    is_bundle = isinstance(parsed, FolderSpec) and (model_folder(parsed.path) / BUNDLE).is_file()
    weights = "pretrained" if is_bundle and args.weights == "none" else args.weights
    return open_model(args.spec, weights=weights, weights_part=args.weights_part, image_size=args.image_size)


def _groups(module: nn.Module, config: Config) -> PlannedGroups | ModelError:
    """The groups, or why there are none: the head is not clear."""
    from headstart.planning.groups import plan_groups

    try:
        return plan_groups(module, config)
    except ModelError as error:
        return error


def _in_a_line(phase: PhaseGroups) -> str:
    return "; ".join(f"{_short(group.name)} {group.lr:.3g}" for group in phase.groups if group.decays)


def _short(name: str) -> str:
    """The group's place: whether it decays has a column of its own; of a long name the middle goes."""
    place = name.removesuffix(" (no decay)")
    kept = _LONGEST_NAME - 1
    return place if len(place) <= _LONGEST_NAME else f"{place[: kept // 2]}…{place[len(place) - (kept - kept // 2) :]}"
