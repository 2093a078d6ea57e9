"""``import headstart`` offers exactly the names that DESIGN promises, each imported when it is first used."""

import dataclasses
import doctest
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import pytest

import headstart
from headstart import events

NAMES = {
    *("Config", "load_config", "train", "repeat", "plan", "finish"),
    *("open_model", "describe", "find_head", "replace_head", "declare_scores", "freeze", "param_groups"),
    *("add_lora", "merge_lora"),
    *("open_images", "audit", "Batch", "label_images", "Record", "Source", "Images", "Scan", "Description", "LoraPlan"),
    *("InPlace", "StepRules", "TrainState", "train_step", "fit", "evaluate", "predict", "StepDone", "EpochDone"),
    *("Event", "ScanProgress", "Decided", "Plan", "Decision", "PhaseStarted", "CacheProgress", "CacheGivenUp", "Saved"),
    "Finished",
    *("Note", "DataNote", "CacheNote"),
    *("save", "restore", "open_run", "export", "report"),
    *(
        "Run",
        "OpenedRun",
        "OpenedModel",
        "Prediction",
        "Predictions",
        "Evaluation",
        "Export",
        "Head",
        "HeadSwap",
        "Frozen",
    ),
    *("Predictor", "Embeddings", "Rating"),
    "Error",
}


def test_all_lists_exactly_the_promised_names() -> None:
    assert set(headstart.__all__) == NAMES
    assert sorted(headstart.__all__) == headstart.__all__


@pytest.mark.parametrize("name", sorted(NAMES - {"Event"}))
def test_each_name_is_there_under_its_own_name(name: str) -> None:
    found = getattr(headstart, name)
    assert found.__name__ == name
    assert found.__doc__


def test_every_event_is_public_documented_and_one_of_the_union() -> None:
    classes = {name for name, value in vars(events).items() if dataclasses.is_dataclass(value)}
    assert classes - {"Plan", "Decision"} == {kind.__name__ for kind in get_args(headstart.Event)}
    for name in sorted(classes):
        assert getattr(headstart, name) is getattr(events, name)


def test_events_are_shown_without_torch() -> None:
    code = (
        "import sys, headstart as hs; from headstart.reports.progress import Progress; Progress()(hs.Note('said'));"
        "print(sys.modules.keys() & {'torch', 'timm', 'torchvision'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert done.stderr.strip() == "said"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, headstart; headstart.load_config; print(sys.modules.keys() & {'torch', 'timm', 'torchvision'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_train_and_plan_stay_functions_when_their_folders_are_imported() -> None:
    code = (
        "import headstart.training.fit, headstart.planning, headstart as h; print(callable(h.train), callable(h.plan))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'finetune'"):
        headstart.finetune  # type: ignore[attr-defined]  # noqa: B018


@pytest.fixture(scope="module")
def place(draw_colours: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which examples run: ``photos`` of cats and dogs (coloured noise), and a finished run on them."""
    folder, before = tmp_path_factory.mktemp("examples"), Path.cwd()
    colours = draw_colours(folder / "colours", each=8, names=("red", "blue"))
    (folder / "photos").mkdir()
    for colour, animal in (("red", "cat"), ("blue", "dog")):
        (colours / colour).rename(folder / "photos" / animal)
    os.chdir(folder)
    model = {"name": "timm/resnet18", "weights": "none", "options": {"channels": [8, 8, 16, 16]}, "image_size": 32}
    sections = {"data": {"source": "photos"}, "model": model, "epochs": 1, "device": "cpu", "out": "runs/photos"}
    headstart.train(headstart.load_config(sections))
    yield folder
    os.chdir(before)


def documented(name: str) -> Iterator[tuple[str, object, set[str]]]:
    """The name and, of a class, its public methods: each with what its docstring has to name."""
    value = getattr(headstart, name)
    if not inspect.isclass(value):
        yield name, value, set(inspect.signature(value).parameters)
        return
    expected = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    if name == "Predictor":  # the one that is made by its own ``__init__``
        expected = {*inspect.signature(value).parameters, *inspect.get_annotations(value)}
    yield name, value, expected
    for method, function in vars(value).items():
        function = getattr(function, "fget", None) or getattr(function, "func", function)
        if inspect.isfunction(function) and not method.startswith("_"):
            yield f"{name}.{method}", function, set(inspect.signature(function).parameters) - {"self"}


ENTRY = re.compile(r"^    ``(\w+)``: [A-Za-z].*", flags=re.MULTILINE)


def faults(name: str, text: str, expected: set[str]) -> Iterator[str]:
    """What a docstring lacks: names, an example, whole sentences."""
    entries = set(ENTRY.findall(text))
    yield from (f"{name}: ``{missing}`` is not named" for missing in sorted(expected - entries))
    yield from (f"{name}: ``{other}`` is no parameter or field" for other in sorted(entries - expected - {"exit_code"}))
    if "." not in name and ">>> " not in text:
        yield f"{name}: it has no example"
    prose = [part for part in text.partition("\nExample:")[0].split("\n\n") if not part.startswith(SECTIONS)]
    for part in prose:
        if (not part[:1].isupper() and not part.startswith("``")) or part.rstrip()[-1:] not in ".:":
            yield f"{name}: no sentence: {part[:40]!r}"
        if part.startswith(("Of ", "Those ", "See ", "As ")):
            yield f"{name}: a fragment: {part[:40]!r}"
    for section in SECTIONS:
        listed = text.partition(f"\n{section}\n")[2].partition("\n\n")[0]
        if listed and not listed.rstrip().endswith("."):
            yield f"{name}: {section} does not end with a full stop"


SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:")


@pytest.mark.parametrize("name", sorted(NAMES - {"Event"}))
def test_a_docstring_names_every_parameter_and_field_in_sentences(name: str) -> None:
    found = [
        fault
        for full, value, expected in documented(name)
        for fault in faults(full, inspect.getdoc(value) or "", expected)
    ]
    assert found == []


def shown_types(name: str) -> set[type]:
    """The classes of headstart that a public name takes, gives or holds."""
    everything = {key: value for module in loaded() for key, value in vars(module).items()}
    found: set[type] = set()
    for _, value, _ in documented(name):
        hints = get_type_hints(value, everything | vars(sys.modules[value.__module__])) if callable(value) else {}
        for hint in hints.values():
            found |= {part for part in flatten(hint) if isinstance(part, type) and not get_args(part)}
    return {kind for kind in found if kind.__module__.startswith("headstart.")}


def loaded() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith("headstart.")]


def flatten(hint: object) -> Iterator[object]:
    """The parts of an annotation, whatever it is nested in."""
    yield hint
    for part in hint if isinstance(hint, list | tuple) else get_args(hint):
        yield from flatten(part)


@pytest.mark.parametrize("name", sorted(NAMES - {"Event"}))
def test_every_type_that_a_public_name_shows_is_public_or_says_what_its_fields_are(name: str) -> None:
    """A section of the configuration says it under each field, and on the page of options."""
    public = {getattr(headstart, each) for each in NAMES}
    for kind in shown_types(name) - public:
        text = inspect.getdoc(kind) or ""
        fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        unsaid = {field for field in fields if f"``{field}``" not in text}
        assert text and (not unsaid or kind.__module__.startswith("headstart.config.")), f"{kind}: {sorted(unsaid)}"


def test_what_a_docstring_lacks_is_found() -> None:
    def planted(rate: float) -> None:
        """Of a rate."""

    assert list(faults("planted", inspect.getdoc(planted) or "", {"rate"})) == [
        "planted: ``rate`` is not named",
        "planted: it has no example",
        "planted: a fragment: 'Of a rate.'",
    ]
    text = "return a rate\n\nArgs:\n    ``speed``: How fast\n\nExample:\n    >>> 1\n    1"
    assert list(faults("planted", text, {"rate"})) == [
        "planted: ``rate`` is not named",
        "planted: ``speed`` is no parameter or field",
        "planted: no sentence: 'return a rate'",
        "planted: Args: does not end with a full stop",
    ]


@pytest.mark.parametrize("name", sorted(NAMES - {"Event"}))
def test_the_example_gives_what_it_says(name: str, place: Path) -> None:
    if name.lower().endswith(("_lora", "loraplan")):
        pytest.importorskip("peft")
    value = getattr(headstart, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(value, name, globs={})
    assert example.examples, f"{name} has no example"
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=printed.append).failed == 0, "".join(printed)
