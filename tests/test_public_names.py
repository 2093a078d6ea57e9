"""``import headstart`` offers exactly the names that DESIGN promises, each imported when it is first used."""

import subprocess
import sys

import pytest

import headstart

NAMES = {
    *("Config", "load_config", "train", "plan"),
    *("open_model", "describe", "find_head", "replace_head", "declare_scores", "freeze", "param_groups"),
    *("add_lora", "merge_lora"),
    *("open_images", "audit"),
    *("InPlace", "StepRules", "TrainState", "train_step", "fit", "evaluate", "predict", "StepDone", "EpochDone"),
    *("save", "restore", "open_run", "report"),
    "Error",
}


def test_all_lists_exactly_the_promised_names() -> None:
    assert set(headstart.__all__) == NAMES
    assert sorted(headstart.__all__) == headstart.__all__


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_is_there_under_its_own_name(name: str) -> None:
    found = getattr(headstart, name)
    assert found.__name__ == name
    assert found.__doc__


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
