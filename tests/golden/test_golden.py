"""Numbers and files of an earlier headstart: the same runs give the same numbers, and what it wrote is still read.

``kept.tar.gz`` holds ``photos`` and two folders that headstart 0.1.0 wrote before its modules moved: ``stopped``, a run
that ended without a word after the fourth of its eight steps, and ``finished``, the same run to its end.
"""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import headstart as hs
from headstart.cli.main import main
from tests.golden.runs import RUNS, VALUES, describe_machine, draw_images, run_one, write_weights

KNOWN = json.loads(VALUES.read_text())
SAME_MACHINE = KNOWN["machine"] == describe_machine()
ROUNDING = {"rel": 2e-3, "abs": 2e-4}  # of another processor or another torch, over eight steps


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures, the tables and the weights that the runs begin with."""
    folder = tmp_path_factory.mktemp("golden")
    draw_images(folder)
    write_weights(folder / "vit.safetensors")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_numbers_that_it_gave(name: str, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit on the machine and the torch of the stored values, within rounding elsewhere."""
    monkeypatch.chdir(drawn)
    found, known = run_one(name), KNOWN["runs"][name]
    assert found["steps"][0][0] == pytest.approx(known["steps"][0][0], **ROUNDING)
    assert [len(found[part]) for part in ("steps", "epochs")] == [len(known[part]) for part in ("steps", "epochs")]
    if SAME_MACHINE:
        assert found == known


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kept folders, unpacked into the working folder."""
    with tarfile.open(Path(__file__).with_name("kept.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(kept: Path) -> None:
    steps = [line for line in (kept / "stopped" / "events.jsonl").read_text().splitlines() if '"step"' in line]
    config = hs.load_config(kept / "stopped" / "config.yaml")
    run = hs.train(config, resume=True, allow_inexact=True)  # of another Python or NumPy, too
    assert run.path.resolve() == (kept / "stopped").resolve()
    assert set(steps[:4]) <= set((run.path / "events.jsonl").read_text().splitlines()), "it began anew"
    _assert_close(load_file("stopped/model/model.safetensors"), load_file("finished/model/model.safetensors"))


def test_a_bundle_predicts_what_was_validated(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (kept / "finished" / "predictions.csv").open(newline="") as file:
        validated = {row["id"]: float(row["confidence"]) for row in csv.DictReader(file)}
    assert main(["predict", "finished", *(f"photos/{name}" for name in validated), "--format", "json"]) == 0
    predicted: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert len(predicted) == len(validated) > 0
    confidences = [one["labels"][0]["confidence"] for one in predicted]
    assert confidences == pytest.approx(list(validated.values()), rel=0 if SAME_MACHINE else 1e-4)


def test_scripts_still_import_the_old_modules(tmp_path: Path) -> None:
    from headstart.data import decode
    from headstart.data.decoding import decode as decoding
    from headstart.data.sources import files
    from headstart.inference import predict_paths
    from headstart.predictor import predict_paths as now

    assert predict_paths is now
    assert (decode.read_image, decode.UnreadableImage) == (files.read_image, decoding.UnreadableImage)
    picture = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(picture)
    read = decode.read_file(picture)
    assert read.content == decode.read_bytes(picture) == picture.read_bytes()
    decode.check_image(read.content, path=picture)
    assert decode.decode_image(read.content, path=picture).size == (3, 2)
    with pytest.raises(decode.UnreadableImage) as caught:
        decode.check_image(b"no image", path=picture)
    assert caught.value.path == picture


def _assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    tolerance = {"rtol": 0.0, "atol": 0.0} if SAME_MACHINE else {"rtol": 1e-3, "atol": 1e-3}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name, **tolerance)
