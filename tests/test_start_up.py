"""What a command imports: nothing that takes long and that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import headstart as hs

NOT_FOR_PREDICT = {
    "torch._dynamo": "torch's compiler, 1.2 s",
    "sympy": "0.4 s, the compiler's",
    "matplotlib": "0.4 s, the report's",
    "jinja2": "the report's",
    "torchmetrics": "a test's",
    "torch.distributed.fsdp": "0.2 s, of models that are shared out",
    "torch.distributed.tensor": "0.2 s, of models that are shared out",
    "torch.utils.flop_counter": "describe's",
    "rich.progress": "training's",
    "pandas": "nobody's",
    "pyarrow": "of Parquet tables",
}
LOADED = "import sys, json; from headstart.cli.main import main; code = main(sys.argv[1:]); print(json.dumps([code, list(sys.modules)]))"  # noqa: E501


def after(*words: str) -> tuple[int, set[str]]:
    """A command's exit code, and the modules that a process has imported by its end."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, set(modules)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/squeezenet1_1"])
def test_predict_imports_nothing_that_it_does_not_need(settings, colours: Path, name: str) -> None:
    options = {"channels": [8, 8, 16, 16]} if name.startswith("timm") else None
    model = {"name": name, "weights": "none", "image_size": 64} | ({"options": options} if options else {})
    config = settings(epochs=1, recipe="full")
    config["model"] = model
    run = hs.train(hs.load_config(config))
    code, modules = after("predict", str(run.path), str(colours / "red" / "00.png"))
    assert code == 0
    assert {name: why for name, why in NOT_FOR_PREDICT.items() if name in modules} == {}


@pytest.mark.parametrize("words", [("--help",), ("predict", "--help"), ("train", "--help")])
def test_help_imports_no_torch(words: tuple[str, ...]) -> None:
    code, modules = after(*words)
    assert code == 0
    assert not modules & {"torch", "numpy", "timm", "torchvision", "PIL"}
    assert "pydantic" not in modules or len(words) > 1  # the options of a verb are pydantic's; the list of verbs is not


@pytest.mark.parametrize(
    "words",
    [
        ("train", "nowhere"),
        ("plan", "nowhere.csv"),
        ("train", ".", "--model", "timm/resnet500"),
        ("train", ".", "--model", "torchvision/resnet5"),
        ("train", ".", "--model", "resnet18"),
        ("train", ".", "--weights", "nothing.pth"),
        ("describe", "timm/vitt"),
        ("predict", "nowhere", "a.jpg"),
        ("evaluate", "nowhere", "."),
    ],
)
def test_a_name_of_what_is_not_there_is_answered_without_torch(words: tuple[str, ...]) -> None:
    code, modules = after(*words)
    assert code == 2
    assert not modules & {"torch", "timm", "torchvision"}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_names_read_from_a_librarys_files_are_those_that_it_has(library: str) -> None:
    import timm
    import torchvision

    from headstart.models.known_names import _REGISTERED, _read_sources, refuse_unknown
    from headstart.models.spec import parse_spec

    there = timm.list_models() if library == "timm" else torchvision.models.list_models(module=torchvision.models)
    assert set(_REGISTERED[library].findall(_read_sources(library))) == set(there)
    refuse_unknown(parse_spec("timm/convnext_tiny_in22ft1k"))  # an old name that timm still takes


def test_no_public_name_moves_pythons_generator() -> None:
    """Libraries draw from it as they are imported, and who came first would change the caller's numbers."""
    code = "import random, headstart as hs; before = random.getstate(); [getattr(hs, name) for name in hs.__all__]; "
    subprocess.run([sys.executable, "-c", code + "assert random.getstate() == before"], check=True)


def test_what_was_put_off_is_there_when_it_is_asked_for() -> None:
    """torchvision's question to the compiler, and a function that timm marks as not to be compiled."""
    code = (
        "import sys; from headstart.lazy_imports import load_libraries as load; load(); import torch, torchvision;"
        "print('torch._dynamo' in sys.modules, 'torch._dynamo.utils' in sys.modules);"
        "print(torchvision.ops.roi_align.__globals__['is_compile_supported']('cpu'));"
        "from torch._dynamo.utils import is_compile_supported as real; print(real('cpu'));"
        "print(torchvision.tv_tensors.Image(torch.zeros(1, 2, 2)).shape); print(torch.compiler.disable.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:5] == ["False False", "True", "True", "torch.Size([1, 2, 2])", "torch.compiler"]


def test_the_libraries_are_imported_without_a_search_for_garbage_and_then_it_goes_on_as_before() -> None:
    code = (
        "import gc; looks = []; gc.callbacks.append(lambda phase, info: looks.append(phase));"
        "from headstart.lazy_imports import load_libraries as load; before = len(looks); load();"
        "print(len(looks) - before < 10, gc.isenabled()); gc.disable(); load(); print(gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\nFalse\n"
