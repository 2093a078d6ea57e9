"""``headstart models``: the list, its filters, and times of this machine (never how long they are)."""

import json

import pytest

from headstart.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["models", *argv]) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["models", *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_the_list_shows_what_is_known_and_where_it_comes_from(capsys) -> None:
    lines = run(capsys, "timm/mobilenetv3_large_100.ra_in1k").splitlines()
    assert " ".join(lines[0].split()) == "model params input top-1 % cpu/s gpu/s licence mean/std"
    assert lines[1].split()[:4] == ["timm/mobilenetv3_large_100.ra_in1k", "5.5M", "224", "75.77"]
    assert lines[1].split()[-2:] == ["apache-2.0", "imagenet"]
    text = "\n".join(lines)
    assert "\n1 model\n" in text
    assert "imagenet 0.485,0.456,0.406/0.229,0.224,0.225" in text
    for word in ("results-imagenet.csv at", "i9-10940X", "RTX 4090", "read 20"):
        assert word in text


def test_most_lines_fit_a_terminal_of_120_columns(capsys) -> None:
    lines = run(capsys, "res*", "--pretrained-only").splitlines()
    assert len(lines) > 100
    assert sum(len(line) <= 120 for line in lines) > 0.95 * len(lines)


def test_all_models_are_listed(capsys) -> None:
    rows = json.loads(run(capsys, "--json"))
    assert len(rows) > 2000
    assert all(row["parameters"] > 0 for row in rows)
    others = [row for row in rows if row["pretrained"] and row["mean"] != [0.485, 0.456, 0.406]]
    assert len(others) > 600


def test_filters_sort_and_limit_work_together(capsys) -> None:
    argv = ("--max-params", "6M", "--min-top1", "75", "--max-image-size", "224", "--licence", "apache")
    rows = json.loads(run(capsys, *argv, "--sort", "top1", "--limit", "5", "--json"))
    assert len(rows) == 5
    assert [row["top1"] for row in rows] == sorted((row["top1"] for row in rows), reverse=True)
    assert all(row["parameters"] <= 6e6 and max(row["input"]) <= 224 and row["top1"] >= 75 for row in rows)
    shown = run(capsys, *argv, "--sort", "top1", "--limit", "5")
    assert "5 of " in shown
    assert shown.splitlines()[1].split()[0] == rows[0]["model"]


def test_a_filter_that_leaves_nothing_is_named(capsys) -> None:
    assert "--min-top1 99 leaves none of" in error(capsys, "resnet", "--min-top1", "99")
    assert "--family resnett leaves none of" in error(capsys, "--family", "resnett")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--min-params", "few"], "--min-params: 'few' is no number of parameters; give e.g. 5M or 300k"),
        (["--min-top1", "180"], "--min-top1: 180 is no percentage; give at most 100"),
        (["--min-top1", "high"], "--min-top1: 'high' is not a number; give e.g. --min-top1 80"),
        (["--min-cpu-speed", "nan"], "--min-cpu-speed: nan is not positive"),
        (["--limit", "2.5"], "--limit: '2.5' is not a whole number; give e.g. --limit 20"),
        (["--limit", "0"], "--limit: 0 is not positive; give e.g. --limit 20"),
        (["--max-image-size", "-4"], "--max-image-size: -4 is not positive"),
        (["--max-latency-ms", "20"], "--max-latency-ms is about times measured on this machine; add --measure"),
        (["--threads", "2"], "--threads is about times measured on this machine; add --measure"),
        (["--all"], "--all is about times measured on this machine; add --measure"),
        (["--measure", "--max-latency-ms", "0"], "--max-latency-ms: 0 is not positive"),
        (["--measure"], "at most 50 are timed"),
        (["test_vit", "--measure", "--device", "abacus"], "device: 'abacus' cannot be used here"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_sentence(argv: list[str], said: str, capsys) -> None:
    text = error(capsys, *argv)
    assert said in text
    assert "Traceback" not in text


def test_measured_models_are_all_there_and_the_best_are_marked(capsys) -> None:
    argv = ["timm/test_vit*", "--measure", "--threads", "1", "--device", "cpu", "--batch-size", "2"]
    assert main(["models", *argv, "--all"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:5] == ["model", "params", "input", "top-1", "%"]
    names = {line.split()[0] for line in lines if line.startswith("timm/test_vit")}
    rows = json.loads(run(capsys, *argv, "--json"))
    assert {row["model"] for row in rows} == names
    assert len(names) >= 3
    assert any(row["best"] for row in rows)
    for row in rows:
        assert row["latency_ms"]["p10"] <= row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
        assert row["best"] == (row["why_not"] == "")
    assert "random weights" in said.out
    assert "1 thread, fp32, batch 2" in said.out
    assert said.err.count("timed ") == len(names)


def test_nothing_in_time_is_said_and_is_no_error(capsys) -> None:
    text = run(capsys, "timm/test_vit.*", "--measure", "--threads", "1", "--max-latency-ms", "0.000001")
    assert text.startswith("none of 1 is shown: the fastest, timm/test_vit.r160_in1k, takes ")
    assert "--all shows them" in text
