"""What becomes of a mutant: it is put in place in a fork, and the tests that could notice it are run."""

from __future__ import annotations

import gc
import importlib
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from _pytest.runner import runtestprotocol

from benchmarks.mutants import Mutant
from benchmarks.mutation_runs import Baseline, Changed, forked, module_name, run_tests

_VALUES = (int, float, str, tuple, frozenset, re.Pattern)


class Collected:
    """A plugin of pytest: in place of running the tests, work is done with them by their names."""

    def __init__(self, work: Callable[[dict[str, pytest.Item]], None]) -> None:
        self.work = work

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.work({item.nodeid: item for item in session.items})
        return True


class Chosen:
    """A plugin of pytest: these tests only, in this order."""

    def __init__(self, wanted: list[str]) -> None:
        self.rank = {name: place for place, name in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])


@dataclass(frozen=True, kw_only=True)
class Warm:
    """A process with everything imported: the file, its functions and the tests, what these take without a change, and
    for how long a mutant is tried.
    """

    file: Path
    functions: list[FunctionType]
    tests: dict[str, pytest.Item]
    usual: Mapping[str, float]
    seconds: float


def judge_all(
    file: Path,
    tests: list[str],
    wanted: list[Mutant],
    told: Callable[[Mutant, str], None],
    *,
    baseline: Baseline,
    seconds: float,
) -> list[str]:
    """Judge these mutants of a file; those outside of functions last. What takes too long (``slow``) is caught, too.
    ``seconds``: of the processor, after which a mutant that no test has noticed yet is left undecided.
    """
    limit, verdicts = 10 + 3 * sum(baseline.seconds.values()), list[str]()

    def judged(judge: Callable[[], str]) -> str:
        return forked(judge, cpu_seconds=limit) or "slow"

    def all_warm() -> list[str]:
        stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)

        def each(items: dict[str, pytest.Item]) -> None:
            os.dup2(stdout, 1)
            importlib.import_module("headstart").load_config({})  # builds pydantic's schema, which is kept
            warm = Warm(file=file, functions=functions_of(file), tests=items, usual=baseline.seconds, seconds=seconds)
            catches = Counter[tuple[str, str]]()
            gc.freeze()  # a collection in a fork would copy the memory
            for mutant in wanted:
                order = order_tests(mutant, baseline, catches)
                verdict = judged(lambda: judge_warm(mutant, warm, order))  # noqa: B023
                verdict, _, test = verdict.partition(" ") if verdict.startswith("caught") else (verdict, "", "")
                catches[mutant.function, test] += bool(test)
                verdicts.append(verdict)
                told(mutant, verdict)
            os.dup2(null, 1)

        os.dup2(null, 1)
        for name in baseline.modules:  # what torch and timm import when they first need it
            with suppress(ImportError):
                importlib.import_module(name)
        run_tests(tests, Collected(each), "-s")  # imports everything else, once
        os.dup2(stdout, 1)
        return verdicts

    verdicts = forked(all_warm, cpu_seconds=100_000, quiet=False)
    for place, mutant in enumerate(wanted):
        if verdicts[place] == "cold":
            verdicts[place] = judged(lambda mutant=mutant: judge_cold(mutant, file, baseline))  # type: ignore[misc]
            told(mutant, verdicts[place])
    return [str(verdict) for verdict in verdicts]


def judge_warm(mutant: Mutant, warm: Warm, ordered: list[str]) -> str:
    """``caught`` and by which test, ``survived``, ``not run``, ``undecided`` for lack of time, or ``cold``: it is to be
    judged where the module is not imported yet.
    """
    if not ordered:
        return "not run"
    put = put_values if mutant.runs_at_import else put_code
    if not put(mutant, warm.file, warm.functions):
        return "cold"
    end = time.process_time() + warm.seconds
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    for name, after in zip(ordered, [*ordered[1:], None], strict=True):
        enough = int(time.process_time() + 10 + 10 * warm.usual.get(name, 0))  # a loop without end ends the process
        resource.setrlimit(resource.RLIMIT_CPU, (min(enough, most), most))
        reports = runtestprotocol(warm.tests[name], nextitem=warm.tests[after] if after else None, log=False)
        if any(report.failed for report in reports):
            return f"caught {name}"
        if time.process_time() > end and after:
            return "undecided"
    return "survived"


def judge_cold(mutant: Mutant, file: Path, baseline: Baseline) -> str:
    """As ``judge_warm``, the module being imported with the change."""
    sys.meta_path.insert(0, Changed(file, mutant.make(), {}))
    ordered = order_tests(mutant, baseline)
    files = sorted({name.partition("::")[0] for name in ordered})
    return "survived" if run_tests(files, Chosen(ordered)) == 0 else "caught"


def order_tests(mutant: Mutant, baseline: Baseline, catches: Mapping[tuple[str, str], int] | None = None) -> list[str]:
    """The tests that run what is changed: the quick ones first, and those that have caught mutants of this function."""
    wanted = set(baseline.seconds) if mutant.runs_at_import else set[str]()
    wanted = wanted.union(*(baseline.lines.get(line, set()) for line in mutant.lines))

    def cost(name: str) -> tuple[float, str]:
        caught = catches.get((mutant.function, name), 0) if catches else 0
        return (baseline.seconds.get(name, 0.0) + 0.01) / (1 + 4 * caught), name

    return sorted(wanted, key=cost)


def functions_of(file: Path) -> list[FunctionType]:
    """All that there are of a file. Searched once: a look at each object in each fork would copy the memory."""
    found = [thing for thing in gc.get_objects() if type(thing) is FunctionType]
    return [function for function in found if function.__code__.co_filename == str(file)]


def put_code(mutant: Mutant, file: Path, functions: list[FunctionType]) -> bool:
    """Give the changed function its new code, everywhere; whether that was possible: what it made at import stays."""
    if any(function.__code__.co_qualname.startswith(f"{mutant.function}.<locals>.") for function in functions):
        return False
    module = compile(mutant.make(), str(file), "exec")
    new = {(code.co_qualname, code.co_firstlineno): code for code in _codes(module)}
    for function in functions:
        code = new.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
        if code is None or code.co_freevars != function.__code__.co_freevars:
            return False
        function.__code__ = code
    return bool(functions)


def put_values(mutant: Mutant, file: Path, functions: list[FunctionType]) -> bool:
    """Give a module's constants and its functions' defaults their new values, also where others have imported them;
    whether any differs. What is in a class is not looked at.
    """
    name = module_name(file)
    new = {"__name__": name, "__file__": str(file)}
    exec(compile(mutant.make(), str(file), "exec"), new)
    old = dict(vars(sys.modules[name]))
    differing = [key for key, value in new.items() if isinstance(value, _VALUES) and value != old.get(key, value)]
    for key in differing:
        for module in [module for module in sys.modules.values() if vars(module).get(key) is old[key]]:
            setattr(module, key, new[key])
    made = [thing for thing in gc.get_objects() if type(thing) is FunctionType and thing.__globals__ is new]
    defaults = {function.__code__.co_qualname: (function.__defaults__, function.__kwdefaults__) for function in made}
    done = bool(differing)
    for function in functions:
        before = function.__defaults__, function.__kwdefaults__
        positional, named = defaults.get(function.__code__.co_qualname, before)
        if (positional, named) != before:
            function.__defaults__, function.__kwdefaults__, done = positional, named, True
    return done


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)
