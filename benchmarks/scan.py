"""What the scan of a data set costs the first time, and the second time, when its findings are kept.

``python -m benchmarks.scan`` prints a table; CPU time of this process, the least of some rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from headstart.config.schema import Data
from headstart.data.scan import Scan, scan_records
from headstart.data.sources.listing import list_unlabelled
from headstart.storage.disk_cache import DiskCache

SETS = ("hymenoptera", "flowers5", "houses", "scenes/images")


def measure(folder: Path, *, rounds: int) -> tuple[int, float, float, int]:
    """Images, CPU seconds of a first scan and of a second one, and bytes of what is kept."""
    files = list_unlabelled(Data(source=str(folder)))
    first = second = float("inf")
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            disk_cache = DiskCache(Path(place) / "cache", limit_bytes=10**9)

            def scan(kept: DiskCache = disk_cache) -> Scan:
                return scan_records(files, files.listed, threads=1, disk_cache=kept)

            spent, found = _time(scan)
            first = min(first, spent)
            spent, again = _time(scan)
            second = min(second, spent)
            assert again.known == len(found.hashes), "the photos are younger than 3 s"
            nbytes = sum(entry.nbytes for entry in disk_cache.scans().content())
    return len(files.listed), first, second, nbytes


def _time(scan: Callable[[], Scan]) -> tuple[float, Scan]:
    started = time.process_time()
    found = scan()
    return time.process_time() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="data sets; default: those under HEADSTART_DATA")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ.get("HEADSTART_DATA", "../shared")) / "data"
    print("| data | images | first scan, CPU ms | second | first / second | bytes kept an image |")
    print("|---|---:|---:|---:|---:|---:|")
    for folder in options.folders or [shared / name for name in SETS if (shared / name).is_dir()]:
        count, first, second, nbytes = measure(folder, rounds=options.rounds)
        shown = folder.relative_to(shared) if folder.is_relative_to(shared) else folder
        cells = (
            f"{count:,}",
            f"{1e3 * first:,.0f}",
            f"{1e3 * second:,.1f}",
            f"{first / second:,.0f} x",
            nbytes // count,
        )
        print(f"| {shown} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
