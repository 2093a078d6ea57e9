"""Ranks for the tests: a process that has torch imported already forks as many as asked, and says what each gave.

Reads one JSON object per line, ``{"case": NAME, "world": N, "options": {...}}``, and answers with one, a list by rank
of ``{"gave": ...}`` or ``{"error": TYPE, "text": ...}``. Started by conftest.py: autograd survives no fork of pytest.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import headstart as hs
from headstart.config.schema import Augment, Config, CrossEntropy, Data, Penalties
from headstart.config.schema import Batch as BatchOptions
from headstart.data.images import Images, load_images
from headstart.distributed.collectives import (
    all_gather_object,
    any_of,
    broadcast_files,
    broadcast_object,
    collective_errors,
)
from headstart.distributed.fsdp import is_sharded, is_sharded_tensor, shard, whole
from headstart.distributed.process_group import join_group
from headstart.distributed.processes import current
from headstart.errors import Error
from headstart.models.preprocess import Preprocess
from headstart.runs.checkpoint import restore, save
from headstart.tasks.losses import make_loss
from headstart.training.evaluate import evaluate
from headstart.training.phases import _check_equal
from headstart.training.rules import StepRules
from headstart.training.state import TrainState
from headstart.training.step import train_step

PREPROCESS = Preprocess(
    height=16, width=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=1.0, source="t"
)
LOSSES: dict[str, Any] = {
    "plain": "cross_entropy",
    "weighted": make_loss(
        CrossEntropy(class_weights={"blue": 0.1, "green": 1.0, "red": 7.0}, label_smoothing=0.1),
        classes=("blue", "green", "red"),
    ),
    "own": lambda outputs, targets: (outputs.square().sum(1), 1.0 + targets),
}  # fmt: skip


def network(*, norm: bool = False, dropout: float = 0.0, unused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 8, 3, 2, 1), **({"bn1": nn.BatchNorm2d(8)} if norm else {}), "act1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 16, 3, 2, 1), "act2": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(),
        "drop": nn.Dropout(dropout), "fc": nn.Linear(16, 3),
    }  # fmt: skip
    module = nn.Sequential(OrderedDict(parts))
    if unused:
        module.fc.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return module


def pictures(folder: str, *, batch: int = 8, mixup: float = 0.0, cutmix: float = 0.0) -> Images:
    config = Config(
        data=Data(source=folder), batch=BatchOptions(size=batch), workers=0,
        augment=Augment(preset="light", mixup=mixup, cutmix=cutmix),
    )  # fmt: skip
    return load_images(config, PREPROCESS)


def gradients(*, folder: str, loss: str, accumulate: int, mixup: float = 0.0, cutmix: float = 0.0, **rest: Any) -> Any:
    """The float64 gradient, loss and weight of every step of an epoch with a ragged last batch."""
    rules = StepRules(
        loss=LOSSES[loss], accumulate=accumulate, penalties=Penalties(l1=rest.get("l1", 0.0)),
        clip_norm=rest.get("clip_norm"),
    )  # fmt: skip
    train = pictures(folder, mixup=mixup, cutmix=cutmix).train
    model = network(unused=rest.get("unused", False)).double()
    if rest.get("sharded") and current().is_distributed:
        shard(model, torch.device("cpu"))
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0))
    found = []
    for batch in train.epoch(0):
        done = train_step(state, batch, rules=rules)
        flat = torch.cat([whole(p.grad).flatten() for p in model.parameters() if p.grad is not None])
        found.append({
            "gradient": flat.tolist(), "loss": done.loss, "weight": done.weight, "images": done.images,
            "norm": done.grad_norm, "own": batch.size,
        })  # fmt: skip
    return found


def statistics(*, folder: str) -> Any:
    """After three steps with BatchNorm and dropout: a digest of everything, and rank 0's bits in all."""
    train = pictures(folder).train
    model = network(norm=True, dropout=0.5)
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    for batch in train.epoch(0):
        train_step(state, batch, rules=StepRules(seed=3))
    _check_equal(model)
    return digest(model)


def phases(*, folder: str) -> Any:
    """A phase with a frozen backbone, then one with all of it: gradients are averaged in both."""
    train = pictures(folder).train
    model = network()
    state = TrainState(model, torch.optim.SGD(model.fc.parameters(), lr=1e-2))
    for part in (model.conv1, model.conv2):
        part.requires_grad_(False)
    batches = list(train.epoch(0))
    train_step(state, batches[0], rules=StepRules())
    model.requires_grad_(True)
    state.optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    train_step(state, batches[1], rules=StepRules())
    _check_equal(model)
    return [value.double().flatten().tolist() for value in model.state_dict().values()]


def checkpoints(*, folder: str, run: str, before: int, sharded: bool, norm: bool = False) -> Any:
    """AdamW steps up to the second epoch's end, after each a look at an image and a checkpoint; goes on from one.

    Gives the whole weights and the optimizer's averages.
    """
    train = pictures(folder).train
    model = network(norm=norm)
    if sharded and current().is_distributed:
        shard(model, torch.device("cpu"))
    state = TrainState(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    if (Path(run) / "last.json").exists():
        restore(state, run)
    for epoch in range(state.epochs_done, 2):
        for batch in train.epoch(epoch, first=state.epoch_step):
            if state.step == before:
                return state.step
            train_step(state, batch, rules=StepRules(seed=3))
            state.epoch_step += 1
            with torch.no_grad():  # leaves a shared-out model's root whole
                model(torch.zeros(1, 3, 16, 16))
            if current().is_first or is_sharded(model):
                save(state, run)
        state.epochs_done, state.epoch_step = epoch + 1, 0
    kept = [whole(state.optimizer.state[p]["exp_avg"]) for p in model.parameters()]
    return [value.tolist() for value in (*map(whole, model.state_dict().values()), *kept)]


def metrics(*, folder: str, counts: list[int], sharded: bool = False) -> Any:
    """Probabilities and metrics of the first so many pictures, each seen once."""
    images, model = pictures(folder, batch=4), network(norm=True)
    if sharded and current().is_distributed:
        shard(model, torch.device("cpu"))
    found = []
    for count in counts:
        some = images.val.with_samples(images.train.samples[:count])
        result = evaluate(model, some)
        outputs = result.predictions.outputs
        found.append([list(result.predictions.keys), result.truth.tolist(), outputs.tolist(), result.metrics])
        assert all(is_sharded_tensor(parameter) == is_sharded(model) for parameter in model.parameters())
    return found


def scanned(*, folder: str) -> Any:
    scan = pictures_scan(folder)
    return [dict(scan.hashes), [(one.key, one.reason) for one in scan.unreadable], scan.duplicates]


def pictures_scan(folder: str) -> Any:
    from headstart.data.scan import scan_records
    from headstart.data.sources.files import list_as_files
    from headstart.data.sources.source import Record

    root = Path(folder)
    files = list_as_files([(Record(name=path.name), path) for path in root.iterdir()], given=root, root=root)
    return scan_records(files, files.listed, threads=1)


def told(*, odd: int) -> Any:
    """Every kind of message, once."""
    ours = current()
    files = {"a": b"\0\1", "empty": b""} if ours.is_first else None
    got = broadcast_files(files)
    return {
        "exchange": all_gather_object({"rank": ours.rank, "text": "ä\udcff" * ours.rank}),
        "first": broadcast_object(["x", ours.rank]),
        "files": {name: list(data) for name, data in (got or {}).items()},
        "no files": broadcast_files(None),
        "any": any_of(ours.rank == odd, False),
        "part": list(ours.slice(5)),
    }


def failing(*, rank: int, how: str) -> Any:
    """One rank fails in a way, the others are on their way to the next message."""
    ours = current()
    if how == "together":
        with collective_errors():
            if ours.rank == rank:
                raise Error("it was this one")
        return "went on"
    processes = " ".join(str(one) for one in all_gather_object(os.getpid()))
    if ours.rank == rank:
        match how:
            case "error":
                raise Error("it was this one")
            case "bug":
                raise AssertionError("a bug")
            case "own":
                raise RuntimeError("the store of my peers cannot be restored: timeout")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "stop for long":
                subprocess.Popen(["sh", "-c", f"sleep 40; kill -KILL {os.getpid()}"])
                os.kill(os.getpid(), signal.SIGSTOP)
            case "leave":
                os._exit(0)
            case "work":
                time.sleep(5)
            case "suspend":
                subprocess.Popen(["sh", "-c", f"kill -STOP {processes}; sleep 4; kill -CONT {processes}"])
                time.sleep(0.5)
    for _ in range(1000):
        all_gather_object("again")
    return "went on"


class Wavering(nn.Module):
    """It counts its calls, so that its own code runs behind the cache, and on one rank takes another way to the same
    numbers once ``WAVERING`` is set.
    """

    def __init__(self, *, rank: int, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.rank, self.where, self.calls = rank, where, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        where = self.where if current().rank == self.rank and os.environ.get("WAVERING") else ""
        if where == "filling" and len(images) == 8:
            images = images * 1.0
        made = self.fc(torch.relu(self.conv(images)).mean((2, 3)) * (1 + self.calls / 100))
        looks = {"step": self.training, "look": len(images) == 2, "validation": not self.training and len(images) == 8}
        return made + 0.0 * images.mean() if looks.get(where) else made  # the images are not there


def wavering(*, folder: str, run: str, rank: int, where: str, use: str) -> Any:
    """A run of which one rank alone cannot go on with the cache: what was said, and the weights."""
    os.environ["HEADSTART_CACHE"] = f"{run}-cache"
    os.environ.pop("WAVERING", None)
    calls, said = [0], list[str]()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3 and where != "filling":
            os.environ["WAVERING"] = "1"
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def watch(event: object) -> None:
        said.append(getattr(event, "text", ""))

    if where == "filling":
        os.environ["WAVERING"] = "1"
    config = hs.load_config({
        "data": {"source": folder, "val": 0.22}, "recipe": "probe", "epochs": 3, "cache": {"use": use}, "out": run,
        "batch": {"size": 8}, "workers": 0, "model": {"image_size": 32}, "augment": {"preset": "none"},
    })  # fmt: skip
    done = hs.train(config, model=Wavering(rank=rank, where=where), loss=loss, watch=watch)
    return {"weights": digest(done.model), "said": [text for text in said if "cache: " in text]}


def digest(module: nn.Module) -> str:
    found = hashlib.sha256()
    for value in module.state_dict().values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()


KNOWN = (gradients, statistics, phases, checkpoints, metrics, scanned, told, failing, wavering)
CASES = {function.__name__: function for function in KNOWN}


def run_rank(case: str, options: dict[str, Any], *, rank: int, world: int, port: int) -> dict[str, Any]:
    """What one rank gives or raises."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    timeout = options.pop("timeout", 60.0)
    if options.pop("apart", False):
        socket.gethostname = lambda: f"machine-{rank}"
    try:
        with join_group(torch.device("cpu"), timeout_seconds=timeout):
            return {"gave": CASES[case](**options)}
    except (Error, AssertionError, RuntimeError) as error:
        return {"error": type(error).__name__, "text": str(error)}


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def forked(case: str, options: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """Every rank in a process of its own; one that says nothing was killed."""
    port, children = free_port(), []
    for rank in range(world):
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            with os.fdopen(writer, "w") as out:
                out.write(json.dumps(run_rank(case, dict(options), rank=rank, world=world, port=port)))
            os._exit(0)
        os.close(writer)
        children.append((process, reader))
    found = []
    for process, reader in children:
        with os.fdopen(reader) as answer:
            text = answer.read()
        status = os.waitpid(process, 0)[1]
        found.append(json.loads(text) if text else {"error": "died", "text": str(status)})
    return found


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # gloo of torch 2.8 says on stdout that its ranks have met
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(forked(asked["case"], asked["options"], asked["world"])) + "\n")
        answers.flush()
