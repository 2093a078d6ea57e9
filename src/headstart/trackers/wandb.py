"""Weights & Biases: offline, into the run's folder, unless the environment (``WANDB_MODE=online``) says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from headstart.events import EpochDone, Event, Finished
from headstart.trackers.values import Option, list_epoch_values, list_final_values


class Wandb:
    """Logs each epoch, the result and the report; given as ``watch`` to what runs.

    ``run``: the run's folder, of whose name the run is called, and in which the files of offline mode are. ``options``:
    what the run was told, by dotted names. ``run_id``: of the run at W&B that goes on.
    """

    is_durable = False  # offline files are written in blocks; the server takes no step twice

    def __init__(self, run: Path, *, options: Mapping[str, Option] | None = None, run_id: str | None = None) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "headstart"),
            name=os.environ.get("WANDB_NAME", run.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(run)),
            mode=os.environ.get("WANDB_MODE", "offline"),
            id=run_id,
            resume="allow",
            reinit="create_new",  # the caller's own runs stay as they are
            config=dict(options or {}),
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        self.run_id: str = self._run.id
        self._finished = False
        self.last_step: int | None = None

    def __call__(self, event: Event) -> None:
        """Log one event; kinds that have nothing to log pass by."""
        match event:
            case EpochDone():
                self._run.log(list_epoch_values(event), step=event.step)
            case Finished():
                self._run.summary.update({**list_final_values(event), "headline": event.headline})
                report = wandb.Artifact(f"report-{self.run_id}", type="report")
                report.add_file(str(event.path / "report.html"))
                self._run.log_artifact(report)
                self._run.finish()
                self._finished = True

    def close(self) -> None:
        """Send what is left; a run that has not finished is marked as failed."""
        if not self._finished:
            self._run.finish(exit_code=1)
