"""The pages of docs/measured: they are what the stored results give, and never compare rows of different work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import main_job, real_training, speed_page, views, workload, zoo_page, zoo_peers
from benchmarks.speed import read_results
from benchmarks.workload import MixedWorkError

HERE = Path(__file__).parent.parent / "benchmarks"
MACHINE = {"cpu": "one", "cores": 2, "load": 0.0}


def row(tool: str, *, images: int, **facts: Any) -> dict[str, Any]:
    """A run of a new head: 1 CPU second to start, 10 ms an image and epoch, for headstart 1 ms."""
    each = 0.001 if tool == "headstart" else 0.01
    made = {
        "table": "head", "run": "2026-01-01T00:00:00", "repeat": 0, "tool": tool, "work": "head", "model": "net",
        "data": f"photos-{images}", "epochs": 10, "batch": 32, "bf16": False, "channels_last": False, "auto": False,
        "views": 1, "workers": 0, "limit": False, "arithmetic": "fp32", "peak_mib": 100, "accuracy": 0.5,
        "train_images": images * 4 // 5, "val_images": images // 5, "versions": {"torch": "2"}, "machine": MACHINE,
    } | facts  # fmt: skip
    done = made["epochs"] * images * each
    train, val = (made[name] * each for name in ("train_images", "val_images"))
    made["parts"] = {"train": [train] * made["epochs"], "eval": [val] * made["epochs"]}
    return made | {"cpu_seconds": 1 + done}


def ratios(lines: list[str]) -> dict[str, list[str]]:
    """By the first cell, what headstart's rows say of peers."""
    found: dict[str, list[str]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 5 and cells[1].startswith("headstart"):
            found.setdefault(cells[0], []).append(cells[5])
    return found


def head_table(rows: list[dict[str, Any]]) -> list[str]:
    return [*speed_page.frozen_table("head", speed_page._newest(rows, scaled=True))]


def test_peers_are_scaled_to_the_photos_that_headstart_ran() -> None:
    """1,000 photos beside older rows of 2,000: each is compared with peers of its own work."""
    peer = row("timm", images=100, epochs=2)
    older = row("headstart", images=2000)
    newer = row("headstart", images=1000, run="2026-01-02T00:00:00")
    assert ratios(head_table([older, peer])) == {"net": ["9.6x"]}  # 201 s of 21 s
    assert ratios(head_table([newer, peer])) == {"net": ["9.2x"]}  # 101 s of 11 s
    both = ratios(head_table([older, peer, newer]))
    assert {name.split(" photos")[0]: found for name, found in both.items()} == {
        "net: 1,600 + 400": ["9.6x"],
        "net: 800 + 200": ["9.2x"],
    }


@pytest.mark.parametrize(
    "other",
    [{"batch": 64}, {"machine": MACHINE | {"cpu": "two"}}, {"machine": MACHINE | {"cores": 8}}, {"threads": 4}],
    ids=["batch", "cpu", "cores", "threads"],
)
def test_a_peer_of_other_conditions_is_shown_and_not_compared(other: dict[str, Any]) -> None:
    rows = [row("headstart", images=1000), row("timm", images=100, **other)]
    lines = head_table(rows)
    assert sum("timm's loop" in line for line in lines) == 1
    assert [found for some in ratios(lines).values() for found in some] == [""]


def test_rates_of_other_photos_are_not_compared() -> None:
    full = {"table": "full", "work": "full"}
    ours = row("headstart", images=1000, auto=True, arithmetic="auto", **full)
    lines = [*speed_page.rate_table("full", [ours, row("timm", images=1000, **full)])]
    assert any("0.10x" in line or "10.00x" in line for line in lines if "timm" in line)
    lines = [*speed_page.rate_table("full", [ours, row("timm", images=100, **full)])]
    assert sum("timm's loop" in line for line in lines) == 1
    assert not any("x |" in line for line in lines)


def test_memory_tells_work_apart() -> None:
    lines = [*speed_page.memory_table([row("headstart", images=1000), row("timm", images=100, epochs=2)])]
    assert [line.split("|")[3].strip() for line in lines if "fp32" in line] == ["800 + 200, 10", "80 + 20, 2"]


def test_the_readme_names_every_command_and_every_page() -> None:
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    commands = {path.stem for path in HERE.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    parts = {"speed_own", "speed_peers", "speed_photos"}  # of the command speed
    assert set(re.findall(r"python -m benchmarks\.(\w+)", readme)) - {"NAME", "reliability"} == commands - parts
    promises = {
        path.stem for path in (HERE / "reliability").glob("*.py") if "keep(" in path.read_text(encoding="utf-8")
    }
    assert promises - {"results"} <= set(re.findall(r"`(\w+)`", readme))
    pages = {path.name for path in (HERE.parent / "docs" / "measured").glob("*.md")}
    assert pages <= set(re.findall(r"\[(\w+\.md)\]", readme))


def test_a_row_that_says_its_work_is_believed() -> None:
    done = workload.Workload(train_images=8, val_images=2, epochs=3, batch=4, threads=1, cpu="one", cores=2)
    kept = json.loads(json.dumps({"workload": done.as_row(), "machine": MACHINE, "epochs": 99}))
    assert workload.read_workload(kept) == done
    with pytest.raises(KeyError):
        workload.read_workload({"machine": MACHINE, "epochs": 99})  # says too little


def test_the_speed_page_is_what_the_results_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands = speed_page.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "speed.md"
    page.write_text(re.sub(r"\| headstart \|.*", "| headstart | changed |", stands), encoding="utf-8")
    monkeypatch.setattr(speed_page, "PAGE", page)
    speed_page.write_page(read_results())
    assert page.read_text(encoding="utf-8") == stands


def copied(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **change: Any) -> Path:
    """A benchmark's results with a changed last line, and its page elsewhere."""
    lines = module.RESULTS.read_text().splitlines()
    lines[-1] = json.dumps(json.loads(lines[-1]) | change)
    results, name = tmp_path / "results.jsonl", "TABLE" if hasattr(module, "TABLE") else "PAGE"
    results.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(module, name, tmp_path / getattr(module, name).name)
    return getattr(module, name)


@pytest.mark.parametrize("change", [{"pixels": 8}, {"work": {"batch": 20}}, {"work": {"epochs": 2}}], ids=str)
def test_real_training_refuses_a_row_of_other_work(change, tmp_path, monkeypatch) -> None:
    page = copied(real_training, tmp_path, monkeypatch, **change)
    with pytest.raises(MixedWorkError, match=r"real_training.md: \w+/\w+ was measured with \w+ \d+, the page says"):
        real_training.write_table()
    assert not page.exists()


def test_real_training_without_such_a_row_is_written(tmp_path, monkeypatch) -> None:
    stands = real_training.TABLE.read_text()
    page = copied(real_training, tmp_path, monkeypatch, work=real_training.WORK)
    real_training.write_table()
    assert page.read_text() == stands


def test_peers_of_two_versions_do_not_share_a_row(tmp_path, monkeypatch) -> None:
    copied(zoo_peers, tmp_path, monkeypatch, on="torch 3")
    with pytest.raises(MixedWorkError, match=r"zoo_peers.md: \S+ was measured with on 'torch 3', the page says"):
        zoo_peers.write_table()


def test_architectures_of_two_versions_do_not_share_a_page(tmp_path, monkeypatch) -> None:
    page = copied(zoo_page, tmp_path, monkeypatch, on="timm 2.0.0, torchvision 0.29")
    with pytest.raises(MixedWorkError, match=r"zoo.md: \S+ was measured with on 'timm 2"):
        zoo_page.write_page(today="today")
    copied(zoo_page, tmp_path, monkeypatch, on=zoo_page.EXAMINED_ON)
    zoo_page.write_page(today="today")
    assert page.exists()


def test_views_of_two_machines_are_not_one_row(capsys) -> None:
    lines = [json.loads(line) for line in views.RESULTS.read_text().splitlines()]
    views.show(lines)
    assert "| digits | 4 |" in capsys.readouterr().out
    with pytest.raises(MixedWorkError, match=r"views: \w+ was measured with cpu 'not recorded', the page says 'one'"):
        views.show([*lines[:-1], lines[-1] | {"work": {"cpu": "one"}}])


def test_houses_are_held_against_the_mean_predictor_that_the_page_names(shared: Path) -> None:
    """The median's error, the run's own baseline, is another one."""
    found = [result for result in main_job.read() if result["key"][0] == "houses"]
    assert len(found) >= 45
    for result in found:
        seed, fold = result["key"][4:6]
        expected = main_job.measure_mean_predictor(seed, fold)
        assert result["metrics"][main_job.MEAN_PREDICTOR] == pytest.approx(expected, rel=1e-6)
    assert "below the mean predictor's" in main_job.TABLE.read_text()


def test_the_main_job_counts_only_runs_of_the_same_epochs(tmp_path, monkeypatch) -> None:
    first = main_job.ROWS[0]
    count = len(main_job.values(first, pretrained=True))
    page = copied(main_job, tmp_path, monkeypatch)
    key = [first.data, first.model, first.recipe, first.epochs + 1, 99, 0, True]
    with main_job.RESULTS.open("a") as file:
        file.write(json.dumps({"key": key, "metrics": {first.metric: 0.0}, "seconds": 1.0}) + "\n")
    assert len(main_job.values(first, pretrained=True)) == count > 0
    assert not page.exists()
