"""What should be looked at in the data stands in a block of its own, in terminal, plan.json, report and run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from headstart.cli.main import main
from headstart.reports.cautions import list_warnings
from tests.data.decoding.test_likeness import draw, encode

SMALL = ("--model", "timm/resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--device", "cpu")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders with train and val, of which val has no image of b, a copy crosses, one is torn, one is damaged."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    contents = {
        f"train/{label}/{at}.png": encode(draw(10 * number + at))
        for number, label in enumerate("ab")
        for at in range(4)
    }
    contents |= {"val/a/0.png": encode(draw(50)), "val/a/old.jpg": encode(draw(1).resize((100, 75)), 80)}
    contents |= {"train/b/x.png": contents["train/a/2.png"], "train/a/damaged.png": contents["train/a/0.png"][:300]}
    contents |= {"train/a/noname": encode(draw(60)), "train/b/README": b"no image"}
    for name, content in contents.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


EXPECTED = (
    "1 file is no image and left out (1 without an ending, e.g. 'train/b/README')",
    "1 unreadable image is left out: 'train/a/damaged.png",
    "1 image is in both train and val (resized or re-encoded copies, e.g. 'train/a/1.png' and 'val/a/old.jpg')",
    "1 image has copies with different labels, e.g. 'train/a/2.png' is 'a' and 'train/b/x.png' is 'b'",
    "val has no image of class 'b'",
)


def test_a_run_tells_its_warnings_everywhere(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = ("--data.unreadable", "skip", "--data.unreadable-share", "0.2", "--out", str(run))
    assert main(["train", str(source), *SMALL, *options]) == 0
    said = capsys.readouterr().err
    assert "5 warnings:\n- " in said
    block = said.partition("5 warnings:\n")[2].splitlines()[:10]
    assert all(block[2 * at].startswith(f"- {text}") for at, text in enumerate(EXPECTED)), block
    assert all(line.startswith("  -> ") for line in block[1::2])
    (data_line,) = [line for line in said.splitlines() if line.startswith("data: ") and "train" in line]
    assert len(data_line) < 300
    assert not any(text in data_line for text in EXPECTED)
    plan, report = json.loads((run / "plan.json").read_text()), (run / "report.html").read_text()
    assert [set(one) for one in plan["warnings"]] == [{"text", "count", "example", "advice"}] * 5
    assert plan["warnings"][2]["count"] == 1
    assert report.count("<strong>Warning:</strong>") == 5
    with (run / "unreadable.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["train/a/damaged.png"]
    assert "cut short" in rows[0]["reason"]


def test_a_plan_has_the_block_below_its_decisions(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "train/a/damaged.png").unlink()
    assert main(["plan", str(source), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "data: 10 train, 2 val" in said, "the image without a suffix is one"
    assert "\n\n4 warnings:\n- 1 file is no image" in said


def test_without_warnings_there_is_no_block() -> None:
    assert list_warnings({}) == list_warnings({"warnings": []}) == []
    one = {"text": "a", "count": 1, "example": "b", "advice": "c\x1b[2J"}
    assert list_warnings({"warnings": [one]}) == ["1 warning:", "- a", "  -> c\\x1b[2J"]
