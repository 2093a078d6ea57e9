"""Training with tcmalloc where it is installed: freed memory is kept, as glibc's malloc is told to, at a lower peak.

glibc 2.36 looks for an aligned block in a freed one that is larger than it, so that a freed tensor's place does not fit
the next tensor of its size: ResNet-50 takes 4.9 GB in place of 3.9 (``benchmarks.speed full``).
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

PRELOAD = "LD_PRELOAD"
_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so", "libtcmalloc.so")
_FOLDERS = ("/usr/local/lib", "/usr/lib64", "/usr/lib")
_MODULES = (["-m", "headstart"], ["-m", "headstart.cli.main"])


def begin_with_tcmalloc() -> None:
    """Begin this very command again, as the same process, with tcmalloc if it is there.

    Only where the process is this command and nothing else: not in a notebook, nor in somebody's script. An
    ``LD_PRELOAD`` in the environment, even an empty one, or a setting of malloc's is the user's choice, and stays.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if chosen or PRELOAD in os.environ or not _is_whole_command():
        return
    found = find_tcmalloc()
    if found is None:
        return
    os.environ[PRELOAD] = str(found)
    with suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    del os.environ[PRELOAD]


def _is_whole_command() -> bool:
    words, given = sys.argv[1:], sys.orig_argv
    before = given[: len(given) - len(words)]
    if not sys.executable or len(before) < 2 or given[len(before) :] != words:
        return False
    return before[-2:] in _MODULES or (Path(before[-1]).name == "headstart" and Path(before[-1]).is_file())


def find_tcmalloc() -> Path | None:
    """The first one of this architecture where libraries are: this Python's (conda puts it there), the system's."""
    if sys.platform != "linux":
        return None
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (Path(sys.prefix, "lib"), Path(sys.base_prefix, "lib"), Path("/usr/lib", multiarch), *map(Path, _FOLDERS))
    there = (folder / name for folder in folders for name in _NAMES)
    return next((path for path in there if _can_be_loaded(path)), None)


def _can_be_loaded(path: Path) -> bool:
    """Whether it is of this Python's architecture, and LD_PRELOAD, which spaces and colons divide, can name it."""
    if not path.is_absolute() or set(str(path)) & set(" \t\n:") or not path.is_file():
        return False
    try:
        return _architecture(path) == _architecture(Path(sys.executable))
    except OSError:
        return False


def _architecture(path: Path) -> tuple[bytes, bytes, bytes]:
    """Mark, class and machine of an ELF file (elf(5))."""
    with path.open("rb") as file:
        head = file.read(20)
    return head[:4], head[4:6], head[18:20]
