"""TensorBoard, by torch's own writer: ``tensorboard --logdir runs`` shows every run below it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.events import EpochDone, Event, Finished
from headstart.trackers.values import Option, list_epoch_values, list_final_values


class TensorBoard:
    """Writes each epoch as scalars, the options and the result as texts; given as ``watch`` to what runs.

    ``folder``: where its files are. ``options``: what the run was told, by dotted names. A run that goes on adds to the
    folder, and what stands there from the same step on counts no more.
    """

    is_durable = True

    def __init__(self, folder: Path, *, options: Mapping[str, Option] | None = None) -> None:
        self._folder, self._options = folder, options or {}
        self._writer: Any = None
        self.run_id = folder.name  # TensorBoard knows a run by its folder
        self.last_step: int | None = None

    def __call__(self, event: Event) -> None:
        """Write one event; kinds that have nothing to log pass by."""
        match event:
            case EpochDone():
                writer = self._open(event.step)
                for name, value in list_epoch_values(event).items():
                    writer.add_scalar(name, value, event.step)
                writer.flush()
            case Finished():
                writer = self._open(event.step + 1)
                for name, value in list_final_values(event).items():
                    writer.add_scalar(name, value, event.step)
                writer.add_text("result", event.headline, event.step)
                self.close()

    def close(self) -> None:
        """Close the file that is written; a later event opens another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, 1 s

            goes_on = self._folder.is_dir() and any(self._folder.iterdir())
            self._writer = SummaryWriter(str(self._folder), purge_step=step if goes_on else None)
            if not goes_on and self._options:
                rows = "\n".join(f"{name}: {value}" for name, value in self._options.items())
                self._writer.add_text("options", rows.replace("\n", "  \n"), 0)
        return self._writer
