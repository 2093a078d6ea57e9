"""What ``train`` and ``plan`` share: their arguments to one ``Config``."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.config.load import load_config
from headstart.config.schema import Config
from headstart.errors import ConfigError


def read_command_config(data: str | None, file: str | None, flags: Mapping[str, object]) -> Config:
    """The configuration of a command: file, then flags, then DATA.

    Raises: ConfigError: a value is wrong, or no data are given.
    """
    named = {"data.source": data} if data is not None else {}
    config = load_config(file, flags={**flags, **named})
    if config.data.source is None:
        raise ConfigError("DATA is missing; give a folder of class folders or a table, e.g. headstart train photos/")
    return config
