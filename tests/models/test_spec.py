"""What a model spec's text may be, and what the errors say about one that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstart.errors import ModelError
from headstart.models.spec import FolderSpec, HubSpec, StarterSpec, TimmSpec, TorchvisionSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("timm/resnet50", TimmSpec("resnet50")),
        ("timm/resnet50.a1_in1k", TimmSpec("resnet50.a1_in1k")),
        ("torchvision/resnet50.IMAGENET1K_V2", TorchvisionSpec("resnet50.IMAGENET1K_V2")),
        ("hf-hub:timm/resnet18.a1_in1k", HubSpec("timm/resnet18.a1_in1k")),
        ("hf-hub:someone/shells@v2", HubSpec("someone/shells@v2")),
        ("starter", StarterSpec()),
    ],
)
def test_each_form_is_understood_and_written_back_as_it_was(text: str, spec: object) -> None:
    assert parse_spec(text) == spec
    assert str(parse_spec(text)) == text


def test_an_existing_folder_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("mine") == FolderSpec(Path("mine"))
    assert parse_spec(str(tmp_path)) == FolderSpec(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("resnet50", "write timm/resnet50 or torchvision/resnet50"),
        ("timm/", "expected timm/NAME"),
        ("timm/../../etc", "expected timm/NAME"),
        ("torchvision/a b", "expected torchvision/NAME"),
        ("hf-hub:resnet50", "expected hf-hub:ORG/NAME"),
        ("./nowhere", "there is no such folder"),
        ("someone/model", "it would be hf-hub:someone/model"),
        ("", "none of the accepted forms"),
    ],
)
def test_a_bad_spec_says_what_is_accepted(text: str, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_spec(text)
    assert told in str(caught.value)
    assert "timm/NAME" in str(caught.value)


def test_a_weights_file_given_as_the_model_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.touch()
    with pytest.raises(ModelError, match=r"is a file; name the architecture .* --weights"):
        parse_spec(str(path))


def test_parsing_a_spec_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys; from headstart.models.spec import parse_spec; parse_spec('timm/resnet50'); "
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
