"""What decoders say of a file besides the pixels that they give: heard with the file in hand, not printed without it.

libtiff writes to the error stream by itself, Pillow warns; neither names the file, and a set of scans has hundreds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import Image

_LONGEST = 200  # characters of a sentence
_MOST = 20  # sentences that are kept of a file
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


class _Hearing(threading.local):
    """What each thread knows: where what is said about its file is written down."""

    lines: list[str] | None = None


_HEARING = _Hearing()


@contextmanager
def hear_decoders() -> Iterator[list[str]]:
    """Within, what decoders say on this thread goes to the list, once each; of blocks within one another, to all."""
    _hear_libtiff()
    outer, lines = _HEARING.lines, list[str]()
    _HEARING.lines = lines
    try:
        yield lines
    finally:
        _HEARING.lines = outer
        for line in lines:
            _add(line)


@contextmanager
def hear_warnings() -> Iterator[None]:
    """Within, Pillow's warnings are heard on the threads that hear decoders."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def note(message: Warning | str, *more: Any, **options: Any) -> None:
            if not _add(str(message)):
                shown(message, *more, **options)

        warnings.filterwarnings("always", module=r"PIL(\.|$)")
        warnings.showwarning = note
        yield


def _add(text: str) -> bool:
    """Whether somebody hears this thread, and has it now."""
    lines, line = _HEARING.lines, " ".join(text.split())[:_LONGEST]
    if lines is None:
        return False
    if line not in lines and len(lines) < _MOST:
        lines.append(line)
    return True


@cache
def _hear_libtiff() -> Any:
    """Have libtiff, where Pillow's can be reached, say its errors here; what nobody hears is printed as before.

    The handler is returned, since nothing else keeps it. How C hands over a list of arguments differs by platform: this
    is that of Linux on x86-64, and others print as before.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return None
    try:
        libraries = ctypes.CDLL(vars(Image)["core"].__file__)
        print_to = ctypes.CDLL(None).vsnprintf
        set_handler = libraries.TIFFSetErrorHandler
    except (KeyError, AttributeError, OSError, TypeError):
        return None

    def handle(module: bytes | None, form: bytes | None, values: int | None) -> None:
        buffer = ctypes.create_string_buffer(1024)
        print_to(buffer, ctypes.c_size_t(len(buffer)), form, ctypes.c_void_p(values))
        said = buffer.value.decode("utf-8", "replace")
        who = (module or b"").decode("utf-8", "replace").replace("tempfile.tif", "libtiff")
        if not _add(f"{who}: {said}" if who else said):
            os.write(2, f"{who}: {said}.\n".encode())

    handler = _Handler(handle)
    set_handler.restype = ctypes.c_void_p
    set_handler(handler)
    return handler
