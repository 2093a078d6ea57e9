"""A run opened once: the same bits however images come, averages over views and runs, and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.data.images import image_batches
from headstart.runs.run import Run


def trained(colours: Path, out: Path, *, seed: int, task: str | None = None) -> Run:
    settings = {
        "data": {"source": str(colours)},
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
        },
        "batch": {"size": 8}, "epochs": 1, "device": "cpu", "out": str(out), "seed": seed,
    }  # fmt: skip
    return hs.train(hs.load_config(settings))


@pytest.fixture(scope="module")
def runs(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return [trained(colours, folder / f"run{seed}", seed=seed) for seed in (1, 2)]


def probabilities(rows: list[hs.Prediction]) -> np.ndarray:
    return np.array([[dict(row.labels)[name] for name in ("blue", "green", "red")] for row in rows])


def test_a_stream_gives_the_bits_of_predict_whatever_the_workers_and_the_unreadable(runs, colours, tmp_path) -> None:
    paths: list[object] = [str(path) for path in sorted(colours.rglob("*.png"))[:19]]
    (tmp_path / "torn.png").write_bytes(b"no picture")
    expected = {row.path: row.labels for row in hs.predict(runs[0].path, paths)}
    torn = [*paths[:9], str(tmp_path / "torn.png"), *paths[9:]]
    for workers in (0, 2):
        rows = list(hs.Predictor(runs[0].path, workers=workers).stream(torn))
        assert [row.path for row in rows] == torn
        assert {row.path: row.labels for row in rows if row.error is None} == expected
        assert [row.error is None for row in rows].count(False) == 1


def test_a_stream_reads_no_further_than_it_is_asked(runs, colours, tmp_path) -> None:
    """Images of the third batch vanish while the first is looked at: only they are missed."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02}.png").write_bytes((colours / "red" / "00.png").read_bytes())
    stream = hs.Predictor(runs[0].path).stream(folder)
    assert next(stream).error is None
    (folder / "20.png").unlink()
    assert [Path(row.path).name for row in stream if row.error] == ["20.png"]


def test_mirrored_views_are_the_mean_of_what_the_model_says_of_both(runs, colours) -> None:
    opened, pictures = hs.open_run(runs[0].path), sorted(colours.rglob("*.png"))[:5]
    (batch,) = image_batches(pictures, preprocess=opened.preprocess, task=opened.task, batch_size=5).epoch(0)
    images = batch.inputs(torch.device("cpu"), torch.contiguous_format)
    with torch.no_grad():
        once, mirrored = opened.model(images).softmax(1), opened.model(images.flip(-1)).softmax(1)
    found = probabilities(hs.Predictor(runs[0], views="mirrored").predict(pictures))
    assert np.abs(found - ((once + mirrored) / 2).numpy()).max() < 1e-6
    assert np.abs(found - once.numpy()).max() > 1e-5


def test_an_ensemble_is_the_mean_of_its_runs(runs, colours) -> None:
    expected = sum(probabilities(hs.predict(run, colours / "red")) for run in runs) / 2
    found = probabilities(hs.Predictor(runs).predict(colours / "red"))
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(found - probabilities(hs.predict(runs[0], colours / "red"))).max() > 1e-6


def test_runs_of_other_tasks_are_not_averaged(runs, colours, tmp_path) -> None:
    for name in ("blue", "red"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for path in (colours / name).iterdir():
            (tmp_path / "two" / name / path.name).write_bytes(path.read_bytes())
    other = trained(tmp_path / "two", tmp_path / "other", seed=1)
    with pytest.raises(hs.Error, match="answers are averaged over runs of one task"):
        hs.Predictor([runs[0], other])


def test_features_times_the_head_are_the_probabilities(runs, colours) -> None:
    opened = hs.open_run(runs[0].path)
    found = hs.Predictor(opened).embed(colours / "red")
    logits = torch.from_numpy(found.values) @ opened.model.fc.weight.T + opened.model.fc.bias
    expected = probabilities(hs.predict(opened, colours / "red"))
    assert np.abs(logits.softmax(1).detach().numpy() - expected).max() < 1e-6
    assert found.values.dtype == np.float32
    assert list(found.paths) == [row.path for row in hs.predict(opened, colours / "red")]


def test_images_of_a_side_are_not_mirrored(colours, tmp_path) -> None:
    for name, side in (("blue", "turn_left"), ("red", "turn_right")):
        (tmp_path / "sides" / side).mkdir(parents=True)
        for path in (colours / name).iterdir():
            (tmp_path / "sides" / side / path.name).write_bytes(path.read_bytes())
    run = trained(tmp_path / "sides", tmp_path / "run", seed=1)
    with pytest.raises(hs.Error, match=r"mirrored images of turn_left, turn_right would have another answer"):
        hs.Predictor(run, views="mirrored")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"views": "three"}])
def test_options_that_mean_nothing_are_refused(runs, options) -> None:
    with pytest.raises(hs.Error):
        hs.Predictor(runs[0], **options)
