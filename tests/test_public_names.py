"""``import headstart`` offers exactly the names that DESIGN promises, each imported when it is first used."""

import dataclasses
import subprocess
import sys
from typing import get_args

import pytest

import headstart
from headstart import events

NAMES = {
    *("Config", "load_config", "train", "plan"),
    *("open_model", "describe", "find_head", "replace_head", "declare_scores", "freeze", "param_groups"),
    *("add_lora", "merge_lora"),
    *("open_images", "audit"),
    *("InPlace", "StepRules", "TrainState", "train_step", "fit", "evaluate", "predict", "StepDone", "EpochDone"),
    *("Event", "ScanProgress", "Decided", "Plan", "Decision", "PhaseStarted", "CacheProgress", "CacheGivenUp", "Saved"),
    *("Note", "DataNote", "CacheNote"),
    *("save", "restore", "open_run", "report"),
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
        kind = getattr(headstart, name)
        assert kind is getattr(events, name)
        unnamed = [field.name for field in dataclasses.fields(kind) if f"``{field.name}``" not in kind.__doc__]
        assert not unnamed, (name, unnamed)


def test_events_are_shown_without_torch() -> None:
    code = (
        "import sys, headstart as hs; from headstart.cli.progress import Progress; Progress()(hs.Note('said'));"
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
