"""Which trackers a run asks for, and whether their libraries are there, without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from headstart.config.schema import Config
from headstart.errors import ConfigError


def list_trackers(config: Config) -> tuple[str, ...]:
    """The names of the trackers that a run logs to, each once."""
    asked = (config.trackers,) if isinstance(config.trackers, str) else config.trackers
    return tuple(dict.fromkeys(asked))


def refuse_missing_trackers(config: Config) -> None:
    """Raises: ConfigError: a tracker's library is not installed."""
    missing = [name for name in list_trackers(config) if not _is_installed(name)]
    if missing:
        raise ConfigError(
            f"trackers: {' and '.join(missing)} cannot be logged to, not being installed; install with: pip install "
            f"'headstart[{','.join(missing)}]', or leave {'them' if missing[1:] else 'it'} out"
        )


def _is_installed(name: str) -> bool:
    found = find_spec(name)
    return found is not None and found.origin is not None  # a folder wandb/ with logs would be one without
