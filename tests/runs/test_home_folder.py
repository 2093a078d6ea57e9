"""``~`` is the home folder wherever a path is given, in Python as on the command line, and in HEADSTART_CACHE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import headstart as hs
from headstart.cli.main import main
from headstart.storage.disk_cache import cache_folder


@pytest.fixture
def home(draw_colours: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with photos/ in it, and an empty folder to work in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEADSTART_CACHE", "~/cache")
    draw_colours(tmp_path / "home" / "photos", each=8)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_every_function_and_command_that_takes_a_path_knows_it(home: Path, settings) -> None:
    file = home / "options.yaml"
    file.write_text("recipe: probe\nepochs: 1\n")
    given = settings(data={"source": "~/photos"}, recipe="probe", epochs=1, out="~/run", cache={"use": "always"})
    run = hs.train(hs.load_config(given), watch=None)
    assert run.path == home / "run" and cache_folder() == home / "cache" and (home / "cache").is_dir()
    assert hs.load_config("~/options.yaml").epochs == 1
    assert hs.open_run("~/run").path == home / "run" / "model"
    assert hs.finish("~/run", watch=None).metrics == run.metrics
    assert hs.repeat("~/run", watch=None).path == home / "run-repeat"
    assert hs.report("~/run") == home / "run" / "report.html"
    assert len(hs.predict("~/run", ["~/photos/red/00.png", "~/photos/blue"])) == 9
    assert hs.evaluate("~/run", "~/photos").metrics == run.metrics
    opened = hs.open_model("~/run", weights="~/run/model/model.safetensors")
    assert len(hs.open_images("~/photos", like=opened).train.samples) > 12
    assert len(hs.audit("~/photos").hashes) == 24
    state = hs.TrainState(opened.module, torch.optim.SGD(opened.module.parameters(), lr=0.1))
    assert hs.save(state, "~/saved").parent == home / "saved" and hs.restore(state, "~/saved") == ()
    assert main(["predict", "~/run", "~/photos/red"]) == 0
    assert main(["report", "~/run"]) == 0
    assert list(Path.cwd().iterdir()) == []
