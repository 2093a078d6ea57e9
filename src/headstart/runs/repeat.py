"""A run made again: the same options, the same data, what was measured then; and what can hinder the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headstart.config.load import load_config
from headstart.config.schema import Config
from headstart.errors import ConfigError
from headstart.machine import environment
from headstart.reports.environment import Facts, compare, was_inexact
from headstart.runs.folder import list_data_changes, list_differences
from headstart.runs.plan_file import read_plan
from headstart.wording import option, switch


def repeat_config(run: Path, *, data: str | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """The options of the run there, for another folder: ``flags`` may say where, and where the data lie now.

    Raises: ConfigError: there is no run, or an option is another one.
    """
    file = run / "config.yaml"
    if not file.is_file() or not (run / "plan.json").is_file():
        raise ConfigError(f"repeat: {run} holds no run; give the folder that headstart train wrote, e.g. runs/photos")
    source = {"data.source": data} if data is not None else {}
    config = load_config(file, flags={"out": f"{run}-repeat", **(flags or {}), **source})
    refuse_other_options(run, config)
    return config


def refuse_other_options(run: Path, config: Config) -> None:
    """Raises: ConfigError: an option that decides the bits is not as the run there has it."""
    different = list_differences(run / "config.yaml", config)
    if different:
        raise ConfigError(
            f"repeat: {run} was made with other options ({'; '.join(different)}); leave them out, or train without "
            f"{option('repeat')}: headstart train --config {run / 'config.yaml'} --out {run}-other"
        )


def check_repeat(
    run: Path, plan: Mapping[str, Any], device: torch.device, *, config: Config, allow_inexact: bool
) -> tuple[str, ...]:
    """What differs from the run there and can change the bits, with ``allow_inexact``.

    Raises: ConfigError: something does, or the data are others; nothing is written.
    """
    before = read_plan(run)
    if changed := list_data_changes(run / "plan.json", before or {}, plan):
        raise ConfigError(
            f"repeat: the data are not those of {run} ({'; '.join(changed)}); put them back, or train on them as they "
            f"are: headstart train --config {run / 'config.yaml'} --out {config.out}"
        )
    file = run / "environment.json"
    if not file.is_file():
        differences: tuple[str, ...] = (f"{file} is missing, so that nothing says what the run had",)
    else:
        facts = Facts(environment=environment(device), plan=plan)
        _, differences = compare(file, facts, before_plan=before, step=0, allow_inexact=True)
        if was_inexact(json.loads(file.read_text(encoding="utf-8"))):
            differences = (*differences, "the run itself went on after a change, see its report")
    if differences and not allow_inexact:
        raise ConfigError(
            f"repeat: the bits would not be those of {run} ({'; '.join(differences)}); go back to what it had, or "
            f"train all the same with {switch('allow_inexact')}"
        )
    return differences
