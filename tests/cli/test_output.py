"""What is printed: tables, JSON and CSV that no name can break; predictions in every form; a number of parameters."""

import csv
import io
import json
from dataclasses import dataclass, field

import pytest

from headstart.cli.models import parameters
from headstart.cli.output import table, to_csv, to_json
from headstart.cli.plan import format_plan
from headstart.cli.predict import render
from headstart.errors import ConfigError
from headstart.reports.cells import cell


@dataclass(frozen=True, kw_only=True)
class Predicted:
    path: str
    labels: tuple[tuple[str, float], ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    tags: tuple[str, ...] | None = None


LABELS = [
    Predicted(path="=a.jpg", labels=(("cat", 0.75), ("@dog", 0.25))),
    Predicted(path="b.jpg", error="truncated"),
]
VALUES = [Predicted(path="a.jpg", values={"price": 2.5, "age": -1.0}), Predicted(path="b.jpg", error="empty")]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_a_table_aligns_numbers_to_the_right_and_shows_control_characters() -> None:
    text = table([("a\x1b[31m", 1234, 0.5), ("bb", None, 12.25)], header=("name", "n", "x"))
    assert text.splitlines() == [
        "name           n        x",
        "a\\x1b[31m  1,234   0.5000",
        "bb             -  12.2500",
    ]


def test_json_is_strict_and_one_line() -> None:
    text = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "ü\udcff\n"})
    assert "\n" not in text
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": "ü\udcff\n"}


def test_csv_quotes_what_a_spreadsheet_would_run_and_leaves_numbers() -> None:
    text = to_csv([["=1+1", -2.5], ["+x", 3], ["-y", None], ["@z", 'a"b,c']], header=["name", "=value"])
    assert rows(text) == [["name", "'=value"], ["'=1+1", "-2.5"], ["'+x", "3"], ["'-y", ""], ["'@z", 'a"b,c']]


def test_predicted_labels_in_every_form() -> None:
    assert rows(render(LABELS, form="csv", top=5)) == [
        ["path", "label 1", "confidence 1", "label 2", "confidence 2", "error"],
        ["'=a.jpg", "cat", "0.75", "'@dog", "0.25", ""],
        ["b.jpg", "", "", "", "", "truncated"],
    ]
    assert rows(render(LABELS, form="csv", top=1))[:2] == [
        ["path", "label", "confidence", "error"],
        ["'=a.jpg", "cat", "0.75", ""],
    ]
    items = [
        {"path": "=a.jpg", "labels": [{"name": "cat", "confidence": 0.75}, {"name": "@dog", "confidence": 0.25}]},
        {"path": "b.jpg", "error": "truncated"},
    ]
    assert json.loads(render(LABELS, form="json", top=5)) == items
    assert [json.loads(line) for line in render(LABELS, form="jsonl", top=5).splitlines()] == items
    assert [line.split() for line in render(LABELS, form="table", top=1).splitlines()] == [
        ["path", "label", "confidence", "error"],
        ["=a.jpg", "cat", "0.7500"],
        ["b.jpg", "-", "-", "truncated"],
    ]


def test_predicted_numbers_in_every_form() -> None:
    assert rows(render(VALUES, form="csv", top=5)) == [
        ["path", "price", "age", "error"],
        ["a.jpg", "2.5", "-1.0", ""],
        ["b.jpg", "", "", "empty"],
    ]
    assert json.loads(render(VALUES, form="json", top=5))[0] == {"path": "a.jpg", "values": {"price": 2.5, "age": -1.0}}


def test_a_plan_shows_decisions_phases_and_groups(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    group = {"name": "head", "lr": 1e-3, "weight_decay": 0.02, "parameters": 30}
    phase = {
        "name": "probe",
        "freeze": "backbone",
        "epochs": 3,
        "steps": 1200,
        "trainable_parameters": 30,
        "frozen_parameters": 5000,
        "groups": [group],
    }
    text = format_plan({"decisions": [{"name": "precision", "value": "fp32", "reason": "auto"}], "phases": [phase]})
    assert "precision: fp32  (auto)" in text
    assert "phase 1 probe: 3 epochs, 1,200 steps; frozen: backbone; 30 parameters train, 5,000 are frozen" in text
    assert text.splitlines()[-1].split() == ["head", "0.0010", "0.0200", "30"]


def test_a_plan_fits_into_the_terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reason = "measured in trial steps: fp32 took 1.2 times as long, " * 4
    text = format_plan({"decisions": [{"name": "precision", "value": "bf16", "reason": reason}], "phases": []})
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("precision: bf16  (measured")
    assert " ".join(text.split()) == f"precision: bf16 ({reason.strip()} )".replace(", )", ", )")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (224_900.0, "224,900"),
        (-1_234_567.8, "-1,234,568"),
        (1234.56, "1,234.6"),
        (12.3456, "12.3456"),
        (0.97312, "0.9731"),
        (0.0, "0.0000"),
        (1e-4, "0.0001"),
        (2.5e-5, "2.5e-5"),
        (3e-12, "3e-12"),
        (1e20, "1e+20"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_written_as_people_write_them(number: float, text: str) -> None:
    assert cell(number) == text


@pytest.mark.parametrize(("text", "count"), [("5M", 5_000_000), ("300k", 300_000), ("1.5B", 1_500_000_000), ("7", 7)])
def test_a_number_of_parameters_takes_a_unit(text: str, count: int) -> None:
    assert parameters(text, flag="--max-params") == count


@pytest.mark.parametrize("text", ["", "M", "5Q", "inf", "nan", "5MM"])
def test_what_is_no_number_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no number of parameters; give e.g. 5M"):
        parameters(text, flag="--max-params")


def test_a_number_that_is_called_as_another_column_has_its_own():
    made = [Predicted(path="a.jpg", values={"error": 2.5, "path": 1.0, "price": 3.0})]
    assert rows(render(made, form="csv", top=5))[0] == ["path", "value:error", "value:path", "price", "error"]
