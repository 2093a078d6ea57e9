"""``--devices N``: the same command again in N processes, under torch's own launcher."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from headstart.cli.leaving import LAUNCHED_AS, program
from headstart.config.schema import Config
from headstart.errors import ConfigError, OthersFailed, RunError


def wants_processes(config: Config) -> int:
    """How many processes to start: 1 where somebody has started several already."""
    if "RANK" in os.environ:
        return 1
    if isinstance(config.devices, int):
        return config.devices
    if config.device.lower() not in ("auto", "cuda", "xpu", "gpu"):
        return 1
    import torch

    return max(1, torch.accelerator.device_count()) if torch.accelerator.is_available() else 1


def check_there(config: Config, processes: int) -> None:
    """Refuse more processes than devices, once and before any is started.  Raises: ConfigError: there are fewer
    devices.
    """
    kind = config.device.lower().partition(":")[0]
    kind = "auto" if kind == "gpu" else kind
    if kind == "cpu":
        return
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None and kind == "auto":
        return
    available = (
        torch.accelerator.device_count() if accelerator is not None and kind in ("auto", accelerator.type) else 0
    )
    if processes > available:
        what = accelerator.type if accelerator is not None and kind == "auto" else kind
        raise ConfigError(
            f"devices: {processes} processes need as many {what} devices, and this machine has {available}; give "
            f"{f'--devices {available}' if available else '--device cpu'}"
        )


def launch(argv: Sequence[str], *, processes: int) -> int:
    """Run ``headstart train ARGV`` in so many processes; return the exit code of the one that failed first.

    Raises: RunError: one was killed by a signal.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from headstart.data.loader import available_cores

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each process says itself what went wrong
    os.environ[LAUNCHED_AS] = shlex.join(program())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        local_addr="localhost", max_restarts=0, run_id=f"headstart-{os.getpid()}",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "headstart", "train", *argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise RunError(
                f"rank {rank} of {processes} (process {failure.pid}) was killed by {name}; SIGKILL mostly means that "
                "memory ran out (see the system's log); go on with the same command and --resume"
            ) from error
        return int(failure.exitcode)
    except SignalException as error:
        raise OthersFailed(exit_code=128 + int(error.sigval)) from error
    return 0
