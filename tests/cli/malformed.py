"""What people type wrong: commands, options, configurations, data, tables and files, with what the answer must name.

Words in capitals stand for files and folders of the world that ``make_world`` makes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = "--model timm/test_resnet --weights none --image-size 32 --recipe full --epochs 1 --workers 0 --device cpu"


@dataclass(frozen=True)
class Case:
    """A command line and what its answer must say: where or what, what is accepted, what to type."""

    line: str
    tells: tuple[str, ...]

    def argv(self, world: Path) -> list[str]:
        """The words, places filled in."""
        places = {"SMALL": SMALL, "PHOTOS": str(world / "photos"), "RUN": str(world / "run"), "W": str(world)}
        return shlex.split(self.line.format(**places))


def _cases(*pairs: tuple[str, ...]) -> tuple[Case, ...]:
    return tuple(Case(line, tells) for line, *rest in pairs for tells in [tuple(rest)])


COMMANDS = _cases(
    ("trian {PHOTOS}", "'trian' is no command", "did you mean train?", "commands: demo"),
    ("fit {PHOTOS}", "'fit' is no command", "commands: demo, train"),
    ("Train {PHOTOS}", "did you mean train?"),
    ("--train {PHOTOS}", "is no command", "commands: demo"),
    ("train", "DATA is missing", "headstart train photos/"),
    ("plan", "DATA is missing"),
    ("evaluate", "RUN"),
    ("evaluate {RUN}", "DATA"),
    ("predict", "RUN"),
    ("predict {RUN}", "PATH is missing", "headstart predict runs/photos new/"),
    ("report", "RUN"),
    ("finish", "RUN"),
    ("finish {PHOTOS}", "no run is there", "headstart train wrote"),
    ("describe", "SPEC"),
    ("train {PHOTOS} more", "more"),
    ("report {RUN} {RUN}", "run"),
    ("models --sort beauty", "beauty", "top1"),
    ("models --limit 0", "--limit", "20"),
    ("models --max-params many", "--max-params", "5M"),
    ("models no-such-model", "no-such-model"),
    ("demo extra", "extra"),
    ("predict runs/photos x.png --json", "--json: unknown option", "--format json"),
    ("predict runs/photos x.png --csv", "--csv: unknown option", "--format csv"),
    ("predict runs/photos x.png --save p.csv", "--save: unknown option", "new --out found.csv"),
    ("predict runs/photos x.png --threshold 0.3", "thresholds of tags are chosen on the validation images"),
)
OPTIONS = _cases(
    ("train {PHOTOS} --epocs 3", "--epocs", "--epochs"),
    ("train {PHOTOS} --learning-rate 1e-3", "--learning-rate: unknown option; did you mean --lr?"),
    ("train {PHOTOS} --batch_sizes 8", "--batch-size"),
    ("train {PHOTOS} --num-classes 10", "--num-classes"),
    ("train {PHOTOS} --epochs", "--epochs", "Expected 1 values"),
    ("train {PHOTOS} --epochs 0", "epochs: 0 is not positive; give at least 1, e.g. --epochs 5"),
    ("train {PHOTOS} --epochs -3", "epochs: -3 is not positive; give at least 1"),
    ("train {PHOTOS} --epochs 1.5", "epochs: 1.5 is not a whole number", "--epochs 5"),
    ("train {PHOTOS} --epochs ten", "epochs: 'ten' is not a number", "--epochs 5"),
    ("train {PHOTOS} --lr nan", "optimizer.lr", "'nan' is not a number", "1e-4"),
    ("train {PHOTOS} --lr .nan", "optimizer.lr: nan is not a finite number"),
    ("train {PHOTOS} --lr inf", "optimizer.lr", "is not a number"),
    ("train {PHOTOS} --lr -0.1", "optimizer.lr: -0.1 is not positive", "--lr 1e-4"),
    ("train {PHOTOS} --lr 0", "optimizer.lr: 0 is not positive"),
    ("train {PHOTOS} --lr 1e-4x", "optimizer.lr: '1e-4x' is not a number"),
    ("train {PHOTOS} --batch-size 0", "batch.size: 0 is not positive", "--batch-size 64"),
    ("train {PHOTOS} --seed -1", "seed: -1"),
    ("train {PHOTOS} --seed 99999999999", "seed: 99999999999 is too large"),
    ("train {PHOTOS} --val 1.5", "data.val: 1.5 is too large", "below 1"),
    ("train {PHOTOS} --val 20%", "data.val: '20%' is not a number"),
    ("train {PHOTOS} --data.test -1", "data.test: -1"),
    ("train {PHOTOS} {SMALL} --val 0.6 --data.test 0.6", "data.val, data.test", "give less"),
    ("train {PHOTOS} --image-size 4", "model.image_size: 4 is too small", "at least 8"),
    ("train {PHOTOS} --image-size 224x", "model.image_size: '224x' is no size", "--image-size 320x192"),
    ("train {PHOTOS} --image-size 320x5", "model.image_size: 5 is too small", "HEIGHTxWIDTH"),
    ("train {PHOTOS} --image-size 9000x320", "model.image_size: 9000 is too large", "at most 4096"),
    ("train {PHOTOS} --image-size wide", "model.image_size: 'wide' is no size", "HEIGHTxWIDTH"),
    ("describe timm/test_resnet --image-size 64x", "model.image_size: '64x' is no size"),
    ("plan {PHOTOS} --data.range 5", "data.range"),
    ("plan {PHOTOS} --data.axes hcw", "data.axes: 'hcw'", "did you mean hwc?"),
    ("train {PHOTOS} --precision bf17", "did you mean bf16?", "fp32"),
    ("train {PHOTOS} --precision half", "precision: 'half'", "fp16"),
    ("train {PHOTOS} --device gpu", "device: 'gpu'", "give cpu"),
    ("train {PHOTOS} --device cuda:99", "device: 'cuda:99'", "cpu"),
    ("train {PHOTOS} --workers -1", "workers: -1 is negative", "--workers 4"),
    ("train {PHOTOS} --recipe finetune", "recipe: 'finetune'", "full"),
    ("train {PHOTOS} --freeze bakbone", "'bakbone' is no freeze rule; give none, backbone"),
    ("train {PHOTOS} {SMALL} --freeze until:layer9", "layer9", "layer4"),
    ("train {PHOTOS} {SMALL} --freeze stages:99", "99"),
    ("train {PHOTOS} {SMALL} --freeze names:nothing.*", "nothing.*"),
    ("train {PHOTOS} --recipe probe --freeze backbone", "recipe probe trains the head alone", "--recipe lp_ft"),
    ("train {PHOTOS} --optimizer.kind admw", "did you mean adamw?", "sgd"),
    ("train {PHOTOS} --optimizer.momentum 0.9", "adamw has no momentum", "--optimizer.kind sgd"),
    ("train {PHOTOS} --optimizer.kind sgd --optimizer.momentum 2", "optimizer.momentum: 2 is too large"),
    (
        "train {PHOTOS} {SMALL} --optimizer.kind timm --optimizer.name adamm --lr 1e-3",
        "timm has no optimizer 'adamm'",
        "near names: adam",
    ),
    ("train {PHOTOS} --optimizer.betas 0.9", "optimizer.betas"),
    ("train {PHOTOS} --schedule.kind cosin", "did you mean cosine?"),
    ("train {PHOTOS} --schedule.warmup 2", "schedule.warmup: 2 is too large"),
    ("train {PHOTOS} --loss.kind crossentropy", "loss.kind: 'crossentropy'", "did you mean cross_entropy?"),
    ("train {PHOTOS} {SMALL} --loss.kind mse", "mse", "classify"),
    ("train {PHOTOS} {SMALL} --loss.class-weights '{{green: 2}}'", "green", "cat"),
    ("train {PHOTOS} --loss.class-weights '{{a: 1, a: 2}}'", "a is given twice"),
    ("train {PHOTOS} --loss.class-weights '{{cat: -1}}'", "loss.class_weights", "above 0"),
    ("train {PHOTOS} --head.hidden 64", "linear has no hidden", "--head.kind mlp"),
    ("train {PHOTOS} --head.dropout 2", "head.dropout: 2 is too large"),
    ("train {PHOTOS} {SMALL} --head.at layer7.fc", "layer7.fc"),
    ("train {PHOTOS} --augment.preset storng", "did you mean strong?"),
    ("train {PHOTOS} --augment.flip sometimes", "augment.flip: 'sometimes'", "alternating"),
    ("train {PHOTOS} --cache.decoded maybe", "cache.decoded: 'maybe'", "true or false"),
    ("train {PHOTOS} --augment.flip yes", "augment.flip: 'yes'", "true"),
    ("train {PHOTOS} --model.options 'drop_path_rate=0.1'", "model.options", "{drop_path_rate: 0.1}"),
    ("train {PHOTOS} --model timm/test_resnet --weights none --model.options '{{drop_rat: 0.1}}'", "drop_rat"),
    ("train {PHOTOS} --model.options '{{a: [1, 2}}'", "--model.options", "not YAML"),
    ("train {PHOTOS} --checkpoint.keep 0", "checkpoint.keep: 0 is not positive"),
    ("train {PHOTOS} --stop.patience -1", "stop.patience: -1 is negative"),
    ("train {PHOTOS} {SMALL} --metric mae", "metric: mae has no meaning for classify", "macro_f1", "--metric macro_f1"),
    ("train {PHOTOS} --metric f2", "metric: 'f2'", "macro_f1", "balanced_accuracy"),
    ("train {PHOTOS} --metric-for-best-model accuracy", "did you mean --metric?"),
    ("train {PHOTOS} --lora.rank 4", "belongs to recipe lora"),
    ("train {PHOTOS} --data.log no", "data.log: 'no'", "true or false"),
    ("train {PHOTOS} {SMALL} --data.log", "data.log: it is for numbers"),
    ("train {PHOTOS} {SMALL} --data.target price", "data.target: it is for tables"),
    ("train {PHOTOS} {SMALL} --task.kind regress", "task.kind: regress", "--task.kind classify"),
    ("train {PHOTOS} {SMALL} --task.kind detect", "task.kind: 'detect'", "classify"),
    ("train {PHOTOS} {SMALL} --out {PHOTOS}/run", "out: ", "inside the data", "/runs/photos"),
    ("train {PHOTOS} {SMALL} --out {RUN}", "a run is in", "--resume"),
    ("train {PHOTOS} {SMALL} --out {W}/c.yaml", "is a file", "--out"),
    ("train {PHOTOS} {SMALL} --out {W}/photos2", "holds other files", "--out runs/"),
    ("train {PHOTOS} {SMALL} --out {RUN} --resume --seed 7", "made with other options", "seed: the run has 42, now 7"),
    ("predict {RUN} {PHOTOS} --top 0", "--top: 0 is not positive", "--top 5"),
    ("predict {RUN} {PHOTOS} --top many", "--top"),
    ("predict {RUN} {PHOTOS} --format xml", "xml", "csv"),
    ("predict {RUN} {PHOTOS} --device gpu", "device", "gpu", "cpu"),
    ("evaluate {RUN} {PHOTOS} --data.val 0.3", "data.val", "leave it out"),
    ("describe timm/test_resnet --freeze foo", "--freeze", "backbone"),
    ("describe timm/test_resnet --image-size 3", "3"),
)
MODELS = _cases(
    ("train {PHOTOS} --model resnet50", "'resnet50' does not say where it comes from: write timm/resnet50"),
    ("train {PHOTOS} --model timm/resnet500", "timm has no model 'resnet500'", "did you mean timm/resnet"),
    ("train {PHOTOS} --model timm/resnet50.in1kk", "resnet50", "its tags"),
    ("train {PHOTOS} --model torchvision/resnet5", "torchvision has no classification model 'resnet5'", "did you mean"),
    ("train {PHOTOS} --model torchvision/resnet50.V9", "has no weights 'V9'", "IMAGENET1K_V1"),
    ("train {PHOTOS} --model timm/", "expected timm/NAME"),
    ("train {PHOTOS} --model hf-hub:resnet", "expected hf-hub:ORG/NAME"),
    ("train {PHOTOS} --model {W}/none/", "there is no such folder", "a model is one of"),
    ("train {PHOTOS} --model {W}/w.pth", "is a file", "--weights"),
    ("train {PHOTOS} --model {PHOTOS}", "config.json", "timm's local-dir layout"),
    ("train {PHOTOS} --model google/vit-base", "hf-hub:google/vit-base"),
    ("train {PHOTOS} --model timm/test_resnet --weights imagenet", "imagenet", "pretrained, none, or a file"),
    (
        "train {PHOTOS} --model timm/test_resnet --weights {W}/none.pth",
        "none.pth: No such file",
        "weights are pretrained",
    ),
    ("train {PHOTOS} --model timm/test_resnet --weights {W}/w.pkl", ".pkl is a pickle", "save_file"),
    ("train {PHOTOS} --model timm/test_resnet --weights {W}/page.pth", "web page (HTML)"),
    ("train {PHOTOS} --model timm/test_resnet --weights {W}/lfs.safetensors", "Git LFS pointer", "git lfs pull"),
    ("train {PHOTOS} --model timm/test_resnet --weights {W}/w.pth", "the file is empty"),
    ("describe timm/vitt", "timm has no model 'vitt'", "did you mean"),
    ("evaluate {W} {PHOTOS}", "no finished run is there"),
    ("predict {W}/none {PHOTOS}", "no finished run is there", "--resume"),
    ("report {W}/none", "there is no such folder", "runs/demo"),
    ("report {PHOTOS}", "is not the folder of a run", "config.yaml"),
)
DATA = _cases(
    ("train {W}/nowhere {SMALL}", "data.source: there is no", "give a folder of class folders"),
    ("train {W}/photso {SMALL}", "data.source: there is no", "did you mean", "photos"),
    ("train {W}/c.yaml {SMALL}", "neither a folder nor a table", ".csv"),
    ("train {W}/sets/empty {SMALL}", "there are no images", "SOURCE/CLASS/IMAGE"),
    ("train {W}/sets/flat {SMALL}", "images and no class folders"),
    ("train {W}/sets/one {SMALL}", "all images have the class", "at least two classes"),
    ("train {W}/sets/hollow {SMALL}", "the class folder has no images", "remove the folder"),
    ("train {W}/sets/twins {SMALL}", "differ only in case"),
    ("train {W}/sets/noval {SMALL}", "no 'train' folder"),
    ("train {W}/sets/strange {SMALL}", "class 'owl' is in val and not in train", "train has 'cat', 'dog'"),
    ("train {W}/sets/beside {SMALL}", "there is 'owl'", "classes go under train and val"),
    ("train {W}/sets/broken {SMALL}", "1 of 13 images cannot be read", "cat/bad.png", "--data.unreadable skip"),
    ("train {W}/sets/allbroken {SMALL} --data.unreadable skip", "no image of 'cat' can be read"),
    ("train {W}/sets/single {SMALL}", "too few to hold some out"),
    ("train {W}/sets/inner {SMALL}", "did you mean", "inner/deep"),
    ("train {W}/sets/cameras {SMALL}", "hold no images, but the same folders each", "--data.class-folders lower"),
    ("train {W}/sets/folds {SMALL}", "which are the classes?", "--data.class-folders upper"),
    ("plan {W}/sets/holdback {SMALL}", "'holdback', 'train' hold no images", "call them train, val and test"),
    ("train {W}/sets/spare {SMALL}", "'train' holds no images, but folders ('cat', 'dog'): is it a split?"),
    ("train {W}/sets/sites {SMALL}", "this one is one with folders in it", "headstart train", "sites/s1"),
    ("train {W}/sets/copied {SMALL}", "copied/data: it lies beside folders called 'no', 'yes'", "headstart train"),
    ("plan {W}/sets/copied {SMALL}", "is it a copy of them?", "--data.class-folders upper"),
    ("train {W}/sets/splitcopy {SMALL}", "beside 'train', 'val' there is 'set'", "move it there, or away"),
    ("train {W}/sets/deveval {SMALL}", "'dev', 'eval' both mean val", "keep one of them"),
    ("train {W}/sets/zeros {SMALL}", "'01' and '1' differ only in how a number is written"),
    ("train {PHOTOS} {SMALL} --data.class-folders lower", "data.class_folders: lower", "hold no folders"),
    ("train {PHOTOS} {SMALL} --data.class-folders middle", "data.class_folders: 'middle'", "upper"),
    ("evaluate {RUN} {W}/sets/cameras", "which are the classes?", "--data.class-folders lower"),
    ("evaluate {RUN} {W}/sets/strange", "the model does not know", "the model's classes are 'cat', 'dog'"),
    ("evaluate {RUN} {W}/nowhere", "data.source: there is no"),
    ("predict {RUN} {W}/nowhere.jpg", "there is no such file or folder"),
    ("predict {RUN} {W}/sets/empty", "no images in"),
    ("predict {RUN} {W}/c.yaml", "c.yaml", "none of the 1 images could be read"),
)
TABLES = _cases(
    *(
        (f"train {{W}}/tables/{name} {{SMALL}} {words}", *tells)
        for name, words, *tells in (
            ("empty.csv", "", "the file is empty; its first line must name the columns"),
            ("header.csv", "", "the table has no rows"),
            ("ragged.csv", "", "ragged.csv line 3", "cells", "double quotes"),
            ("latin.csv", "", "not UTF-8", "save it as UTF-8"),
            ("twice.csv", "", "column 'label' occurs more than once"),
            ("repeated.csv", "", "is already in repeated.csv line 2", "one row per image"),
            ("missing.csv", "", "missing.csv line 4", "images do not exist", "--data.images FOLDER"),
            ("blank.csv", "", "blank.csv line 3", "no image path"),
            ("noimage.csv", "", "no column holds image paths", "--data.image COLUMN"),
            ("good.csv", "--data.image picture", "has no column 'picture'", "its columns are 'image', 'label'"),
            ("good.csv", "--data.target colour", "has no column 'colour'", "its columns are"),
            ("good.csv", "--data.group patient", "has no column 'patient'"),
            ("good.csv", "--data.split fold", "has no column 'fold'"),
            ("good.csv", "--data.images {W}/nowhere", "data.images: there is no folder", "--data.images FOLDER"),
            ("unlabelled.csv", "", "unlabelled.csv line 3", "label"),
            ("split.csv", "", "'trian'", "accepted: train, val, test"),
            ("notrain.csv", "--data.split split", "marks no row as train"),
            ("numbers.csv", "", "--task.kind classify", "--task.kind regress"),
            ("number.csv", "--task.kind regress", "number.csv line 4", "'12,5 m'"),
            ("constant.csv", "--task.kind regress", "nothing to learn", "--data.target NAME"),
            ("negative.csv", "--task.kind regress --data.log", "negative.csv line 3"),
            ("outside.csv", "", "outside.csv line 8", "lies outside", "--data.images FOLDER"),
            ("all.csv", "", "all images have the class"),
            ("two.csv", "", "'label', 'other'", "--data.target"),
            ("quote.csv", "", "quote.csv line", "not readable as CSV"),
            ("no.parquet", "", "not readable as Parquet"),
            ("headless.csv", "", "headless.csv line 1", "must name the columns", "image,label", "--data.header false"),
            ("ids.csv", "", "ids.csv line 1", "must name the columns", "--data.header false"),
            ("headless.csv", "--data.header maybe", "data.header: 'maybe'", "false"),
            ("commas.csv", "", "1.2 with a decimal comma and 1200 with a decimal point", "--data.decimal comma"),
            ("commas.csv", "--task.kind regress", "the other cells do not tell", "--data.decimal point"),
            ("commas.csv", "--data.decimal dot", "data.decimal: 'dot'", "point"),
            ("mixed.csv", "", "'1,5' in target column 'size'", "no number with a decimal point"),
            ("money.csv", "", "numbers with different signs ('$', '€')", "--task.kind classify"),
            ("units.csv", "", "('kg' and some without)", "in one unit"),
            ("money.csv", "--task.kind regress", "money.csv line 2", "is not a finite number"),
            ("pairs.csv", "", "numbers with decimal commas, or tags", "--task.kind multilabel"),
            ("cities.csv", "", "one name, or several tags?", "--task.kind classify or --task.kind multilabel"),
            ("leaves.csv", "", "parts between ' ' recombine", "--task.kind multilabel"),
            ("languages.csv", "", "parts between '-' recombine, e.g. 'de-en' in either order"),
            ("stranger.csv", "", "stranger.csv line 5", "'tree' in target column 'tags' is no list in brackets"),
            ("lists.csv", "--task.kind classify", "holds 2 labels, and classify takes exactly one"),
            ("vectors.csv", "", "lists of 3 zeros and ones", "a column of 0 and 1 per tag"),
            ("mappings.csv", "", "holds mappings", "--task.kind classify"),
            ("points.csv", "", "lists of 2 numbers", "--data.target COLUMN COLUMN"),
            ("onehot.csv", "--task.kind classify", "onehot.csv line 4", "marks 'x', 'y'", "--task.kind multilabel"),
            ("nohot.csv", "--task.kind classify", "nohot.csv line 4", "marks no column"),
            ("ties.csv", "", "'x', 'y' are the largest alike", "--task.kind regress"),
            ("hole.csv", "--data.target x y", "hole.csv line 3", "'x' is empty", "--data.missing skip"),
            ("nan.csv", "", "nan.csv line 4: 'nan'", "--data.missing skip", "--data.missing keep"),
            ("null.csv", "", "'NULL' in target column 'label' may mean that the label is missing"),
            ("nan.csv", "--data.missing drop", "data.missing: 'drop'", "skip"),
            ("allnan.csv", "--data.missing skip", "is missing in all 6 rows", "--data.target COLUMN"),
            ("nannumbers.csv", "", "nannumbers.csv line 3: 'nan'", "not a finite number", "--data.missing skip"),
            ("names/counted.csv", "", "could count them from 0 or from 1", "'0 rose'"),
            ("foreign.csv", "", "1 of 4 images do not exist", "foreign.csv line 5", "--data.images FOLDER"),
            ("pixels.csv", "", "the pixels of images", "images are read from files"),
            ("split2.csv", "", "'trian' in column 'split' is no split", "dev, eval"),
            ("labels.txt", "", "any of the columns 'column 2', 'column 3' can be the target", "--data.target COLUMN"),
            ("sep.csv", "", "sep.csv line 4: target column 'label' is empty"),
        )
    )
)
CONFIGS = _cases(
    *(
        (f"train {{PHOTOS}} --config {{W}}/configs/{name}.yaml", *tells)
        for name, *tells in (
            ("none", "cannot be read (No such file or directory)", "--config"),
            ("typo", "typo.yaml: epocs: unknown; did you mean epochs?"),
            ("section", "section.yaml: optimizer.lrr: unknown; did you mean lr?"),
            ("flat", "flat.yaml: learning_rate: unknown; did you mean optimizer.lr?"),
            ("text", "is no configuration; write NAME: VALUE lines"),
            ("list", "is no configuration"),
            ("string", "string.yaml: epochs: '5' is not a number"),
            ("model", "model: 'timm/resnet18' is no section; write model: {name: timm/resnet18}"),
            ("twice", "twice.yaml:2: epochs is given twice"),
            ("indent", "indent.yaml:3: not YAML"),
            ("tab", "tab.yaml:2: not YAML"),
            ("tag", "tag.yaml:1: the tag", "plain value"),
            ("anchor", "anchor.yaml:1: anchors and aliases"),
            ("latin", "latin.yaml:1: not UTF-8"),
            ("phases", "phases[0].epochs: missing", "whole number"),
            ("clash", "recipe", "phases exclude each other"),
            ("two", "two.yaml: epochs: 0 is not positive", "two.yaml: seed: -1"),
            ("null", "optimizer: null is no section"),
        )
    )
)
FOREIGN = _cases(
    *(
        (f"{word} {{PHOTOS}}", f"'{word}' is no command", f"did you mean {verb}?")
        for word, verb in (
            ("finetune", "train"),
            ("fine-tune", "train"),
            ("FIT", "train"),
            ("classify", "train"),
            ("val", "evaluate"),
            ("test", "evaluate"),
            ("eval", "evaluate"),
            ("validate", "evaluate"),
            ("Predict", "predict"),
            ("infer", "predict"),
            ("summary", "describe"),
            ("list", "models"),
            ("benchmark", "models"),
            ("dry-run", "plan"),
            ("clean", "cache"),
            ("Learn", "train"),
            ("testing", "evaluate"),
            ("inference", "predict"),
            ("onnx", "export"),
            ("deploy", "export"),
        )
    ),
    ("resume {RUN}", "headstart train photos --out runs/photos --resume"),
    ("{PHOTOS}", "did you mean train? Then type headstart train"),
    *(
        (f"train {{PHOTOS}} {words}", f"{words.partition(' ')[0]}: unknown option", tells)
        for words, tells in (
            ("--LR 1e-3", "did you mean --lr?"),
            ("--Epochs 3", "did you mean --epochs?"),
            ("--Batch-Size 8", "did you mean --batch-size?"),
            ("--opt sgd", "did you mean --optimizer.kind?"),
            ("--sched cosine", "did you mean --schedule.kind?"),
            ("--scheduler cosine", "did you mean --schedule.kind?"),
            ("--mixup 0.2", "did you mean --augment.mixup?"),
            ("--cutmix 1", "did you mean --augment.cutmix?"),
            ("--dropout 0.2", "did you mean --head.dropout?"),
            ("--drop 0.2", "did you mean --head.dropout?"),
            ("--momentum 0.9", "did you mean --optimizer.momentum?"),
            ("--patience 3", "did you mean --stop.patience?"),
            ("--class-weights balanced", "did you mean --loss.class-weights?"),
            ("--gpus 2", "did you mean --devices?"),
            ("--fp16", "write --precision fp16"),
            ("--half", "write --precision fp16"),
            ("--cpu", "write --device cpu"),
            ("--drop-path 0.1", "{drop_path_rate: 0.1}"),
            ("--project runs", "did you mean --out?"),
            ("--topk 3", "headstart predict runs/photos new --top 5"),
            ("--license mit", "headstart models --licence"),
            ("--data photos", "headstart train photos"),
            ("--data-dir photos", "headstart train photos"),
            ("--val-dir photos", "headstart train photos"),
            ("--num-labels 3", "comes from the data"),
            ("--imgsz 224", "did you mean --image-size?"),
            ("--lr0 0.1", "did you mean --lr?"),
            ("--max-epochs 3", "did you mean --epochs?"),
            ("--gradient-clip-val 1", "did you mean --batch.clip-norm?"),
            ("--accumulate-grad-batches 2", "did you mean --batch.accumulate?"),
            ("--strategy ddp", "--parallel.kind"),
            ("--warmup-epochs 1", "did you mean --schedule.warmup?"),
            ("--model-ema", "did you mean --average.kind?"),
            ("--save-total-limit 3", "did you mean --checkpoint.keep?"),
            ("--exist-ok", "--out runs/next"),
            ("--resume-from-checkpoint last", "--resume"),
            ("--do-train", "headstart train photos"),
            ("--random-state 3", "did you mean --seed?"),
            ("--label-smoothing 0.1", "did you mean --loss.label-smoothing?"),
            ("--output-dir runs/x", "did you mean --out?"),
            ("--backbone resnet18", "did you mean --model?"),
            ("--optim.lr 0.1", "did you mean --lr?"),
            ("--max-steps 100", "--epochs 5"),
        )
    ),
    ("train {PHOTOS} epochs=3", "options begin with two hyphens; write --epochs 3"),
    ("train data={PHOTOS}", "write the data without a name: headstart train"),
    ("train {PHOTOS} imgsz=224 lr0=0.01", "write --image-size 224", "write --lr 0.01"),
    ("train {PHOTOS} --optimizer lion", "optimizer.kind: 'lion' is unknown", "--optimizer.kind timm"),
    ("train {PHOTOS} --optimizer", "--optimizer.kind", "Expected 1 values"),
    ("train {PHOTOS} --head transformer", "head.kind: 'transformer' is unknown", "mlp"),
    ("train {PHOTOS} --augment storng", "did you mean strong?"),
    ("train {PHOTOS} --batch 0", "batch.size: 0 is not positive"),
    ("predict {RUN} {PHOTOS} --topk 3", "--topk: unknown option; did you mean --top?"),
    ("predict {RUN} {PHOTOS} --gpu 0", "--gpu: unknown option; did you mean --device?"),
    ("models --license mit", "--license: unknown option; did you mean --licence?"),
    ("describe timm/test_resnet --imgsz 64", "did you mean --image-size?"),
    ("train {PHOTOS} --freeze layer2", "until:layer2 freezes all up to it, names:layer2.* it alone"),
    ("train {PHOTOS} --freeze features.3", "until:features.3"),
    ("train {PHOTOS} --freeze 10", "stages:10 freezes the first 10 stages"),
    ("train {PHOTOS} --freeze all", "backbone freezes all but the head"),
    ("train {PHOTOS} --freeze true", "backbone freezes all but the head"),
    ("train {PHOTOS} --freeze false", "none freezes nothing"),
    ("train {PHOTOS} {SMALL} --device 0", "device: '0' cannot be used here (no accelerator is found)", "cpu"),
    ("train {PHOTOS} {SMALL} --device 0,1", "device: '0,1'", "--devices 2"),
    ("train {RUN} {SMALL}", "is the folder of a run, not of images", "--model"),
    ("train {RUN}/model {SMALL}", "is the folder of a run, not of images"),
    ("plan {RUN} {SMALL}", "is the folder of a run"),
    ("evaluate {RUN} {RUN}", "is the folder of a run"),
    ("predict {W}/rum {PHOTOS}", "no finished run is there", "did you mean", "/run?"),
    ("train {PHOTOS} --model torchvision/resnett18", "did you mean torchvision/resnet18"),
    ("plan {PHOTOS} --model timm/resnet500", "timm has no model 'resnet500'"),
    ("train {PHOTOS} --weights ~/none.pth --model timm/test_resnet", "none.pth: No such file"),
    ("train {PHOTOS} --model timm/test_resnet --model.weights-part raw --recipe full", "model.weights_part"),
)
CASES = (*COMMANDS, *FOREIGN, *OPTIONS, *MODELS, *DATA, *TABLES, *CONFIGS)


def make_world(root: Path) -> None:
    """Everything that the cases name but the run."""
    _draw(root / "photos", cat=6, dog=6)
    (root / "photos2").mkdir()
    (root / "photos2" / "diary.txt").write_text("mine")
    (root / "c.yaml").write_text("epochs: 3\n")
    (root / "w.pth").write_bytes(b"")
    (root / "w.pkl").write_bytes(b"\x80\x04.")
    (root / "page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    (root / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _sets(root / "sets")
    _tables(root / "tables")
    _configs(root / "configs")


def _draw(root: Path, **counts: int) -> None:
    for place, (name, count) in enumerate(counts.items()):
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(100 * place + number)
            Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def _sets(root: Path) -> None:
    for name, counts in {
        "flat": {}, "one": {"cat": 3}, "hollow": {"cat": 3, "dog": 3, "owl": 0}, "twins": {"Cat": 3, "cat": 3},
        "noval": {"val__cat": 2, "val__dog": 2}, "beside": {"train__cat": 2, "train__dog": 2, "val__cat": 2, "owl": 2},
        "strange": {"train__cat": 2, "train__dog": 2, "val__cat": 1, "val__owl": 1}, "broken": {"cat": 6, "dog": 6},
        "allbroken": {"cat": 0, "dog": 6}, "single": {"cat": 1, "dog": 1}, "inner": {"deep__cat": 3, "deep__dog": 3},
        "empty": {}, "zeros": {"1": 3, "01": 3, "2": 3},
        "cameras": {"left__cat": 2, "left__dog": 2, "right__cat": 2, "right__dog": 2},
        "folds": {"fold1__cat": 2, "fold1__dog": 2, "fold2__cat": 2, "fold2__dog": 2},
        "holdback": {"train__cat": 2, "train__dog": 2, "holdback__cat": 2, "holdback__dog": 2},
        "sites": {f"{site}__{rest}": 1 for site in ("s1", "s2") for rest in ("train__cat", "train__dog", "val__cat")},
        "spare": {"train__cat": 2, "train__dog": 2, "spare": 2},
        "copied": {"yes": 2, "no": 2, "data__yes": 2, "data__no": 2},
        "splitcopy": {"train__cat": 2, "train__dog": 2, "val__cat": 2, "set__train__cat": 2, "set__train__dog": 2},
        "deveval": {"train__cat": 2, "train__dog": 2, "dev__cat": 2, "eval__cat": 2},
    }.items():  # fmt: skip
        (root / name).mkdir(parents=True)
        _draw(root / name, **counts)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "flat" / f"{number}.png")
    (root / "broken" / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (root / "allbroken" / "cat" / "bad.png").write_bytes(b"nothing")


def _tables(root: Path) -> None:
    root.mkdir()
    for number in range(8):
        Image.new("RGB", (24, 24), (30 * number, 9, 9)).save(root / f"{number}.png")
    Image.new("RGB", (24, 24)).save(root.parent / "outside.png")
    label: Callable[[int], str] = lambda place: "ab"[place % 2]  # noqa: E731
    good = [f"{place}.png,{label(place)}" for place in range(6)]
    head = "image,label"
    texts: Mapping[str, list[str]] = {
        "empty.csv": [], "header.csv": [head], "good.csv": [head, *good], "ragged.csv": [head, good[0], "1.png,a,b"],
        "twice.csv": ["image,label,label", *(f"{row},x" for row in good)], "repeated.csv": [head, *good, good[0]],
        "missing.csv": [head, *good[:2], "gone.png,a", *good[2:]], "blank.csv": [head, good[0], ",a", *good[1:]],
        "noimage.csv": ["name,label", *(f"n{place},{label(place)}" for place in range(6))],
        "unlabelled.csv": [head, good[0], "1.png,", *good[2:]],
        "split.csv": ["image,label,split", *(f"{row},{'trian' if place == 1 else 'train'}" for place, row in enumerate(good))],  # noqa: E501
        "notrain.csv": ["image,label,split", *(f"{row},val" for row in good)],
        "numbers.csv": ["image,rooms", *(f"{place}.png,{1 + place % 3}" for place in range(6))],
        "number.csv": ["image,size", *(f"{place}.png,{place + 0.5}" for place in range(2)), '2.png,"12,5 m"', "3.png,4"],  # noqa: E501
        "constant.csv": ["image,size", *(f"{place}.png,4.5" for place in range(6))],
        "negative.csv": ["image,size", *(f"{place}.png,{-1.5 if place == 1 else place + 0.5}" for place in range(6))],
        "outside.csv": [head, *good, "../outside.png,a"], "all.csv": [head, *(f"{place}.png,a" for place in range(6))],
        "two.csv": ["image,label,other", *(f"{row},{'xyz'[place % 3]}" for place, row in enumerate(good))],
        "quote.csv": [head, good[0], '"1.png"x,a', *good[2:]],
    }  # fmt: skip
    for name, lines in {**texts, **_spreadsheets(good)}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("".join(f"{line}\n" for line in lines))
    for number in range(6):
        Image.new("RGB", (24, 24), (30 * number, 9, 9)).save(root / "names" / f"{number}.png")
    (root / "names" / "classes.txt").write_text("rose\ntulip\ndaisy\n")
    (root / "latin.csv").write_bytes("image,label\n0.png,café\n".encode("latin-1"))
    (root / "no.parquet").write_bytes(b"nothing")


def _column(cells: Sequence[str], *, head: str = "image;size", mark: str = ";") -> list[str]:
    return [head, *(f"{place}.png{mark}{cell}" for place, cell in enumerate(cells))]


def _spreadsheets(good: Sequence[str]) -> Mapping[str, list[str]]:
    """Tables that can be read in two ways, or in none."""
    tags = "image;tags"
    return {
        "headless.csv": list(good), "ids.csv": [f"{place},{'ab'[place % 2]}" for place in range(6)],
        "commas.csv": _column(["1,200", "2,300", "3,400", "4,500"]), "mixed.csv": _column(["1,5", "2.5", "3,5", "4.5"]),
        "money.csv": _column(["$1,200", "€900", "$8", "€7"]), "units.csv": _column(["12 kg", "900", "8 kg", "7"]),
        "pairs.csv": _column(['"1,3"', '"3,1"', "1", '"3,2"'], head="image,tags", mark=","),
        "cities.csv": _column(["Portland, OR", "Salem, OR", "Boston, MA", "Boston, MA"], head="image;city"),
        "leaves.csv": _column(["leaf healthy", "leaf", "healthy", "healthy fruit", "fruit"], head=tags),
        "languages.csv": _column(["en-de", "de-en", "en-de", "de-en"], head=tags),
        "stranger.csv": _column(["['sea']", "['sea', 'sun']", "[]", "tree"], head=tags),
        "lists.csv": _column(["['sea', 'sun']", "['sun']", "['sea']"], head=tags),
        "vectors.csv": _column(["[0, 1, 0]", "[1 1 0]", "[0,0,1]"], head=tags),
        "mappings.csv": _column(["{'sea': 1}", "{'sun': 1}", "{'sea': 1}"], head=tags),
        "points.csv": _column(["[0.5, 1.5]", "[0.25, 2.5]"], head=tags),
        "onehot.csv": ["image,x,y", "0.png,1,0", "1.png,0,1", "2.png,1,1"],
        "nohot.csv": ["image,x,y", "0.png,1,0", "1.png,0,1", "2.png,0,0"],
        "ties.csv": ["image,x,y", "0.png,0.9,0.1", "1.png,0.5,0.5"], "hole.csv": ["image,x,y", "0.png,1,0", "1.png,,1"],
        "nan.csv": _column(["a", "b", "nan", "a"], head="image;label"),
        "null.csv": _column(["a", "b", "NULL", "a"], head="image;label"),
        "allnan.csv": _column(["nan"] * 6, head="image;label"), "nannumbers.csv": _column(["1.5", "nan", "2.5", "3.5"]),
        "names/counted.csv": _column(["1", "2", "1", "2"], head="image;code"),
        "foreign.csv": ["image,label", *(f"/far/{name}.png,{'ab'[place % 2]}" for place, name in enumerate("012x"))],
        "pixels.csv": [",".join(["label", *(f"pixel{place}" for place in range(64))]), ",".join(["5"] * 65)],
        "split2.csv": ["image,label,split", f"{good[0]},trian", *(f"{row},train" for row in good[1:])],
        "labels.txt": [f"{place}.png {place % 2} {place % 3}" for place in range(6)],
        "sep.csv": ["sep=;", "image;label", "0.png;a", "1.png;"],
    }  # fmt: skip


def _configs(root: Path) -> None:
    root.mkdir()
    for name, text in {
        "typo": "epocs: 3\n", "section": "optimizer: {lrr: 0.1}\n", "flat": "learning_rate: 0.1\n", "text": "resnet\n",
        "list": "- epochs\n", "string": "epochs: '5'\n", "model": "model: timm/resnet18\n", "twice": "epochs: 1\nepochs: 2\n",  # noqa: E501
        "indent": "model:\n  name: starter\n weights: none\n", "tab": "model:\n\tname: starter\n",
        "tag": "epochs: !!python/name:os.system\n", "anchor": "seed: &s 1\n", "phases": "phases: [{freeze: none}]\n",
        "clash": "recipe: full\nphases: [{epochs: 1}]\n", "two": "epochs: 0\nseed: -1\n", "null": "optimizer:\n",
    }.items():  # fmt: skip
        (root / f"{name}.yaml").write_text(text)
    (root / "latin.yaml").write_bytes("out: café\n".encode("latin-1"))


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below by path, byte for byte; folders with None."""
    found: dict[str, bytes | None] = {}
    for here, folders, files in os.walk(root):
        found.update({str(Path(here, name)): None for name in folders})
        found.update({str(Path(here, name)): Path(here, name).read_bytes() for name in files})
    return found
