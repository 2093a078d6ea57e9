"""``headstart cache``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from headstart.cli.output import table, to_json, write
from headstart.config.flags import parse_args
from headstart.config.schema import Cache as CacheOptions
from headstart.errors import ConfigError
from headstart.storage.disk_cache import CacheEntry, DiskCache, cache_folder

_DAY = "%Y-%m-%d %H:%M"
_switch = tyro.conf.arg(help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Activations, decoded images and scans that runs share, in HEADSTART_CACHE (default ~/.cache/headstart)."""

    what: Annotated[
        Literal["list", "clear"], tyro.conf.Positional, tyro.conf.arg(metavar="list|clear", help_behavior_hint="")
    ]
    """list: what is there; clear: remove all that no run has open (later runs compute it again)."""
    yes: Annotated[bool, _switch] = False
    """clear: remove without asking."""
    json: Annotated[bool, _switch] = False
    """One line of JSON on stdout."""


def run(argv: Sequence[str]) -> int:
    """List or clear the caches; clearing asks before, unless --yes is there."""
    args, _ = parse_args(Cache, argv, prog="headstart cache")
    disk_cache = DiskCache(cache_folder(), limit_bytes=int(CacheOptions().limit_gb * 1e9))
    both = (disk_cache, disk_cache.scans())
    if args.what == "clear":
        if not args.yes and not _confirm([entry for one in both for entry in one.content()]):
            write("nothing was removed")
            return 0
        found = [entry for one in both for entry in one.content() if one.remove(entry.key)]
    else:
        found = sorted((entry for one in both for entry in one.content()), key=lambda entry: entry.used)
    if args.json:
        rows = [vars(entry) | {"used": entry.used.isoformat()} for entry in found]
        write(to_json({"folder": str(cache_folder()), "removed" if args.what == "clear" else "caches": rows}))
        return 0
    size = f"{sum(entry.nbytes for entry in found) / 2**20:,.1f} MiB"
    if found and args.what == "list":
        write(table(map(_row, found), header=("used (UTC)", "MiB", "images", "view", "state", "model", "behind")))
        write("")
    count = f"{len(found)} cache{'s' * (len(found) != 1)}"
    write(f"{'removed ' if args.what == 'clear' else ''}{count}, {size}, in {cache_folder()}")
    return 0


def _confirm(entries: Sequence[CacheEntry]) -> bool:
    """Whether all of it may go, as somebody at the terminal says.

    Raises: ConfigError: nobody is there to be asked.
    """
    if not entries:
        return True
    caches = (
        f"{len(entries)} cache{'s' * (len(entries) != 1)}, {sum(entry.nbytes for entry in entries) / 2**20:,.1f} MiB"
    )
    if not sys.stdin.isatty():
        raise ConfigError(
            f"cache clear: {caches} in {cache_folder()} would be removed, and nobody is at a terminal to be asked; "
            "type headstart cache clear --yes"
        )
    sys.stderr.write(f"remove {caches}, in {cache_folder()}? Later runs compute them again. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _row(entry: CacheEntry) -> list[object]:
    about = entry.about
    state = "in use" if entry.in_use else "complete" if entry.complete else "partly"
    behind = ", ".join(map(str, about.get("boundary", ())))
    view = about.get("view", 0) + 1 if isinstance(about.get("view"), int) else None
    return [
        f"{entry.used:{_DAY}}",
        f"{entry.nbytes / 2**20:,.1f}",
        about.get("images"),
        view,
        state,
        about.get("model", "?"),
        behind,
    ]
