"""MLflow: where ``MLFLOW_TRACKING_URI`` says, else in MLflow's own store in the working folder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from headstart.events import EpochDone, Event, Finished
from headstart.trackers.values import Option, list_epoch_values, list_final_values

_NOT_IN_NAMES = re.compile(r"[^/\w.\- ]")
_MOST_PARAMETERS = 100  # MLflow takes no more at once


class MLflow:
    """Logs each epoch, the result and the report; given as ``watch`` to what runs.

    ``name``: what the run is called. ``options``: what the run was told, by dotted names. ``run_id``: of the run at
    MLflow that goes on. MLflow's active run, which may be the caller's, is not touched.
    """

    is_durable = True

    def __init__(self, name: str, *, options: Mapping[str, Option] | None = None, run_id: str | None = None) -> None:
        self._client = MlflowClient()
        self._finished = False
        self.last_step: int | None = None
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            self.run_id = run_id
            steps = [metric.step for metric in self._client.get_metric_history(run_id, "epoch")]
            self.last_step = max(steps, default=0)
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "headstart")
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        self.run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in (options or {}).items()]
        for first in range(0, len(params), _MOST_PARAMETERS):
            self._client.log_batch(self.run_id, params=params[first : first + _MOST_PARAMETERS])

    def __call__(self, event: Event) -> None:
        """Log one event; kinds that have nothing to log pass by."""
        match event:
            case EpochDone():
                self._log(list_epoch_values(event), step=event.step)
            case Finished():
                self._log(list_final_values(event), step=event.step)
                self._client.set_tag(self.run_id, "headline", event.headline)
                self._client.log_artifact(self.run_id, str(event.path / "report.html"))
                self._client.set_terminated(self.run_id)
                self._finished = True

    def close(self) -> None:
        """Mark a run that has not finished as stopped."""
        if not self._finished:
            self._client.set_terminated(self.run_id, status="KILLED")

    def _log(self, values: Mapping[str, float], *, step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
