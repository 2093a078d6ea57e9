"""One run of one peer of ``benchmarks.speed``, in this process; the last line printed is the result.

    python -m benchmarks.speed_peers '{"tool": "lightning", "work": "head", "model": "resnet18", ...}'

Every peer trains the same network from the same file, in the way that its documentation shows, at its best: what is
frozen has no gradients and keeps its BatchNorm statistics, and all of them decode with the usual torchvision pipeline
(fastai and timm with their own). Switches (bf16, channels_last) are the tool's own; where there is none, the model is
moved to channels_last by hand. The optimizer is AdamW at 1e-3.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_name] = "1"
warnings.filterwarnings("ignore")

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets  # noqa: E402
from torchvision import transforms as T  # noqa: E402

from benchmarks.speed_job import CROP, MEAN, SIZE, STD, TRAINED, Job, Laps, read_job, report  # noqa: E402

RATE = 1e-3
_PRELOADED = 4  # batches of the run on tensors that are in memory already


def network(job: Job) -> nn.Module:
    """The model with two outputs, frozen as the job says; what is frozen stays in eval mode."""
    torch.manual_seed(0)
    model: Any = timm.create_model(job.model, pretrained=False)
    model.load_state_dict(load_file(job.weights))
    model.reset_classifier(2)
    if job.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if job.work in ("head", "suffix"):
        _freeze(model, trained=TRAINED[job.model] if job.work == "suffix" else _head_names(model))
    return model  # type: ignore[no-any-return]


def _head_names(model: Any) -> tuple[str, ...]:
    head = model.get_classifier()
    return tuple(name for name, module in model.named_modules() if module is head)


def _freeze(model: nn.Module, *, trained: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(f"{part}." for part in trained)))
    kept = [module for name, module in model.named_modules() if name in trained]

    def train(mode: bool = True) -> nn.Module:
        nn.Module.train(model, False)
        for module in kept:
            module.train(mode)
        return model

    model.train = train  # type: ignore[method-assign,assignment]


def folders(job: Job) -> tuple[datasets.ImageFolder, datasets.ImageFolder]:
    """Training and validation images through torchvision's usual pipeline."""
    tensor = [T.ToTensor(), T.Normalize(MEAN, STD)]
    plain = T.Compose([T.Resize(int(SIZE / CROP)), T.CenterCrop(SIZE), *tensor])
    changed = T.Compose([
        T.RandomResizedCrop(SIZE, scale=(0.35, 1.0)), T.RandomHorizontalFlip(), T.ColorJitter(0.2, 0.2, 0.2), *tensor,
    ])  # fmt: skip
    train = datasets.ImageFolder(f"{job.data}/train", changed if job.work == "full" else plain)
    return train, datasets.ImageFolder(f"{job.data}/val", plain)


def loaders(job: Job) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of ``folders``."""
    train, val = folders(job)
    return DataLoader(train, job.batch, shuffle=True), DataLoader(val, job.batch)


def autocast(job: Job) -> AbstractContextManager[object]:
    """As the job says."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.bf16)


def placed(job: Job, pixels: Tensor) -> Tensor:
    """In the job's memory format."""
    return pixels.contiguous(memory_format=torch.channels_last) if job.channels_last else pixels


def run_bare(job: Job) -> None:
    """A loop as in PyTorch's tutorials."""
    model, loss_function = network(job), nn.CrossEntropyLoss()
    train, val = loaders(job)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=RATE)
    _loop(job, model, loss_function, optimizer, (train, val))


def run_timm(job: Job) -> None:
    """timm's loaders, loss, optimizer and meters, in the order of its train.py and validate.py."""
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    model = network(job)
    common = {
        "input_size": (3, SIZE, SIZE), "batch_size": job.batch, "use_prefetcher": False, "num_workers": 0,
        "interpolation": "bilinear", "mean": MEAN, "std": STD, "crop_pct": CROP, "device": torch.device("cpu"),
    }  # fmt: skip
    changed = {"scale": (0.35, 1.0), "hflip": 0.5, "color_jitter": 0.2} if job.work == "full" else {"no_aug": True}
    train = create_loader(
        create_dataset("", root=f"{job.data}/train"), is_training=True, persistent_workers=False, **common, **changed
    )
    val = create_loader(create_dataset("", root=f"{job.data}/val"), is_training=False, **common)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, filter_bias_and_bn=True)
    _loop(job, model, nn.CrossEntropyLoss(), optimizer, (train, val), meters=True)


def _loop(
    job: Job, model: nn.Module, loss_function: nn.Module, optimizer: torch.optim.Optimizer,
    data: tuple[Any, Any], *, meters: bool = False,
) -> None:  # fmt: skip
    from timm.utils import AverageMeter, accuracy

    laps, right, found = Laps(), 0.0, AverageMeter()
    for _ in range(job.epochs):
        if job.work != "evaluate":
            model.train()
            for pixels, targets in data[0]:
                with autocast(job):
                    loss = loss_function(model(placed(job, pixels)), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if meters:
                    found.update(loss.item(), len(targets))
            laps.lap("train")
        model.eval()
        right, found = 0.0, AverageMeter()
        with torch.inference_mode():
            for pixels, targets in data[1]:
                with autocast(job):
                    scores = model(placed(job, pixels))
                right += float((scores.argmax(1) == targets).sum())
                if meters:
                    found.update(float(accuracy(scores, targets)[0]), len(targets))
        laps.lap("eval")
    report(job, laps, accuracy=right / job.images("val"))


def run_fastai(job: Job) -> None:
    """A ``Learner`` with the model; ``BnFreeze`` where layers are frozen. Its bf16 switch reaches CUDA only."""
    from fastai.callback.channelslast import ChannelsLast
    from fastai.callback.training import BnFreeze
    from fastai.vision import all as vision

    normal = vision.Normalize.from_stats(MEAN, STD)
    items: list[Any] = [vision.Resize(SIZE)]
    batches: list[Any] = [normal]
    if job.work == "full":
        items = [vision.RandomResizedCrop(SIZE, min_scale=0.35)]
        batches = [*vision.aug_transforms(max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0.2), normal]
    loaders = vision.ImageDataLoaders.from_folder(
        job.data, train="train", valid="val", item_tfms=items, batch_tfms=batches, bs=job.batch, num_workers=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    laps = Laps()

    class Marks(vision.Callback):  # type: ignore[misc]
        order = 100

        def after_train(self) -> None:
            laps.lap("train")

        def after_validate(self) -> None:
            laps.lap("eval")

    calls = [Marks()] + ([BnFreeze()] if job.work in ("head", "suffix") else [])
    calls += [ChannelsLast()] if job.channels_last else []
    learner = vision.Learner(
        loaders, network(job), metrics=vision.accuracy, loss_func=vision.CrossEntropyLossFlat(), cbs=calls,
        train_bn=job.work == "full",
    )  # fmt: skip
    laps.__init__()  # type: ignore[misc]
    with learner.no_bar(), learner.no_logging():
        if job.work == "evaluate":
            measured = learner.validate()[1]
        else:
            learner.fit(job.epochs, RATE)
            measured = learner.recorder.values[-1][-1]
    report(job, laps, accuracy=float(measured))


def run_hf(job: Job) -> None:
    """``Trainer`` over transformers' own wrapper of timm models, validation after every epoch."""
    from transformers import (
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=job.model, num_labels=2))
    inner = network(job)
    model.timm_model = inner
    train, val = folders(job)
    laps = Laps()

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            laps.lap("train")

        def on_evaluate(self, *_: Any, **__: Any) -> None:
            laps.lap("eval")

    arguments = TrainingArguments(
        os.environ["SPEED_SCRATCH"], per_device_train_batch_size=job.batch, per_device_eval_batch_size=job.batch,
        num_train_epochs=job.epochs, learning_rate=RATE, use_cpu=True, bf16=job.bf16, report_to="none",
        save_strategy="no", eval_strategy="epoch", logging_strategy="epoch", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=train, eval_dataset=val, data_collator=_collated, callbacks=[Marks()],
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )  # fmt: skip
    laps.__init__()  # type: ignore[misc]
    if job.work != "evaluate":
        trainer.train()
        measured = next(row["eval_accuracy"] for row in reversed(trainer.state.log_history) if "eval_accuracy" in row)
    else:
        measured = trainer.evaluate()["eval_accuracy"]
    report(job, laps, accuracy=measured)


def _collated(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    return {"pixel_values": torch.stack([row[0] for row in rows]), "labels": torch.tensor([row[1] for row in rows])}


def run_lightning(job: Job) -> None:
    """A ``LightningModule``; since 2.2 what is in eval mode before ``fit`` stays there."""
    import logging

    import lightning
    import torchmetrics

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    laps = Laps()

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network(job).train()
            self.right = torchmetrics.classification.MulticlassAccuracy(2, average="micro")

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(placed(job, batch[0])), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.right(self.net(placed(job, batch[0])), batch[1])
            self.log("accuracy", self.right, on_epoch=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([part for part in self.parameters() if part.requires_grad], lr=RATE)

    class Marks(lightning.Callback):  # type: ignore[misc]
        def on_validation_epoch_start(self, *_: Any) -> None:
            if job.work != "evaluate":
                laps.lap("train")

        def on_validation_epoch_end(self, *_: Any) -> None:
            laps.lap("eval")

    trainer = lightning.Trainer(
        max_epochs=job.epochs, accelerator="cpu", precision="bf16-mixed" if job.bf16 else "32-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Marks()],
        num_sanity_val_steps=0, default_root_dir=os.environ["SPEED_SCRATCH"],
    )  # fmt: skip
    module, (train, val) = Module(), loaders(job)
    laps.__init__()  # type: ignore[misc]
    if job.work == "evaluate":
        trainer.validate(module, val, verbose=False)
    else:
        trainer.fit(module, train, val)
    report(job, laps, accuracy=float(trainer.callback_metrics["accuracy"]))


def run_tensors(job: Job) -> None:
    """A bare loop over batches that are in memory already: what the arithmetic alone takes."""
    model, loss_function = network(job), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    pixels, targets = placed(job, torch.randn(job.batch, 3, SIZE, SIZE)), torch.arange(job.batch) % 2
    laps = Laps()
    for name in _warmed("train") if job.work == "full" else ():
        model.train()
        with autocast(job):
            loss = loss_function(model(pixels), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        laps.lap(name)
    model.eval()
    with torch.inference_mode(), autocast(job):
        for name in _warmed("eval"):
            model(pixels)
            laps.lap(name)
    report(job, laps, accuracy=None, batches=_PRELOADED)


def _warmed(name: str) -> Iterator[str]:
    yield "warm-up"
    yield from [name] * _PRELOADED


if __name__ == "__main__":
    _job = read_job()
    {
        "bare": run_bare, "timm": run_timm, "fastai": run_fastai, "hf": run_hf, "lightning": run_lightning,
        "tensors": run_tensors,
    }[_job.tool](_job)  # fmt: skip
