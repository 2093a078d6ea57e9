"""Exports give what PyTorch gives, are used without headstart, and are not there where they would differ."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import headstart as hs
from headstart.cli.main import main
from headstart.data.batch import normalise
from headstart.data.transforms.transforms import eval_transform
from headstart.exports import formats
from headstart.exports.scripts import write_script
from headstart.models.preprocess import Preprocess
from headstart.runs.run import Run

RESNET = {"name": "timm/resnet18", "weights": "none", "image_size": 32, "options": {"channels": [8, 8, 16, 16]}}
VIT = {
    "name": "timm/vit_tiny_patch16_224", "weights": "none", "image_size": 32,
    "options": {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
}  # fmt: skip
Train = Callable[..., Run]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise, each picture of another size, among them JPEGs."""
    root, draw = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for name, colour in {"blue": (40, 40, 180), "green": (40, 180, 40), "red": (180, 40, 40)}.items():
        (root / name).mkdir(parents=True)
        for number in range(8):
            height, width = draw.integers(20, 90, 2)
            pixels = np.clip(np.array(colour) + draw.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.{'jpg' if number % 2 else 'png'}")
    return root


@pytest.fixture(scope="module")
def train(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains for six short epochs: ``train(source, model=..., data=..., net=...)``."""

    def run(source: Path = pictures, *, net: nn.Module | None = None, model: Any = None, **data: Any) -> Run:
        settings = {
            "data": {"source": str(source)} | data, "batch": {"size": 8}, "epochs": 6, "recipe": "full", "workers": 0,
            "device": "cpu", "optimizer": {"lr": 0.01}, "out": str(tmp_path_factory.mktemp("runs") / "run"),
        } | ({"model": model or RESNET} if net is None else {})  # fmt: skip
        return hs.train(hs.load_config(settings), model=net, watch=None)

    return run


@pytest.fixture(scope="module")
def run(train: Train) -> Run:
    return train()


@pytest.fixture(scope="module")
def numbers(pictures: Path) -> Path:
    """A table of prices over four powers of ten, and tags, by the pictures' colours."""
    paths = sorted(pictures.glob("*/*"))
    rows = [
        f"{path},{10 ** (1 + place % 5 / 1.3):.4f},{place % 2},{place % 3 == 0:d}" for place, path in enumerate(paths)
    ]
    (table := pictures.parent / "numbers.csv").write_text("\n".join(["image,price,sea,sunset", *rows]) + "\n")
    return table


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One picture each that lies on its side, and one of CMYK, grey, opacity, a palette and 16 bits; a large JPEG."""
    folder, draw = tmp_path_factory.mktemp("odd"), np.random.default_rng(1)
    pixels = draw.integers(0, 256, (12, 17, 4), dtype=np.uint8)
    image = Image.fromarray(pixels[:, :, :3]).resize((170, 120), Image.Resampling.BICUBIC)
    lying = Image.Exif()
    lying[0x0112] = 6
    image.save(folder / "lying.jpg", exif=lying, quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png")
    Image.fromarray(pixels).resize((170, 120)).save(folder / "clear.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    image.resize((1700, 1200), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=95)
    return sorted(folder.iterdir())


def used_alone(folder: Path, paths: list[Path]) -> dict[str, dict[str, float]]:
    """What ``predict.py`` of the export prints, by path and name, in a process that cannot import headstart."""
    words = [sys.executable, "-W", "error", str(folder / "predict.py"), *map(str, paths)]
    clean = {"PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=clean, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        path, name, value = line.split("\t")
        found.setdefault(path, {})[name] = float(value)
    return found


@pytest.mark.parametrize("to", [name for name, form in formats.FORMATS.items() if form.has_graph])
def test_an_export_and_its_script_give_what_headstart_predicts(
    run: Run, pictures: Path, odd: list[Path], tmp_path: Path, to
) -> None:
    made = hs.export(run, to=to, out=tmp_path / "made")
    assert made.difference <= 1e-3 and made.images == 6
    assert {path.name for path in tmp_path.iterdir()} == {"made"}
    assert {"model.json", "predict.py", made.file.name} <= {path.name for path in made.path.iterdir()}
    about = json.loads((made.path / "model.json").read_text())
    assert about["names"] == ["blue", "green", "red"] and about["preprocess"] == "inside"
    for path in made.path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), f"{path}: a path of this machine is in it"
        assert b"site-packages" not in path.read_bytes(), f"{path}: a path of this machine is in it"
    alone = used_alone(made.path, odd)
    expected = {row.path: dict(row.labels) for row in hs.predict(run, odd)}
    assert max(max(dict(row.labels).values()) for row in hs.predict(run, pictures)) > 0.5, "the model says something"
    for path, row in expected.items():
        assert alone[path] == pytest.approx(row, abs=0.02 if "large" in path else 2e-3), path


def test_one_file_takes_batches_and_pictures_of_any_size(run: Run, tmp_path: Path) -> None:
    import onnxruntime

    made = hs.export(run.path, to="onnx", out=tmp_path / "made")
    session = onnxruntime.InferenceSession(made.file)
    (entry,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, answer.name) == ("images", "tensor(uint8)", "probabilities")
    for batch, height, width in ((1, 1, 1), (1, 7, 400), (4, 64, 64), (9, 333, 20)):
        images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        (found,) = session.run(None, {"images": images})
        expected = [dict(row.labels) for row in hs.predict(run, list(images))]
        wanted = [[row[name] for name in ("blue", "green", "red")] for row in expected]
        assert np.abs(found - np.array(wanted)).max() < 1e-3, (batch, height, width)


def test_numbers_come_out_in_original_units(train: Train, numbers: Path, odd: list[Path], tmp_path: Path) -> None:
    model = {"name": "torchvision/squeezenet1_1", "weights": "none", "image_size": 64}
    run = train(numbers, model=model, target="price", log=True)
    made = hs.export(run, to="onnx", out=tmp_path / "made")
    expected = {row.path: row.values for row in hs.predict(run, odd)}
    alone = used_alone(made.path, odd)
    for path, row in expected.items():
        assert alone[path] == pytest.approx(row, rel=0.02 if "large" in path else 2e-3), path


def test_tags_of_a_transformer_come_out_with_their_thresholds(train: Train, numbers: Path, tmp_path: Path) -> None:
    run = train(numbers, model=VIT, target=["sea", "sunset"])
    made = hs.export(run, to="onnx", out=tmp_path / "made")
    about = json.loads((made.path / "model.json").read_text())
    assert (about["names"], set(about["thresholds"]), about["kind"]) == (
        ["sea", "sunset"], {"sea", "sunset"}, "multilabel"
    )  # fmt: skip


def test_with_preprocessing_outside_the_script_does_it(run: Run, odd: list[Path], tmp_path: Path) -> None:
    made = hs.export(run, to="onnx", out=tmp_path / "made", preprocess="outside")
    assert json.loads((made.path / "model.json").read_text())["input"].startswith("float32")
    alone, expected = used_alone(made.path, odd), {row.path: dict(row.labels) for row in hs.predict(run, odd)}
    for path, row in expected.items():
        assert alone[path] == pytest.approx(row, abs=0.02 if "large" in path else 5e-3), path


@pytest.mark.parametrize("mode", ["center", "border", "squash"])
@pytest.mark.parametrize(("width", "bands"), [(32, 3), (40, 3), (32, 1)])
def test_the_preprocessing_of_a_script_is_validations(mode: str, width: int, bands: int) -> None:
    preprocess = Preprocess(
        height=32, width=width, mean=(0.5, 0.4, 0.3)[:bands], std=(0.2, 0.3, 0.4)[:bands], interpolation="bicubic",
        crop_pct=0.875, source="t", crop_mode=mode,
    )  # fmt: skip
    about = {"preprocess": "outside", "output": "probabilities", "input": "float32"}
    text = write_script("onnx", about, preprocess)
    found: dict[str, Any] = {"np": np, "Image": Image}
    exec(text[text.index("def prepare") : text.index("for path in")], found)
    for height, wide in ((50, 70), (90, 31), (10, 12)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, wide, 3), dtype=np.uint8))
        picture = picture if bands == 3 else picture.convert("L")
        pixels = eval_transform(preprocess)(picture)[None]
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        (expected,) = normalise(pixels, mean=mean, std=std, memory_format=torch.contiguous_format)
        apart = np.abs(found["prepare"](picture) - expected.numpy())
        assert apart.max() <= 2 / 255 / min(preprocess.std) + 1e-6, (height, wide)


def test_a_folder_of_weights_is_opened_by_timm_and_by_headstart(run: Run, pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.glob("*/0[0-3].png"))
    expected = {row.path: dict(row.labels) for row in hs.predict(run, paths)}
    plain = hs.export(run, to="timm", out=tmp_path / "timm")
    alone = used_alone(plain.path, paths)
    for path, row in expected.items():
        assert alone[path] == pytest.approx(row, abs=5e-3), path
    hub = hs.export(run, to="hub-folder", out=tmp_path / "hub").path
    assert {row.path: dict(row.labels) for row in hs.predict(hub, paths)} == expected
    assert {path.suffix for path in hub.iterdir()} == {".md", ".json", ".safetensors", ".py"}
    for path in (*hub.iterdir(), *plain.path.iterdir()):
        assert not {str(run.path.parent).encode(), str(pictures.parent).encode()} & {path.read_bytes()}
        assert b"/tmp/" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes(), path
    card = ModelCard.load(hub / "README.md")
    assert card.data.library_name == "timm" and "## Intended use" in card.text and "## Limits" in card.text
    results = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert results == run.metrics and card.data.eval_results[0].dataset_name == "pictures"


def test_what_timm_cannot_build_is_refused(run: Run) -> None:
    opened = hs.open_run(run.path)
    others = {
        "its head (mlp) is not one linear layer": {"head": {"kind": "mlp"}},
        "it is a model of torchvision": {"model": opened.facts["model"] | {"library": "torchvision"}},
    }
    for text, facts in others.items():
        with pytest.raises(hs.Error, match=re.escape(text)):
            hs.export(hs.OpenedRun(**vars(opened) | {"facts": {**opened.facts, **facts}}), to="timm")
    with pytest.raises(hs.Error, match="preprocess: timm holds weights"):
        hs.export(opened, to="timm", preprocess="inside")


class Own(nn.Module):
    """Convolution, pool and head; ``doubles``: another thing where it is exported; ``branches``: by what it sees."""

    def __init__(self, *, doubles: bool = False, branches: bool = False) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 3)
        self.doubles, self.branches = doubles, branches

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images).relu().mean((2, 3))
        if self.doubles and torch.compiler.is_exporting():
            features = 2 * features + 1
        if self.branches and features.sum() > 1e9:
            features = -features
        return self.fc(features)


def test_an_own_module_is_exported_and_one_that_differs_leaves_nothing(train: Train, tmp_path: Path) -> None:
    run = train(net=Own())
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert hs.export(run, to="pt2", out=tmp_path / "own").difference < 1e-3
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    with pytest.raises(
        hs.Error, match=r"differs from PyTorch by .* on .*(png|jpg) \(\d+ x \d+ pixels, in a batch of \d"
    ):
        hs.export(train(net=Own(doubles=True)), to="pt2", out=tmp_path / "new" / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_model_that_does_not_export_is_refused_with_the_exporters_reason(train: Train, tmp_path: Path) -> None:
    run = train(net=Own(branches=True))
    with pytest.raises(hs.Error, match=r"cannot be exported: torch\.export says: .") as refused:
        hs.export(run, to="pt2", out=tmp_path / "made")
    assert refused.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_what_no_file_can_hold_is_refused_with_what_to_type(train: Train, pictures: Path, tmp_path: Path) -> None:
    settings = {
        "data": {"source": str(pictures)}, "model": RESNET, "epochs": 1, "recipe": "full", "device": "cpu",
        "out": str(tmp_path / "run"), "workers": 0,
    }  # fmt: skip
    run = hs.train(hs.load_config(settings), transform={"val": lambda pixels: pixels.flip(-1)}, watch=None)
    with pytest.raises(hs.Error, match=r"a transform of your own.*--preprocess outside"):
        hs.export(run, to="pt2")
    made = hs.export(run, to="pt2", preprocess="outside")
    assert made.path == run.path / "exports" / "pt2-outside" and "a transform of your own" in " ".join(made.notes)


def test_mistakes_are_told_before_anything_is_written(run: Run, tmp_path: Path, monkeypatch) -> None:
    cases = {
        "is no format; accepted: onnx": {"to": "tflite"},
        "is there already; remove it": {"to": "pt2", "out": run.path},
        "preprocess: 'both'; accepted": {"to": "pt2", "preprocess": "both"},
        "precision: 'int4'; accepted for pt2: fp32": {"to": "pt2", "precision": "int4"},
    }
    for text, options in cases.items():
        with pytest.raises(hs.Error, match=text) as refused:
            hs.export(run, **options)
        assert refused.value.exit_code == 2
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(hs.Error, match=r"to: onnx needs onnx; install it with: pip install 'headstart\[onnx\]'"):
        hs.export(run, to="onnx")
    assert not (run.path / "exports").exists()


def test_images_that_are_gone_are_asked_for(train: Train, draw_colours, tmp_path: Path, capsys) -> None:
    run = train(draw_colours(tmp_path / "old", each=4))
    (tmp_path / "old").rename(tmp_path / "new")
    assert main(["export", str(run.path), "--to", "pt2"]) == 2
    assert "where nothing is now; give some images to compare the export on: --images PATH" in capsys.readouterr().err
    words = ["export", str(run.path), "--to", "pt2", "--images", str(tmp_path / "new" / "red"), "--json"]
    assert main(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["images"] == 4 and Path(made["file"]) == run.path / "exports" / "pt2" / "model.pt2"
