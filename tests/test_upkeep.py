"""What stands in two places says the same in both: checks, versions, marks; the forms can be read."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_continuous_integration_and_make_run_the_one_script() -> None:
    assert re.findall(r"^make .*", read(".ci/run"), flags=re.MULTILINE) == ["make check"]
    recipe = read("Makefile").partition("\ncheck:")[2].partition("\n\n")[0]
    assert recipe.endswith(" scripts/check")
    workflow = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"]["check"]
    assert [step["run"].split()[:2] for step in workflow["steps"] if "run" in step] == [["make", "check"]]


@pytest.mark.parametrize("step", ['ruff" check .', 'ruff" format --check .', 'mypy"', "pytest -n"])
def test_the_script_runs(step: str) -> None:
    assert step in read("scripts/check")


def test_the_readmes_test_command_is_the_scripts() -> None:
    said = re.search(r"`\.venv/bin/python (-m pytest .*?)`", read("README.md"))
    assert said is not None
    assert said[1].replace("-n 2", "-n") in re.sub(r'"\$\{JOBS:-2\}" ', "", read("scripts/check"))


def test_a_failing_step_ends_the_script(tmp_path: Path) -> None:
    """ruff, the first one, fails: nothing else is begun."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, code in (("ruff", 3), ("mypy", 0), ("python", 0)):
        (commands / name).write_text(f"#!/bin/sh\necho ran {name}\nexit {code}\n")
        (commands / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts" / "check"],
        env={"VENV": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.count("ran ")) == (3, 1)


def test_the_workflow_tries_each_python_that_is_supported() -> None:
    pythons = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["project"]["requires-python"]
    assert pythons == ["3.11", "3.12", "3.13"]


def test_the_workflow_tries_the_lowest_versions_too_and_each_has_a_lower_bound() -> None:
    job = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"]["lowest"]
    assert [step["run"].split()[:2] for step in job["steps"] if "run" in step] == [["make", "lowest"]]
    assert "--resolution lowest-direct" in read("Makefile").partition("\n.venv-lowest/")[2].partition("\n\n")[0]
    extras = PROJECT["project"]["optional-dependencies"].values()
    needed = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    assert [line for line in needed if ">=" not in line and not line.startswith("headstart[")] == []


def test_each_python_that_is_tried_is_named_to_the_package_index() -> None:
    pythons = yaml.safe_load(read(".github/workflows/check.yml"))["jobs"]["check"]["strategy"]["matrix"]["python"]
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert named == pythons


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_changes_begin_with_what_is_not_released() -> None:
    headings = re.findall(r"^##+ (.+)$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert [heading for heading in headings if heading not in kinds and not heading.startswith("[")] == []


def test_every_mark_is_told_to_who_contributes() -> None:
    marks = [line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    assert [mark for mark in marks if f"| `{mark}` |" not in read("CONTRIBUTING.md")] == []


def test_every_target_of_make_is_told_to_who_contributes() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), flags=re.MULTILINE)
    assert targets is not None
    assert [target for target in targets[1].split() if f"make {target}" not in read("CONTRIBUTING.md")] == []


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_can_be_filled_in(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        assert set(content) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 0


@pytest.mark.parametrize(
    "path",
    [
        ".venv/x",
        "runs/demo/x",
        "build/site/x",
        ".coverage",
        ".coverage.host.1",
        "src/headstart/__pycache__/x",
        ".hypothesis/x",
    ],
)
def test_what_tools_leave_behind_is_ignored(path: str) -> None:
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0


def test_no_file_of_the_repository_is_ignored() -> None:
    done = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
