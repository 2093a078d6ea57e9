"""What a service counts, in the text format of Prometheus. Several processes count side by side in shared memory."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator
from threading import Lock

_CODES = ("200", "400", "401", "404", "405", "408", "413", "415", "422", "500", "503", "other")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_COUNTERS = {  # name: (what it counts, label, the label's values)
    "headstart_requests_total": ("Requests answered, by status.", "code", _CODES),
    "headstart_images_total": ("Images answered, by outcome.", "outcome", ("predicted", "unreadable", "failed")),
}
_GAUGES = {"headstart_waiting_images": "Images that wait or are computed."}
_HISTOGRAMS = {
    "headstart_request_seconds": ("Seconds from a request's headers to the end of its answer.", _SECONDS),
    "headstart_batch_images": ("Images computed together.", _SIZES),
    "headstart_batch_seconds": ("Seconds that a batch was computed.", _SECONDS),
}


def _list_cells() -> Iterator[tuple[str, str]]:
    for name, (_, _, values) in _COUNTERS.items():
        yield from ((name, value) for value in values)
    yield from ((name, "") for name in _GAUGES)
    for name, (_, bounds) in _HISTOGRAMS.items():
        yield from ((name, str(place)) for place in range(len(bounds) + 1))
        yield (name, "sum")


_PLACES = {cell: place for place, cell in enumerate(_list_cells())}


class Counters:
    """The numbers of a service, all at 0: one row per process. Make it before processes are forked."""

    def __init__(self, *, processes: int = 1) -> None:
        self._processes, self._lock, self._row = processes, Lock(), 0
        self._cells = memoryview(mmap.mmap(-1, 8 * len(_PLACES) * processes)).cast("d")  # all zeros

    def count_as(self, process: int) -> None:
        """From now on this is the process of that number, from 0."""
        self._row = process * len(_PLACES)

    def add(self, name: str, label: str = "", *, count: float = 1) -> None:
        """Add to a counter or gauge."""
        place = _PLACES.get((name, label))
        with self._lock:
            self._cells[self._row + (_PLACES[name, "other"] if place is None else place)] += count

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self.add(name, str(bisect_left(_HISTOGRAMS[name][1], value)))
        self.add(name, "sum", count=value)

    def read(self, name: str, label: str = "") -> float:
        """The number over all processes."""
        place, each = _PLACES[name, label], len(_PLACES)
        return float(sum(self._cells[process * each + place] for process in range(self._processes)))

    def render(self) -> str:
        """All of them, in the text format 0.0.4 of Prometheus."""
        lines = list[str]()
        for name, (about, label, values) in _COUNTERS.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} counter"]
            lines += [f'{name}{{{label}="{value}"}} {self.read(name, value):.17g}' for value in values]
        for name, about in _GAUGES.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {self.read(name):.17g}"]
        for name, (about, bounds) in _HISTOGRAMS.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
            total = 0.0
            for place, bound in enumerate([*map(str, bounds), "+Inf"]):
                total += self.read(name, str(place))
                lines.append(f'{name}_bucket{{le="{bound}"}} {total:.17g}')
            lines += [f"{name}_sum {self.read(name, 'sum'):.17g}", f"{name}_count {total:.17g}"]
        return "\n".join(lines) + "\n"
