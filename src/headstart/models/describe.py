"""A model in words: its tree with shapes and parameters, its head, and what each freeze rule would freeze."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from headstart.config.schema import FreezeRule, Until
from headstart.errors import ModelError
from headstart.models.folder import BUNDLE, model_folder
from headstart.models.preprocess import Preprocess
from headstart.models.sizes import refuse_size
from headstart.models.sources import OpenedModel, open_model
from headstart.models.spec import FolderSpec, parse_spec
from headstart.surgery.freeze import Frozen, what_freezes
from headstart.surgery.head import find_head
from headstart.surgery.layout import Layout, find_layout
from headstart.surgery.trace import input_shape, run_for_shapes

Shape = tuple[int, ...]
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """The stage, head or part ``name``, of a ``type`` with ``outputs`` (a shape) and ``children``; ``in_head``: whether
    it is of the head. It stands for ``times`` equal neighbours, which have ``parameters`` each.
    """

    name: str
    type: str
    outputs: Shape | None
    parameters: int
    times: int = 1
    in_head: bool = False
    children: tuple[Row, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuleEffect:
    """What a freeze ``rule`` would do: what is ``frozen`` by it, or the ``reason`` why it cannot be used."""

    rule: str
    frozen: Frozen | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The structure of a model, and what freeze rules freeze of it; ``str()`` gives the text, at most 100 columns wide.

    Attributes:
        ``name``: The spec of the model, or the name of its class.
        ``library``: Where its code is from: timm, torchvision, or own.
        ``traced``: How its layers were put in order: by torch.fx, or why not.
        ``images``: The shape of an image that it takes, (C, H, W).
        ``preprocess``: How images become its input; None for a module of one's own.
        ``parameters``: How many numbers its parameters hold.
        ``multiply_adds``: Multiplications and additions of one image; None where they could not be counted.
        ``rows``: The stages and the head in order of execution, each with its children.
        ``head``: The head in words, or why it is not clear.
        ``rules``: What each usual freeze rule would freeze.
        ``chosen``: The rule that was asked for, in full; None where none was.

    Example:
        >>> import headstart as hs
        >>> about = hs.describe(hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}))
        >>> [row.name for row in about.rows][-2:], about.chosen
        (['layer4', 'fc'], None)
    """

    name: str
    library: str
    traced: str
    images: Shape
    preprocess: Preprocess | None
    parameters: int
    multiply_adds: int | None
    rows: tuple[Row, ...]
    head: str
    rules: tuple[RuleEffect, ...]
    chosen: RuleEffect | None

    def __str__(self) -> str:
        return f"{self.structure()}\n\n{self.freezing()}"

    def structure(self) -> str:
        """Name, size, input, head, and the tree of stages."""
        return f"{_heading(self)}\n\n{_tree(self)}"

    def freezing(self) -> str:
        """What each rule would freeze, and the chosen one in full."""
        return "\n\n".join([_rules(self), *([] if self.chosen is None else [_format_rule_effect(self.chosen)])])


def describe(model: str | OpenedModel | nn.Module, *, freeze: FreezeRule | None = None) -> Description:
    """Return the structure of a model, and what each freeze rule would freeze of it.

    Args:
        ``model``: A model spec (see ``hs.open_model``), an opened model, or any module.
        ``freeze``: A rule that is shown in full, layer by layer.

    Returns:
        A description whose ``str()`` is the text that ``headstart describe`` prints, at most 100 columns wide.

    Raises:
        ModelError: The spec is unknown, the rule matches nothing, or the model runs neither on ``meta`` nor on its own
            device.

    Example:
        >>> import headstart as hs
        >>> about = hs.describe(hs.open_model("timm/resnet18", weights="none", options={"channels": [8, 8, 16, 16]}))
        >>> about.head
        'fc (linear, 16 -> 1000)'
    """
    opened = _open_described(model) if isinstance(model, str) else model
    module = opened if isinstance(opened, nn.Module) else opened.module
    layout = find_layout(module)
    preprocess = None if isinstance(opened, nn.Module) else opened.preprocess
    images = input_shape(module)
    if preprocess is not None and not isinstance(opened, nn.Module):
        refuse_size(opened)
        images = (preprocess.channels, preprocess.height, preprocess.width)
    names = [name for name, _ in module.named_modules()]
    run = run_for_shapes(module, names=names, shape=images, count=True)
    shapes = {call.name: call.outputs for call in run.calls}
    simple: list[FreezeRule] = ["backbone", "conv", "norm"]
    return Description(
        name=type(module).__name__ if isinstance(opened, nn.Module) else opened.spec,
        library="" if isinstance(opened, nn.Module) else opened.library,
        traced="traced with torch.fx" if layout.how == "fx" else f"seen through hooks ({layout.reason})",
        images=images,
        preprocess=preprocess,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=run.multiply_adds,
        rows=_rows(module, layout, shapes),
        head=_head_text(module, layout),
        rules=tuple(_effect(module, rule) for rule in [*simple, *(Until(until=stage.name) for stage in layout.stages)]),
        chosen=None if freeze is None else _effect(module, freeze, strict=True),
    )


def _open_described(spec: str) -> OpenedModel:
    """The model with random weights; a bundle with its own: its architecture includes the head that these have."""
    parsed = parse_spec(spec)
    is_bundle = isinstance(parsed, FolderSpec) and (model_folder(parsed.path) / BUNDLE).is_file()
    return open_model(spec, weights="pretrained" if is_bundle else "none")


def _effect(module: nn.Module, rule: FreezeRule, *, strict: bool = False) -> RuleEffect:
    name = f"until:{rule.until}" if isinstance(rule, Until) else str(rule)
    try:
        frozen = what_freezes(module, rule)
    except ModelError as error:
        if strict:
            raise
        return RuleEffect(rule=name, frozen=None, reason=str(error))
    return RuleEffect(rule=frozen.rule, frozen=frozen)


def _head_text(module: nn.Module, layout: Layout) -> str:
    if layout.head_problem is not None:
        return layout.head_problem
    try:
        head = find_head(module)
    except ModelError as error:
        return str(error)
    return f"{' and '.join(head.paths)} ({head.kind}, {head.inputs} -> {head.outputs})"


def _rows(module: nn.Module, layout: Layout, shapes: Mapping[str, Shape | None]) -> tuple[Row, ...]:
    parts, rows = dict(module.named_modules()), list[Row]()
    for stage in layout.stages:
        part = parts.get(stage.name)
        inner = [f"{stage.name}.{name}" for name, _ in part.named_children()] if part is not None else []
        inside = (stage.name, *inner)
        beside = [unit for unit in stage.modules if not any(f"{unit}.".startswith(f"{path}.") for path in inside)]
        below = [_row(module, name, shapes) for name in inner + beside]
        row = replace(_row(module, stage.name, shapes), parameters=stage.parameters)
        rows.append(replace(row, children=_merge_equal_rows([part for part in below if part.parameters])))
    rows += [replace(_row(module, path, shapes), in_head=True) for path in layout.heads]
    return tuple(rows)


def _row(module: nn.Module, name: str, shapes: Mapping[str, Shape | None]) -> Row:
    part = dict(module.named_modules()).get(name)
    if part is None:
        tensor = dict(module.named_parameters()).get(name)
        return Row(name=name, type="parameter", outputs=None, parameters=0 if tensor is None else tensor.numel())
    count = sum(parameter.numel() for parameter in part.parameters())
    return Row(name=name, type=type(part).__name__, outputs=shapes.get(name), parameters=count)


def _merge_equal_rows(rows: list[Row]) -> tuple[Row, ...]:
    """The rows with equal neighbours as one."""
    grouped: list[Row] = []
    for row in rows:
        last = grouped[-1] if grouped else None
        if last is not None and (last.type, last.outputs, last.parameters) == (row.type, row.outputs, row.parameters):
            grouped[-1] = replace(last, times=last.times + 1)
        else:
            grouped.append(row)
    return tuple(grouped)


def _heading(what: Description) -> str:
    library = f"  ({what.library})" if what.library else ""
    size = f"{what.parameters:,} parameters"
    if what.multiply_adds:
        size += f", {_short(what.multiply_adds)} multiply-adds per image"
    lines = [what.name + library, f"size    {size}", f"input   {_size((1, *what.images))}"]
    if what.preprocess is not None:
        facts = what.preprocess
        lines[-1] += f", mean {_numbers(facts.mean)}, std {_numbers(facts.std)}"
        lines.append(f"        {facts.interpolation}, crop {facts.crop_pct:g}: {facts.source}")
    lines += [f"head    {what.head}", f"order   {what.traced}"]
    return "\n".join(line for long in lines for line in _wrap_line(long))


def _tree(what: Description) -> str:
    lines = [f"stage  {'name':<43}{'output':<17}{'parameters':>12}  type"]
    for first, stages in _alike(what.rows):
        row = stages[0]
        label = "head" if row.in_head else (f"{first}-{first + len(stages) - 1}" if len(stages) > 1 else str(first))
        name = row.name if len(stages) == 1 else f"{row.name} ... {stages[-1].name}"
        lines.append(_line(f"{label:>5}", name, row, times=len(stages)))
        for index, part in enumerate(row.children):
            branch = "└─ " if index == len(row.children) - 1 else "├─ "
            lines.append(_line(" " * 5, branch + part.name, part, times=part.times))
    return "\n".join(lines)


def _line(label: str, name: str, row: Row, *, times: int) -> str:
    type_ = f"{times} x {row.type}" if times > 1 else row.type
    columns = f"{_cut(name, 42):<43}{_cut(_size(row.outputs), 16):<17}{row.parameters * times:>12,}"
    return f"{label}  {columns}  {_cut(type_, 19)}"


def _alike(rows: tuple[Row, ...]) -> list[tuple[int, list[Row]]]:
    """Neighbouring stages of the same build, with the number of the first."""
    groups: list[tuple[int, list[Row]]] = []
    for number, row in enumerate(rows):
        if groups and not row.in_head and _build(groups[-1][1][0]) == _build(row):
            groups[-1][1].append(row)
        else:
            groups.append((number, [row]))
    return groups


def _build(row: Row) -> object:
    parts = tuple((part.type, part.outputs, part.parameters, part.times) for part in row.children)
    return row.type, row.outputs, row.parameters, parts


def _rules(what: Description) -> str:
    lines = [f"{'freeze':<43}{'frozen parameters':>20}{'share':>9}{'modules in eval':>18}"]
    for effect in what.rules:
        if effect.frozen is None:
            lines += _wrap_line(f"{effect.rule:<8}{effect.reason}")
        else:
            frozen = effect.frozen
            share = f"{100 * frozen.parameters / max(frozen.of, 1):.1f} %"
            counts = f"{frozen.parameters:>20,}{share:>9}{len(frozen.modules):>18}"
            lines.append(f"{_cut(effect.rule, 42):<43}{counts}")
    return "\n".join(lines)


def _format_rule_effect(effect: RuleEffect) -> str:
    if effect.frozen is None:
        return "\n".join(_wrap_line(f"{effect.rule}: {effect.reason}"))
    frozen = effect.frozen
    head = f"freeze {effect.rule}: {frozen.parameters:,} of {frozen.of:,} parameters, in eval:"
    outer = [name for name in frozen.modules if name.rpartition(".")[0] not in frozen.modules]
    return "\n".join(_wrap_line(f"{head} {', '.join(outer) or 'no module'}"))


def _size(shape: Shape | None) -> str:
    if shape is None:
        return "-"
    return " x ".join(str(length) for length in shape[1:]) or "1"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3g}" for value in values)


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _cut(text: str, width: int) -> str:
    """The text in at most ``width`` columns: the middle is cut out."""
    if len(text) <= width:
        return text
    kept = width - 1
    return text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]


def _wrap_line(line: str) -> list[str]:
    return (
        textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 8, drop_whitespace=True) if len(line) > _WIDTH else [line]
    )
