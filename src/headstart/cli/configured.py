"""What ``train`` and ``plan`` share: their arguments to one ``Config``, and what is wrong with it at first sight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headstart.config.home import expand_home
from headstart.config.load import load_config
from headstart.config.metric import refuse_unknown
from headstart.config.schema import Config, Data
from headstart.errors import ConfigError, ModelError


def read_command_config(data: str | None, file: str | None, flags: Mapping[str, object]) -> Config:
    """The configuration of a command: file, then flags, then DATA.

    Raises: ConfigError: a value is wrong, or no data are given.
    """
    named = {"data.source": data} if data is not None else {}
    config = load_config(file, flags={**flags, **named})
    refuse_unknown(config.metric)
    if config.data.source is None:
        raise ConfigError("DATA is missing; give a folder of class folders or a table, e.g. headstart train photos/")
    return config


def check_names(config: Config) -> None:
    """Refuse names of what is not there, in a tenth of the time that importing torch would take.

    Raises: DataError: no such folder or table. ModelError: no such model, or no such weights file.
    """
    check_data(config.data)
    if config.model.name != "auto":
        check_model(config.model.name)
    if config.model.weights not in ("pretrained", "none") and not Path(config.model.weights).exists():
        from headstart.models.foreign import ACCEPTED

        raise ModelError(f"weights {config.model.weights}: No such file or directory; {ACCEPTED}")


def check_data(data: Data) -> None:
    """Raises: DataError: there is no such folder or table."""
    from headstart.data.sources.existing import existing_source

    existing_source(data)


def check_model(name: str) -> None:
    """Raises: ModelError: no model can have this name."""
    from headstart.models.known_names import refuse_unknown
    from headstart.models.spec import parse_spec

    refuse_unknown(parse_spec(name))


def check_run(run: str) -> Path:
    """The folder that was given as a run.  Raises: ModelError: no finished run is there."""
    from headstart.runs.bundle_path import find_bundle

    folder = expand_home(run)
    find_bundle(folder)
    return folder
