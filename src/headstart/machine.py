"""The machine: what of it and of the libraries decides the bits of a result, and how much memory is free."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headstart.distributed.processes import current

FOR_PEOPLE = ("kernel", "cpu", "cores")  # recorded, and other ones give the same bits
_LIBRARIES = ("headstart", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
_ATTENTION = ("flash_sdp", "math_sdp", "mem_efficient_sdp")
_LIMITS_OF_GROUPS = (  # beyond memory.high the kernel stalls what allocates
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def environment(device: torch.device) -> dict[str, Any]:
    """Facts that can change the bits of a result, versions among them, and a few for people."""
    return {
        "python": platform.python_version(),
        **_versions(),
        "platform": "-".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        "kernel": platform.release(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "instruction_limits": " ".join(f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ),
        "switches": _switches(),
        "world_size": current().world_size,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
    }


@cache
def _versions() -> dict[str, str]:
    """The libraries' versions, read once: looking through the installed packages takes 10 ms; what is loaded stays."""
    return {name: version(name) for name in _LIBRARIES}


def _switches() -> str:
    """The switches of torch that are not as it comes, and choose other kernels or other sums."""
    cudnn, mkldnn, attention = torch.backends.cudnn, torch.backends.mkldnn, torch.backends.cuda
    usual = {
        "mkldnn.enabled": (mkldnn.enabled, True),
        "mkldnn.deterministic": (mkldnn.deterministic, False),
        "cudnn.enabled": (cudnn.enabled, True), "cudnn.benchmark": (cudnn.benchmark, False),
        "cudnn.deterministic": (cudnn.deterministic, False),
        "deterministic_algorithms": (torch.are_deterministic_algorithms_enabled(), False),
        **{name: (getattr(attention, f"{name}_enabled")(), True) for name in _ATTENTION},
        "float32_matmul_precision": (_precision_of_products(), "highest"),
    }  # fmt: skip
    return " ".join(f"{name}={value}" for name, (value, default) in usual.items() if value != default)


def _precision_of_products() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, one by one
        return "mixed"


def processor_name() -> str:
    """The processor's name as Linux gives it, else its architecture (``arm64``)."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_bytes(*, root: Path = Path("/")) -> int | None:
    """Memory that this process can still have, in bytes, swap included; None where the system does not say.

    On Linux it is what the machine has left, what the tightest control group around the process (a container, a job, a
    systemd unit; versions 1 and 2) has left, or what a limit of its addresses leaves, whichever is least. Elsewhere it
    is all memory of the machine.

    ``root`` is where the system's files begin: ``/``.
    """
    info = _read(root / "proc/meminfo")
    if not info:
        return _all_memory()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    memory, swap = (int(fields.get(name, "0").split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    groups = _memory_groups(root)
    for limit, used, cached in _LIMITS_OF_GROUPS:
        memory = min([memory, *_read_rest_of_groups(groups, limit, used, cached=cached)])
    swap = min([swap, *_read_rest_of_groups(groups, "memory.swap.max", "memory.swap.current")])
    both = _read_rest_of_groups(
        groups, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", cached="total_inactive_file"
    )
    return max(0, min([memory + swap, *both, *_read_rest_of_addresses(root)]))


def _memory_groups(root: Path) -> list[Path]:
    """Folders of the control groups whose limits of memory hold for this process, those of both versions.

    Within a container the paths may be the host's, and the container's own group is where the tree begins.
    """
    tree = root / "sys/fs/cgroup"
    groups = [tree, tree / "memory"]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            top = tree / "memory" if controllers else tree
            inside = Path(path.lstrip("/"))
            groups += [top / folder for folder in (inside, *inside.parents) if folder != Path()]
    return groups


def _read_rest_of_groups(groups: Sequence[Path], limit: str, used: str, *, cached: str | None = None) -> list[int]:
    """What each group that has such a limit may still take: the kernel drops files that are ``cached`` first."""
    left = []
    for group in groups:
        most, has = _read(group / limit).strip(), _read(group / used).strip()
        if most.isdigit() and has.isdigit():  # "max": there is none
            stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines() if " " in line)
            left.append(int(most) - int(has) + (int(stat.get(cached, 0)) if cached else 0))
    return left


def _read_rest_of_addresses(root: Path) -> list[int]:
    """Bytes of addresses that this process may still ask for, where somebody limited them (``ulimit -v``)."""
    try:
        import resource  # not on Windows
    except ImportError:
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(root / "proc/self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return []
    return [limit - int(pages[0]) * resource.getpagesize()]


def _all_memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read(path: Path) -> str:
    """The text of one of the system's files; "" where it is not, or is not for us."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
