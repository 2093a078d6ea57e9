"""What ``hs.train`` and ``hs.evaluate`` return; apart, since who predicts needs nothing else of training."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from headstart.reports.cells import cell


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its folder, the model in eval mode, and the metrics of exactly that model.

    Attributes:
        ``path``: The run's folder.
        ``task``: The kind of task: classify, multilabel or regress.
        ``seconds``: How long it took, wall clock.
        ``metrics``: The metrics of the validation images, by name.
        ``model``: The module in evaluation mode.
        ``test_metrics``: The metrics of the test images; None where there are none.
        ``note``: Which epoch and weights were kept, or which images were evaluated.
        ``headline``: The main metric in a line, of the test images where there are some, with interval and baseline.
        ``remarks``: What to know before the result is used, such as that it is no better than a guess; often nothing.

    Example:
        >>> import headstart as hs
        >>> settings = {"data": {"source": "photos"}, "model": {"name": "starter"}, "recipe": "probe", "epochs": 1}
        >>> run = hs.train(hs.load_config(settings | {"device": "cpu", "out": "runs/probe"}))
        >>> str(run.path), run.task, sorted(run.metrics)
        ('runs/probe', 'classify', ['accuracy', 'macro_f1', 'nll'])
    """

    path: Path
    task: str
    seconds: float
    metrics: dict[str, float]
    model: nn.Module = field(repr=False)
    test_metrics: dict[str, float] | None = None
    note: str = ""
    headline: str = ""
    remarks: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """The run as a notebook shows it: headline, metrics and folder; names in them cannot be markup."""
        columns = {"validation": self.metrics} | ({"test": self.test_metrics} if self.test_metrics else {})
        rows: list[list[object]] = [["", *columns]]
        rows += [[name, *(each.get(name) for each in columns.values())] for name in self.metrics]
        cells = [[f"<td>{html.escape(cell(value))}</td>" for value in row] for row in rows]
        table = "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table>"
        lines = [line for line in (self.headline, *self.remarks, self.note, str(self.path)) if line]
        first, *rest = (f"<div>{html.escape(cell(line))}</div>" for line in lines)
        return first + table + "".join(rest)
