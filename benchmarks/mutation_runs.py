"""Runs of tests for ``benchmarks.mutation``: in forked processes, and once with notes of which test runs which line."""

from __future__ import annotations

import ast
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.mutants import NOTE, add_notes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "headstart"


@dataclass
class Baseline:
    """Of a run without changes: which tests run which line, the CPU seconds of each, and other people's modules that
    are imported by then.
    """

    lines: dict[int, set[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module of a file from a changed tree, with more names in it."""

    def __init__(self, file: Path, tree: ast.Module, more: Mapping[str, object]) -> None:
        self.name = module_name(file)
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


def measure_baselines(files: Sequence[Path], tests: list[str]) -> list[Baseline]:
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


def module_name(file: Path) -> str:
    return ".".join(["headstart", *file.relative_to(PACKAGE).with_suffix("").parts])
