from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstart.errors import Error, StorageError
from headstart.reports.run_record import read_record


def test_a_finished_run_is_read_whole(fake_run):
    record = read_record(fake_run("classify"))
    assert (record.task, record.name, len(record.predictions)) == ("classify", "run", 45)
    assert [event["epoch"] for event in record.epochs] == [1, 2, 3, 4, 5, 6]
    assert len(record.steps) == 48
    assert [phase["name"] for phase in record.phases] == ["head", "all"]
    assert record.result is not None
    assert record.config["seed"] == 42
    assert record.unread_events == 0


def test_a_running_run_has_no_result_and_no_predictions(fake_run):
    record = read_record(fake_run("classify", finished=False))
    assert record.result is None
    assert record.predictions == ()
    assert record.epochs


def test_a_run_that_has_only_been_planned_is_read(fake_run):
    run = fake_run("regress", names=("price",), finished=False)
    (run / "events.jsonl").unlink()
    record = read_record(run)
    assert (record.steps, record.epochs, record.phases) == ((), (), ())


def test_of_steps_done_again_after_a_resume_the_last_telling_counts(fake_run):
    run = fake_run("classify")
    again = {"event": "step", "step": 48, "epoch": 6, "phase": 1, "loss": 0.125}
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(again) + "\n")
    record = read_record(run)
    assert len(record.steps) == 48
    assert record.steps[-1]["loss"] == 0.125


def test_a_line_cut_short_by_a_kill_is_left_out_and_counted(fake_run):
    run = fake_run("classify")
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    record = read_record(run)
    assert (record.unread_events, len(record.steps)) == (1, 48)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(Error, match=r"nowhere: there is no such folder; give the folder of a run"):
        read_record(tmp_path / "nowhere")


def test_a_folder_without_a_run_says_which_files_are_missing(tmp_path):
    with pytest.raises(Error, match=r"is not the folder of a run, config.yaml and plan.json and environment.json"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.json", "{", "plan.json: not valid JSON"),
        ("plan.json", "[]", "plan.json: is damaged, holds a list"),
        ("plan.json", '{"task": {"kind": "guess"}}', "task.kind is 'guess', not one of classify, multilabel, regress"),
        (
            "plan.json",
            '{"task": {"kind": "classify"}, "phases": 3}',
            "plan.json: is damaged, phases has the wrong shape",
        ),
        ("result.json", "", "result.json: not valid JSON"),
        ("config.yaml", "a: [", "config.yaml:1: not YAML"),
        ("config.yaml", "just text", "config.yaml: is damaged, holds no options"),
        ("predictions.csv", "id,truth\na.png,x,y\n", "line 2 does not have 2 values"),
        ("predictions.csv", "id,truth\na.png\n", "line 2 does not have 2 values"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(fake_run, name: str, content: str, message: str):
    run: Path = fake_run("classify")
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(StorageError, match=message):
        read_record(run)
