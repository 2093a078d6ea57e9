"""trackio: in its own store on this machine, unless the environment (``TRACKIO_SPACE_ID``) says otherwise."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout

import trackio

from headstart.events import EpochDone, Event, Finished
from headstart.trackers.values import Option, list_epoch_values, list_final_values


class Trackio:
    """Logs each epoch, the result and the report; given as ``watch`` to what runs.

    ``name``: what the run is called; some letters follow it, since trackio knows a run by its name. ``options``: what
    the run was told, by dotted names. ``run_id``: the name at trackio of a run that goes on. A run of trackio's that
    the caller has open is ended, since trackio has one at a time.
    """

    is_durable = True

    def __init__(self, name: str, *, options: Mapping[str, Option] | None = None, run_id: str | None = None) -> None:
        project = os.environ.get("TRACKIO_PROJECT", "headstart")
        self.run_id = run_id or f"{name}-{uuid.uuid4().hex[:6]}"
        self._finished = False
        self.last_step = trackio.SQLiteStorage.get_max_step_for_run(project, self.run_id) if run_id else None
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project,
                name=self.run_id,
                config=dict(options or {}),
                resume="allow" if run_id else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def __call__(self, event: Event) -> None:
        """Log one event; kinds that have nothing to log pass by."""
        match event:
            case EpochDone():
                self._run.log(list_epoch_values(event), step=event.step)
            case Finished():
                self._run.log(list_final_values(event), step=event.step)
                with redirect_stdout(sys.stderr):
                    self._run.log_artifact(event.path / "report.html", type="report")
                self.close()

    def close(self) -> None:
        """Write what is left."""
        if not self._finished:
            self._finished = True
            with redirect_stdout(sys.stderr):
                self._run.finish()
