"""Features of images by a run's model or any other: what the head is given, in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli.main import main
from headstart.data.images import image_batches
from headstart.prediction.embedding import Embedder
from headstart.tasks.task import TaskSpec


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
