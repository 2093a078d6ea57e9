"""A sample of ``python -m benchmarks.guarantees_resume``: what changes is noticed, or the bits are the same."""

from __future__ import annotations

import pytest

from tests.reliability.changed_resumes import outcomes

SAMPLE = {
    "own module": {"two weights swapped": "refused", "comments and blank lines in its text": "same bits"},
    "own loss": {"a weight of a class": "refused"},
    "process": {"oneDNN off": "refused", "within autocast": "same bits"},
    "config": {"optimizer.lr": "refused"},
    "files": {
        "a checkpoint of another run": "refused", "plan.json: another choice": "refused",
        "plan.json: other spaces": "same bits", "weights file: one element": "refused",
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_what_changes_before_a_resume_is_refused_by_name_or_has_no_effect(monkeypatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", "set by each world")
    wanted = {(kind, name): verdict for kind, names in SAMPLE.items() for name, verdict in names.items()}
    names = {name for _, name in wanted}
    found = {(one.kind, one.change): one.verdict for one in outcomes(SAMPLE, only=lambda one: one.name in names)}
    assert found == wanted
