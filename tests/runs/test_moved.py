"""A run folder that moved is the same run: resumed, evaluated, asked for predictions and reported where it lies now."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import headstart as hs
from headstart.cli.main import main
from headstart.config.load import write_yaml
from headstart.config.schema import Data
from headstart.errors import ConfigError
from headstart.predictor import evaluate_run, predict_paths


class Stop(Exception):
    pass


@pytest.fixture
def home(draw_colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos/; paths are given from there."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    draw_colours(Path("photos"), each=8)
    return Path.cwd()


@pytest.fixture
def options(settings, home: Path) -> Callable[..., dict[str, Any]]:
    def make(**sections: Any) -> dict[str, Any]:
        return settings(data={"source": "photos"}, out="runs/a", recipe="full") | sections

    return make


@pytest.fixture
def stopped(options) -> Path:
    """A run that ended without a word after its first of two epochs, and then moved."""

    def watch(event: object) -> None:
        if type(event).__name__ == "EpochDone":
            raise Stop

    with pytest.raises(Stop):
        hs.train(hs.load_config(options(checkpoint={"every_steps": 1})), watch=watch)
    Path("elsewhere").mkdir()
    return Path(shutil.move("runs/a", "elsewhere/b"))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def wanted(options) -> bytes:
    return weights(hs.train(hs.load_config(options(out="runs/whole", checkpoint={"every_steps": 1}))).path)


def test_it_is_resumed_where_it_is_with_the_same_bits(
    stopped: Path, options, wanted: bytes, tmp_path: Path, capsys
) -> None:
    copies = [Path(shutil.copytree(stopped, tmp_path / name)) for name in ("by_out", "by_record", "by_command", "data")]
    hs.train(hs.load_config(options(out=str(copies[0]), checkpoint={"every_steps": 1})), resume=True)
    hs.train(hs.load_config(copies[1] / "config.yaml"), resume=True)
    assert main(["train", "--config", str(copies[2] / "config.yaml"), "--resume"]) == 0
    shutil.move("photos", "pictures")
    capsys.readouterr()
    assert main(["train", "pictures", "--config", str(copies[3] / "config.yaml"), "--resume"]) == 0
    here = Path.cwd()
    said = (
        f"the data lie in {here / 'pictures'} now, in {here / 'photos'} before: the same by names, contents and labels"
    )
    assert said in capsys.readouterr().err
    assert [weights(copy) == wanted for copy in copies] == [True] * 4
    assert all("going on from step 3" in (copy / "log.txt").read_text() for copy in copies)
    assert not Path("runs/a").exists()


def test_data_that_moved_and_are_others_are_refused(stopped: Path, draw_colours) -> None:
    draw_colours(Path("others"), each=7)
    config = hs.load_config(stopped / "config.yaml", flags={"data.source": "others"})
    with pytest.raises(ConfigError, match="the data have changed since the run began"):
        hs.train(config, resume=True)


def test_a_run_without_a_name_of_its_own_is_resumed_by_its_record(options, wanted: bytes, capsys) -> None:
    config = hs.load_config({name: value for name, value in options().items() if name != "out"})
    run = hs.train(config).path
    assert run == Path("runs/photos")
    moved = Path(shutil.move(run, "moved"))
    assert main(["train", "--config", str(moved / "config.yaml"), "--resume"]) == 0
    assert "moved is finished already" in capsys.readouterr().err
    assert not run.exists()
    assert weights(moved) == wanted


def test_a_finished_one_works_where_it_is(options, home: Path, tmp_path: Path, monkeypatch) -> None:
    run = hs.train(hs.load_config(options(epochs=1)))
    before = predict_paths(run.path, ["photos/red/00.png"])
    moved = Path(shutil.move(run.path, tmp_path / "moved"))
    monkeypatch.chdir(tmp_path)
    assert [one.labels for one in predict_paths(moved, ["home/photos/red/00.png"])] == [one.labels for one in before]
    assert evaluate_run(moved, Data(source="home/photos")).metrics == run.metrics
    pictures = (moved / "report.html").read_text().count("data:image/jpeg")
    (moved / "report.html").unlink()
    hs.report(moved)
    assert (moved / "report.html").read_text().count("data:image/jpeg") == pictures > 0
    assert str(home / "runs") not in (moved / "report.html").read_text()


def test_thumbnails_are_the_pictures_that_were_validated(options, home: Path) -> None:
    run = hs.train(hs.load_config(options(epochs=1))).path
    with (run / "predictions.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    shown = (run / "report.html").read_text().count("data:image/jpeg")
    Image.new("RGB", (32, 32)).save(home / "photos" / ids[0])
    (home / "photos" / ids[1]).unlink()
    hs.report(run)
    text = (run / "report.html").read_text()
    assert text.count("data:image/jpeg") == shown - 2
    assert "another picture than it was" in text
    assert "no longer where it was" in text


@pytest.mark.parametrize("given", [{}, {"images": "set/pics"}])
def test_a_table_whose_images_lie_elsewhere_shows_those(options, home, draw_colours, monkeypatch, given) -> None:
    """Beside the table are other pictures under the same names."""
    draw_colours(Path(given.get("images", "set/images")), each=8)
    names = [f"{colour}/{number:02}.png" for colour in ("blue", "green", "red") for number in range(8)]
    for name in names[:20]:
        path = Path("set", name)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
    Path("set/rows.csv").write_text("image,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in names))
    run = hs.train(hs.load_config(options(epochs=1, data={"source": "set/rows.csv"} | given))).path.absolute()
    with (run / "predictions.csv").open() as file:
        count = sum(1 for _ in csv.DictReader(file))
    for folder in (home, home.parent):
        monkeypatch.chdir(folder)
        hs.report(run)
        assert (run / "report.html").read_text().count("data:image/jpeg") == count


def test_options_that_decide_the_bits_are_still_refused(stopped: Path) -> None:
    config = hs.load_config(stopped / "config.yaml", flags={"optimizer.weight_decay": 0.5})
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay"):
        hs.train(config, resume=True)


def test_the_record_of_a_run_that_did_not_move_stays_as_it_is(wanted: bytes) -> None:
    record = Path("runs/whole/config.yaml")
    options, text = write_yaml(hs.load_config(record)), record.read_text()
    assert text.startswith(options)
    assert all(line.startswith("#") for line in text.removeprefix(options).splitlines() if line)
    assert torch.is_tensor(hs.open_run("runs/whole").model.state_dict()["fc.weight"])
