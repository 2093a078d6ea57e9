"""Every option once: name, type, unit, range, default. Values are frozen; choices are tagged unions on ``kind``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

from headstart.config.lora import Lora as Lora
from headstart.config.numbers import Auto as Auto
from headstart.config.numbers import Count, NonNegative, Positive, Probability
from headstart.config.optimizers import Adam as Adam
from headstart.config.optimizers import AdamW as AdamW
from headstart.config.optimizers import Optimizer as Optimizer
from headstart.config.optimizers import RmsProp as RmsProp
from headstart.config.optimizers import Sgd as Sgd
from headstart.config.optimizers import TimmOptimizer as TimmOptimizer
from headstart.config.rules import But as But
from headstart.config.rules import FreezeRule as FreezeRule
from headstart.config.rules import Names as Names
from headstart.config.rules import NormStatistics as NormStatistics
from headstart.config.rules import Stages as Stages
from headstart.config.rules import Until as Until
from headstart.config.sizes import LARGEST, SMALLEST, Form

ClassWeights = Literal["none", "balanced"] | dict[str, Positive]
HeadstartMetric = Literal["auto", "accuracy", "macro_f1", "balanced_accuracy", "nll", "ap", "mae", "rmse", "r2"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
_STRICT: Any = {"extra": "forbid", "use_attribute_docstrings": True}  # pydantic's: unknown names are errors


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, which labels, and how they are split."""

    source: str | None = None
    """Folder of class folders (optionally under train/ val/ test/), or a CSV or Parquet table."""
    images: str | None = None
    """Folder that a table's paths start from; default: the table's own folder, then its images/."""
    image: str = "auto"
    """Table column with the image's path."""
    target: Auto | str | tuple[str, ...] = "auto"
    """Table column(s) with the label: one, or several numbers or 0/1 tags."""
    tags_separator: Auto | str = "auto"
    """What separates the tags of a multi-label column; auto: the mark between whose parts the cells recombine."""
    header: Auto | bool = "auto"
    """Whether a table's first row names its columns; auto: asked where it looks like the rows below it."""
    decimal: Literal["auto", "point", "comma"] = "auto"
    """What stands before a number's fraction; auto: as all cells of the column agree, asked where they do not tell."""
    missing: Literal["ask", "skip", "keep"] = "ask"
    """Rows whose target is a word like nan or NULL; skip: they are left out, as those without any; keep: a class."""
    class_folders: Literal["auto", "upper", "lower"] = "auto"
    """Folders that hold the same folders each: which are the classes; auto: asked, but for names of splits."""
    split: str = "auto"
    """Table column whose values are train, val, test."""
    val: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the images held out for validation when the data have no split."""
    test: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the images held out for the final test when the data have no split."""
    group: str | None = None
    """Table column; images with the same value (patient, video) stay in one split. By file name: prefix, folder.

    prefix: the name up to its last number (frames of a film); folder: the one that holds the image."""
    range: Auto | tuple[float, float] = "auto"
    """Stored values that become black and white, of images of more than 8 bits; auto: by the bits or values in use."""
    axes: Literal["auto", "hwc", "chw"] = "auto"
    """Order of the axes of arrays (.npy); auto: the one that gives the model's bands, asked where both do."""
    log: bool = False
    """Regression: learn the base-10 logarithm of the target."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What follows when an image cannot be read."""
    unreadable_share: Annotated[float, Ge(0), Le(1)] = 0.01
    """skip: the largest share of the images that may be left out; with more the run stops before the first step."""
    changed: Literal["stop", "note"] = "stop"
    """What follows when an image's file is rewritten during the run; note: it is named, and used as it is then."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the model is to answer."""

    kind: Literal["auto", "classify", "multilabel", "regress"] = "auto"
    """One label, several labels, or numbers; auto: found from the data."""


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """Preprocessing given by hand instead of the weights' own."""

    mean: tuple[float, ...]
    """Per-channel mean of inputs scaled to 0..1."""
    std: tuple[Positive, ...]
    """Per-channel standard deviation of inputs scaled to 0..1."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bilinear"
    """Resampling filter."""
    crop_pct: Annotated[float, Gt(0), Le(1)] = 0.875
    """Evaluation: share of the resized shorter side that the centre crop keeps."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The pretrained backbone."""

    name: str = "auto"
    """Model spec: timm/NAME[.TAG], torchvision/NAME, hf-hub:ORG/NAME, a folder, starter; auto: by device."""
    weights: str = "pretrained"
    """pretrained, none, or a local file: .safetensors, or .pth, .pt, .bin, .ckpt as training scripts write them."""
    weights_part: str = "auto"
    """Which of a file's weights: averaged, raw, or a key of the file or prefix of its names; auto: averaged if any."""
    image_size: Auto | Annotated[int, Ge(SMALLEST), Le(LARGEST)] | Annotated[str, Form("HEIGHTxWIDTH")] = "auto"
    """Pixels per side of the model's input, or e.g. 320x192 (height x width); auto: the weights' own."""
    preprocess: Auto | ImageFormat = "auto"
    """Normalisation and resampling; auto: the weights' own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Architecture options, e.g. {drop_path_rate: 0.1, pad_type: same}."""


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """One linear layer."""

    kind: Literal["linear"] = "linear"
    """Shape of the new head: linear or mlp."""
    dropout: Probability = 0.0
    """Dropout before each linear layer of the head."""
    at: str = "auto"
    """Path of the layer to replace; auto: found in the traced graph."""
    scores: str | int = "auto"
    """Which of several outputs the scores are: its name or number; all: each, as equal heads; auto: there is one."""
    keep: Auto | bool = "auto"
    """Go on with the head of the run, bundle or own module that is the model; auto: where it is known to answer what
    these images ask."""


@dataclass(frozen=True, kw_only=True)
class MlpHead:
    """Hidden layers with an activation and dropout, then a linear layer."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (256,)
    """Sizes of the head's hidden layers."""
    activation: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"] = "relu"
    """Activation between the head's layers."""
    dropout: Probability = 0.5
    at: str = "auto"
    scores: str | int = "auto"
    keep: Auto | bool = "auto"


@dataclass(frozen=True, kw_only=True)
class AutoLoss:
    """cross_entropy, bce or huber, by the task."""

    kind: Auto = "auto"
    """Loss function; auto: cross_entropy, bce or huber, by the task."""
    class_weights: ClassWeights = "none"
    label_smoothing: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Softmax cross-entropy."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    class_weights: ClassWeights = "none"
    """none, balanced (inverse frequency), or weights by class name; classes not named weigh 1."""
    label_smoothing: Probability = 0.0
    """Share of the target spread over all classes."""


@dataclass(frozen=True, kw_only=True)
class Focal:
    """Focal loss (Lin et al. 2017): easy samples count less."""

    kind: Literal["focal"] = "focal"
    class_weights: ClassWeights = "none"
    gamma: NonNegative = 2.0
    """Focal loss: how much easy samples are played down."""


@dataclass(frozen=True, kw_only=True)
class Bce:
    """Binary cross-entropy per tag."""

    kind: Literal["bce"] = "bce"
    class_weights: ClassWeights = "none"
    label_smoothing: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Squared error of the standardised target."""

    kind: Literal["mse"] = "mse"


@dataclass(frozen=True, kw_only=True)
class Huber:
    """Squared near zero, absolute beyond ``delta``."""

    kind: Literal["huber"] = "huber"
    delta: Positive = 1.0
    """Huber loss: where it turns linear, in standard deviations of the target."""


@dataclass(frozen=True, kw_only=True)
class Mae:
    """Absolute error of the standardised target."""

    kind: Literal["mae"] = "mae"


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Added to the loss once per optimizer step (weight decay is the optimizer's)."""

    l1: NonNegative = 0.0
    """Weight of the sum of absolute values."""
    l1_on: Literal["head", "all"] | tuple[str, ...] = "head"
    """Which parameters L1 sees: head, all, or a list of globs over parameter names."""
    l2_start: NonNegative = 0.0
    """Weight of half the squared distance from the pretrained values (L2-SP, Li et al. 2018)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the rates change over the steps of a phase."""

    kind: Literal["linear", "cosine", "constant", "step", "one_cycle"] = "linear"
    """Shape after the warm-up; one_cycle rises over the first 30 %, then falls as a cosine."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the phase's steps over which the rate rises from zero (not for one_cycle)."""
    step_share: Annotated[float, Gt(0), Lt(1)] = 0.3
    """step: share of the phase after which the rate drops, again and again."""
    step_factor: Annotated[float, Gt(0), Lt(1)] = 0.1
    """step: what the rate is multiplied by at each drop."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one freeze rule and one set of rates."""

    epochs: Count
    freeze: FreezeRule = "none"
    lr: Auto | Positive = "auto"
    head_lr: Auto | Positive = "auto"
    layer_decay: Auto | Annotated[float, Gt(0), Le(1)] = "auto"
    norm_statistics: Auto | NormStatistics = "auto"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one optimizer step sees."""

    size: Auto | Count = "auto"
    """Images per optimizer step; auto: 64, fewer when there are few images."""
    accumulate: Count = 1
    """Micro-batches that a step is cut into: less memory, the same mathematics."""
    evaluation: Auto | Count = "auto"
    """Images at a time in evaluation, and through frozen layers into the cache.

    auto: as few as are fast, measured in long runs; else as in training. Never more than there are images (but 8)."""
    clip_norm: Positive | None = None
    """Largest norm of the whole gradient."""
    clip_value: Positive | None = None
    """Largest absolute value of a gradient's element."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training images."""

    preset: Literal["none", "light", "standard", "strong"] = "standard"
    """How much training images are changed at random."""
    flip: Auto | Literal["alternating"] | bool = "auto"
    """Mirror left to right at random; auto: as the preset says, and not where names say left or right.

    alternating: each image in every other epoch (Jordan 2024); with preset none these are two views, cached exactly."""
    mixup: Annotated[float, Ge(0), Le(10)] = 0.0
    """Mixup's alpha (Zhang et al. 2018); 0: off."""
    cutmix: Annotated[float, Ge(0), Le(10)] = 0.0
    """CutMix's alpha (Yun et al. 2019); 0: off."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """A running average of the weights beside the trained ones."""

    kind: Literal["none", "ema"] = "none"
    """ema: exponential moving average; the bundle gets it where it validates better."""
    half_life: Annotated[float, Gt(0), Le(1)] = 0.07
    """Share of all steps after which a weight's past counts half."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What is kept instead of computed in every epoch: activations at the boundary between what is frozen and what
    trains, and decoded images."""

    use: Literal["auto", "always", "never"] = "auto"
    """Whether what is frozen runs once per image instead of in every epoch. auto: where that saves time.

    With never, what the scan of the data found is not kept for later runs, either."""
    views: Auto | Count = "auto"
    """Random changes that an image has in turn in front of a frozen part.

    auto: 4 where they are cached, else new ones in every epoch."""
    dtype: Literal["auto", "bf16"] = "auto"
    """What activations are stored in; auto: as they are computed."""
    decoded: bool = False
    """Keep decoded images on the disk, for runs whose epochs wait for images (see their progress lines).

    Where crops are random they are cut from pictures at a working size, 1.7 times the model's; smaller photos keep
    every bit."""
    limit_gb: Positive = 20.0
    """Gigabytes that all caches of this user may take; the least recently used go first."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the run is saved (always at the end of an epoch as well)."""

    every_steps: Annotated[int, Ge(0)] = 0
    """Optimizer steps between checkpoints; 0: by time alone."""
    every_seconds: NonNegative = 60.0
    """Seconds between checkpoints within an epoch; 0: not by time."""
    keep: Count = 2
    """How many of the newest checkpoints stay, besides the best."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How several processes train one model (torchrun, SLURM, or devices above 1)."""

    kind: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: each process holds the whole model; fsdp: a share of it. auto: ddp."""
    sync_norm: bool = False
    """BatchNorm layers that train take their statistics over all processes (accelerators only)."""
    timeout_seconds: Positive = 120.0
    """How long a process may show no sign of life before the others give up; one that works is waited for."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When training ends early."""

    patience: Annotated[int, Ge(0)] = 0
    """Epochs of the last phase without a better validation metric before stopping; 0: never."""


Head = Annotated[LinearHead | MlpHead, Field(discriminator="kind")]
Loss = Annotated[AutoLoss | CrossEntropy | Focal | Bce | Mse | Huber | Mae, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run is told: a frozen value, made by ``hs.load_config``.

    The options page lists every section with its choices and defaults.

    Attributes:
        ``data``: Where the images are, and how they are split.
        ``task``: Whether classes, tags or numbers are learned.
        ``model``: The pretrained model, its weights, and its image size in pixels.
        ``head``: The new last layers.
        ``loss``: What the outputs are judged by in training.
        ``penalties``: Terms that are added to the loss, such as the distance from the pretrained weights.
        ``optimizer``: The optimizer and its rates.
        ``schedule``: How the rates change over the steps.
        ``recipe``: A named list of phases.
        ``lora``: Rank, scale, dropout and layers of low-rank adapters.
        ``epochs``: How often the training images are gone through, in all phases together.
        ``freeze``: What is frozen in the last phase.
        ``phases``: Phases by hand, instead of ``recipe``, ``epochs`` and ``freeze``.
        ``norm_statistics``: What BatchNorm layers that train normalise with.
        ``batch``: Images per optimizer step, and how a step is cut.
        ``augment``: Random changes of the training images.
        ``average``: Whether an average of the weights is kept.
        ``precision``: The arithmetic of the forward pass.
        ``memory_format``: The order of image tensors in memory.
        ``attention``: How training computes attention.
        ``compile``: The mode of ``torch.compile`` for training steps.
        ``activation_checkpointing``: Whether blocks are computed again for the backward pass, which saves memory.
        ``workers``: How many processes decode images.
        ``device``: Where the run computes.
        ``devices``: How many processes on this machine train together, one per device.
        ``parallel``: How several processes share the work.
        ``seed``: The number of which everything random is a function.
        ``out``: The run folder.
        ``metric``: The validation metric by which an epoch is the best.
        ``cache``: What is kept between epochs: decoded images, and what frozen layers give.
        ``checkpoint``: When checkpoints are written, and how many are kept.
        ``stop``: When a run ends early.
        ``trackers``: Where each epoch's metrics are logged besides the run folder.

    Example:
        >>> import headstart as hs
        >>> config = hs.load_config({"data": {"source": "photos"}})
        >>> config.recipe, config.epochs, config.seed
        ('auto', 10, 42)
    """

    __pydantic_config__ = _STRICT  # of the sections, too
    data: Data = field(default_factory=Data)
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    head: Head = field(default_factory=LinearHead)
    loss: Loss = field(default_factory=AutoLoss)
    penalties: Penalties = field(default_factory=Penalties)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    recipe: Literal["auto", "probe", "full", "lp_ft", "gradual", "lora", "bias", "norm"] = "auto"
    """Named list of phases: probe (head only), full (all), lp_ft (head, then all), gradual (from the head down);

    lora, bias, norm: the head and adapters, biases or norms, the rest frozen."""
    lora: Lora = field(default_factory=Lora)
    epochs: Count = 10
    """Passes over the training images, all phases together."""
    freeze: Auto | FreezeRule = "auto"
    """What the last phase freezes: none, backbone, conv, norm, except:KIND, until:NAME, stages:N, names:GLOB,..."""
    phases: tuple[Phase, ...] = ()
    """Phases by hand, instead of recipe, epochs and freeze."""
    norm_statistics: Auto | NormStatistics = "auto"
    """What BatchNorm layers that train normalise with: each batch's statistics, or the frozen pretrained ones.

    auto: frozen behind a trained head, for batches below 16 images and in PEFT (lora, bias, norm), else batch."""
    batch: Batch = field(default_factory=Batch)
    augment: Augment = field(default_factory=Augment)
    average: Average = field(default_factory=Average)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; weights stay fp32. auto: measured in long runs, of evaluation by itself, else
    fp32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Order of image tensors in memory. auto: measured in long runs, else contiguous."""
    attention: Literal["auto", "fused", "plain"] = "auto"
    """How training computes attention: torch's fused kernel, or the plain formula, which takes more memory and can be
    faster in bf16 on a CPU. auto: measured in long runs, else fused."""
    compile: Literal["auto", "never", "default", "reduce-overhead"] = "auto"
    """torch.compile's mode for training steps (reduce-overhead: with CUDA graphs); validation does without. auto: on an
    accelerator, where that is measured to pay for itself."""
    activation_checkpointing: bool = False
    """Compute the activations of a model's blocks again for the backward pass instead of keeping them: less memory, up
    to a third more time, the same bits."""
    workers: Auto | Annotated[int, Ge(0)] = "auto"
    """Processes that decode images; 0: the main one does.

    auto: 0 on up to 2 cores; else measured in long runs, or up to 8."""
    device: str = "auto"
    """cpu, cuda, mps, xpu, ...; auto: the accelerator if there is one."""
    devices: Auto | Count = "auto"
    """Processes on this machine, one per device. auto: the processes that torchrun started; else every accelerator."""
    parallel: Parallel = field(default_factory=Parallel)
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    """Everything random is a function of it."""
    out: str | None = None
    """Run folder; default: runs/ and the data's name."""
    metric: HeadstartMetric | str = "auto"
    """Validation metric by which an epoch is the best, which is kept and which the report shows first (ap: average
    precision, the mean over classes or tags). auto: accuracy, ap of tags, mae of numbers (of their logarithms with
    data.log). Of several numbers: the mean share of the error that their median, or mean, would have. In Python
    also the name of a function of your own, given with its direction as ``metrics``."""
    cache: Cache = field(default_factory=Cache)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    stop: Stop = field(default_factory=Stop)
    trackers: Tracker | tuple[Tracker, ...] = ()
    """Where each epoch's metrics are logged besides the run folder, by the tracker's own library."""
