"""What a step costs beyond its mathematics: a 5,000-parameter network, batches that are in memory, CPU time.

    python -m benchmarks.overhead             the table
    python -m benchmarks.overhead --profile   where headstart's step spends it, function by function

Each row trains the same network on the same batches with AdamW; rows take turns, and the table gives the median and the
spread of the repeats. headstart usually takes uint8 pixels and normalises them within the step: a row of its own.
A library that is not installed is a row with the reason.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import headstart as hs
from headstart.config.schema import AdamW, Schedule
from headstart.data.batch import Batch
from headstart.optim.optimizers import make_optimizer

STEPS, REPEATS, SIZE = 1000, 9, 32
Row = Callable[[], float]


class Preloaded:
    """Batches of noise in memory: as ``fit`` takes them, and as (images, labels) ready for a network; ``ready``: these
    for ``fit``, too.
    """

    def __init__(self, *, ready: bool = False) -> None:
        draw, mean, std = torch.Generator().manual_seed(0), torch.tensor([0.5]), torch.tensor([0.25])
        keys = tuple(f"{place}.png" for place in range(SIZE))
        self.batches = [
            Batch(
                pixels=torch.randint(0, 256, (SIZE, 1, 8, 8), generator=draw, dtype=torch.uint8),
                targets=torch.randint(0, 10, (SIZE,), generator=draw),
                indices=torch.arange(SIZE), keys=keys, mean=mean, std=std, size=SIZE,
            )
            for _ in range(STEPS)
        ]  # fmt: skip
        self.ready = [((batch.pixels / 255 - 0.5) / 0.25, batch.targets) for batch in self.batches]
        if ready:
            self.batches = [
                replace(batch, activations=(images,))
                for batch, (images, _) in zip(self.batches, self.ready, strict=True)
            ]

    def __len__(self) -> int:
        return STEPS

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        assert epoch == 0, epoch
        return iter(self.batches[first:])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def bare(data: Preloaded, *, fused: bool | None, everything: bool) -> float:
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    total, begun = 0.0, time.process_time()
    for images, labels in data.ready:
        value = loss(model(images), labels)
        value.backward()
        if everything:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if everything:
            rates.step()
            total += value.item()
    return time.process_time() - begun


def ours(data: Preloaded, *, ready: bool) -> float:
    model = network()
    group = {"params": list(model.parameters()), "lr": 1e-3, "weight_decay": 0.01, "name": "all"}
    state = hs.TrainState(model, make_optimizer([group], AdamW()))
    batches = Preloaded(ready=True) if ready else data
    begun = time.process_time()
    for _ in hs.fit(state, batches, rules=hs.StepRules(clip_norm=1.0), epochs=1, schedule=Schedule()):
        pass
    return time.process_time() - begun


def by_engine(engine: Any, model: nn.Module, optimizer: Any, data: Preloaded) -> float:
    loss = nn.CrossEntropyLoss()
    begun = time.process_time()
    for images, labels in data.ready:
        engine.backward(loss(model(images), labels))
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - begun


def accelerate(data: Preloaded) -> float:
    from accelerate import Accelerator

    engine, model = Accelerator(cpu=True), network()
    model, optimizer = engine.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    return by_engine(engine, model, optimizer, data)


def fabric(data: Preloaded) -> float:
    from lightning.fabric import Fabric

    engine, model = Fabric(accelerator="cpu"), network()
    model, optimizer = engine.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    return by_engine(engine, model, optimizer, data)


def lightning(data: Preloaded) -> float:
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = network(), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return self.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data.ready, batch_size=None)
    begun = time.process_time()
    trainer.fit(Module(), loader)
    return time.process_time() - begun


def huggingface(data: Preloaded) -> float:
    from transformers import Trainer, TrainingArguments

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = network(), nn.CrossEntropyLoss()

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.model(images)
            return {"loss": self.loss(scores, labels), "logits": scores}

    batches = [{"images": images, "labels": labels} for images, labels in data.ready]
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=1, num_train_epochs=1, learning_rate=1e-3,
            max_grad_norm=1.0, lr_scheduler_type="constant", logging_strategy="no", save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(model=Scored(), args=arguments, train_dataset=batches, data_collator=lambda one: one[0])
        begun = time.process_time()
        trainer.train()
        return time.process_time() - begun


def fastai(data: Preloaded) -> float:
    import fastai.callback.progress  # noqa: F401  gives Learner its no_bar
    from fastai.basics import DataLoaders, Learner

    loader = torch.utils.data.DataLoader(data.ready, batch_size=None)
    learner = Learner(DataLoaders(loader, loader), network(), loss_func=nn.CrossEntropyLoss())
    with learner.no_bar(), learner.no_logging():
        begun = time.process_time()
        learner.fit(1, 1e-3)
    return time.process_time() - begun


def rows(data: Preloaded) -> dict[str, Row]:
    return {
        "bare loop, AdamW as it comes": lambda: bare(data, fused=None, everything=False),
        "bare loop, fused AdamW": lambda: bare(data, fused=True, everything=False),
        "bare loop, fused, clipping, LambdaLR, loss.item()": lambda: bare(data, fused=True, everything=True),
        "headstart fit: clipping, schedule, checks, events": lambda: ours(data, ready=True),
        "the same, normalising uint8 pixels": lambda: ours(data, ready=False),
        "accelerate, its loop": lambda: accelerate(data),
        "Lightning Fabric, its loop": lambda: fabric(data),
        "Lightning Trainer, clipping, no logging": lambda: lightning(data),
        "HF Trainer, clipping, no logging": lambda: huggingface(data),
        "fastai Learner (with a pass of validation)": lambda: fastai(data),
    }


def measured(wanted: dict[str, Row]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Microseconds per step of each row's repeats, taken in turns; and why a row is left out."""
    found, skipped = dict[str, list[float]](), dict[str, str]()
    for name, row in wanted.items():
        try:
            row()
            found[name] = []
        except ImportError as error:
            skipped[name] = str(error)
    for _ in range(REPEATS):
        for name in found:
            found[name].append(wanted[name]() / STEPS * 1e6)
    return found, skipped


def table(found: dict[str, list[float]], skipped: dict[str, str]) -> str:
    first = next(iter(found.values()))
    lines = [
        "| loop | us per step, median | least .. most | over the bare loop, median of pairs |",
        "|---|---:|---:|---:|",
    ]
    for name, values in found.items():
        over = statistics.median(value - base for value, base in zip(values, first, strict=True))
        spread = f"{min(values):.0f} .. {max(values):.0f}"
        lines.append(f"| {name} | {statistics.median(values):.0f} | {spread} | {over:+.0f} |")
    return "\n".join([*lines, *(f"| {name} | - | - | not run: {why} |" for name, why in skipped.items())])


def profiled(data: Preloaded) -> None:
    ours(data, ready=True)
    profile = cProfile.Profile()
    profile.runcall(ours, data, ready=True)
    pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="where headstart's step spends its time")
    torch.set_num_threads(1)
    data = Preloaded()
    if parser.parse_args().profile:
        profiled(data)
    else:
        print(table(*measured(rows(data))))


if __name__ == "__main__":
    main()
