"""Freed memory: kept within, given back afterwards, and never touched where the user has set it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")

_BLOCK = 48 << 20
_SCRIPT = f"""
import ctypes, resource
from headstart.allocator import keep_no_memory, keep_freed_memory, release_memory, return_freed_memory

lib = ctypes.CDLL(None)
lib.malloc.restype, lib.malloc.argtypes, lib.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def touched():
    "Pages that the system had to give for one large block, written to and freed."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = lib.malloc({_BLOCK})
    ctypes.memset(place, 1, {_BLOCK})
    lib.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

print(touched(), touched())
with return_freed_memory(), keep_freed_memory():
    first = touched()
    with keep_freed_memory():
        pass
    print(first, touched(), resident())
    release_memory()
    print(touched(), resident())
    keep_no_memory()
    release_memory()
    with keep_freed_memory():
        print(touched(), touched())
print(resident())
print(touched(), touched())
with keep_freed_memory():
    print(touched(), touched())
"""


def _run(**environment: str) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, env={"PATH": "/bin", **environment}
    )
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_freed_memory_is_kept_within_and_given_back_after() -> None:
    before, within, released, scarce, after, again, once_more = _run()
    pages = _BLOCK // 4096 // 2  # at least half of the block's; where the kernel gives huge ones there are fewer
    if before[0] < pages:
        pytest.skip("the kernel gives huge pages")
    assert min(before) > pages
    assert within[0] > pages and within[1] < 100
    assert released[0] > pages
    assert within[2] - after[0] > _BLOCK / 2
    assert min(scarce) > pages
    assert min(again) > pages
    assert once_more[1] < 100


def test_what_the_user_set_stays() -> None:
    _, within, *_ = _run(MALLOC_MMAP_THRESHOLD_="1000000", MALLOC_TRIM_THRESHOLD_="1000000")
    assert within[1] > 100
