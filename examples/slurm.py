"""A run on a SLURM cluster: a process per GPU, queued again after a time limit or a preemption, and going on by itself.

    pip install 'headstart[slurm]'
    python slurm.py photos/ --model timm/convnext_base.fb_in22k_ft_in1k --out runs/photos

Every word goes to ``headstart train``; the cluster's partition and sizes stand below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import submitit

MACHINES, GPUS = 2, 8


class Training:
    """What the cluster runs in every process; submitit keeps it, and calls it again after a requeue."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def __call__(self) -> int:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        from headstart.cli.main import main

        return main(["train", *self.words, "--resume"])

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(self)


def submit(words: Sequence[str], *, cluster: str | None = None) -> submitit.Job[int]:
    """The job; ``cluster`` None finds SLURM, ``local`` runs on this machine."""
    executor = submitit.AutoExecutor(folder="slurm-logs", cluster=cluster)
    executor.update_parameters(
        name="headstart", nodes=MACHINES, tasks_per_node=GPUS, gpus_per_node=GPUS, cpus_per_task=8, timeout_min=24 * 60
    )
    return executor.submit(Training(words))


if __name__ == "__main__":
    print(submit(sys.argv[1:]).job_id)
