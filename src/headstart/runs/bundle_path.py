"""Where a run's model lies: answered without torch, before anything is loaded."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path

from headstart.config.home import expand_home
from headstart.errors import ModelError
from headstart.wording import switch

_BUNDLE = "headstart.json"


def find_bundle(run: Path) -> Path:
    """The bundle of a run, or the one that the folder is.  Raises: ModelError: no finished run is there."""
    run = expand_home(run)
    for folder in (run, run / "model"):
        if (folder / _BUNDLE).is_file():
            return folder
    if not run.exists():
        raise ModelError(f"{run}: no finished run is there: there is no such folder{_near(run)}")
    stopped = (run / "checkpoints").is_dir()
    best = f"; or take the best epoch so far: headstart finish {shlex.quote(str(run))}" if stopped else ""
    raise ModelError(
        f"{run}: no finished run is there (no model/{_BUNDLE}); train it, or go on with {switch('resume')}{best}"
    )


def _near(run: Path) -> str:
    """The name beside it that was probably meant; else what makes a run."""
    beside = [path.name for path in run.absolute().parent.glob("*") if path.is_dir()]
    found = difflib.get_close_matches(run.name, beside, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {run.with_name(found[0])}?"
    return (
        "; give the folder of a run, which headstart train prints; one that was stopped goes on with "
        f"{switch('resume')}"
    )
