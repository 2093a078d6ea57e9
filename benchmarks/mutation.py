"""Which lines could be wrong without a test noticing: a file is changed in one place at a time, and its tests are run.

    python -m benchmarks.mutation training/step.py optim/groups.py     paths below src/headstart
    python -m benchmarks.mutation training/step.py --tests tests/training/test_step.py --lines 100-160 --only survived

Changed are comparisons, arithmetic, and/or/not, conditions, numbers, True and False, strings that are not messages,
returned values, and whole statements (calls whose value is not used, raise, break, continue). A first run notes which
test runs which line, so that a mutant meets only the tests that can notice it, the quick ones first. Each mutant is a
forked process in which everything is imported already: a changed function gets its new code in place, what is outside
of functions is imported anew. A test that fails, or that takes far longer, has caught it.

Survivors that are right to survive are listed with the reason in ``benchmarks/mutation_accepted.txt``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "headstart"
ACCEPTED = Path(__file__).with_name("mutation_accepted.txt")
KEPT = Path("/tmp/headstart-mutation/verdicts.jsonl")  # of all runs on this machine, the last one of a mutant counts
HEAVY = ("torch", "timm", "torchvision", "hypothesis", "numpy", "PIL.Image", "safetensors.torch", "torchmetrics")
TESTS = {
    "training/step.py": (
        "training/test_step_exact.py training/test_step.py training/test_state.py "
        "training/test_companions.py training/test_finite.py training/test_activation_checkpointing.py "
        "training/test_retries.py"
    ),
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
    "training/around_step.py": (
        "training/test_step_exact.py training/test_step.py training/test_state.py "
        "training/test_companions.py training/test_finite.py training/test_activation_checkpointing.py "
        "training/test_retries.py"
    ),
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
OPPOSITE = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # a swap of these negates the comparison already


@dataclass(frozen=True)
class Mutant:
    """A changed module, and where it differs: the function or class, and the lines of the statement."""

    tree: ast.Module
    line: int
    function: str
    was: str
    now: str
    lines: range
    runs_at_import: bool

    def key(self, path: str, number: int) -> str:
        """A name that stays when lines move."""
        again = f" #{number}" if number else ""
        return f"{path} {self.function or '<module>'}: {self.was} -> {self.now}{again}"


@dataclass
class Baseline:
    """Of a run without changes: which tests run which line, and the CPU seconds of each."""

    lines: dict[int, set[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def mutants(source: str) -> Iterator[Mutant]:
    """Every change of the module, one at a time."""
    tree = ast.parse(source)
    for path, statement, function, at_import in list(_places(tree)):
        node = _at(tree, path)
        for change in _changes(node, path, tree):
            changed = copy.deepcopy(tree)
            new = change(_at(changed, path))
            if new is not None:
                _put(changed, path, new)
            ast.fix_missing_locations(changed)
            was, now = _shown(node), _shown(_at(changed, path))
            if was == now:  # an operator is shown by what it stands in
                was, now = _shown(_at(tree, path[:-1])), _shown(_at(changed, path[:-1]))
            yield Mutant(
                changed, getattr(node, "lineno", statement.lineno), function, was, now, _header(statement), at_import
            )


def _shown(node: Any) -> str:
    text = ast.unparse(node) if isinstance(node, ast.AST) else repr(node)
    first = text.strip().splitlines()[0] if text.strip() else type(node).__name__
    return first[:100]


Path_ = tuple[tuple[str, int | None], ...]


def _places(tree: ast.Module) -> Iterator[tuple[Path_, ast.stmt, str, bool]]:
    """Every node that is code: the way to it, the statement, the function or class, and whether it runs at import."""

    def walk(
        node: ast.AST, path: Path_, statement: ast.stmt | None, names: tuple[str, ...], at_import: bool
    ) -> Iterator[Any]:
        if isinstance(node, ast.JoinedStr) or _is_docstring(node) or _is_typing(node):
            return
        if isinstance(node, ast.stmt):
            statement = node
        if statement is not None:
            yield path, statement, ".".join(names), at_import
        if isinstance(node, ast.Raise):
            return  # a message
        inner = (*names, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else names
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "msg", "type", "format_spec"):
                continue
            outside = isinstance(node, ast.FunctionDef) and name == "args"
            later = isinstance(node, ast.FunctionDef) and not outside
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST):
                    where = names if outside else inner
                    yield from walk(child, (*path, (name, place)), statement, where, at_import and not later)

    yield from walk(tree, (), None, (), True)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_typing(node: ast.AST) -> bool:
    """Imports, ``if TYPE_CHECKING`` and names of types."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("TypeVar", "cast", "NewType"):
        return True
    alias = isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp)
    return alias and all(word[:1].isupper() for word in ast.unparse(node.targets[0]).split("."))  # type: ignore[attr-defined]


def _at(tree: ast.AST, path: Path_) -> Any:
    node: Any = tree
    for name, place in path:
        node = getattr(node, name) if place is None else getattr(node, name)[place]
    return node


def _put(tree: ast.AST, path: Path_, new: ast.AST) -> None:
    (name, place), holder = path[-1], _at(tree, path[:-1])
    if place is None:
        setattr(holder, name, new)
    else:
        getattr(holder, name)[place] = new


def _changes(node: Any, path: Path_, tree: ast.AST) -> Iterator[Callable[[Any], ast.AST | None]]:
    """What is done to a copy of the node: gives another one in its place."""
    if type(node) in SWAPS:
        yield lambda _: SWAPS[type(node)]()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield lambda same: same.operand
    if path and path[-1][0] in ("test", "ifs") and not isinstance(node, ast.UnaryOp) and not _negates(node):
        holder = _at(tree, path[:-1])
        if not isinstance(holder, ast.Assert):
            yield lambda same: ast.UnaryOp(ast.Not(), same)
    if isinstance(node, ast.Constant):
        yield from _constants(node)
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) not in ("None", "False"):
        yield lambda _: ast.Return(ast.Constant(None))
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield lambda _: ast.Pass()
    if isinstance(node, ast.Break | ast.Continue):
        yield lambda _: ast.Continue() if isinstance(node, ast.Break) else ast.Break()


def _negates(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], OPPOSITE)


def _constants(node: ast.Constant) -> Iterator[Callable[[Any], ast.AST]]:
    value = node.value
    if isinstance(value, bool):
        yield lambda _: ast.Constant(not value)
    elif isinstance(value, int | float):
        yield lambda _: ast.Constant(value + 1)
    elif isinstance(value, str) and len(value) < 30:
        yield lambda _: ast.Constant(f"{value}?")


def _header(statement: ast.stmt) -> range:
    """The lines of a statement without those of the statements in it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return range(statement.lineno, max(statement.lineno, last) + 1)


class Watcher:
    """A plugin of pytest: notes which test runs which line of a file, in forks of this process too."""

    def __init__(self, file: Path) -> None:
        self.file, self.found, self.now = str(file), Baseline(), ""
        self.noted = tempfile.TemporaryFile("a+")  # one for all forks  # noqa: SIM115

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now, begun = item.nodeid, time.process_time()
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.found.seconds[item.nodeid] = time.process_time() - begun

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.found.failed.append(report.nodeid)

    def _call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        return self._line if frame.f_code.co_filename == self.file else None

    def _line(self, frame: FrameType, _event: str, _argument: object) -> Any:
        tests = self.found.lines.setdefault(frame.f_lineno, set())
        if self.now not in tests:
            tests.add(self.now)
            os.write(self.noted.fileno(), f"{frame.f_lineno} {self.now}\n".encode())
        return self._line

    def add_forks(self) -> None:
        """Count what forks have run as well."""
        self.noted.seek(0)
        for line, _, test in (text.rstrip("\n").partition(" ") for text in self.noted):
            self.found.lines.setdefault(int(line), set()).add(test)


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
        with os.fdopen(writing, "w") as out:
            json.dump(work(), out)
        os._exit(0)
    os.close(writing)
    timer = threading.Timer(20 * cpu_seconds, lambda: os.killpg(child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading) as out:
        text = out.read()
    os.waitpid(child, 0)
    timer.cancel()
    return json.loads(text) if text else None


def measured(file: Path, tests: list[str]) -> Baseline:
    """The run without changes."""

    def work() -> dict[str, Any]:
        watcher = Watcher(file)
        run_tests(tests, watcher, "--maxfail=1000")
        watcher.add_forks()
        found = watcher.found
        return {
            "lines": {line: sorted(names) for line, names in found.lines.items()},
            "seconds": found.seconds,
            "failed": found.failed,
        }

    told = forked(work, cpu_seconds=3000)
    assert told is not None, "the tests without changes did not end"
    lines = {int(line): set(names) for line, names in told["lines"].items()}
    return Baseline(lines, told["seconds"], told["failed"])


def put_code(mutant: Mutant, file: Path) -> bool:
    """Give the changed function its new code, everywhere; whether that was possible."""
    module = compile(mutant.tree, str(file), "exec")
    new = {(code.co_qualname, code.co_firstlineno): code for code in _codes(module)}
    done = False
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == str(file):
            code = new.get((thing.__code__.co_qualname, thing.__code__.co_firstlineno))
            if code is None or code.co_freevars != thing.__code__.co_freevars:
                return False
            thing.__code__ = code
            done = True
    return done


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> Any:
        """The module's spec, for this one only."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> None:
        """None: as Python does it."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(compile(self.tree, str(self.file), "exec"), vars(module))


def judge_warm(mutant: Mutant, file: Path, baseline: Baseline, tests: dict[str, pytest.Item]) -> str:
    """``caught``, ``survived``, ``not run``, or ``cold``: to be judged where the module is not imported yet."""
    ordered = noticing(mutant, baseline)
    if not ordered:
        return "not run"
    if mutant.runs_at_import or not put_code(mutant, file):
        return "cold"
    for name, after in zip(ordered, [*ordered[1:], None], strict=True):
        reports = runtestprotocol(tests[name], nextitem=tests[after] if after else None, log=False)
        if any(report.failed for report in reports):
            return "caught"
    return "survived"


def judge_cold(mutant: Mutant, file: Path, baseline: Baseline) -> str:
    """As ``judge_warm``, the module being imported with the change."""
    name = ".".join(["headstart", *file.relative_to(PACKAGE).with_suffix("").parts])
    sys.meta_path.insert(0, Changed(name, file, mutant.tree))
    ordered = noticing(mutant, baseline)
    files = sorted({name.partition("::")[0] for name in ordered})
    return "survived" if run_tests(files, Chosen(ordered)) == 0 else "caught"


def noticing(mutant: Mutant, baseline: Baseline) -> list[str]:
    """The tests that run what is changed, the quick ones first."""
    wanted = set(baseline.seconds) if mutant.runs_at_import else set[str]()
    wanted = wanted.union(*(baseline.lines.get(line, set()) for line in mutant.lines))
    return sorted(wanted, key=lambda name: (baseline.seconds.get(name, 0.0), name))


def judge_all(path: str, tests: list[str], wanted: list[Mutant], told: Callable[[Mutant, str], None]) -> list[str]:
    """Judge these mutants of a file; those outside of functions last. What takes too long (``slow``) is caught, too."""
    file = PACKAGE / path
    baseline = measured(file, tests)
    if baseline.failed:
        raise SystemExit(f"{path}: fails without a change: {', '.join(baseline.failed[:5])}")
    limit, verdicts = 10 + 3 * sum(baseline.seconds.values()), list[str]()

    def judged(judge: Callable[[], str]) -> str:
        return forked(judge, cpu_seconds=limit) or "slow"

    def all_warm() -> list[str]:
        stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)

        def each(items: dict[str, pytest.Item]) -> None:
            os.dup2(stdout, 1)
            for mutant in wanted:
                verdicts.append(judged(lambda mutant=mutant: judge_warm(mutant, file, baseline, items)))  # type: ignore[misc]
                told(mutant, verdicts[-1])
            os.dup2(null, 1)

        os.dup2(null, 1)
        run_tests(tests, Collected(each), "-s")  # imports everything, once
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


def report(path: str, tests: list[str], wanted: list[Mutant], keys: dict[int, str]) -> str:
    """Print the survivors that are not accepted; the counts in one line."""
    accepted = accepted_keys()

    def told(mutant: Mutant, verdict: str) -> None:
        if verdict != "cold":
            KEPT.parent.mkdir(exist_ok=True)
            with KEPT.open("a") as out:
                out.write(json.dumps([keys[id(mutant)], verdict]) + "\n")
        if verdict in ("survived", "not run") and keys[id(mutant)] not in accepted:
            print(f"{verdict:9} {path}:{mutant.line} {keys[id(mutant)].removeprefix(path + ' ')}", flush=True)

    verdicts = judge_all(path, tests, wanted, told)
    counts = Counter(
        "accepted" if verdict in ("survived", "not run") and keys[id(mutant)] in accepted else verdict
        for mutant, verdict in zip(wanted, verdicts, strict=True)
    )
    caught, total = counts["caught"] + counts["slow"], len(wanted)
    return f"{path}: {caught} of {total} caught ({caught / max(1, total):.1%}), {dict(counts)}"


def main() -> None:
    """Judge the mutants of the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="below src/headstart, e.g. training/step.py")
    parser.add_argument("--tests", nargs="*", help="files or folders of tests, in place of those known for the file")
    parser.add_argument("--lines", default="0-1000000", help="only these lines, e.g. 100-160")
    parser.add_argument("--every", type=int, default=1, help="only each so many-th mutant: a sample")
    parser.add_argument("--only", choices=["survived"], help="those that no test noticed when they were last judged")
    chosen = parser.parse_args()
    first, last = map(int, chosen.lines.split("-"))
    for name in HEAVY:
        importlib.import_module(name)
    for path in chosen.files:
        tests = chosen.tests or [f"tests/{name}" for name in TESTS[path].split() if (ROOT / "tests" / name).exists()]
        every = list(mutants((PACKAGE / path).read_text()))
        keys, known = named(path, every), kept_verdicts() if chosen.only else {}
        found = [mutant for mutant in every if first <= mutant.line <= last]
        if chosen.only:
            found = [mutant for mutant in found if known.get(keys[id(mutant)], "survived") in ("survived", "not run")]
        print(report(path, tests, found[:: chosen.every], keys), flush=True)


def accepted_keys() -> set[str]:
    """Mutants that may survive; the reason stands after the last ``|``."""
    lines = ACCEPTED.read_text().splitlines() if ACCEPTED.exists() else []
    return {line.rpartition(" | ")[0] for line in lines if " | " in line and not line.startswith("#")}


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
