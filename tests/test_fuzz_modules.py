"""A few dozen modules of the fuzzer, and those that it made small; ``python -m tests.fuzz_modules`` has more."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_laws
import fuzz_planted
from fuzz_kept import KEPT, OPEN
from fuzz_laws import LAWS, World, check, draw_case
from fuzz_modules import short

SEEDS = range(6)
NOW = tuple(law for law in LAWS if law != "reason")
TOLD = os.environ.get("FUZZ_LAWS", "")  # all, or names; the laws that are not in NOW do not hold yet
HELD = LAWS if TOLD == "all" else TOLD.split(",") if TOLD else NOW


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    before = fuzz_laws.report.write_report
    fuzz_laws.quick_report()
    made = World()
    yield made
    made.close()
    fuzz_laws.report.write_report = before


@pytest.mark.parametrize("seed", SEEDS)
def test_the_laws_hold_for_a_drawn_module(seed: int, world: World) -> None:
    case = draw_case(seed)
    broken = [one for one in check(case, world).broken if one.law in HELD]
    assert not broken, f"{short(case)}: {broken}"


@pytest.mark.parametrize("name", [name for name in KEPT if name not in OPEN or TOLD == "all"])
def test_every_law_holds_for_a_small_case(name: str, world: World) -> None:
    verdict = check(KEPT[name], world)
    assert not verdict.broken, f"{short(KEPT[name])}: {verdict.broken}"


def test_every_fault_can_be_planted_and_names_small_cases_or_tests_that_find_it(tmp_path: Path) -> None:
    planted = fuzz_planted.faults()
    assert len(planted) == 21 == len({fault.name for fault in planted})
    shutil.copytree(fuzz_planted.SOURCE / "headstart", tmp_path / "headstart")
    for fault in planted:
        assert (fault.first or fault.tests) and set(fault.first) <= KEPT.keys(), fault.name
        for test in fault.tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (fuzz_planted.SOURCE.parent / path).read_text() or not name, test
        before = fuzz_planted.plant(fault, tmp_path / "headstart")
        assert all(path.read_text() != text for path, text in before.items()), fault.name
        fuzz_planted.restore(before)
