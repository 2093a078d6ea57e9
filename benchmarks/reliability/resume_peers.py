"""P1's twelve cases through other trainers: killed, gone on with as their own documentation says, compared to the bit.

    python -m benchmarks.reliability.resume_peers [--only transformers lightning stateful]

What headstart does in these cases is the second half of benchmarks/reliability/resume.py. Here are the same pictures,
the same 159 of them to train on, model (timm's resnet18, 8 to 16 channels, BatchNorm, dropout 0.2), batches of 16, 30
steps in 3 epochs of 10, AdamW with a cosine, saved every 5 steps. The process ends itself by SIGKILL at the end of step
7, 17, 20 or 23, before a save of that step, so that the checkpoints gone on from are those of step 5, 15, 15 and 20,
the last of them an epoch's end. The same script then runs once more, told to resume. A case is equal when the final
weights and buffers, the optimizer's state and the logged losses of all 30 steps are, bit for bit, those of the run that
nobody stopped. Two such runs must be equal first.

transformers   ``Trainer.train(resume_from_checkpoint=True)`` with ``full_determinism=True``, ``seed`` and ``data_seed``
lightning      ``Trainer.fit(ckpt_path="last")`` after ``seed_everything(0, workers=True)``, with ``deterministic=True``
stateful       the same with torchdata's StatefulDataLoader, which Lightning's warning about resumes asks for

Each starts its loading processes anew every epoch (the default; a lasting one carries a history that no checkpoint
holds). Augmentation is torchvision's random crop, flip and colour jitter in ``Dataset.__getitem__``; it draws from
torch's global generator, which both seed in every loading process. One thread, CPU.
Environment: benchmarks/peers.txt.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.reliability.results import keep
from benchmarks.reliability.resume import EACH, KILLS
from tests.reliability.lives import pictures

STEPS, EPOCH, EVERY, BATCH, RATE = 30, 10, 5, 16, 1e-3
WAYS = ((False, 0), (True, 0), (True, 2))  # random augmentation, loading processes
Found = dict[str, Any]  # "steps", "weights", "optimizer", "losses"


@dataclass(frozen=True, kw_only=True)
class Life:
    """One process: where it writes, how it loads, the step after which it is killed, whether it goes on."""

    data: Path
    out: Path
    random: bool
    workers: int
    kill: int | None = None
    resume: bool = False

    @property
    def end(self) -> Path:
        """What the finished run was."""
        return self.out / "end.pt"

    def after(self, step: int) -> None:
        """Called at the end of every step."""
        if step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """The pictures that headstart trains on, as its own split has them."""

    def __init__(self, life: Life) -> None:
        train = _split(life.data)
        self.files = [(train.source.paths[sample.key], sample.target) for sample in train.samples]
        augmentations = [v2.RandomResizedCrop(32, scale=(0.5, 1)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3)]
        self.transform = v2.Compose([
            *(augmentations if life.random else []), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, target = self.files[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), target


def _split(source: Path) -> Any:
    from headstart.config.schema import Config, Data
    from headstart.data.images import load_images
    from headstart.models.preprocess import Preprocess

    like = Preprocess(
        height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=1.0, source="here"
    )
    return load_images(Config(data=Data(source=str(source)), workers=0), like).train


def network() -> nn.Module:
    """The model of all cases, with the same random weights each time."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet18", num_classes=3, drop_rate=0.2, channels=[8, 8, 16, 16])
    return model


def transformers_life(life: Life) -> Found:
    """HF Trainer."""
    import transformers

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            scores = self.network(pixels)
            return {"loss": functional.cross_entropy(scores, labels), "logits": scores}

    class Named(Pictures):
        def __getitem__(self, index: int) -> Any:
            pixels, label = super().__getitem__(index)
            return {"pixels": pixels, "labels": label}

    class Ended(transformers.TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_rest: Any) -> None:
            life.after(state.global_step)

    options = transformers.TrainingArguments(
        output_dir=str(life.out), num_train_epochs=STEPS // EPOCH, per_device_train_batch_size=BATCH,
        learning_rate=RATE, lr_scheduler_type="cosine", save_strategy="steps", save_steps=EVERY,
        logging_strategy="steps", logging_steps=1, dataloader_num_workers=life.workers, seed=0, data_seed=0,
        full_determinism=True, use_cpu=True, disable_tqdm=True, report_to=[], remove_unused_columns=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=Scored(), args=options, train_dataset=Named(life), callbacks=[Ended()])
    trainer.train(resume_from_checkpoint=True if life.resume else None)
    return {
        "steps": trainer.state.global_step,
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "losses": {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry},
    }


def lightning_life(life: Life) -> Found:
    """Lightning with torch's DataLoader."""
    return _lightning(life, DataLoader)


def stateful_life(life: Life) -> Found:
    """Lightning with a loader whose place is saved."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return _lightning(life, StatefulDataLoader)


def _lightning(life: Life, loader: Callable[..., Any]) -> Found:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    class Trained(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _place: int) -> torch.Tensor:
            loss = functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    class Ended(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_rest: Any) -> None:
            life.after(trainer.global_step)

    lightning.seed_everything(0, workers=True, verbose=False)
    saves = ModelCheckpoint(dirpath=life.out, every_n_train_steps=EVERY, save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        max_epochs=STEPS // EPOCH, accelerator="cpu", devices=1, deterministic=True, callbacks=[Ended(), saves],
        logger=CSVLogger(life.out, name="log", flush_logs_every_n_steps=1), log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Trained()
    given = loader(Pictures(life), batch_size=BATCH, shuffle=True, num_workers=life.workers)
    trainer.fit(module, given, ckpt_path="last" if life.resume else None)
    return {
        "steps": trainer.global_step,
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "losses": _csv_losses(life.out / "log"),
    }


def _csv_losses(log: Path) -> dict[int, str]:
    """Loss by step; a later life's lines (version_1, ...) replace those of steps that it did again."""
    losses = {}
    for part in sorted(log.glob("version_*/metrics.csv")):  # a life that makes no step writes none
        with part.open(newline="") as file:
            losses.update({int(row["step"]) + 1: row["loss"] for row in csv.DictReader(file) if row["loss"]})
    return losses


LIVES: dict[str, tuple[str, tuple[str, ...], Callable[[Life], Found]]] = {
    "transformers": ("HF Trainer", ("transformers", "accelerate"), transformers_life),
    "lightning": ("Lightning", ("lightning",), lightning_life),
    "stateful": ("Lightning with a StatefulDataLoader", ("lightning", "torchdata"), stateful_life),
}


def live(trainer: str, life: Life) -> None:
    """One life in a copy of this process, whose imports are done.  Gives what is left at the end of a whole one."""
    life.out.mkdir(parents=True, exist_ok=True)
    said = life.out / "said.txt"
    process = multiprocessing.get_context("fork").Process(target=_child, args=(trainer, life, said))
    process.start()
    process.join()
    expected = 0 if life.kill is None else -signal.SIGKILL
    assert process.exitcode == expected, f"{trainer} {life}: {process.exitcode}\n{said.read_text()}"


def _child(trainer: str, life: Life, said: Path) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        torch.save(LIVES[trainer][2](life), life.end)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def different(one: Path, other: Path) -> list[str]:
    """Names of what differs by a bit between two finished runs."""
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    assert first["steps"] == STEPS and first["losses"].keys() == set(range(1, STEPS + 1)), first
    return [name for name in first if not equal(first[name], second[name])]


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, tensors and numbers in nested dicts and lists."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def cases(trainer: str, data: Path, root: Path) -> tuple[list[list[str]], list[str]]:
    """What differs in each of the twelve cases, and the same in words, by way."""
    found, words = [], []
    for random, workers in WAYS:
        name = f"{trainer}-{random}-{workers}"
        whole = Life(data=data, out=root / name, random=random, workers=workers)
        again = replace(whole, out=root / f"{name}-again")
        for life in (whole, again):
            live(trainer, life)
        assert not different(whole.end, again.end), f"two whole runs of {name} differ; nothing can be said of resumes"
        here = []
        for step in KILLS:
            life = replace(whole, out=root / f"{name}-{step}")
            live(trainer, replace(life, kill=step))
            live(trainer, replace(life, resume=True))
            here.append(different(whole.end, life.end))
            print(name, step, here[-1] or "equal", flush=True)
        way = f"random augmentation, {workers} workers" if random else "no augmentation"
        words.append(f"{way} {sum(not names for names in here)} of {len(KILLS)}")
        found += here
    return found, words


def compare(trainer: str, data: Path, root: Path) -> None:
    """The twelve cases of one trainer, kept."""
    title, packages, _ = LIVES[trainer]
    found, words = cases(trainer, data, root)
    same = sum(not names for names in found)
    short = sum("steps" in names for names in found)
    versions = ", ".join(f"{package} {version(package)}" for package in (*packages, "torch"))
    keep(
        "P1", what=f"for comparison, {title}: the same 12 cases, its own resume", goal="none",
        found=f"{same} of {len(found)} ({'; '.join(words)})", met=True,
        command=f"python -m benchmarks.reliability.resume_peers --only {trainer}",
        note=f"{versions}. Equal are weights, buffers, optimizer state and the logged losses of all 30 steps. Two "
        f"whole runs were equal in all {len(WAYS)} ways. The last checkpoint is that of step 5, 15, 15, 20; seeds are "
        f"set in every life, deterministic algorithms are on."
        + (f" {short} of the runs gone on with ended after another number of steps than 30." if short else ""),
        different=found,
    )  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(LIVES), default=tuple(LIVES), metavar="TRAINER")
    args = parser.parse_args()
    wanted = dict.fromkeys(package for name in args.only for package in LIVES[name][1])
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; type: pip install -r benchmarks/peers.txt")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for package in wanted:
        importlib.import_module(package)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder) / "data", each=EACH)
        for trainer in args.only:
            compare(trainer, data, Path(folder))


if __name__ == "__main__":
    main()
