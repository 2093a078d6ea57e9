"""A finished run as a notebook shows it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import headstart as hs


def test_a_notebook_shows_headline_metrics_and_folder_without_markup_of_names() -> None:
    run = hs.Run(
        path=Path("runs/<b>"), task="classify", seconds=1.0, metrics={"accuracy": 0.9, "f1:<i>": 0.5},
        test_metrics={"accuracy": 0.8}, model=nn.Identity(), headline="accuracy: 80 % of <script>", note="epoch 2",
    )  # fmt: skip
    shown = run._repr_html_()
    assert "<b>" not in shown and "<i>" not in shown and "<script>" not in shown
    assert shown.startswith("<div>accuracy: 80 % of &lt;script&gt;</div><table>")
    assert "<tr><td>accuracy</td><td>0.9000</td><td>0.8000</td></tr>" in shown
    assert "<tr><td>f1:&lt;i&gt;</td><td>0.5000</td><td>-</td></tr>" in shown
    assert shown.endswith("<div>epoch 2</div><div>runs/&lt;b&gt;</div>")
