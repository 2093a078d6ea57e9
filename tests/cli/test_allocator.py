"""Training begins again with tcmalloc where it is installed, once, and with the same result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from headstart.cli.allocator import find_tcmalloc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
USUAL = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MALLOC_"))}
BEGIN = """
import os, sys
from headstart.cli.allocator import begin_with_tcmalloc
sys.prefix = os.environ["PREFIX"]
print(os.getpid(), sys.argv[1:], os.environ.get("LD_PRELOAD"), flush=True)
begin_with_tcmalloc()
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Some library under tcmalloc's name, in an environment."""
    found = next(Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/libm" in line)
    (tmp_path / "lib").mkdir()
    return Path(shutil.copy(found, tmp_path / "lib" / "libtcmalloc_minimal.so.4"))


def begun(library: Path, *, script: str = "headstart", **more: str) -> list[str]:
    """What is printed: a line each time that the command begins."""
    folder = library.parent.parent
    (folder / script).write_text(BEGIN)
    command = [sys.executable, str(folder / script), "train", "a b"]
    environment = USUAL | {"PREFIX": str(folder)} | more
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "ld.so" not in done.stderr
    return done.stdout.splitlines()


def test_the_same_command_goes_on_in_the_same_process_with_the_library(library: Path) -> None:
    first, second = begun(library)
    assert first.endswith("['train', 'a b'] None")
    assert second == first.replace("None", str(library))


@pytest.mark.parametrize(
    "chosen", [{"LD_PRELOAD": ""}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}]
)
def test_what_the_user_has_chosen_stays(library: Path, chosen: dict[str, str]) -> None:
    assert len(begun(library, **chosen)) == 1


def test_somebody_elses_script_does_not_begin_again(library: Path) -> None:
    assert len(begun(library, script="mine.py")) == 1


def test_what_cannot_be_loaded_is_passed_over(library: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my env" / "lib"
    spaced.mkdir(parents=True)
    usual = begun(Path(shutil.copy(library, spaced)))
    assert str(spaced) not in usual[-1]
    library.write_bytes(b"no library")
    assert str(library) not in begun(library)[-1]


@pytest.mark.skipif(find_tcmalloc() is None, reason="tcmalloc is not installed (apt: libtcmalloc-minimal4)")
def test_a_run_with_tcmalloc_says_so_and_has_the_same_bits(colours: Path, tmp_path: Path) -> None:
    found = {}
    for name, environment in (("with", USUAL), ("without", USUAL | {"LD_PRELOAD": ""})):
        command = [sys.executable, "-m", "headstart", "train", str(colours), "--model", "starter", "--epochs", "1"]
        command += ["--out", str(tmp_path / name), "--device", "cpu", "--workers", "1"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        allocators = [line for line in done.stderr.splitlines() if line.startswith("allocator")]
        assert len(allocators) == (name == "with"), done.stderr
        found[name] = load_file(tmp_path / name / "model" / "model.safetensors")
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        recorded = [one["value"] for one in plan["decisions"] if one["name"] == "allocator"]
        assert recorded == (["tcmalloc"] if name == "with" else [])
    assert all(found["with"][name].equal(value) for name, value in found["without"].items())


def test_memory_that_is_free_goes_back_with_tcmalloc_too() -> None:
    library = find_tcmalloc()
    if library is None:
        pytest.skip("tcmalloc is not installed (apt: libtcmalloc-minimal4)")
    code = """
import torch
from headstart.allocator import has_tcmalloc, keep_no_memory, kept_memory, release_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
def freed(made):
    full = resident()
    made.clear()
    return full - resident() > 200e6
def some():
    return [torch.ones(1 << 22) for _ in range(16)]
with kept_memory():
    kept = freed(some())
    before = resident()
    release_memory()
    released = before - resident() > 200e6
    keep_no_memory()
    scarce = freed(some())
with kept_memory():
    print(has_tcmalloc(), kept, released, scarce, freed(some()))
"""

    def found(**more: str) -> list[str]:
        environment = USUAL | {"LD_PRELOAD": str(library)} | more
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert found() == ["True", "False", "True", "True", "False"]
    at_once = found(TCMALLOC_AGGRESSIVE_DECOMMIT="true")  # the user's choice
    assert (at_once[1], at_once[4]) == ("True", "True")
