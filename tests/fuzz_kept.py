"""Cases that are small and say what they are about: the table of issue 17, and what the fuzzer found and made small."""

from __future__ import annotations

from fuzz_grammar import B, Spec
from fuzz_laws import Case

KEY = ("cache", "key")
RESUME = ("cache", "resume")
SGD = (("optimizer.kind", "sgd"),)


def _frozen(*blocks: B, checks: tuple[str, ...] = ("cache",), rule: str = "until:blocks.0") -> Case:
    """Blocks of which the first one is frozen."""
    return Case(Spec(blocks=(*blocks, B("conv"))), freeze=rule, checks=checks)


def _behind(*blocks: B, checks: tuple[str, ...] = ("cache",)) -> Case:
    """Blocks behind the boundary."""
    return Case(Spec(blocks=blocks), freeze="until:stem", checks=checks)


KEPT: dict[str, Case] = {
    "hook on the root before": Case(Spec(root=("pre_hook",)), checks=KEY),
    "hook on the root after": Case(Spec(root=("post_hook",)), checks=KEY),
    "forward replaced by a method": Case(Spec(root=("method",)), checks=KEY),
    "forward replaced by a closure, averaged": Case(Spec(root=("lambda",)), more=(("average.kind", "ema"),)),
    "hook on a leaf": Case(Spec(blocks=(B("hook_leaf"),)), checks=KEY),
    "hook on a block": Case(Spec(blocks=(B("hook_block_pre"),)), checks=KEY),
    "forward of a leaf replaced": Case(Spec(blocks=(B("forward_partial"),)), checks=KEY),
    "closure": Case(Spec(blocks=(B("closure_constant"),)), checks=KEY),
    "attribute": Case(Spec(blocks=(B("scale"),)), checks=KEY),
    "depth by Python": _behind(B("depth_python"), B("depth_python"), checks=RESUME),
    "depth by NumPy": _behind(B("depth_numpy"), B("depth_numpy"), checks=RESUME),
    "depth by torch": _behind(B("depth_torch"), B("depth_torch"), checks=RESUME),
    "depth and fused momentum": Case(
        Spec(blocks=(B("depth_torch", always=True), B("depth_torch", always=True))), freeze="none", more=SGD
    ),
    "depth in the root": Case(Spec(blocks=(B("conv"), B("conv")), root=("depth",)), freeze="until:stem"),
    "counter behind": _behind(B("count_int")),
    "counter by a hook": _behind(B("count_hook")),
    "counter on the root that nothing reads": Case(Spec(root=("count_hook",))),
    "frozen counter by a hook": _frozen(B("count_hook_silent", always=True)),
    "counter in a closure": _behind(B("count_closure")),
    "table of weights frozen": _frozen(B("table"), checks=RESUME),
    "table of weights behind": _behind(B("table")),
    "table of weights that has seen tensors without values": _behind(B("table"), B("tensor_attribute")),
    "average with another boundary": Case(
        Spec(blocks=(B("conv"), B("attention_einsum")), container="attributes", root=("pre_hook", "user_frozen"),
             head="embedding", stem="conv_norm"),
        recipe="lp_ft", freeze="names:stem*", more=(("average.kind", "ema"), ("head.scores", 0)),
    ),
    "table of images frozen": _frozen(B("table_of_images", always=True)),
    "table of images behind": _behind(B("table_of_images", always=True)),
    "generator of its own": _frozen(B("held_numpy", always=True)),
    "buffer in place": _behind(B("buffer_in_place"), checks=RESUME),
    "buffer anew": _behind(B("buffer_anew"), checks=RESUME),
    "buffer anew in evaluation": Case(Spec(blocks=(B("buffer_anew", always=True),)), freeze="none"),
    "buffer by lerp": _behind(B("buffer_running")),
    "buffer frozen": _frozen(B("buffer_in_place", always=True)),
    "normal frozen": _frozen(B("normal", always=True)),
    "exponential frozen": _frozen(B("exponential", always=True)),
    "poisson frozen": _frozen(B("poisson", always=True)),
    "gumbel frozen": _frozen(B("gumbel", always=True)),
    "mask frozen": _frozen(B("dropout_mask", always=True)),
    "python draws frozen": _frozen(B("random_python", always=True)),
    "draws in evaluation": _behind(B("uniform", always=True), B("random_numpy", always=True), checks=RESUME),
    "mean of the batch frozen": _frozen(B("mix_mean", always=True)),
    "roll of the batch frozen": _frozen(B("mix_roll", always=True)),
    "sort of the batch frozen": _frozen(B("mix_sort", always=True)),
    "mean of the batch frozen in training": _frozen(B("mix_mean"), rule="names:stem*,blocks.0*"),
    "roll of the batch frozen in training": _frozen(B("mix_roll"), rule="names:stem*,blocks.0*"),
    "normal frozen in training": _frozen(B("normal"), rule="names:stem*,blocks.0*"),
    "other weights": Case(Spec(blocks=(B("conv"),)), checks=("cache", "weights")),
    "normal in training by names": _frozen(B("normal", bare=True), rule="names:stem*"),
    "branch on the batch frozen": _frozen(B("mix_branch", always=True)),
    "norm of the batch frozen": _frozen(B("mix_batch_norm", always=True)),
    "view across images frozen": _frozen(B("mix_view", always=True)),
    "norm of the batch behind": _behind(B("mix_batch_norm", always=True)),
    "order of the batch behind": _behind(B("mix_index", always=True)),
    "norm behind": Case(Spec(blocks=(B("norm_batch"), B("norm_batch"))), freeze="until:blocks.0", checks=RESUME),
    "dropout behind": _behind(B("dropout"), B("attention_dropout"), checks=RESUME),
    "spectral norm": _frozen(B("spectral_norm")),
    "star of a shape": _frozen(B("shuffle"), checks=KEY),
    "equal heads": Case(Spec(head="equal"), more=(("head.scores", "all"),)),
    "embedding in training": Case(Spec(head="embedding")),
    "embedding, scores said": Case(Spec(head="embedding"), more=(("head.scores", 0),), checks=RESUME),
    "dictionary, scores said": Case(Spec(head="dict"), more=(("head.scores", "logits"),)),
    "plain list": Case(Spec(container="plain")),
    "lazy": Case(Spec(stem="lazy")),
    "written in place and skipped": Case(
        Spec(blocks=(B("in_place_input"), B("conv")), root=("skip",)), freeze="until:stem"
    ),
    "tied": Case(Spec(blocks=(B("conv"), B("conv"), B("conv")), root=("tied",)), freeze="until:blocks.1"),
    "frozen by the user": Case(Spec(root=("user_frozen",)), recipe="lp_ft", freeze="none"),
    "average and penalty in two phases": Case(
        Spec(blocks=(B("norm_group"), B("dropout"))), recipe="lp_ft", freeze="none", checks=RESUME,
        more=(("average.kind", "ema"), ("penalties.l2_start", 0.1), ("batch.accumulate", 2)),
    ),
    "features in micro-batches": Case(
        Spec(blocks=(B("functional"), B("attention_plain"), B("in_place_view", k=0.8)), root=("normalise",),
             head="mlp", stem="patches", k=0.8, seed=2), recipe="probe", more=(("batch.accumulate", 2),),
    ),
    "validation of a replaced forward": Case(
        Spec(blocks=(B("norm_layer"), B("forward_block", k=0.8), B("repeated", k=1.25), B("orthogonal")),
             container="sequential", head="dict", stem="patches", seed=2),
        freeze="until:blocks.2", more=(("head.scores", "logits"),),
    ),
    "a padded batch that is not contiguous": Case(
        Spec(blocks=(B("norm_layer"), B("forward_partial", k=0.8), B("interpolate"), B("forward_block", k=0.8)),
             container="sequential", head="aux", seed=2), freeze="until:blocks.0", more=(("head.scores", "logits"),),
    ),
    "kept in a trace that fails": Case(
        Spec(blocks=(B("table", k=0.8), B("random_numpy", k=1.25, always=True)), container="attributes"),
        recipe="probe", freeze="none", checks=(),
    ),
    "module without weights": Case(Spec(blocks=(B("conv"), B("randn", bare=True), B("conv"))), freeze="until:blocks.1"),
}  # fmt: skip
OPEN: tuple[str, ...] = ()
"""Names of cases that do not hold yet."""
