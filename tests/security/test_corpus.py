"""Data cannot run code: every malicious artefact through the public commands, in one watched process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from verdicts import LAWS  # noqa: E402


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    root = tmp_path_factory.mktemp("corpus")
    env = os.environ | {"MPLCONFIGDIR": str(root / "mpl"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(HERE / "child.py"),
        str(root / "world"),
        str(root / "r.json"),
        "--quick",
    ]
    subprocess.run(command, check=True, env=env, cwd=HERE.parents[1])
    return json.loads((root / "r.json").read_text())


@pytest.mark.parametrize("law", LAWS)
def test_no_artefact_breaks_the_law(law: str, found: Mapping[str, Any]) -> None:
    broken = [(r["artefact"], r["argv"][:4], r["code"], r["err"][-300:]) for r in found["results"] if LAWS[law](r)]
    assert broken == []


def test_the_corpus_is_whole_and_every_command_has_read_some_of_it(found: Mapping[str, Any]) -> None:
    assert found["artefacts"] >= 300
    verbs = {result["argv"][0] for result in found["results"]}
    assert verbs == {"train", "plan", "describe", "evaluate", "predict", "report"}
    assert found["secret"].startswith("a private key")


def test_the_watch_sees_each_payload_that_does_run(found: Mapping[str, Any]) -> None:
    assert {control["name"] for control in found["controls"]} == {"system", "eval", "exec", "popen", "touch"}
    for control in found["controls"]:
        assert control["marked"], control
        assert control["seen"], control


def test_memory_stays_bounded(found: Mapping[str, Any]) -> None:
    """Also by the limit on the child's address space; an archive of 1 GiB of zeros and pictures of 200 MP are there."""
    assert found["peak_bytes"] < 2 << 30
