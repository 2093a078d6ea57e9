"""What each rule of freezing takes, to the last tensor and module, on networks small enough to write it down."""

from __future__ import annotations

import copy
import functools
import re
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from headstart.config.schema import Names
from headstart.errors import ModelError
from headstart.surgery.freeze import Fixed, find_frozen, freeze, freeze_by, unfreeze
from headstart.surgery.lora import add_lora

CONV1, CONV2 = ["conv1.weight", "conv1.bias"], ["conv2.weight", "conv2.bias"]
NORM = ["bn1.weight", "bn1.bias"]
STATISTICS = ["bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"]
BODY = [*CONV1, *NORM, *STATISTICS, *CONV2]
OF = 216 + 8 + 8 + 8 + 1152 + 16 + 48 + 3
TABLE = {  # what is given, and: tensors, modules that sleep, frozen parameters
    "none": ({"rule": "none"}, [], [], 0),
    "backbone": ({"rule": "backbone"}, BODY, ["conv1", "bn1", "act1", "conv2"], 1408),
    "conv": ({"rule": "conv"}, [*CONV1, *CONV2], ["conv1", "conv2"], 1392),
    "norm": ({"rule": "norm"}, [*NORM, *STATISTICS], ["bn1"], 16),
    "biases": ({"rule": "except:bias"}, ["conv1.weight", "bn1.weight", *STATISTICS, "conv2.weight"], ["bn1"], 1376),
    "except:norm": ({"rule": "except:norm"}, [*CONV1, *STATISTICS, *CONV2], ["conv1", "bn1", "conv2"], 1392),
    "first stage": ({"stages": 1}, [*CONV1, *NORM, *STATISTICS], ["conv1", "bn1"], 240),
    "all stages": ({"stages": 2}, BODY, ["conv1", "bn1", "act1", "conv2"], 1408),
    "until a stage": ({"until": "conv1"}, [*CONV1, *NORM, *STATISTICS], ["conv1", "bn1"], 240),
    "until a module": ({"until": "bn1"}, [*CONV1, *NORM, *STATISTICS], ["conv1", "bn1"], 240),
    "until a tensor": ({"until": "conv1.bias"}, CONV1, ["conv1"], 224),
    "until a layer without weights": ({"until": "drop"}, BODY, ["conv1", "bn1", "act1", "conv2"], 1408),
    "a module's name": ({"names": ["conv2"]}, CONV2, ["conv2"], 1168),
    "names of tensors": ({"names": ["*.bias", "bn1.*"]}, ["conv1.bias", *NORM, *STATISTICS, "conv2.bias", "fc.bias"],
                         ["bn1"], 43),
    "still statistics": ({"rule": "conv", "norm_statistics": "frozen"}, [*CONV1, *STATISTICS, *CONV2],
                         ["conv1", "bn1", "conv2"], 1392),
    "moving statistics": ({"rule": "conv", "norm_statistics": "batch"}, [*CONV1, *CONV2], ["conv1", "conv2"], 1392),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_a_rule_takes_exactly_this(net, case: str) -> None:
    given, tensors, modules, parameters = TABLE[case]
    module = net(norm=True, dropout=0.5)
    frozen = freeze(module, **given)
    assert sorted(frozen.tensors) == sorted(tensors)
    assert list(frozen.modules) == modules
    assert (frozen.parameters, frozen.of) == (parameters, OF)
    assert {name for name, value in module.named_parameters() if not value.requires_grad} == {
        name for name in tensors if name not in STATISTICS
    }
    for mode in (None, True):
        module.train() if mode else None
        assert [name for name, part in module.named_modules() if not part.training] == modules


def chain(**parts: nn.Module) -> nn.Sequential:
    """Image to three scores through these."""
    ends = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(4, 3)}
    return nn.Sequential(OrderedDict({**parts, **ends}))


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 3, 1)


def last() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 1)


def test_a_container_without_weights_sleeps_by_its_layers_only() -> None:
    """Dropout before the frozen prefix's end sleeps; behind it, it works, also in a container of its own."""
    module = chain(
        drop=nn.Sequential(nn.Dropout(0.5)), conv=conv(), block=nn.Sequential(nn.Dropout(0.5), conv()),
        loose=nn.Sequential(nn.Dropout(0.5)), end=last(),
    )  # fmt: skip
    frozen = freeze(module, until="block")
    assert frozen.modules == ("drop.0", "conv", "block", "block.0", "block.1")
    module.train()
    assert module.loose[0].training and not module.drop[0].training
    assert freeze(module, names=["conv", "block"]).modules == ("conv", "block", "block.0", "block.1")
    assert module.drop[0].training


def test_a_backbone_without_tensors_has_nothing_that_sleeps() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 3))
    frozen = freeze(module, rule="backbone")
    assert (frozen.tensors, frozen.modules, frozen.parameters) == ((), (), 0)


def test_until_takes_a_block_and_not_those_whose_names_begin_alike() -> None:
    module = chain(part=nn.Sequential(OrderedDict(a=conv(), a2=conv(), b=nn.Sequential(conv(), conv()))), end=last())
    assert freeze(module, until="part.a").modules == ("part.a",)
    assert freeze(module, names=["part.a"]).modules == ("part.a",)
    assert freeze(module, until="part.b").modules == ("part", "part.a", "part.a2", "part.b", "part.b.0", "part.b.1")
    pair = nn.Sequential(nn.Sequential(conv(), conv()), nn.Sequential(conv(), conv()))
    nested = chain(one=pair, two=nn.Sequential(conv(), conv()), end=last())
    assert freeze(nested, until="one.0").modules == ("one.0", "one.0.0", "one.0.1")


class Twice(nn.Module):
    """One convolution and one dropout under two names each, and a number that no gradient can have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = conv(), nn.Dropout(0.5)
        self.again, self.same = self.conv, self.act
        self.norm, self.end, self.fc = nn.BatchNorm2d(3), last(), nn.Linear(4, 3)
        self.count = nn.Parameter(torch.tensor([3]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        images = self.norm(self.act(self.conv(images)))
        return self.fc(self.end(self.same(self.again(images))).mean((2, 3)))


@pytest.mark.parametrize("name", ["conv.weight", "again.weight", "conv", "again"])
def test_a_tensor_with_two_names_is_frozen_under_either(name: str) -> None:
    module = Twice()
    frozen = freeze_by(module, Names(names=(name,)))
    whole = "." not in name
    assert not module.conv.weight.requires_grad and module.conv.bias.requires_grad != whole
    assert frozen.parameters == (12 if whole else 9)
    assert frozen.modules == (("conv",) if whole else ())


def test_a_second_name_of_a_layer_without_weights_is_known_too() -> None:
    said = "freeze until:same: it holds no weights, so nothing says where it executes; name a module with weights"
    with pytest.raises(ModelError, match=said):
        freeze(Twice(), until="same")


def test_what_a_user_froze_is_found_under_every_name_and_kept_by_any_rule() -> None:
    module = Twice()
    assert find_frozen(module) == Fixed()
    module.conv.weight.requires_grad_(False)
    freeze_by(module, "norm", fixed=find_frozen(module))
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    fixed = Fixed(
        tensors=frozenset({"conv.weight", "again.weight", "norm.weight", "norm.bias"} | statistics),
        modules=frozenset({"norm"}),
    )
    assert find_frozen(module) == fixed
    frozen = freeze_by(module, "none", fixed=fixed)
    assert set(frozen.tensors) == fixed.tensors and frozen.modules == ("norm",)
    assert frozen.parameters == 9 + 6 and not module.norm.training
    assert find_frozen(module) == fixed
    assert fixed.without(["conv.weight", "norm.bias", "nothing"]) == Fixed(
        tensors=fixed.tensors - {"conv.weight", "norm.bias"}, modules=fixed.modules
    )


def test_unfreezing_lets_everything_train_but_what_is_fixed_and_what_cannot() -> None:
    module = Twice()
    freeze(module, names=["conv", "norm"])
    unfreeze(module, fixed=Fixed(tensors=frozenset({"end.weight", "norm.running_mean"})))
    left = {name for name, value in module.named_parameters() if not value.requires_grad}
    assert left == {"end.weight", "count"}
    assert not any(value.requires_grad for value in module.buffers())
    assert all(part.training for part in module.modules())
    freeze(module, names=["norm"])
    module.eval()
    unfreeze(module)
    assert not any(part.training for part in module.modules())
    assert {name for name, value in module.named_parameters() if not value.requires_grad} == {"count"}


def test_a_shared_layer_that_sleeps_is_fixed_under_both_names() -> None:
    module = Twice()
    freeze(module, names=["conv"])
    assert find_frozen(module).modules == {"conv", "again"}


def test_a_norm_without_statistics_goes_on_working_where_statistics_stay() -> None:
    module = chain(conv=conv(), norm=nn.BatchNorm2d(3, track_running_stats=False), kept=nn.BatchNorm2d(3), end=last())
    frozen = freeze(module, rule="none", norm_statistics="frozen")
    assert frozen.modules == ("kept",)
    assert set(frozen.tensors) == {"kept.running_mean", "kept.running_var", "kept.num_batches_tracked"}


def test_adapters_train_alone_and_what_was_fixed_stays_within_them(net) -> None:
    pytest.importorskip("peft")
    module = net(norm=True)
    with pytest.raises(ModelError, match=r"the model has no adapters; add them with add_lora, or --recipe lora"):
        freeze(module, rule="except:lora")
    add_lora(module, rank=2, alpha=2.0, targets=["conv2"])
    freeze(module, rule="except:lora")
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    adapters = {"conv2.lora_A.default.weight", "conv2.lora_B.default.weight"}
    assert trained == {*adapters, "fc.weight", "fc.bias"}
    freeze(module, rule="except:bias")
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert trained == {"conv1.bias", "bn1.bias", "conv2.base_layer.bias", "fc.weight", "fc.bias"}
    fixed = Fixed(tensors=frozenset({"conv2.weight", "conv1.bias"}))
    frozen = freeze_by(module, "none", fixed=fixed)
    assert set(frozen.tensors) == {"conv2.base_layer.weight", "conv1.bias"}
    unfreeze(module, fixed=fixed)
    assert {name for name, value in module.named_parameters() if not value.requires_grad} == set(frozen.tensors)


class Scaled(nn.Linear):
    """A layer with a buffer."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * self.scale


def test_a_heads_parameters_are_the_head_whatever_buffers_it_has() -> None:
    module = nn.Sequential(OrderedDict(end=last(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=Scaled()))
    with pytest.raises(ModelError, match=r"freeze names:fc\.weight,fc\.bias: freezes the head, fc, which is new"):
        freeze(module, names=["fc.weight", "fc.bias"])
    assert freeze(module, names=["fc.scale", "fc.weight"]).parameters == 12


class TwoWays(nn.Module):
    """Which of its two layers the head is nobody can say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = conv(), nn.Linear(3, 4), nn.Linear(3, 1)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images).mean((2, 3))
        return self.one(values) * self.two(values)


def test_where_the_head_is_not_clear_rules_that_need_it_ask_and_others_work() -> None:
    for rule in ("backbone", "except:bias"):
        with pytest.raises(ModelError, match="the head is not clear"):
            freeze(TwoWays(), rule=rule)
    assert freeze(TwoWays(), rule="conv").tensors == ("conv.weight", "conv.bias")
    assert freeze(TwoWays(), names=["one"]).parameters == 16


def test_a_train_of_the_users_own_comes_back_when_the_module_is_unfrozen(net) -> None:
    module = net(norm=True)
    own = {name: functools.partial(print, name) for name in ("conv1", "fc")}
    for name, train in own.items():
        module.get_submodule(name).train = train
    freeze(module, until="bn1")
    assert module.conv1.train is not own["conv1"] and module.fc.train is own["fc"]
    freeze_by(copy.deepcopy(module), "none")
    freeze_by(module, "none")
    assert all(vars(module.get_submodule(name))["train"] is train for name, train in own.items())
    assert "train" not in vars(module.bn1)


def test_a_frozen_layer_stays_in_eval_when_its_own_train_is_called(net) -> None:
    module = net(norm=True)
    freeze(module, rule="norm")
    module.bn1.training = True
    assert module.bn1.train() is module.bn1 and not module.bn1.training


SAID = {
    "kind": ({"rule": "norm"}, "freeze norm: the model has no norm layers; its tensors are: conv, head"),
    "no norms": ({"rule": "except:norm"}, "freeze except:norm: the model's backbone has no norm layers with weights; "
                 "use --recipe probe or --recipe lora"),
    "no stage": ({"stages": 0}, "freeze stages:0: the model has 2 stages (conv1, conv2); give 1 to 2"),
    "too many": ({"stages": 3}, "freeze stages:3: the model has 2 stages (conv1, conv2); give 1 to 2"),
    "the head": ({"until": "fc"}, "freeze until:fc: it is of the head, which has to train; nothing is left to train "
                 "behind it; give a layer before it, e.g. until:conv2"),
    "near": ({"until": "conv"}, "freeze until:conv: the model has no such module; did you mean conv2, conv1?"),
    "far": ({"until": "zzz"}, "freeze until:zzz: the model has no such module; names look like conv1, conv2, act1, "
            "act2, pool, flat; `headstart describe` shows them all"),
    "no part": ({"names": ["c"]}, "freeze names:c: matches no parameter and no module; did you mean fc?"),
    "all": ({"names": ["*"]}, "freeze names:*: freezes all 1,443 parameters, the head too: nothing is left to train"),
    "no rule": ({"rule": "bckbone"}, "freeze: 'bckbone' is no freeze rule; give none, backbone, conv, norm, "
                "except:bias, except:norm, except:lora, until:NAME, stages:N or names:GLOB,..."),
    "two": ({"until": "conv1", "names": ["conv2"]}, "freeze: give exactly one of rule, until, stages and names, e.g. "
            "freeze(model, until='layer3')"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_a_rule_that_cannot_be_followed_says_this(net, case: str) -> None:
    given, said = SAID[case]
    with pytest.raises(ModelError, match=f"^{re.escape(said)}$"):
        freeze(net(), **given)


def test_other_words_of_refusals() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ModelError, match=r"give a layer before it, e\.g\. backbone$"):
        freeze(plain, until="1")
    bare = chain(end=nn.Conv2d(3, 4, 1, bias=False))
    with pytest.raises(ModelError, match=r"has no biases; use --recipe probe or --recipe lora$"):
        freeze(bare, rule="except:bias")
    many = chain(**{f"conv{place}": conv() for place in range(9)}, end=last())
    with pytest.raises(ModelError, match=r"did you mean conv8, conv7, conv6, conv5\?$"):
        freeze(many, until="conv")
