"""Freed memory stays with the process for the next step, instead of going back to the operating system.

glibc hands large blocks back at once, so that each layer's activations come from the kernel anew, page by page and
zeroed. On a CPU that is up to half of a training step's time (``benchmarks.steps``); no number changes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # names of mallopt(3)'s parameters in malloc.h
_KEEPING = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1}
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}  # where glibc's own adjustment ends up (mallopt(3))
_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_TCMALLOC_RELEASE = "MallocExtension_ReleaseFreeMemory"  # of gperftools, whose tcmalloc keeps what is freed by itself
_TCMALLOC_AT_ONCE = b"tcmalloc.aggressive_memory_decommit"  # 1: what is freed goes back at once
_TCMALLOC_BY_USER = "TCMALLOC_AGGRESSIVE_DECOMMIT"
_TCMALLOC_FILES = (
    "libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so", "libtcmalloc.so",
)  # fmt: skip
_LIBRARY_FOLDERS = ("/usr/local/lib", "/usr/lib64", "/usr/lib")
PRELOAD = "LD_PRELOAD"
_lock = threading.Lock()
_inside = 0  # how many blocks of ``keep_freed_memory`` are being run
_scarce = False  # until the outermost one of them ends


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within, what is freed is kept for what is allocated next (glibc, tcmalloc; a user's own settings stay)."""
    global _inside, _scarce
    if not _can_choose():
        yield
        return
    with _lock:
        _inside += 1
        if not _scarce:
            _set(_KEEPING)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _scarce = False
                _set(_USUAL)


def keep_no_memory() -> None:
    """Within the running blocks of ``keep_freed_memory``, nothing is kept from now on: there is too little of it."""
    global _scarce
    if _can_choose():
        with _lock:
            _scarce = _inside > 0
            _set(_USUAL)


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Afterwards, what is free goes back to the operating system."""
    try:
        yield
    finally:
        _trim()


def release_memory() -> None:
    """Give back what is free, after work whose like does not come again."""
    _trim()


def has_tcmalloc() -> bool:
    """Whether tcmalloc stands in malloc's place."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), _TCMALLOC_RELEASE)


def propose_tcmalloc() -> Path | None:
    """tcmalloc where it is installed and would be of use; None where it is loaded, or where the user has chosen.

    An ``LD_PRELOAD`` in the environment, even an empty one, or a setting of malloc's is the user's choice.
    """
    chosen = PRELOAD in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or has_tcmalloc():
        return None
    return find_tcmalloc()


def find_tcmalloc() -> Path | None:
    """The first tcmalloc of this architecture where libraries are: this Python's, as conda has it, or the system's."""
    if sys.platform != "linux":
        return None
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = (
        Path(sys.prefix, "lib"),
        Path(sys.base_prefix, "lib"),
        Path("/usr/lib", multiarch),
        *map(Path, _LIBRARY_FOLDERS),
    )
    there = (folder / name for folder in folders for name in _TCMALLOC_FILES)
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


def _trim() -> None:
    if has_tcmalloc():
        getattr(ctypes.CDLL(None), _TCMALLOC_RELEASE)()
    elif _can_choose():
        ctypes.CDLL(None).malloc_trim(0)


def _can_choose() -> bool:
    if has_tcmalloc():
        return _TCMALLOC_BY_USER not in os.environ
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    return not any(name in os.environ for name in _BY_USER) and "glibc.malloc" not in os.environ.get(
        "GLIBC_TUNABLES", ""
    )


def _set(options: Mapping[int, int]) -> None:
    if has_tcmalloc():
        set_property = ctypes.CDLL(None).MallocExtension_SetNumericProperty
        set_property.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        set_property(_TCMALLOC_AT_ONCE, int(_scarce))
        return
    for name, value in options.items():
        ctypes.CDLL(None).mallopt(name, value)
