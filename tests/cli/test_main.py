"""The command's edge: help, mistakes and exit codes, all without torch."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cli import main as edge
from headstart.cli.main import VERBS, main
from headstart.errors import (
    ConfigError,
    DataError,
    Error,
    Interrupted,
    ModelError,
    NonFiniteError,
    RunError,
    StorageError,
)

PROBE = """
import sys
from headstart.cli.main import main
code = main(sys.argv[1:])
print("LOADED", code, sorted({"torch", "timm", "torchvision"} & sys.modules.keys()))
"""
LIGHT = [
    *[([verb, "--help"], 0) for verb in VERBS],
    (["--help"], 0),
    (["--version"], 0),
    (["trian"], 2),
    *[([verb, "--no-such-option"], 2) for verb in VERBS],
    (["train", "photos", "--epocs", "3"], 2),
    (["train", "photos", "--learning-rate", "3"], 2),
    (["train", "photos", "--epochs", "0"], 2),
    (["train", "photos", "--config", "missing.yaml"], 2),
    (["train"], 2),
    (["plan", "photos", "--loss.class-weights", "{a: 1, a: 2}"], 2),
    (["describe", "starter", "--freeze", "foo"], 2),
    (["models", "--max-params", "many"], 2),
    (["models", "--min-top1", "high"], 2),
    (["models", "--min-top1", "101"], 2),
    (["models", "--sort", "beauty"], 2),
    (["models", "--limit", "0"], 2),
    (["models", "--max-latency-ms", "20"], 2),
    (["describe", "starter", "--layer-decay", "2"], 2),
    (["predict", "run", "a.jpg", "--top", "0"], 2),
]


@pytest.mark.parametrize(("argv", "code"), LIGHT, ids=[" ".join(argv) for argv, _ in LIGHT])
def test_help_and_mistakes_answer_without_torch(argv: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1:] == [f"LOADED {code} []"], done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_is_this_one(capsys) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("headstart"), "--help"], capture_output=True, text=True, check=True
    )
    assert main(["--help"]) == main([]) == 0
    assert capsys.readouterr().out == done.stdout * 2
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


def test_the_version_is_the_installed_one(capsys) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"headstart \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_mistyped_command_names_the_near_one(capsys) -> None:
    assert main(["trian"]) == 2
    assert "'trian' is no command of headstart; did you mean train? (commands: demo, train," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Error("x"), 2),
        (ConfigError("x"), 2),
        (DataError("x"), 2),
        (ModelError("x"), 2),
        (RunError("x"), 1),
        (NonFiniteError("x"), 1),
        (StorageError("x"), 4),
        (KeyboardInterrupt(), 130),
        (Interrupted("x", signal_number=15), 143),
        (SystemExit(2), 2),
    ],
)
def test_an_error_becomes_a_message_and_its_exit_code(error: BaseException, code: int, capsys, monkeypatch) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(edge, "_dispatch", fail)
    assert main(["train"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_our_own_shows_where_and_says_so(capsys, monkeypatch) -> None:
    def fail(_: list[str]) -> int:
        raise ZeroDivisionError("the reason")

    monkeypatch.setattr(edge, "_dispatch", fail)
    assert main(["train"]) == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError: the reason" in text
    assert "this is a bug in headstart" in text


def test_terminating_ends_with_143(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from headstart.cli import main as edge
edge._dispatch = lambda _: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(edge.main([]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 143
    assert done.stderr == "headstart: stopped by SIGTERM\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_in_the_middle_of_an_import_ends_with_one_line(number: int, code: int, tmp_path: Path) -> None:
    """Where an exception can be swallowed, or turned into another."""
    (tmp_path / "a b").mkdir()  # what is not there is answered before the import
    program = f"""
import os, signal, sys
signal.signal({int(number)}, signal.SIG_DFL)
class Finder:
    def find_spec(self, name, *_):
        if name == "timm.models":
            try:
                os.kill(os.getpid(), {int(number)})
            except BaseException:
                pass
sys.meta_path.insert(0, Finder())
sys.argv = ["headstart.py", "train", "a b", "--out", "it's"]
from headstart.cli.main import main
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    again = f"{sys.executable} -m headstart.cli.main train 'a b' --out 'it'\"'\"'s' --resume"
    assert done.stderr == f"headstart: stopped by {signal.Signals(number).name}; go on with: {again}\n"


def test_what_the_parent_ignores_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    code = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from headstart.cli import main as edge
edge._dispatch = lambda _: os.kill(os.getpid(), signal.SIGHUP) or 0
sys.exit(edge.main([]))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        main(["--version"])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from headstart.cli.main import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


TORN_DOWN = """
import atexit, os, sys
atexit.register(lambda: os.write(1, b"torn down"))
from headstart.cli.main import main
sys.argv = ["headstart", "trian"]
sys.exit(main())
"""


@pytest.mark.parametrize(("rank", "out"), [({}, "torn down"), ({"RANK": "1"}, "")])
def test_one_of_several_processes_that_failed_is_not_torn_down(rank: dict[str, str], out: str) -> None:
    """Torch's threads now and then abort what is being torn down when others have gone: 1 in place of 2."""
    done = subprocess.run(
        [sys.executable, "-c", TORN_DOWN], capture_output=True, text=True, env=dict(os.environ) | rank
    )
    assert (done.returncode, done.stdout) == (2, out)
    assert "did you mean train?" in done.stderr
