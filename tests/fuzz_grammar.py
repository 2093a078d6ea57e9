"""Modules drawn from a grammar: a stem, a chain of blocks of named kinds, features of the root, a linear head.

``Spec`` says everything about a module; ``build(spec)`` makes it in any process. Each kind knows what is true of it by
construction: whether it is a function of the image alone, always or in evaluation, and what a reason may call it.
Images (B, 3, 32, 32); every block maps (B, 8, 8, 8) to the same shape, so blocks can be dropped one by one.
"""

from __future__ import annotations

import functools
import random
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

WIDTH = 8
CLASSES_BEFORE = 10
Purity = Literal["always", "eval", "never", "unknown"]
"""always: per image, deterministic and stateless; eval: in evaluation mode; unknown: nothing is claimed."""


@dataclass(frozen=True)
class B:
    """A block: its kind, a constant that its value depends on, whether what it does outside the rules it does in
    evaluation too, and whether it holds no weights."""

    kind: str
    k: float = 0.5
    always: bool = False
    bare: bool = False


@dataclass(frozen=True)
class Spec:
    """Everything about a module."""

    blocks: tuple[B, ...] = (B("conv"),)
    container: str = "list"  # list, sequential, dict, attributes, plain (a Python list)
    root: tuple[str, ...] = ()
    head: str = "plain"
    stem: str = "conv"
    k: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Kind:
    """What is known of a kind: ``pure``, also where it acts in training only; ``words``: what a reason may call it;
    ``python_state``: it keeps something outside of buffers; ``refused``: words of the refusal that is documented."""

    make: type[Block]
    pure: Purity
    pure_if_training_only: Purity
    words: tuple[str, ...] = ()
    python_state: bool = False
    mixes: bool = False
    random: bool = False


KINDS: dict[str, Kind] = {}


class Block(nn.Module):
    """A convolution with a residual, and what its kind adds to it."""

    def __init__(self, which: B) -> None:
        super().__init__()
        self.k, self.always, self.kind = which.k, which.always, which.kind
        self.conv = nn.Identity() if which.bare else nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.make()

    def make(self) -> None:
        pass

    def acts(self) -> bool:
        return self.always or self.training

    def forward(self, x: Tensor) -> Tensor:
        return x + self.k * torch.relu(self.conv(x))

    def hidden(self) -> Any:
        """State that is neither a buffer nor an attribute, for the laws that compare it."""
        return None


def kind(*names: str, pure: Purity = "always", train: Purity | None = None, **known: Any) -> Callable[[type], type]:
    """Register a class under names, each one a variant that it finds in ``self.kind``."""

    def register(made: type[Block]) -> type[Block]:
        for name in names:
            KINDS[name] = Kind(make=made, pure=pure, pure_if_training_only=train or pure, **known)
        return made

    return register


@kind("conv")
class Conv(Block):
    pass


@kind("norm_batch", pure="eval", words=("BatchNorm", "batch_norm", "statistics"))
class ConvNorm(Block):
    def make(self) -> None:
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.k * torch.relu(self.norm(self.conv(x)))


@kind("norm_group", "norm_layer", "norm_instance", "norm_local")
class Norm(Block):
    def make(self) -> None:
        made = {
            "norm_group": nn.GroupNorm(2, WIDTH), "norm_layer": nn.LayerNorm(WIDTH),
            "norm_instance": nn.InstanceNorm2d(WIDTH, affine=True), "norm_local": nn.LocalResponseNorm(3),
        }  # fmt: skip
        self.norm = made[self.kind]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "norm_layer":
            return F.gelu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) * self.k
        return F.silu(self.norm(x)) * self.k


@kind("attention_module", "attention_fused", "attention_einsum", "attention_plain")
class Attention(Block):
    def make(self) -> None:
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if self.kind == "attention_module" else None
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        if self.mix is not None:
            mixed = self.mix(tokens, tokens, tokens, need_weights=False)[0]
        else:
            q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4).unbind(0)
            if self.kind == "attention_fused":
                mixed = F.scaled_dot_product_attention(q, k, v)
            elif self.kind == "attention_einsum":
                weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
                mixed = torch.einsum("bhqk,bhkd->bhqd", weights, v)
            else:
                mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
            mixed = mixed.transpose(1, 2).flatten(2)
        return x + self.k * mixed.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))


@kind("functional", "pad", "interpolate", "einsum", "gate", "shuffle", "stack", "unfold", "topk", "where", "gelu_tanh")
class Functional(Block):
    def make(self) -> None:
        if self.kind in ("functional", "einsum", "gate"):
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = getattr(self, "_" + self.kind)(self.conv(x))
        return made * self.k + x

    def _functional(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight[:, :, None, None]))

    def _pad(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)

    def _interpolate(self, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="bilinear", align_corners=False)

    def _einsum(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", x, self.weight)

    def _gate(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3)) @ self.weight)[:, :, None, None]

    def _shuffle(self, x: Tensor) -> Tensor:
        return x.reshape(x.size(0), 2, WIDTH // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)

    def _stack(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.cat([right, left], dim=1) + torch.stack([x, x * 2]).sum(0)

    def _unfold(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2).tanh()

    def _topk(self, x: Tensor) -> Tensor:
        return x * (x >= x.flatten(1).topk(8, dim=1).values[:, -1:, None, None]).to(x.dtype)

    def _where(self, x: Tensor) -> Tensor:
        return torch.where(x.mean((1, 2, 3), keepdim=True) > 0, x, x * 2)

    def _gelu_tanh(self, x: Tensor) -> Tensor:
        return F.gelu(x.clamp(-2, 2), approximate="tanh")


@kind("in_place_relu", "in_place_input", "in_place_index", "in_place_view")
class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "in_place_input":
            x = x.clone() if x.is_leaf and x.requires_grad else x
            x.mul_(self.k)
            return x + self.conv(x)
        made = self.conv(x) * 1.0
        if self.kind == "in_place_relu":
            made += self.k
            made.relu_()
        elif self.kind == "in_place_index":
            made = made.clone()
            made[:, 0] = made[:, 1] * self.k
        else:
            made.flatten(2)[:, :, ::2].mul_(self.k)
        return x + made


@kind("tied", "repeated", "shared_weight")
class Tied(Block):
    def make(self) -> None:
        self.other = nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if self.kind == "shared_weight" else self.conv
        if self.kind == "shared_weight" and isinstance(self.conv, nn.Conv2d):
            self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.k * torch.relu(self.conv(x))
        if self.kind == "repeated":
            for _ in range(2):
                x = x + self.k * torch.relu(self.conv(x))
        return x + torch.relu(self.other(x))


@kind("scale", "tensor_attribute", "buffer_constant", "closure_constant", "list_constant")
class Constants(Block):
    def make(self) -> None:
        self.scale, shift, self.steps = self.k, torch.randn(WIDTH, 1, 1), [self.k, 1.0]
        self.register_buffer("plus", shift * self.k)
        self.shift = shift if self.kind == "tensor_attribute" else None
        k = self.k
        self.function = (lambda x: torch.tanh(x) * k) if self.kind == "closure_constant" else None

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.kind == "tensor_attribute":
            made = made + self.shift * self.k
        elif self.kind == "buffer_constant":
            made = made + self.plus
        elif self.kind == "list_constant":
            for step in self.steps:
                made = made * step
        elif self.function is not None:
            made = self.function(made)
        return x + made * self.scale


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)


class Table(Block):
    """Keeps what it made in a dictionary, which ``train`` empties, as timm's LeViT does."""

    def make(self) -> None:
        self.table: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Table:
        super().train(mode)
        if self.table:
            self.table = {}
        return self

    def looked_up(self, maker: Callable[[], Tensor]) -> Tensor:
        if "all" not in self.table:
            self.table["all"] = maker()
        return self.table["all"]


@kind("table")
class WeightTable(Table):
    """Of weights: equal to the bit whenever it is made."""

    def make(self) -> None:
        super().make()
        self.bias = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("order", torch.arange(WIDTH).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        in_order = self.bias[self.order] if self.training else self.looked_up(lambda: self.bias[self.order].detach())
        return x + self.k * torch.relu(self.conv(x) + in_order[:, None, None])


@kind("table_of_images", pure="never", python_state=True, mixes=True,
      words=("table", "state", "attribute", "mix", "mean", "batch", "other images"))  # fmt: skip
class ImageTable(Table):
    """Of the first batch's images."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.acts():
            made = made + self.looked_up(lambda: made.detach().mean((0, 2, 3))[:, None, None])
        return x + self.k * made


@kind("weight_norm", "symmetric", "orthogonal")
@kind("spectral_norm", pure="eval", words=("spectral", "parametriz", "_u", "_v"))
class Parametrized(Block):
    def make(self) -> None:
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        if self.kind == "weight_norm":
            parametrizations.weight_norm(self.conv)
        elif self.kind == "spectral_norm":
            parametrizations.spectral_norm(self.conv)
        elif self.kind == "orthogonal":
            self.conv = nn.Conv2d(WIDTH, WIDTH, 1)
            parametrizations.orthogonal(self.conv)
        else:
            parametrize.register_parametrization(self.conv, "weight", Symmetric())


@kind("double", "bfloat", "half_inside")
class Typed(Block):
    def forward(self, x: Tensor) -> Tensor:
        kinds = {"double": torch.float64, "bfloat": torch.bfloat16, "half_inside": torch.float16}
        wide = self.conv(x).to(kinds[self.kind])
        return x + self.k * torch.tanh(wide * 0.7).to(x.dtype)


@kind("sequential", "module_dict", "module_list", "nested")
class Containers(Block):
    def make(self) -> None:
        conv, more = self.conv, nn.Conv2d(WIDTH, WIDTH, 1)
        self.inner: nn.Module
        if self.kind == "module_dict":
            self.inner = nn.ModuleDict({"first": conv, "second": more})
        elif self.kind == "module_list":
            self.inner = nn.ModuleList([conv, more])
        else:
            parts = nn.Sequential(conv, nn.GELU(), more)
            self.inner = nn.Sequential(parts, nn.Identity()) if self.kind == "nested" else parts
        del self.conv

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.ModuleDict):
            return x + self.k * self.inner["second"](torch.relu(self.inner["first"](x)))
        if isinstance(self.inner, nn.ModuleList):
            made = x
            for part in self.inner:
                made = torch.relu(part(made))
            return x + self.k * made
        return x + self.k * self.inner(x)


@kind("hook_leaf", "hook_leaf_pre", "hook_block", "hook_block_pre", "hook_always_call", "hook_kwargs")
class Hooked(Block):
    """Hooks that change values, each the same way in every call."""

    def make(self) -> None:
        k, inner = self.k, self.conv
        if self.kind == "hook_leaf":
            inner.register_forward_hook(lambda module, args, out: out * k)
        elif self.kind == "hook_leaf_pre":
            inner.register_forward_pre_hook(lambda module, args: (args[0].flip(1) * k,))
        elif self.kind == "hook_block":
            self.register_forward_hook(lambda module, args, out: out.flip(1) * k)
        elif self.kind == "hook_block_pre":
            self.register_forward_pre_hook(lambda module, args: (args[0] + k,))
        elif self.kind == "hook_kwargs":
            inner.register_forward_hook(lambda module, args, kwargs, out: out - k, with_kwargs=True)
        else:
            inner.register_forward_hook(lambda module, args, out: torch.tanh(out) * k, always_call=True)


def scaled_forward(module: nn.Module, x: Tensor, *, k: float) -> Tensor:
    """What takes a forward's place."""
    return type(module).forward(module, x.flip(1)) * k


@kind("forward_method", "forward_lambda", "forward_partial", "forward_block")
class Patched(Block):
    """A forward replaced on the instance."""

    def make(self) -> None:
        k, inner = self.k, self.conv
        if self.kind == "forward_method":
            inner.forward = types.MethodType(functools.partial(scaled_forward, k=k), inner)
        elif self.kind == "forward_lambda":
            inner.forward = lambda x: type(inner).forward(inner, x) * k
        elif self.kind == "forward_partial":
            inner.forward = functools.partial(scaled_forward, inner, k=k)
        else:
            self.forward = types.MethodType(lambda this, x: Block.forward(this, x) + k, self)


@kind("dropout", "dropout2d", "alpha_dropout", "dropout_call", "rrelu", "drop_path", "attention_dropout",
      pure="eval", random=True, words=("dropout", "Dropout", "rrelu", "RReLU", "random", "rand"))  # fmt: skip
class Dropping(Block):
    """Random in training, by torch's own word."""

    def make(self) -> None:
        made = {"dropout": nn.Dropout(0.2), "dropout2d": nn.Dropout2d(0.2), "alpha_dropout": nn.AlphaDropout(0.2)}
        self.drop = made.get(self.kind, nn.RReLU() if self.kind == "rrelu" else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        made = self.drop(self.conv(x))
        if self.kind == "dropout_call":
            made = F.dropout(made, 0.3, self.training)
        elif self.kind == "drop_path" and self.training:
            made = made * made.new_empty(made.shape[0], 1, 1, 1).bernoulli_(0.7)
        elif self.kind == "attention_dropout":
            tokens = made.flatten(2)
            dropped = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.2 if self.training else 0.0)
            made = dropped.reshape(x.shape)
        return x + self.k * made


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x + torch.normal(0.0, 0.1, x.shape),
    "exponential": lambda x: x * torch.empty_like(x).exponential_(4.0),
    "poisson": lambda x: x + torch.poisson(torch.full_like(x, 0.3)),
    "gumbel": lambda x: x * F.gumbel_softmax(x, dim=1),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.7)),
    "rand_like": lambda x: x + 0.1 * torch.rand_like(x),
    "randn": lambda x: x + 0.1 * torch.randn(x.shape),
    "randint": lambda x: x * torch.randint(1, 3, (x.shape[0], 1, 1, 1)),
    "multinomial": lambda x: x * (0.5 + torch.multinomial(torch.ones(4), 1).float()),
    "randperm": lambda x: x[:, torch.randperm(x.shape[1])],
    "forced_dropout": lambda x: F.dropout(x, 0.2, True),
    "feature_dropout": lambda x: F.dropout2d(x, 0.2, True),
    "geometric": lambda x: x + torch.empty_like(x).geometric_(0.9),
    "cauchy": lambda x: x + torch.empty_like(x).cauchy_().clamp(-0.1, 0.1),
    "log_normal": lambda x: x * torch.empty_like(x).log_normal_(0.0, 0.1),
    "uniform": lambda x: x + torch.empty_like(x).uniform_(0, 0.1),
    "init": lambda x: x + nn.init.trunc_normal_(torch.empty_like(x), std=0.1),
    "distribution": lambda x: x + torch.distributions.Normal(0.0, 0.1).sample(x.shape),
    "random_numpy": lambda x: x + torch.from_numpy(np.random.normal(0, 0.1, tuple(x.shape)).astype("float32")),
    "random_python": lambda x: x * (1 + 0.2 * random.random()),
    "forced_rrelu": lambda x: F.rrelu(x, training=True),
    "binomial": lambda x: x * torch.binomial(torch.full_like(x, 2.0), torch.full_like(x, 0.5)),
    "dirichlet": lambda x: x * torch._sample_dirichlet(torch.ones(x.shape[0], WIDTH))[:, :, None, None],
    "gamma": lambda x: x * torch._standard_gamma(torch.full_like(x, 2.0)),
    "dropout_mask": lambda x: x * torch.native_dropout(torch.ones_like(x), 0.3, True)[0],
}


@kind(*NOISES, pure="never", train="eval", random=True,
      words=("rand", "normal", "exponential", "poisson", "gumbel", "bernoulli", "multinomial", "dropout", "geometric",
             "cauchy", "uniform", "rrelu", "draw", "binomial", "dirichlet", "gamma"))  # fmt: skip
class Noise(Block):
    """Random by another way than a layer's."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.acts():
            made = NOISES[self.kind](made)
        return x + self.k * made


@kind("held_python", "held_numpy", "held_torch", pure="never", train="eval", python_state=True, random=True,
      words=("rand", "generator", "Generator", "state", "attribute", "draw", "held"))  # fmt: skip
class HeldGenerator(Block):
    """Random by a generator of its own."""

    def make(self) -> None:
        self.held: Any = {
            "held_python": lambda: random.Random(7), "held_numpy": lambda: np.random.default_rng(7),
            "held_torch": lambda: torch.Generator().manual_seed(7),
        }[self.kind]()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.acts():
            if self.kind == "held_torch":
                made = made * (0.5 + torch.rand(1, generator=self.held))
            else:
                made = made * (0.5 + self.held.random())
        return x + self.k * made


DEPTHS: dict[str, Callable[[], float]] = {
    "depth_python": lambda: random.random(),
    "depth_numpy": lambda: float(np.random.rand()),
    "depth_torch": lambda: torch.rand(1).item(),
    "depth_choice": lambda: random.choice([0.1, 0.9]),
}


@kind(*DEPTHS, pure="never", train="eval", random=True, words=("random", "rand", "draw", "item", "choice", "branch"))
class Depth(Block):
    """Left out at random."""

    def forward(self, x: Tensor) -> Tensor:
        if self.acts() and DEPTHS[self.kind]() < 0.5:
            return x
        return x + self.k * torch.relu(self.conv(x))


@kind("count_int", "count_list", "count_dict", "count_closure", "count_hook", "count_hook_silent", "count_scale_hook",
      "count_nested", "first_batch", "count_tensor_attribute", pure="never", train="eval", python_state=True,
      words=("count", "calls", "attribute", "state", "seen", "closure", "scale", "changes", "hook"))  # fmt: skip
class Counting(Block):
    """State that is no buffer: what it gives depends on how often it was called."""

    def make(self) -> None:
        self.calls, self.seen, self.table, self.scale = 0, [], {"calls": 0}, 1.0
        self.tick = torch.zeros(1) if self.kind == "count_tensor_attribute" else None
        self.nested = types.SimpleNamespace(calls=0)
        self.first: float | None = None
        cell = [0]

        def count() -> int:
            cell[0] += 1
            return cell[0]

        def peek() -> int:
            return cell[0]

        self.count, self.peek = (count, peek) if self.kind == "count_closure" else (None, None)
        if self.kind in ("count_hook", "count_hook_silent", "count_scale_hook"):
            self.conv.register_forward_pre_hook(self._tick)

    def hidden(self) -> Any:
        return None if self.peek is None else self.peek()

    def _tick(self, module: nn.Module, args: Any) -> None:
        if self.acts():
            self.calls += 1
            self.scale *= 0.97

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if not self.acts():
            return x + self.k * made
        return x + self.k * made * self._factor(made)

    def _factor(self, made: Tensor) -> Any:
        match self.kind:
            case "count_int":
                self.calls += 1
                return 1 + self.calls / 20
            case "count_list":
                self.seen.append(1)
                return 1 + len(self.seen) / 20
            case "count_dict":
                self.table["calls"] += 1
                return 1 + self.table["calls"] / 20
            case "count_nested":
                self.nested.calls += 1
                return 1 + self.nested.calls / 20
            case "count_closure":
                return 1 + self.count() / 20
            case "count_hook":
                return 1 + self.calls / 20
            case "count_scale_hook":
                return self.scale
            case "count_tensor_attribute":
                self.tick += 1
                return 1 + self.tick / 20
            case "first_batch":
                self.first = made.mean().item() if self.first is None else self.first
                return 1 + self.first
            case _:
                return 1.0


@kind("buffer_in_place", "buffer_anew", "buffer_copy", "buffer_running", "buffer_data", "parameter_data",
      pure="never", train="eval", words=("buffer", "state", "n ", ".n", "running", "in place", "writes"))  # fmt: skip
class Buffers(Block):
    """State in buffers, written in several ways."""

    def make(self) -> None:
        self.register_buffer("n", torch.zeros(1))
        self.register_buffer("running", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.acts():
            match self.kind:
                case "buffer_in_place":
                    self.n += 1
                case "buffer_anew":
                    self.n = self.n + 1
                case "buffer_copy":
                    self.n.copy_(self.n + 1)
                case "buffer_data":
                    self.n.data = self.n.data + 1
                case "parameter_data":
                    self.n.data.add_(1)
                case _:
                    with torch.no_grad():
                        self.running.lerp_(made.mean((0, 2, 3)), 0.1)
        return x + self.k * made * (1 + self.n / 20) + self.running[:, None, None]


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "mix_mean": lambda x: x - x.mean(0, keepdim=True),
    "mix_roll": lambda x: x + x.roll(1, 0),
    "mix_flip": lambda x: x + x.flip(0),
    "mix_batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "mix_softmax": lambda x: x * x.softmax(0),
    "mix_shift": lambda x: x + 0.5 * torch.cat([x[1:], x[:1]]),
    "mix_sort": lambda x: x + x.sort(0).values,
    "mix_max": lambda x: x / (1 + x.abs().max()),
    "mix_std": lambda x: x / (1 + x.std()),
    "mix_cumsum": lambda x: x + 0.1 * x.cumsum(0),
    "mix_matmul": lambda x: ((x.flatten(1) @ x.flatten(1).T).softmax(1) @ x.flatten(1)).reshape(x.shape),
    "mix_index": lambda x: x + x[x.flatten(1).sum(1).argsort()],
    "mix_view": lambda x: x + x.reshape(-1).roll(1).reshape(x.shape),
    "mix_transpose": lambda x: x - x.transpose(0, 1).mean(1),
    "mix_branch": lambda x: x * 2 if x.mean() > 0 else x * 0.5,
    "mix_branch_any": lambda x: x * 2 if bool((x > 1).any()) else x,
    "mix_item": lambda x: x * x.mean().item(),
    "mix_expand": lambda x: x + x[:1].expand(x.shape),
    "mix_count": lambda x: x * (x.shape[0] / 8),
    "mix_norm": lambda x: x / (1 + torch.linalg.vector_norm(x)),
    "mix_attention": lambda x: x + F.scaled_dot_product_attention(*[x.flatten(1)] * 3).reshape(x.shape),
    "mix_instance": lambda x: F.instance_norm(x.transpose(0, 1)).transpose(0, 1),
    "mix_layer": lambda x: F.layer_norm(x.movedim(0, -1), (x.shape[0],)).movedim(-1, 0),
    "mix_place": lambda x: x * torch.arange(1, x.shape[0] + 1)[:, None, None, None] / 4,
    "mix_scatter": lambda x: x.index_add(0, torch.arange(x.shape[0]).flip(0), x * 0.5),
    "mix_conv": lambda x: x + F.avg_pool1d(x.permute(1, 2, 3, 0).flatten(0, 1), 3, 1, 1).reshape(
        x.shape[1], x.shape[2], x.shape[3], x.shape[0]).permute(3, 0, 1, 2),
    "mix_write": lambda x: torch.cat([x[:1], x[1:] * 2]),
}  # fmt: skip


@kind(*MIXES, pure="never", train="eval", mixes=True,
      words=("mix", "batch", "mean", "roll", "flip", "softmax", "sort", "cat", "max", "std", "cumsum", "branch", "item",
             "image", "order", "alone"))  # fmt: skip
class Mixing(Block):
    """What an image gets depends on the others of its batch, or on their number and order."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        if self.acts():
            made = MIXES[self.kind](made)
        return x + self.k * made


@kind("mix_batch_norm_running", pure="never", train="eval", mixes=True, words=("batch_norm", "batch", "running"))
class FunctionalBatchNorm(Block):
    """Functional batch norm that moves its statistics."""

    def make(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("var", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.k * F.batch_norm(self.conv(x), self.mean, self.var, training=self.acts())


@kind("mode_switch", pure="eval", words=("train", "mode", "eval"))
class ModeSwitch(Block):
    """Other values in training than in evaluation, each a function of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.k if self.training else 1.0) * torch.tanh(self.conv(x))


PURE_KINDS = tuple(name for name, known in KINDS.items() if known.pure == "always")
OTHER_KINDS = tuple(name for name, known in KINDS.items() if known.pure != "always")

Logits = namedtuple("Logits", ("logits", "aux"))


@dataclass(frozen=True)
class RootFeature:
    """What the root does besides: ``front``: what it does to the image; ``after_stem``: to what the stem gives."""

    front: Purity = "always"
    after_stem: Purity = "always"
    words: tuple[str, ...] = ()
    python_state: bool = False
    random: bool = False


_ROOT_WORDS = ("root", "model", "forward", "Drawn", "the module")
_STATE_WORDS = ("calls", "state", "attribute", *_ROOT_WORDS)
ROOT: dict[str, RootFeature] = {
    "pre_hook": RootFeature(), "post_hook": RootFeature(), "method": RootFeature(), "lambda": RootFeature(),
    "partial": RootFeature(), "scale_input": RootFeature(), "normalise": RootFeature(), "skip": RootFeature(),
    "repeat": RootFeature(), "tied": RootFeature(), "drop": RootFeature(random=True),
    "user_frozen": RootFeature(), "given_in_eval": RootFeature(), "image_skip": RootFeature(),
    "pre_hook_noise": RootFeature(front="never", words=("rand", *_ROOT_WORDS), random=True),
    "mix_input": RootFeature(front="never", words=("mean", "mix", "batch", *_ROOT_WORDS)),
    "noise_input": RootFeature(front="never", words=("rand", *_ROOT_WORDS), random=True),
    "counter_input": RootFeature(front="never", words=_STATE_WORDS, python_state=True),
    "count_hook": RootFeature(front="unknown", words=(*_STATE_WORDS, "hook"), python_state=True),
    "noise_after_stem": RootFeature(after_stem="never", words=("rand", *_ROOT_WORDS), random=True),
    "depth": RootFeature(after_stem="never", words=("random", "rand", *_ROOT_WORDS), random=True),
    "branch": RootFeature(after_stem="never", words=("mean", "branch", "item", *_ROOT_WORDS)),
    "counter_tail": RootFeature(after_stem="unknown", words=_STATE_WORDS, python_state=True),
    "buffer_tail": RootFeature(after_stem="unknown", words=("n", "state", "buffer", *_ROOT_WORDS)),
}  # fmt: skip
HEADS = {  # what the model gives; the words of a refusal that is documented
    "plain": (), "mlp": (), "conv": (), "equal": ("head.scores", "several outputs"), "aux": ("head.scores",),
    "dict": ("head.scores",), "embedding": ("head.scores",),
}  # fmt: skip


STEMS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, WIDTH, 5, 4, 2),
    "conv_norm": lambda: nn.Sequential(nn.Conv2d(3, WIDTH, 5, 4, 2, bias=False), nn.BatchNorm2d(WIDTH)),
    "patches": lambda: nn.Conv2d(3, WIDTH, 4, 4),
    "lazy": lambda: nn.LazyConv2d(WIDTH, 5, 4, 2),
}


class Drawn(nn.Module):
    """A module as a spec says. Its code names nothing of the grammar, all of which would then be part of it."""

    def __init__(self, spec: Spec, stem: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.root, self.head, self.container, self.k = spec.root, spec.head, spec.container, spec.k
        self.stem = stem
        if "tied" in spec.root and len(blocks) > 1:
            blocks[-1] = blocks[0]
        self.names = tuple(f"block{place}" for place in range(len(blocks)))
        self._hold(blocks)
        self.fc = nn.Linear(WIDTH, CLASSES_BEFORE) if spec.head != "conv" else nn.Conv2d(WIDTH, CLASSES_BEFORE, 1)
        self.pre = nn.Linear(WIDTH, WIDTH) if spec.head == "mlp" else nn.Identity()
        if spec.head in ("equal", "aux", "embedding"):
            self.fc2 = nn.Linear(WIDTH, 16 if spec.head == "embedding" else CLASSES_BEFORE)
        self.scale, self.calls = spec.k, 0
        self.register_buffer("mean", torch.full((3, 1, 1), 0.1) if "normalise" in spec.root else torch.zeros(1))
        self.register_buffer("n", torch.zeros(1))
        self._change()

    def _hold(self, blocks: list[nn.Module]) -> None:
        match self.container:
            case "list":
                self.blocks: Any = nn.ModuleList(blocks)
            case "sequential":
                self.blocks = nn.Sequential(*blocks)
            case "dict":
                self.blocks = nn.ModuleDict(dict(zip(self.names, blocks, strict=True)))
            case "plain":
                self.blocks = list(blocks)
            case _:
                for name, block in zip(self.names, blocks, strict=True):
                    setattr(self, name, block)

    def _change(self) -> None:
        """Hooks and forwards on the root itself."""
        k = self.k
        if "pre_hook" in self.root:
            self.register_forward_pre_hook(lambda module, args: (args[0].flip(1) * k,))
        if "pre_hook_noise" in self.root:
            self.register_forward_pre_hook(lambda module, args: (args[0] + 0.1 * torch.rand_like(args[0]),))
        if "post_hook" in self.root:
            self.register_forward_hook(lambda module, args, out: _scaled(out, k))
        if "count_hook" in self.root:
            self.register_forward_hook(_counted)
        if "method" in self.root:
            self.forward = types.MethodType(lambda this, x: Drawn.forward(this, x.flip(1) * k), self)
        if "lambda" in self.root:
            self.forward = lambda x: Drawn.forward(self, x * k)
        if "partial" in self.root:
            self.forward = functools.partial(_called, self, k=k)
        if "user_frozen" in self.root:
            for parameter in self.stem.parameters():
                if not nn.parameter.is_lazy(parameter):
                    parameter.requires_grad_(False)

    def ordered(self) -> list[nn.Module]:
        """The blocks in order."""
        match self.container:
            case "dict":
                return [self.blocks[name] for name in self.names]
            case "attributes":
                return [getattr(self, name) for name in self.names]
            case _:
                return list(self.blocks)

    def forward(self, x: Tensor) -> Any:
        x = self._front(x)
        image = x
        x = torch.relu(self.stem(x)) + 0.1  # a sum: blocks may write to it in place
        if "noise_after_stem" in self.root and self.training:
            x = x + 0.1 * torch.rand_like(x)
        if "branch" in self.root and x.mean() > 0.2:
            x = x * 0.5
        x = self._through(x)
        if "image_skip" in self.root:
            x = x + image.mean((1, 2, 3), keepdim=True)
        return self._head(x)

    def _front(self, x: Tensor) -> Tensor:
        if "scale_input" in self.root:
            x = x * self.scale
        if "normalise" in self.root:
            x = (x - self.mean) * 2
        if "mix_input" in self.root:
            x = x - x.mean(0, keepdim=True)
        if "noise_input" in self.root and self.training:
            x = x + 0.1 * torch.randn(x.shape)
        if "counter_input" in self.root and self.training:
            self.calls += 1
            x = x * (1 + self.calls / 20)
        return x

    def _through(self, x: Tensor) -> Tensor:
        early = x
        if self.container == "sequential" and "depth" not in self.root:
            x = self.blocks(x)
        else:
            for block in self.ordered():
                if "depth" in self.root and self.training and random.random() < 0.3:
                    continue
                x = block(x)
        if "repeat" in self.root:
            x = self.ordered()[0](x)
        return x + early if "skip" in self.root else x

    def _head(self, x: Tensor) -> Any:
        if "counter_tail" in self.root:
            self.calls += self.training
            x = x * (1 + self.calls / 20)
        if "buffer_tail" in self.root:
            if self.training:
                self.n += 1
            x = x * (1 + self.n / 20)
        if self.head == "conv":
            return self.fc(F.adaptive_avg_pool2d(x, 1)).flatten(1)
        features = self.pre(x.mean((2, 3)))
        if "drop" in self.root:
            features = F.dropout(features, 0.2, self.training)
        match self.head:
            case "equal":
                return self.fc(features), self.fc2(features)
            case "aux":
                return Logits(self.fc(features), self.fc2(features)) if self.training else self.fc(features)
            case "embedding":
                return (self.fc(features), self.fc2(features)) if self.training else self.fc(features)
            case "dict":
                return {"logits": self.fc(features)}
            case _:
                return self.fc(features)


def _scaled(out: Any, k: float) -> Any:
    return out * k if isinstance(out, Tensor) else out


def _counted(module: Any, args: Any, out: Any) -> None:
    module.calls += 1


def _called(module: Drawn, x: Tensor, *, k: float) -> Any:
    return Drawn.forward(module, x + k)


def build(spec: Spec) -> Drawn:
    """The module of a spec: the same values in every process, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        stem = STEMS[spec.stem]()
        made = Drawn(spec, stem, [KINDS[which.kind].make(which) for which in spec.blocks])
    if "given_in_eval" in spec.root:
        made.eval()
    return made


@dataclass(frozen=True)
class Truth:
    """What is known of a spec where its stem and its first blocks are frozen.

    ``cacheable``: by construction something with weights can be cached; ``clean``: nothing in the module is outside the
    rules; ``words``: what a true reason or refusal may name.
    """

    cacheable: bool
    clean: bool
    python_state: bool
    random: bool
    words: tuple[str, ...]
    refusals: tuple[str, ...]


def truth(spec: Spec, *, stem_frozen: bool = True) -> Truth:
    """See ``Truth``."""
    parts = [(place, which, KINDS[which.kind]) for place, which in enumerate(spec.blocks)]
    features = [ROOT[name] for name in spec.root]
    words: list[str] = []
    for place, which, known in parts:
        if known.pure != "always":
            words += [*known.words, f"block{place}", f"blocks.{place}", known.make.__name__, which.kind]
    for feature in features:
        words += feature.words
    front = all(feature.front == "always" for feature in features)
    refusals = [*HEADS[spec.head]]
    refusals += ["list", "registered"] if spec.container == "plain" else []
    refusals += ["lazy", "Lazy", "uninitialized", "initial"] if spec.stem == "lazy" else []
    return Truth(
        cacheable=stem_frozen and front,
        clean=all(known.pure == "always" for _, _, known in parts) and all(
            feature.front == feature.after_stem == "always" for feature in features),
        python_state=any(known.python_state for _, _, known in parts) or any(f.python_state for f in features),
        random=any(known.random for _, _, known in parts) or any(f.random for f in features),
        words=tuple(words), refusals=tuple(refusals),
    )  # fmt: skip


def always_random(spec: Spec) -> bool:
    """Whether it draws in evaluation too."""
    noisy = any(which.always and KINDS[which.kind].random for which in spec.blocks)
    return noisy or "pre_hook_noise" in spec.root


def hidden_state(module: nn.Module) -> Iterator[Any]:
    """State that blocks keep in closures."""
    for part in module.modules():
        if isinstance(part, Block):
            yield part.hidden()


def draw_spec(seed: int) -> Spec:
    """A module from the grammar."""
    draw = random.Random(f"spec {seed}")
    clean = draw.random() < 0.4
    blocks = []
    for _ in range(draw.randint(2, 5)):
        kinds = PURE_KINDS if clean or draw.random() < 0.55 else OTHER_KINDS
        name = draw.choice(kinds)
        impure = KINDS[name].pure == "never"
        blocks.append(
            B(name, k=draw.choice((0.5, 0.8, 1.25)), always=impure and draw.random() < 0.4, bare=_bare(name, draw))
        )
    pure_features = [name for name, known in ROOT.items() if known.front == known.after_stem == "always"]
    features = pure_features if clean else list(ROOT)
    root = tuple(sorted(draw.sample(features, draw.choice((0, 0, 0, 1, 1, 2)))))
    if len({"method", "lambda", "partial"} & set(root)) > 1:
        root = tuple(name for name in root if name not in ("lambda", "partial"))
    rare = draw.random()
    return Spec(
        blocks=tuple(blocks),
        container=draw.choice(("list", "sequential", "dict", "attributes")) if rare > 0.03 else "plain",
        root=root,
        head=draw.choice(("plain",) * 8 + ("mlp", "conv", "equal", "aux", "dict", "embedding")),
        stem=draw.choice(("conv", "conv", "conv_norm", "patches")) if rare < 0.98 else "lazy",
        k=draw.choice((0.5, 0.8)),
        seed=draw.randint(0, 3),
    )


def _bare(name: str, draw: random.Random) -> bool:
    made = KINDS[name].make
    return made in (Noise, Depth, Mixing, Dropping, Buffers, Counting) and name != "count_hook" and draw.random() < 0.15


def twisted(spec: Spec) -> Spec:
    """The same weights under other constants: in hooks, closures, attributes and replaced forwards."""
    return replace(spec, k=spec.k + 0.25, blocks=tuple(replace(which, k=which.k + 0.25) for which in spec.blocks))


def smaller(spec: Spec) -> Iterator[Spec]:
    """Simpler specs, simplest changes last: one block fewer, one feature fewer, the plain form of the rest."""
    if len(spec.blocks) > 1:
        for place in range(len(spec.blocks)):
            yield replace(spec, blocks=spec.blocks[:place] + spec.blocks[place + 1 :])
    for name in spec.root:
        yield replace(spec, root=tuple(other for other in spec.root if other != name))
    plain = Spec()
    for what in ("container", "head", "stem", "seed"):
        if getattr(spec, what) != getattr(plain, what):
            yield replace(spec, **{what: getattr(plain, what)})
    for place, which in enumerate(spec.blocks):
        for other in (B("conv"), replace(which, always=False), replace(which, bare=False), replace(which, k=0.5)):
            if which not in (other, B("conv")):
                yield replace(spec, blocks=(*spec.blocks[:place], other, *spec.blocks[place + 1 :]))
