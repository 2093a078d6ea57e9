"""A run made again has the same bits, whatever a busy machine would have auto choose now; other data are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli.main import main
from headstart.errors import ConfigError
from headstart.planning import evaluation
from headstart.planning import precision as arithmetic
from headstart.planning.precision import Arithmetic


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch):
    """Lets the machine's load decide: ``busy(precision)`` is what trials find from now on."""

    def choose(precision: str) -> None:
        found = Arithmetic(precision=precision, memory_format="contiguous"), f"{precision} was the fastest"
        monkeypatch.setattr(arithmetic, "_measure_precision", lambda _: found)
        size = evaluation._Choice(size=3 if precision == "bf16" else 5, why="as fast as any")
        monkeypatch.setattr(evaluation, "_measure_evaluation", lambda *_: size)

    return choose


def bits(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("model/model.safetensors", "predictions.csv")]


def test_the_same_bits_although_trials_come_out_otherwise(settings, busy, tmp_path: Path) -> None:
    sections = {"recipe": "lp_ft", "epochs": 2}
    busy("bf16")
    first = hs.train(hs.load_config(settings(**sections, out=str(tmp_path / "first"))))
    busy("fp32")
    other = hs.train(hs.load_config(settings(**sections, out=str(tmp_path / "other"))))
    again = hs.repeat(first.path)
    assert again.path == tmp_path / "first-repeat"
    assert bits(again.path) == bits(first.path) != bits(other.path)
    assert again.metrics == first.metrics
    plans = [json.loads((run.path / "plan.json").read_text()) for run in (first, again)]
    assert plans[0]["choices"] == plans[1]["choices"] and plans[1]["precision"] == "bf16"


def test_what_auto_came_to_stands_in_the_runs_options(settings, busy, tmp_path: Path) -> None:
    busy("bf16")
    config = hs.load_config(settings(recipe="full", epochs=1, out=str(tmp_path / "run")))
    text = (hs.train(config).path / "config.yaml").read_text()
    assert "\nprecision: auto\n" in text and "#   precision: bf16\n" in text and "#   batch.evaluation: 3\n" in text
    assert hs.load_config(tmp_path / "run" / "config.yaml") == config


@pytest.fixture
def once(settings, colours, tmp_path: Path) -> Path:
    """A finished run on data of its own."""
    source = shutil.copytree(colours, tmp_path / "colours")
    sections = {"recipe": "probe", "epochs": 1, "data": {"source": str(source)}, "out": str(tmp_path / "once")}
    return hs.train(hs.load_config(settings(**sections))).path


def test_the_command_repeats_a_run_and_data_may_have_moved(once: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "colours").rename(tmp_path / "moved")
    arguments = ["train", str(tmp_path / "moved"), "--repeat", str(once), "--out", str(tmp_path / "again")]
    assert main(arguments) == 0
    assert bits(tmp_path / "again") == bits(once)
    assert main(arguments) == 2
    assert "a run is in" in capsys.readouterr().err


def test_changed_data_are_refused_with_what_to_type(once: Path, tmp_path: Path, settings) -> None:
    (tmp_path / "colours" / "red" / "03.png").unlink()
    with pytest.raises(ConfigError, match=r"repeat: the data are not those of .*once \(train was \d+") as caught:
        hs.repeat(once)
    assert not (tmp_path / "once-repeat").exists()
    words = str(caught.value).partition("headstart ")[2].split()
    assert main([*words, "--out", str(tmp_path / "anew")]) == 0  # what it says is accepted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "7"], "was made with other options (seed: the run has 42, now 7)"),
        (["--resume"], "repeat: --resume does not go with it"),
        (["--config", "x.yaml"], "repeat: --config does not go with it"),
    ],
)
def test_what_is_not_that_run_is_refused(once: Path, tmp_path: Path, capsys, arguments, message: str) -> None:
    assert main(["train", "--repeat", str(once), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "once-repeat").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"repeat: .* holds no run; give the folder that headstart train wrote"):
        hs.repeat(tmp_path)


def test_another_number_of_threads_is_refused_or_said(once: Path, tmp_path: Path) -> None:
    facts = json.loads((once / "environment.json").read_text())
    (once / "environment.json").write_text(json.dumps(facts | {"threads": 7}))
    with pytest.raises(ConfigError, match=r"would not be those of .* \(threads was 7, is 1\).*--allow-inexact"):
        hs.repeat(once)
    said: list[object] = []
    run = hs.repeat(once, allow_inexact=True, watch=said.append)
    assert run.path == tmp_path / "once-repeat"
    assert any("threads was 7, is 1" in event.text for event in said if isinstance(event, hs.Note))
