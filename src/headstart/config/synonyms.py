"""What other tools call an option: timm, torchvision's references, transformers, Ultralytics, fastai, Lightning."""

from __future__ import annotations

from headstart.wording import option, switch

MAIN_FIELDS = {  # of a section that is typed like an option: --optimizer sgd, --augment strong
    "task": "kind",
    "head": "kind",
    "loss": "kind",
    "optimizer": "kind",
    "schedule": "kind",
    "average": "kind",
    "parallel": "kind",
    "augment": "preset",
    "batch": "size",
    "cache": "use",
    "lora": "rank",
    "stop": "patience",
}
_NAMES = {  # ours: theirs
    "optimizer.lr": "learning_rate base_lr lr0 backbone_lr max_lr lr_max init_lr initial_lr blr",
    "optimizer.head_lr": "classifier_lr lr_head fc_lr",
    "optimizer.layer_decay": "layerwise_lr_decay llrd lr_decay_rate discriminative_lr",
    "optimizer.weight_decay": "wd l2 decay weightdecay",
    "optimizer.kind": "opt optim optimizer_type optimizer_name",
    "optimizer.betas": "opt_betas adam_betas",
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs nb_epochs epoch n_epoch",
    "batch.size": "per_device_train_batch_size train_batch_size batch_size bs b batchsize",
    "batch.evaluation": "per_device_eval_batch_size eval_batch_size validation_batch_size val_batch_size",
    "batch.accumulate": (
        "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches "
        "accum_iter accum grad_accum iters_to_accumulate"
    ),
    "batch.clip_norm": "max_grad_norm clip_grad gradient_clip_val clip_grad_norm grad_clip gradient_clip clip",
    "schedule.kind": "lr_scheduler sched scheduler lr_scheduler_type lr_schedule lr_policy cos_lr",
    "schedule.warmup": "warmup_ratio warmup_epochs warmup_steps lr_warmup_epochs num_warmup_steps warmup_proportion",
    "schedule.step_share": "lr_step_size decay_epochs step_size decay_milestones",
    "schedule.step_factor": "lr_gamma decay_rate",
    "loss.kind": "criterion loss_fn loss_function loss_type bce_loss objective",
    "loss.label_smoothing": "smoothing label_smoothing_factor label_smooth",
    "loss.gamma": "focal_gamma",
    "loss.class_weights": "class_weight weighted_loss balanced pos_weight weighted_sampler oversample",
    "head.dropout": "drop dropout drop_rate dropout_rate classifier_dropout",
    "head.kind": "head_type classifier_type",
    "head.hidden": "hidden_size hidden_sizes hidden_dim hidden_layers",
    "augment.preset": (
        "augmentation augmentations aug aa auto_augment "
        "autoaugment randaugment trivialaugment augmix color_jitter transforms"
    ),
    "augment.flip": "hflip fliplr horizontal_flip random_flip",
    "augment.mixup": "mixup_alpha",
    "augment.cutmix": "cutmix_alpha",
    "average.kind": "model_ema ema use_ema swa",
    "average.half_life": "model_ema_decay ema_decay",
    "model.image_size": "img_size image_size imgsz input_size resolution img train_crop_size image_height size",
    "model.name": (
        "backbone encoder timm_model arch architecture network net model_name model_name_or_path pretrained_model"
    ),
    "model.weights": (
        "pretrained checkpoint_path initial_checkpoint pretrained_weights pretrained_path weights_path weights_file"
    ),
    "precision": "amp use_amp dtype mixed_precision amp_dtype",
    "memory_format": "channels_last",
    "compile": "torch_compile torchcompile",
    "activation_checkpointing": "grad_checkpointing gradient_checkpointing",
    "workers": "num_workers n_workers dataloader_num_workers j threads num_threads",
    "device": "accelerator gpu gpu_id cuda device_id device_ids",
    "devices": "gpus num_gpus n_gpus ngpus n_gpu nproc_per_node num_processes num_devices",
    "parallel.kind": "strategy distributed",
    "parallel.sync_norm": "sync_bn sync_batchnorm syncbn",
    "seed": "random_seed random_state manual_seed",
    "out": (
        "output_dir output save_dir project experiment exp_name log_dir "
        "logdir default_root_dir results name run_name out_dir save_path checkpoint_dir"
    ),
    "data.val": "val_split valid_pct validation_split train_val_split val_size val_ratio",
    "data.test": "test_split test_size test_ratio",
    "data.target": "label_column label_col y_col target_column target_col label_column_name labels",
    "data.image": "image_column image_col x_col filename_col image_column_name path_column",
    "data.images": "image_dir images_dir image_root img_dir",
    "data.group": "group_column groups",
    "freeze": "freeze_until freeze_layers freeze_backbone freeze_encoder frozen_stages unfreeze unfreeze_layers",
    "stop.patience": "early_stopping early_stop early_stopping_patience patience_epochs",
    "checkpoint.every_steps": "save_steps",
    "checkpoint.keep": "save_total_limit checkpoint_hist save_top_k",
    "metric": "metric_for_best_model eval_metric monitor metrics early_stopping_metric best_metric",
    "recipe": "mode finetune strategy_name",
    "lora.rank": "lora_r lora_rank",
    "trackers": "report_to logger loggers log_with track tracking",
    "lora.alpha": "lora_alpha",
    "data.tags_separator": "sep separator label_separator",
}
SYNONYMS = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}
OTHER_VERBS = {  # options of predict, evaluate, describe and models
    **dict.fromkeys(("topk", "top_k", "k"), "top"),
    **dict.fromkeys(("bs", "batch", "batchsize"), "batch_size"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "device"),
    **dict.fromkeys(("imgsz", "img_size", "input_size", "resolution"), "image_size"),
    **dict.fromkeys(("output_format", "fmt"), "format"),
    **dict.fromkeys(("license", "licenses"), "licence"),
    **dict.fromkeys(("sort_by", "order", "order_by"), "sort"),
    **dict.fromkeys(("max_parameters", "max_size"), "max_params"),
    **dict.fromkeys(("pretrained",), "pretrained_only"),
    **dict.fromkeys(("latency", "max_latency"), "max_latency_ms"),
    **dict.fromkeys(("learning_rate",), "lr"),
}
_VERBS = {  # our commands: theirs
    "train": "fit finetune fine-tune fine_tune fit_one_cycle classify tune run learn training",
    "evaluate": "val valid validate test testing eval evaluation score metrics",
    "predict": "infer inference label predictions prediction",
    "describe": "info summary summarize show inspect",
    "export": "convert onnx deploy openvino",
    "models": "list list-models list_models zoo search benchmark",
    "plan": "dry-run dryrun preview check",
    "report": "html plot plots",
    "cache": "clean clear",
    "demo": "quickstart example tutorial",
}
VERBS = {theirs: ours for ours, names in _VERBS.items() for theirs in names.split()}
VERB_ADVICE = {  # for commands alone
    "resume": "a run goes on with its own command and --resume: headstart train photos --out runs/photos --resume",
    "continue": "a run goes on with its own command and --resume: headstart train photos --out runs/photos --resume",
}

_FILE = "write headstart predict runs/photos new --out found.csv"
_THRESHOLD = (
    "thresholds of tags are chosen on the validation images; every confidence is in headstart predict runs/photos new "
    "--format csv"
)
PREDICT_ADVICE = {  # for predict alone
    **dict.fromkeys(("csv", "json", "jsonl"), "write headstart predict runs/photos new --format {name}"),
    **dict.fromkeys(("out", "output", "output_file", "output_csv", "save", "save_csv", "save_txt", "to_csv"), _FILE),
    **dict.fromkeys(("threshold", "thresholds", "conf", "confidence", "min_confidence"), _THRESHOLD),
}


_OTHER_COMMANDS = {
    "do_train": "it is the command: headstart train photos",
    "do_eval": "every epoch ends with validation; a finished run: headstart evaluate runs/photos photos",
    "do_predict": "it is a command of its own: headstart predict runs/photos new",
    "topk": "it is an option of predict: headstart predict runs/photos new --top 5",
    "top_k": "it is an option of predict: headstart predict runs/photos new --top 5",
    "license": "it is an option of models: headstart models --licence apache",
    "test_only": "it is a command of its own: headstart evaluate runs/photos photos",
    "evaluate": "it is a command of its own: headstart evaluate runs/photos photos",
}


def _list_places() -> dict[str, str]:
    """Other tools' options that say where the data are."""
    given = "data data_dir data_path data_source dataset dataset_name input root source"
    folders = "train_dir val_dir validation_dir"
    return {
        **dict.fromkeys(given.split(), "the data come without a name: headstart train photos"),
        **dict.fromkeys(folders.split(), "give the folder that holds train and val: headstart train photos"),
    }


def list_advice() -> dict[str, str]:
    """What to do about each name of other tools that no single option stands for."""
    drop_path, in_chans = option("model.options", {"drop_path_rate": 0.1}), option("model.options", {"in_chans": 1})
    preprocess = option("model.preprocess", {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})
    return {
        "num_classes": "the number of classes comes from the data; leave it out",
        "nb_classes": "the number of classes comes from the data; leave it out",
        "num_labels": "the number of classes comes from the data; leave it out",
        "classes": "the classes come from the data; leave it out",
        "single_cls": "the classes come from the data; leave it out",
        "fp16": f"write {option('precision', 'fp16')}",
        "half": f"write {option('precision', 'fp16')}",
        "bf16": f"write {option('precision', 'bf16')}",
        "cpu": f"write {option('device', 'cpu')}",
        "no_cuda": f"write {option('device', 'cpu')}",
        "cosine": f"write {option('schedule.kind', 'cosine')}",
        "drop_path": f"it is an option of the architecture; write {drop_path}",
        "drop_path_rate": f"it is an option of the architecture; write {drop_path}",
        "in_chans": f"it is an option of the architecture; write {in_chans}",
        "channels": f"it is an option of the architecture; write {in_chans}",
        "mean": f"the weights say it; else write {preprocess}",
        "std": f"the weights say it; else write {preprocess}",
        "resume_from_checkpoint": f"write {option('out')} and the run's folder, and {switch('resume')}",
        "ckpt_path": f"write {option('out')} and the run's folder, and {switch('resume')}",
        **dict.fromkeys(
            ("csv", "csv_path", "csv_file", "train_csv"), "a table is given as the data: headstart train labels.csv"
        ),
        **dict.fromkeys(
            ("reprob", "random_erasing", "erasing", "mosaic", "vflip", "flipud", "degrees", "rotate"),
            f"there is no option for it alone; {option('augment.preset', 'strong')} changes images more",
        ),
        **dict.fromkeys(("dry_run", "fast_dev_run"), "it is a command of its own: headstart plan photos"),
        **dict.fromkeys(("onnx", "opset", "torchscript"), "it is a command of its own: headstart export runs/photos"),
        "save_best": "the best epoch is always what is left; leave it out",
        "nc": "the number of classes comes from the data; leave it out",
        "use_focal": f"write {option('loss.kind', 'focal')}",
        "focal": f"write {option('loss.kind', 'focal')}",
        "mps": f"write {option('device', 'mps')}",
        "overwrite": f"no run is overwritten; choose another folder with {option('out', 'runs/next')}",
        "force": f"no run is overwritten; choose another folder with {option('out', 'runs/next')}",
        **_list_places(),
        **_OTHER_COMMANDS,
        "eval_strategy": "every epoch ends with validation; leave it out",
        "evaluation_strategy": "every epoch ends with validation; leave it out",
        "load_best_model_at_end": "the best epoch is always what is left; leave it out",
        "overwrite_output_dir": f"no run is overwritten; choose another folder with {option('out', 'runs/next')}",
        "exist_ok": f"no run is overwritten; choose another folder with {option('out', 'runs/next')}",
        "ignore_mismatched_sizes": "the head is always made anew; leave it out",
        "max_steps": f"a run is counted in passes over the images: {option('epochs', 5)}",
        "total_steps": f"a run is counted in passes over the images: {option('epochs', 5)}",
        "freeze_epochs": f"recipe lp_ft trains the head first: {option('recipe', 'lp_ft')}",
        **{name: f"write {option('trackers', name)}" for name in ("tensorboard", "wandb", "mlflow", "trackio")},
        **dict.fromkeys(("log_wandb", "use_wandb"), f"write {option('trackers', 'wandb')}"),
        "wandb_project": "the environment's WANDB_PROJECT says it; leave it out",
        "plots": "the report has them; leave it out",
        "verbose": "a line is shown per epoch; leave it out",
        "deterministic": "runs are the same to the bit without it; leave it out",
    }
