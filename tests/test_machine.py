"""Free memory is what the machine has left, or the container's or job's limit, whichever is less."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from headstart.machine import available_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB of memory and 1 GiB of swap free, and no limits."""
    plant(
        tmp_path,
        "proc/meminfo",
        "MemTotal:  16777216 kB\nMemAvailable: 8388608 kB\nSwapFree: 1048576 kB\nHugePages: 0\n",
    )
    return tmp_path


def plant(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def limit_v2(root: Path, group: str, **values: object) -> None:
    for name, value in values.items():
        plant(root, f"sys/fs/cgroup/{group}/memory.{name.replace('_', '.')}", value)


def limit_v1(root: Path, group: str, **values: object) -> None:
    for name, value in values.items():
        plant(root, f"sys/fs/cgroup/memory/{group}/memory.{name.replace('memsw_', 'memsw.')}", value)


def test_without_limits_it_is_what_the_machine_has_left(root: Path) -> None:
    assert available_bytes(root=root) == 9 * GIB
    plant(root, "proc/self/cgroup", "0::/user.slice")
    limit_v2(root, "user.slice", max="max", current=GIB, high="max", swap_max="max", swap_current=0)
    assert available_bytes(root=root) == 9 * GIB


@pytest.mark.parametrize("inside", ["/", "/host/name/of/it", "/../sibling"])
def test_a_container_has_its_limit_less_what_is_used_and_no_file_cache(root: Path, inside: str) -> None:
    plant(root, "proc/self/cgroup", f"0::{inside}")
    limit_v2(root, "", max=4 * GIB, current=3 * GIB, swap_max=0, swap_current=0)
    assert available_bytes(root=root) == GIB
    plant(root, "sys/fs/cgroup/memory.stat", f"anon 5\ninactive_file {GIB // 2}")
    assert available_bytes(root=root) == 3 * GIB // 2


def test_swap_of_a_group_counts_as_far_as_it_may_be_used(root: Path) -> None:
    plant(root, "proc/self/cgroup", "0::/job")
    limit_v2(root, "job", max=4 * GIB, current=3 * GIB)
    assert available_bytes(root=root) == 2 * GIB  # no limit of swap: all that is free
    limit_v2(root, "job", swap_max=GIB, swap_current=GIB // 4 * 3)
    assert available_bytes(root=root) == 5 * GIB // 4
    limit_v2(root, "job", swap_max=8 * GIB)
    assert available_bytes(root=root) == 2 * GIB


def test_the_tightest_group_above_the_process_decides(root: Path) -> None:
    plant(root, "proc/self/cgroup", "0::/slice/job/step")
    limit_v2(root, "slice", max=7 * GIB, current=5 * GIB, swap_max=0, swap_current=0)
    limit_v2(root, "slice/job", max=5 * GIB, current=GIB)
    limit_v2(root, "slice/job/step", max="max", current=5)
    assert available_bytes(root=root) == 2 * GIB
    limit_v2(root, "slice/job", high=2 * GIB)  # beyond it the kernel stalls what allocates
    assert available_bytes(root=root) == GIB


def test_version_1_limits_memory_and_both_together(root: Path) -> None:
    plant(root, "proc/self/cgroup", "5:cpuset:/elsewhere\n4:cpu,memory:/job/1\n0::/")
    limit_v1(root, "job/1", limit_in_bytes=9223372036854771712, usage_in_bytes=5)  # none
    assert available_bytes(root=root) == 9 * GIB
    limit_v1(
        root, "job", limit_in_bytes=4 * GIB, usage_in_bytes=3 * GIB, stat=f"cache 5\ntotal_inactive_file {GIB // 2}"
    )
    assert available_bytes(root=root) == 5 * GIB // 2
    limit_v1(root, "job", memsw_limit_in_bytes=4 * GIB, memsw_usage_in_bytes=3 * GIB)
    assert available_bytes(root=root) == 3 * GIB // 2


def test_a_docker_container_of_version_1_sees_its_group_where_the_tree_begins(root: Path) -> None:
    plant(root, "proc/self/cgroup", "4:memory:/docker/0123abc")
    limit_v1(
        root, "", limit_in_bytes=2 * GIB, usage_in_bytes=GIB, memsw_limit_in_bytes=2 * GIB, memsw_usage_in_bytes=GIB
    )
    assert available_bytes(root=root) == GIB


def test_a_group_beyond_its_limit_has_nothing_left(root: Path) -> None:
    limit_v2(root, "", max=GIB, current=3 * GIB, swap_max=0, swap_current=0)
    assert available_bytes(root=root) == 0


@pytest.mark.skipif(not hasattr(os, "sysconf_names"), reason="the system does not say")
def test_where_there_is_no_meminfo_it_is_all_of_the_machines_memory(tmp_path: Path) -> None:
    found = available_bytes(root=tmp_path)
    assert found == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "linux":
        now = available_bytes()
        assert now is not None and now > 0
