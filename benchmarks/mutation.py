"""Which lines could be wrong without a test noticing: a file is changed in one place at a time, and its tests are run.

    python -m benchmarks.mutation training/step.py optim/groups.py     paths below src/headstart
    python -m benchmarks.mutation training/step.py --tests tests/training/test_step.py --lines 100-160 --only survived

What is changed stands in ``benchmarks.mutants``. A first run notes which test runs which line, so that a mutant meets
only the tests that can notice it: those that caught another one of the same function first, then the quick ones. Each
mutant is a forked process in which everything is imported already: a changed function gets its new code in place, what
is outside of functions is imported anew. A test that fails, or that takes far longer, has caught it.

Survivors that are right to survive are listed with the reason in ``benchmarks/mutation_accepted.txt``.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from benchmarks.mutants import NOTE, Mutant, add_notes, mutants

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "headstart"
ACCEPTED = Path(__file__).with_name("mutation_accepted.txt")
KEPT = Path("/tmp/headstart-mutation/verdicts.jsonl")  # of all runs on this machine, the last one of a mutant counts
_VALUES = (int, float, str, tuple, frozenset, re.Pattern)
LEFT = ("survived", "not run", "undecided")
HEAVY = ("torch", "timm", "torchvision", "hypothesis", "numpy", "PIL.Image", "safetensors.torch", "torchmetrics")
_STEP = (
    "training/test_step_exact.py training/test_step.py training/test_state.py training/test_companions.py "
    "training/test_finite.py training/test_activation_checkpointing.py training/test_retries.py "
    "training/test_module_index.py training/test_step_files.py"
)
TESTS = {
    "training/step.py": _STEP,
    "training/state.py": (
        "training/test_state.py training/test_step.py training/test_companions.py training/test_isolation.py"
    ),
    "training/companions.py": "training/test_companions.py",
    "training/average.py": "training/test_companions.py training/test_step.py",
    "training/finite.py": "training/test_finite.py training/test_step.py training/test_fit.py",
    "training/fit.py": "training/test_fit.py training/test_finite.py training/test_isolation.py",
    "training/evaluate.py": "training/test_evaluate.py training/test_isolation.py training/test_threads.py",
    "training/activation_cache.py": "training/test_activations.py training/test_boundary_tensors.py",
    "training/phase_data.py": "training/test_activation_cache.py training/test_phases.py training/test_decoded.py",
    "training/phases.py": "training/test_phases.py training/test_activation_cache.py",
    "optim/groups.py": "optim/test_groups.py",
    "optim/penalties.py": "optim/test_penalties.py training/test_companions.py",
    "optim/schedules.py": "optim/test_schedules.py",
    "tasks/losses.py": "tasks/test_losses.py training/test_step.py",
    "surgery/boundary.py": "surgery/test_fixed_nodes.py surgery/test_boundary.py",
    "surgery/fixed_nodes.py": "surgery/test_fixed_nodes.py surgery/test_boundary.py",
    "surgery/freeze.py": "models/test_freeze_rules.py",
    "surgery/head.py": "surgery/test_head.py",
    "runs/checkpoint.py": (
        "runs/test_checkpoint.py runs/test_checkpoint_files.py runs/test_shared_checkpoint.py runs/test_restore.py"
    ),
    "runs/resume.py": "runs/test_begin.py",
    "runs/frozen_file.py": "runs/test_frozen_file.py runs/test_checkpoint.py",
    "runs/optimizer_state.py": (
        "runs/test_restore_groups.py runs/test_restore.py runs/test_checkpoint.py runs/test_shared_checkpoint.py"
    ),
    "isolation.py": "training/test_isolation.py training/test_threads.py",
    "training/around_step.py": _STEP,
}


@dataclass
class Baseline:
    """Of a run without changes: which tests run which line, the CPU seconds of each, and other people's modules that
    are imported by then.
    """

    lines: dict[int, set[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)


class Watcher:
    """A plugin of pytest: notes which test runs which line of some files, in forks of this process too."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.found = {file: Baseline() for file in files}
        self.now, self.seconds, self.failed = "", dict[str, float](), list[str]()
        self.noted = tempfile.TemporaryFile("a+")  # one for all forks  # noqa: SIM115
        for number, file in enumerate(files):
            tree = add_notes(ast.parse(file.read_text()))
            sys.meta_path.insert(0, Changed(file, tree, {NOTE: partial(self.note, number, self.found[file])}))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now, begun = item.nodeid, time.process_time()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            self.seconds[item.nodeid] = time.process_time() - begun

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def note(self, number: int, found: Baseline, line: int) -> None:
        """A statement of the file that begins at this line runs now."""
        tests = found.lines.setdefault(line, set())
        if self.now not in tests:
            tests.add(self.now)
            os.write(self.noted.fileno(), f"{number} {line} {self.now}\n".encode())

    def read_lines(self) -> list[dict[int, list[str]]]:
        """Of each file, the tests that run each line; what forks have run as well."""
        found: list[dict[int, list[str]]] = [{} for _ in self.found]
        self.noted.seek(0)
        for number, line, test in (text.rstrip("\n").split(" ", 2) for text in self.noted):
            found[int(number)].setdefault(int(line), []).append(test)
        return found


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


def run_tests(files: list[str], plugin: object, *more: str) -> int:
    """pytest's exit code."""
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", *more]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # other packages' plugins are imported already
    return int(pytest.main([*files, *quiet], plugins=[plugin]))


def forked(work: Callable[[], Any], *, cpu_seconds: float, quiet: bool = True) -> Any:
    """What the work gives in a process of its own; None where it died or took too long."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2) if quiet else (0, 2):
            os.dup2(null, stream)
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = "/tmp/headstart-mutation"
        ours, made = os.getpid(), work()
        if os.getpid() == ours:  # and not a fork that a changed test let go on
            with os.fdopen(writing, "w") as out:
                json.dump(made, out)
        os._exit(0)
    os.close(writing)
    timer = threading.Timer(20 * cpu_seconds, lambda: os.killpg(child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading) as out:
        text = out.read()
    os.waitpid(child, 0)
    timer.cancel()
    return json.loads(text) if text else None


def measured(files: Sequence[Path], tests: list[str]) -> list[Baseline]:
    """The run without changes, for each of some files that have the same tests."""

    def work() -> dict[str, Any]:
        watcher = Watcher(files)
        run_tests(tests, watcher, "--maxfail=1000")
        return {
            "lines": watcher.read_lines(),
            "seconds": watcher.seconds,
            "failed": watcher.failed,
            "modules": [name for name in sys.modules if name.partition(".")[0] in before],
        }

    before = {name.partition(".")[0] for name in sys.modules} - {"benchmarks", "__main__"}
    told = forked(work, cpu_seconds=3000)
    assert told is not None, "the tests without changes did not end"
    if told["failed"]:
        raise SystemExit(f"these fail without a change: {', '.join(told['failed'][:5])}")
    by_line = [{int(line): set(names) for line, names in lines.items()} for lines in told["lines"]]
    return [Baseline(lines, told["seconds"], told["modules"]) for lines in by_line]


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
    name = _module_name(file)
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


def _module_name(file: Path) -> str:
    return ".".join(["headstart", *file.relative_to(PACKAGE).with_suffix("").parts])


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of a file from a changed tree, with more names in it."""

    def __init__(self, file: Path, tree: ast.Module, more: Mapping[str, object]) -> None:
        self.name = _module_name(file)
        self.file, self.tree, self.more = file, tree, more

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> Any:
        """The module's spec, for this one only."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> None:
        """None: as Python does it."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        vars(module).update(self.more)
        exec(compile(self.tree, str(self.file), "exec"), vars(module))


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
    ordered = noticing(mutant, baseline)
    files = sorted({name.partition("::")[0] for name in ordered})
    return "survived" if run_tests(files, Chosen(ordered)) == 0 else "caught"


def noticing(mutant: Mutant, baseline: Baseline, catches: Mapping[tuple[str, str], int] | None = None) -> list[str]:
    """The tests that run what is changed: the quick ones first, and those that have caught mutants of this function."""
    wanted = set(baseline.seconds) if mutant.runs_at_import else set[str]()
    wanted = wanted.union(*(baseline.lines.get(line, set()) for line in mutant.lines))

    def cost(name: str) -> tuple[float, str]:
        caught = catches.get((mutant.function, name), 0) if catches else 0
        return (baseline.seconds.get(name, 0.0) + 0.01) / (1 + 4 * caught), name

    return sorted(wanted, key=cost)


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
                order = noticing(mutant, baseline, catches)
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


def named(path: str, found: list[Mutant]) -> dict[int, str]:
    """The key of each mutant, by its ``id``: those that look alike are numbered."""
    keys, seen = dict[int, str](), Counter[str]()
    for mutant in found:
        key = mutant.key(path, 0)
        keys[id(mutant)], seen[key] = mutant.key(path, seen[key]), seen[key] + 1
    return keys


def kept_verdicts() -> dict[str, str]:
    """What the last run said of each mutant, by its key."""
    return dict(map(json.loads, KEPT.read_text().splitlines())) if KEPT.exists() else {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be judged of a file, and with which tests; accepted mutants are not run."""

    path: str
    tests: list[str]
    wanted: list[Mutant]
    keys: dict[int, str]

    @property
    def run(self) -> list[Mutant]:
        """Those that are not accepted."""
        accepted = accepted_keys()
        return [mutant for mutant in self.wanted if self.keys[id(mutant)] not in accepted]


def report(job: Job, baseline: Baseline, *, seconds: float) -> str:
    """Print the survivors; the counts in one line."""

    def told(mutant: Mutant, verdict: str) -> None:
        key = job.keys[id(mutant)]
        if verdict != "cold":
            KEPT.parent.mkdir(exist_ok=True)
            with KEPT.open("a") as out:
                out.write(json.dumps([key, verdict]) + "\n")
        if verdict in LEFT:
            print(f"{verdict:9} {job.path}:{mutant.line} {key.removeprefix(job.path + ' ')}", flush=True)

    counts = Counter(judge_all(PACKAGE / job.path, job.tests, job.run, told, baseline=baseline, seconds=seconds))
    counts["accepted"] = len(job.wanted) - len(job.run)
    return f"{job.path}: {len(job.wanted)} mutants, {_in_words(counts)}"


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)


def summary(path: str) -> str:
    """What is known of all mutants of a file, from every run on this machine."""
    keys, known, accepted = named(path, list(mutants((PACKAGE / path).read_text()))), kept_verdicts(), accepted_keys()
    counts = Counter("accepted" if key in accepted else known.get(key, "not judged") for key in keys.values())
    return f"{path}: {len(keys)} mutants, {_in_words(counts)}"


def main() -> None:
    """Judge the mutants of the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="below src/headstart, e.g. training/step.py")
    parser.add_argument("--tests", nargs="*", help="files or folders of tests, in place of those known for the file")
    parser.add_argument("--lines", default="0-1000000", help="only these lines, e.g. 100-160")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th mutant: a sample")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of the processor, that each mutant gets")
    parser.add_argument("--only", choices=["survived"], help="those that no test noticed when they were last judged")
    parser.add_argument("--known", action="store_true", help="run nothing: counts of what was judged so far")
    chosen = parser.parse_args()
    if chosen.known:
        print("\n".join(map(summary, chosen.files)))
        return
    for name in HEAVY:
        importlib.import_module(name)
    jobs = [find_job(path, chosen) for path in chosen.files]
    for _, alike in groupby((job for job in jobs if job.wanted), key=lambda job: job.tests):
        group = list(alike)
        baselines = measured([PACKAGE / job.path for job in group], group[0].tests)
        for job, baseline in zip(group, baselines, strict=True):
            print(report(job, baseline, seconds=chosen.seconds), flush=True)


def find_job(path: str, chosen: argparse.Namespace) -> Job:
    """Of one file, as the options say."""
    tests = chosen.tests or [f"tests/{name}" for name in TESTS[path].split() if (ROOT / "tests" / name).exists()]
    every = list(mutants((PACKAGE / path).read_text()))
    keys, known = named(path, every), kept_verdicts() if chosen.only else {}
    first, last = map(int, chosen.lines.split("-"))
    found = [mutant for mutant in every if first <= mutant.line <= last]
    if chosen.only:
        found = [mutant for mutant in found if known.get(keys[id(mutant)], "survived") in LEFT]
    return Job(path=path, tests=tests, wanted=found[:: chosen.every], keys=keys)


def accepted_keys() -> set[str]:
    """Mutants that may survive; the reason stands after the last ``|``."""
    lines = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    return {line.rpartition(" | ")[0] for line in lines if " | " in line and not line.startswith("#")}


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
