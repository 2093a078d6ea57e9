"""Features of images by a run's model or any other: what the head is given, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli.images import tell_unreadable
from headstart.cli.main import main
from headstart.data.images import image_batches
from headstart.prediction.embedding import Embedder
from headstart.prediction.output_names import refuse_output
from headstart.prediction.predictor import _check_views
from headstart.tasks.task import TaskSpec
from headstart.wording import write_options_as


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_of_a_pretrained_models_name_are_what_its_body_gives(colours, tmp_path, ending, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    opened = hs.open_model("timm/resnet18", weights="none")
    torch.save(opened.module.state_dict(), "net.pth")
    out = Path(f"features.{ending}")
    words = ["embed", "timm/resnet18", str(colours / "red"), "--weights", "net.pth", "--out", str(out)]
    assert main([*words, "--batch-size", "3"]) == 0
    if ending == "npz":
        found = np.load(out)
        paths, values = found["paths"].tolist(), found["values"]
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        paths, values = table["path"].to_pylist(), np.array(table["values"].to_pylist(), dtype=np.float32)
    expected = sorted(str(path) for path in (colours / "red").iterdir())
    assert paths == expected
    task = TaskSpec(kind="classify", classes=("a", "b"))
    (batch,) = image_batches(expected, preprocess=opened.preprocess, task=task, batch_size=len(expected)).epoch(0)
    with torch.no_grad():
        body = opened.module.eval().forward_head(
            opened.module.forward_features(batch.inputs(torch.device("cpu"), torch.contiguous_format)), pre_logits=True
        )
    assert np.abs(values - body.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "pooled"),
    [((4, 6), lambda x: x), ((4, 5, 6), lambda x: x.mean(1)), ((4, 6, 2, 3), lambda x: x.mean((2, 3)))],
)
def test_tokens_and_maps_are_averaged(colours, shape, pooled) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Identity()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = torch.arange(float(np.prod(shape))).reshape(shape) * images[:, :1, 0, 0].mean()
            return self.head(values).flatten(1)

    opened = hs.open_model("timm/resnet18", weights="none", image_size=32)
    task = TaskSpec(kind="classify", classes=("a", "b"))
    paths = sorted((colours / "red").iterdir())[:4]
    batches = image_batches(paths, preprocess=opened.preprocess, task=task, batch_size=4)
    found = Embedder(model=Net(), head="head", preprocess=opened.preprocess).embed(batches)
    (batch,) = batches.epoch(0)
    inputs = batch.inputs(torch.device("cpu"), torch.contiguous_format)
    expected = pooled(torch.arange(float(np.prod(shape))).reshape(shape) * inputs[:, :1, 0, 0].mean())
    assert np.abs(found.values - expected.numpy()).max() < 1e-3


def test_a_head_that_is_never_called_is_named(colours) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(images.mean((2, 3)), self.fc.weight)

    opened = hs.open_model("timm/resnet18", weights="none", image_size=32)
    task = TaskSpec(kind="classify", classes=("a", "b"))
    batches = image_batches([colours / "red"], preprocess=opened.preprocess, task=task, batch_size=4)
    with pytest.raises(hs.Error, match="the model never calls fc"):
        Embedder(model=Net(), head="fc", preprocess=opened.preprocess).embed(batches)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["timm/resnet81", "here"], "resnet81"),
        (["timm/resnet18", "nowhere"], "there is no such file or folder"),
        (["timm/resnet18", "here", "--out", "found.csv"], "accepted are names that end in .npz, .parquet"),
        (["timm/resnet18"], "PATH is missing"),
    ],
)
def test_what_cannot_be_is_said_before_torch_is_imported(tmp_path, monkeypatch, capsys, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert main(["embed", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def darken(images: torch.Tensor) -> torch.Tensor:
    return images // 2


@pytest.fixture(scope="module")
def framed(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was validated with a transform of its own."""
    settings = {
        "data": {"source": str(colours)},
        "model": {
            "name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]},
        },
        "batch": {"size": 8}, "epochs": 1, "device": "cpu", "out": str(tmp_path_factory.mktemp("framed") / "run"),
    }  # fmt: skip
    return hs.train(hs.load_config(settings), transform={"val": darken}).path


def test_the_command_refuses_a_run_with_a_transform_of_its_own(framed, colours, tmp_path, capsys) -> None:
    out = tmp_path / "found.npz"
    assert main(["embed", str(framed), str(colours / "red"), "--out", str(out)]) == 2
    assert f"hs.Predictor('{framed}/model', transform=g).embed(IMAGES)" in capsys.readouterr().err
    assert not out.exists()
    found = hs.Predictor(f"{framed}/model", transform=darken).embed(colours / "red")
    assert found.values.shape[1] == 16


def test_features_are_not_averaged_over_mirrored_images(framed, colours) -> None:
    with pytest.raises(hs.Error, match="give views='one'"):
        hs.Predictor(framed, transform=darken, views="mirrored").embed(colours / "red")


def test_unreadable_images_beyond_those_named_are_said_to_be_elsewhere(tmp_path, capsys) -> None:
    for number in range(23):
        (tmp_path / f"{number:02}.png").write_bytes(b"no picture")
    tell_unreadable([(str(path), "why") for path in sorted(tmp_path.iterdir())], rest="headstart predict says why")
    assert capsys.readouterr().err.endswith("more images that cannot be read: 3; headstart predict says why\n")


def test_a_link_to_nothing_is_a_name_that_is_taken(tmp_path) -> None:
    (tmp_path / "found.npz").symlink_to("nowhere")
    with pytest.raises(hs.Error, match="is there already"):
        refuse_output(tmp_path / "found.npz", overwrite=False, formats=(".npz",))


def test_mirrored_views_are_refused_as_they_are_typed() -> None:
    task = TaskSpec(kind="classify", classes=("turn_left", "turn_right"))
    with write_options_as("flags"), pytest.raises(hs.Error, match=r"--views mirrored: .*; give --views one$"):
        _check_views("mirrored", task)
