"""``headstart serve``."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

import tyro

from headstart.cli.configured import check_run
from headstart.cli.output import write
from headstart.config.flags import parse_args
from headstart.errors import ConfigError
from headstart.serve import server
from headstart.serve.settings import MEGABYTE, Settings

_TOKEN = "HEADSTART_TOKEN"
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """A finished run's model over HTTP: POST /predict takes images, and the page at / tries it out.

    On this machine alone, unless --host says more; then requests need the token that the environment variable
    HEADSTART_TOKEN holds (Authorization: Bearer TOKEN). SIGTERM or Ctrl-C ends it after what was asked is answered.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """Run folder, or the bundle in it."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every one of this machine."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 8000
    """Port to listen on; 0: a free one."""
    open: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Answer other machines without a token, too."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    workers: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Processes that answer, each with the model in memory."""
    batch_size: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: as in validation)")
    ] = None
    """Most images computed together."""
    exact: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Fill batches up as predict does: its very bits, whatever else is asked; slower where few ask."""
    wait_ms: Annotated[float, tyro.conf.arg(metavar="MS")] = 5.0
    """How long a batch waits for images that are still being decoded."""
    queue: Annotated[int, tyro.conf.arg(metavar="INT")] = 256
    """Most images that wait in one process; further requests get 503 and Retry-After."""
    max_images: Annotated[int, tyro.conf.arg(metavar="INT")] = 64
    """Most images of one request."""
    max_file_mb: Annotated[float, tyro.conf.arg(metavar="MB")] = 20.0
    """Most megabytes of one image."""
    max_request_mb: Annotated[float, tyro.conf.arg(metavar="MB")] = 64.0
    """Most megabytes of one request; of all that are being answered, eight times as many."""
    max_seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 30.0
    """How long one request may take."""


def run(argv: Sequence[str]) -> int:
    """Serve until a signal ends it; 0 after SIGTERM, SIGINT or SIGHUP."""
    args, _ = parse_args(Serve, argv, prog="headstart serve")
    settings = _check(args)
    token = _read_token(args)
    folder = check_run(args.run)
    if not all(map(find_spec, _NEEDED)):
        raise ConfigError("headstart serve needs fastapi, uvicorn and python-multipart: pip install 'headstart[serve]'")
    serving = server.Serving(
        run=str(folder), device=args.device, host=args.host, port=args.port, workers=args.workers, settings=settings,
        token=token,
    )  # fmt: skip
    return server.serve(serving, on_ready=lambda where: write(f"serving {args.run} at {where}"))


def _check(args: Serve) -> Settings:
    """The limits.  Raises: ConfigError: a number can be none."""
    least = {"workers": 1, "queue": 1, "max_images": 1}
    if args.batch_size is not None:
        least["batch_size"] = 1
    for name, low in least.items():
        if getattr(args, name) < low:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is not positive; give at least {low}")
    for name in ("max_file_mb", "max_request_mb", "max_seconds"):
        if not 0 < getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(args, name)} is no positive number, such as 30")
    if not 0 <= args.wait_ms <= 1000:
        raise ConfigError(f"--wait-ms: {args.wait_ms} is not from 0 to 1000; give a few, e.g. --wait-ms 5")
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port: {args.port} is no port; give 1 to 65535, or 0 for a free one")
    if args.queue < args.max_images:
        raise ConfigError(
            f"--queue: {args.queue} has no room for a request of {args.max_images} images; give at least "
            f"--queue {args.max_images}, or fewer --max-images"
        )
    return Settings(
        batch_size=args.batch_size, exact=args.exact, wait_seconds=args.wait_ms / 1000, queue=args.queue,
        max_images=args.max_images, max_file_bytes=round(args.max_file_mb * MEGABYTE),
        max_request_bytes=round(args.max_request_mb * MEGABYTE), max_seconds=args.max_seconds,
    )  # fmt: skip


def _read_token(args: Serve) -> str | None:
    """What requests must bring along.  Raises: ConfigError: there is none, and other machines could ask."""
    token = os.environ.get(_TOKEN)
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError(f"{_TOKEN} is empty, or has spaces around it or other letters than ASCII; set another one")
    if token is None and not args.open and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host}: other machines could ask, and there is no token; set {_TOKEN}, or give --open"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
