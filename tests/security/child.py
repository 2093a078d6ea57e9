"""One process that is watched while it runs every command on every artefact.

``python child.py FOLDER RESULT.json [PARTS [NAME]] [--quick]``

An audit hook notes what is executed, contacted and written; memory is limited; a command that hangs is ended by an
alarm and counted as hung.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS, BYTES = 900, 3 << 30  # a command that hangs waits for ever
RUNS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
    "os.startfile",
}
CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}


class Hung(BaseException):
    """The alarm."""


class Watch:
    """What happened since the last ``clear``."""

    def __init__(self, inside: Path) -> None:
        self.on, self.inside, self.executed, self.outside = False, str(inside), [""], [""]
        self.clear()

    def clear(self) -> None:
        self.executed, self.outside = [], []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS or event in ("pickle.find_class", "socket.connect", "socket.getaddrinfo"):
            self.executed.append(f"{event} {arguments!r:.200}")
        elif event == "compile" and arguments[0] is not None and b"/marks/" in _bytes(arguments[0]):
            self.executed.append(f"compile {arguments!r:.200}")
        elif event == "open" and _writes(arguments[1], arguments[2]):
            self._note(event, arguments[0])
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self._note(event, path)

    def _note(self, event: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith(self.inside) and real != "/dev/null":
                self.outside.append(f"{event} {real}")


def _bytes(source: object) -> bytes:
    return source if isinstance(source, bytes) else str(source).encode()


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def snapshot(folder: str) -> dict[str, tuple[int, int, int]]:
    """Every file below by path, with size, time and inode; folders and links as such."""
    found = {}
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            facts = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            found[entry.path] = (0, 0, facts.st_ino) if is_folder else (facts.st_size, facts.st_mtime_ns, facts.st_ino)
            if is_folder:
                waiting.append(entry.path)
    return found


def changes(before: dict[str, Any], after: dict[str, Any], owns: tuple[Path, ...]) -> list[str]:
    """Paths that are new, gone or different, without those that the artefact owns."""
    different = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return sorted(path for path in different if not any(Path(path).is_relative_to(own) for own in owns))


def call(main: Any, argv: tuple[str, ...]) -> dict[str, Any]:
    """Exit code, output and time of one command."""
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(SECONDS)
    began = time.monotonic()
    code, hung = -1, False
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(argv))
    except Hung:
        hung = True
    except BaseException as error:
        err.write(f"ESCAPED {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    return {
        "code": code,
        "hung": hung,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": time.monotonic() - began,
    }


def controls(world: Any, watch: Watch) -> Iterator[dict[str, Any]]:
    """That the watch and the marks see each payload when it does run."""
    from corpus_weights import payloads

    for name, bomb in payloads(world.mark("control")).items():
        if name == "hub":
            continue
        mark = world.mark(f"control-{name}")
        bomb = payloads(mark)[name]
        data = pickle.dumps(bomb)
        watch.clear()
        watch.on = True
        made = pickle.loads(data)
        watch.on = False
        if name == "popen":
            made.wait()
        yield {"name": name, "seen": list(watch.executed), "marked": mark.exists()}
        mark.unlink(missing_ok=True)


def limit_memory() -> int:
    """At most ``BYTES`` more than there are now; gives the limit."""
    size = next(
        int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line
    )
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
    return size + BYTES


def _alarm(_signal: int, _frame: object) -> None:
    raise Hung


def few(commands: tuple[tuple[str, ...], ...], place: int) -> tuple[tuple[str, ...], ...]:
    """One command in turn; of those that try every place for a file the first as well."""
    chosen = {place % len(commands), *([0] if len(commands) > 10 else [])}
    return tuple(commands[index] for index in sorted(chosen))


def run(root: Path, parts: str = "", only: str = "", *, quick: bool = False) -> dict[str, Any]:
    """Everything, or with ``quick`` one or two commands of each artefact, as values for JSON."""
    sys.path.insert(0, str(HERE))
    import corpus

    from headstart.cli.main import main

    signal.signal(signal.SIGALRM, _alarm)
    world = corpus.make_world(root)
    os.environ.update(
        HOME=str(world.home), HF_HUB_OFFLINE="1", HF_HOME=str(root / "hf"), TORCH_HOME=str(root / "torch")
    )
    os.environ.pop("HEADSTART_CACHE", None)  # scans are kept in the home folder
    (root / "tmp").mkdir()
    tempfile.tempdir = str(root / "tmp")
    os.chdir(root)
    assert main(list(corpus.train(world, out=str(world.run)))) == 0
    found = [
        artefact
        for artefact in corpus.artefacts(world, tuple(parts.split(",")) if parts else corpus.PARTS)
        if only in artefact.name
    ]
    os.chdir(root)
    call(main, ("report", str(world.run)))  # whatever is imported late is imported now
    watch = Watch(root)
    sys.addaudithook(watch)
    shown = list(controls(world, watch))
    limit_memory()
    results = []
    keep = dict(os.environ)
    kept_scans = world.home / ".cache" / "headstart" / "scans"
    before = snapshot(str(root))
    for place, artefact in enumerate(found):
        os.environ.update(artefact.env)
        for argv in few(artefact.commands, place) if quick else artefact.commands:
            watch.clear()
            watch.on = True
            result = call(main, argv)
            watch.on = False
            after = snapshot(str(root))
            wrong = changes(before, after, (*artefact.owns, root / "mpl", root / "tmp", kept_scans))
            results.append(result | {
                "artefact": artefact.name, "argv": argv, "executed": watch.executed, "outside": watch.outside,
                "changed": wrong, "codes": sorted(artefact.codes), "told": artefact.told,
                "marks": sorted(path.name for path in world.marks.iterdir()),
            })  # fmt: skip
            before = after
        os.environ.clear()
        os.environ.update(keep)
    secret = (world.home / "id_rsa").read_text()
    lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would begin with the parent's, up to 2.5 GB
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
    return {"controls": shown, "results": results, "secret": secret, "artefacts": len(found), "peak_bytes": peak}


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--quick"]
    target = Path(words[1]).resolve()  # before the folder is changed
    found = run(Path(words[0]).resolve(), *words[2:], quick="--quick" in sys.argv)
    target.write_text(json.dumps(found, default=str))
