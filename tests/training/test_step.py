"""One optimizer step: equal to one written by hand, however it is cut, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.inception import InceptionOutputs

from headstart.config.schema import Bce, CrossEntropy, Huber, Penalties
from headstart.errors import ConfigError, DataError, NonFiniteError, RunError
from headstart.optim.groups import param_groups
from headstart.surgery.freeze import freeze
from headstart.surgery.outputs import declare_scores, scores_of
from headstart.tasks.losses import make_loss
from headstart.tasks.task import TaskSpec
from headstart.training.precision import make_scaler
from headstart.training.rules import StepRules
from headstart.training.state import TrainState, make_average
from headstart.training.step import micro_batches, train_step

CPU = torch.device("cpu")
WEIGHTS = {"a": 0.1, "b": 1.0, "c": 7.0}
WEIGHTED = make_loss(CrossEntropy(class_weights=WEIGHTS, label_smoothing=0.1), classes=tuple(WEIGHTS))


def sgd(model: nn.Module, lr: float = 0.1, **options) -> TrainState:
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=lr, **options))


def gradients(state: TrainState) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in state.model.parameters()])


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().double() for value in model.state_dict().values()])


def test_a_step_is_the_one_written_by_hand(net, noise) -> None:
    """AdamW in groups, class weights, label smoothing, clipping: three steps, float64."""
    model = net().double()
    groups = param_groups(model, lr=1e-2, head_lr=1e-1, layer_decay=0.5, weight_decay=0.1)
    state = TrainState(model, torch.optim.AdamW(groups))
    hand = copy.deepcopy(model)
    rates = {"conv1": 0.5e-2, "conv2": 1e-2, "fc": 1e-1}
    optimizer = torch.optim.AdamW(
        [
            {"params": [value], "lr": rates[name.partition(".")[0]], "weight_decay": 0.1 if value.ndim > 1 else 0.0}
            for name, value in hand.named_parameters()
        ]
    )
    weight = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    for seed in range(3):
        batch = noise(9, seed=seed)
        done = train_step(state, batch, rules=StepRules(loss=WEIGHTED, clip_norm=0.05))
        images = (batch.pixels.double() / 255 - batch.mean.view(3, 1, 1)) / batch.std.view(3, 1, 1)
        optimizer.zero_grad()
        loss = F.cross_entropy(hand(images), batch.targets, weight=weight, label_smoothing=0.1)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(hand.parameters(), 0.05)
        optimizer.step()
        assert done.loss == pytest.approx(loss.item(), rel=1e-6)
        assert done.grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert (done.step, done.images, done.lr, done.head_lr) == (seed + 1, 9, 1e-2, 1e-1)
    torch.testing.assert_close(weights(model), weights(hand), rtol=1e-5, atol=1e-8)  # inputs are float32


LOSSES = {
    "weighted": (WEIGHTED, None),
    "tags": (make_loss(Bce()), torch.randint(0, 2, (11, 3), generator=torch.Generator().manual_seed(1)).float()),
    "numbers": (make_loss(Huber()), torch.randn(11, 3, generator=torch.Generator().manual_seed(1))),
    "own": (lambda outputs, targets: (outputs.square().sum(1), 1.0 + targets), None),
}


@pytest.mark.parametrize("accumulate", [2, 3, 5, 11, 100])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_in_pieces_has_the_gradient_of_the_whole(net, noise, loss, accumulate) -> None:
    """11 images in pieces with a remainder, float64: the relative difference stays below 1e-12."""
    function, targets = LOSSES[loss]
    batch, found = noise(11, targets=targets), []
    for pieces in (1, accumulate):
        state = sgd(net().double(), lr=0.0)
        done = train_step(state, batch, rules=StepRules(loss=function, accumulate=pieces))
        found.append((gradients(state), done.loss, done.weight, done.grad_norm))
    (whole, *facts), (cut, *same) = found
    assert (whole - cut).norm() <= 1e-12 * whole.norm()
    assert facts == pytest.approx(same, rel=1e-12)


def test_averaging_the_means_of_pieces_would_fail_this(net, noise) -> None:
    """The naive form's gradient is another one, so that the law above can fail."""
    batch, weight = noise(11), torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    images, found = batch.inputs(CPU, torch.contiguous_format).double(), []
    for parts in ([slice(0, 11)], [slice(0, 4), slice(4, 8), slice(8, 11)]):
        state = sgd(net().double())
        for part in parts:
            loss = F.cross_entropy(state.model(images[part]), batch.targets[part], weight=weight)
            (loss / len(parts)).backward()
        found.append(gradients(state))
    assert (found[0] - found[1]).norm() > 0.05 * found[0].norm()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(1, 30))
def test_micro_batches_cover_the_batch_and_none_of_several_is_a_single_image(size, accumulate) -> None:
    pieces = [range(size)[piece] for piece in micro_batches(size, accumulate)]
    assert list(itertools.chain(*pieces)) == list(range(size))
    assert len(pieces) <= accumulate
    assert min(map(len, pieces)) >= min(2, size)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_penalties_count_once_per_step_whatever_the_pieces(net, noise, accumulate) -> None:
    state = sgd(net().double(), lr=0.0)
    train_step(state, noise(9), rules=StepRules(accumulate=accumulate))
    plain = state.model.fc.weight.grad.clone()
    penalised = StepRules(accumulate=accumulate, penalties=Penalties(l1=0.5))
    train_step(state, noise(9), rules=penalised)
    torch.testing.assert_close(state.model.fc.weight.grad, plain + 0.5 * state.model.fc.weight.sign())


@pytest.mark.parametrize("clip", [{"clip_norm": 0.01}, {"clip_norm": 1e6}, {"clip_value": 1e-3}])
def test_clipping_is_torchs(net, noise, clip) -> None:
    state, hand = sgd(net()), net()
    done = train_step(state, noise(8), rules=StepRules(**clip))
    F.cross_entropy(hand(noise(8).inputs(CPU, torch.contiguous_format)), noise(8).targets).backward()
    if "clip_norm" in clip:
        norm = nn.utils.clip_grad_norm_(hand.parameters(), clip["clip_norm"])
        assert done.grad_norm == pytest.approx(norm.item())
    else:
        nn.utils.clip_grad_value_(hand.parameters(), clip["clip_value"])
    torch.optim.SGD(hand.parameters(), lr=0.1).step()
    torch.testing.assert_close(weights(state.model), weights(hand), rtol=1e-6, atol=1e-9)


def test_fp16_unscales_before_it_clips(net, noise) -> None:
    """The update is fp32's up to fp16's rounding; clipped before unscaling it would be 65,536 times smaller."""
    moved = {}
    for precision in ("fp32", "fp16"):
        state = sgd(net())
        state.scaler = make_scaler(CPU, precision)
        before = weights(state.model)
        train_step(state, noise(8), rules=StepRules(precision=precision, clip_norm=0.01))
        moved[precision] = weights(state.model) - before
    assert (moved["fp16"] - moved["fp32"]).norm() < 0.02 * moved["fp32"].norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_close_to_fp32_and_keeps_fp32_weights(net, noise, precision) -> None:
    plain, half = sgd(net(), lr=0.05), sgd(net(), lr=0.05)
    half.scaler = make_scaler(CPU, precision)
    for seed in range(5):
        expected = train_step(plain, noise(8, seed=seed), rules=StepRules())
        done = train_step(half, noise(8, seed=seed), rules=StepRules(precision=precision, accumulate=2))
        assert done.loss == pytest.approx(expected.loss, rel=0.02)
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}


def test_an_overflow_halves_the_scale_and_tries_the_same_step_again(net, noise) -> None:
    """From a scale that overflows to one that does not, with batch statistics counted once."""
    state, steady = sgd(net(norm=True)), sgd(net(norm=True))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**23)
    steady.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    rules = StepRules(precision="fp16")
    done, expected = train_step(state, noise(8), rules=rules), train_step(steady, noise(8), rules=rules)
    assert state.scaler.get_scale() < 2.0**23
    assert (state.step, done.step) == (1, 1)
    assert done.loss == expected.loss
    assert state.model.bn1.num_batches_tracked == 1
    torch.testing.assert_close(weights(state.model), weights(steady.model), rtol=1e-3, atol=1e-4)


def test_an_overflow_without_end_stops_the_run(net, noise) -> None:
    state = sgd(net())
    endless = StepRules(precision="fp16", loss=lambda outputs, targets: (outputs.sum(1) * 0).abs().sqrt())
    with pytest.raises(NonFiniteError, match=r"step 1: loss 0.0, gradient norm nan: not finite"):
        train_step(state, noise(8), rules=endless)
    assert state.step == 0
    assert state.scaler.get_scale() == 2.0**16 / 2**20, "twenty tries"


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(net, noise) -> None:
    state = sgd(net())
    state.step = 6
    state.optimizer.param_groups[0]["name"] = "all"
    before = weights(state.model)
    with pytest.raises(NonFiniteError) as caught:
        train_step(state, noise(9), rules=StepRules(loss=lambda outputs, targets: outputs.sum(1) * float("nan")))
    text = str(caught.value)
    assert text.startswith("step 7: loss nan, gradient norm nan: not finite, so the step was not taken.")
    assert "Images: 00.png, 01.png, 02.png, 03.png, 04.png, 05.png, 06.png, 07.png and 1 more." in text
    assert "Rates: all 0.1." in text
    assert torch.equal(weights(state.model), before)
    assert state.step == 6


def test_a_gradient_that_is_not_finite_stops_too(net, noise) -> None:
    state = sgd(net())
    endless = StepRules(loss=lambda outputs, targets: (outputs.sum(1) * 0).abs().sqrt())  # slope: infinity times 0
    with pytest.raises(NonFiniteError, match=r"step 1: loss 0.0, gradient norm nan: not finite"):
        train_step(state, noise(4), rules=endless)


def test_a_batch_in_which_nothing_counts_is_named(net, noise) -> None:
    loss = make_loss(CrossEntropy(class_weights={"a": 0.0}), classes=("a", "b", "c"))
    batch = noise(3, targets=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(NonFiniteError, match=r"step 1: all loss weights of the batch are zero; images: 00.png, 01.png"):
        train_step(sgd(net()), batch, rules=StepRules(loss=loss))


def test_a_loss_function_of_ones_own_is_averaged_over_images_or_its_weights(net, noise) -> None:
    model, batch = net().double(), noise(5)
    scores = model(batch.inputs(CPU, torch.contiguous_format).double())
    losses, counted = scores.logsumexp(1), torch.arange(5.0, dtype=torch.float64)
    plain = train_step(sgd(net().double()), batch, rules=StepRules(loss=lambda o, t: o.logsumexp(1)))
    assert plain.loss == pytest.approx(losses.mean().item())
    weighted = StepRules(loss=lambda o, t: (o.logsumexp(1), torch.arange(5.0)))
    done = train_step(sgd(net().double()), batch, rules=weighted)
    assert done.loss == pytest.approx(((losses * counted).sum() / counted.sum()).item())
    assert done.weight == 10


def test_a_loss_function_of_ones_own_sees_fp32_scores(net, noise) -> None:
    seen = []
    rules = StepRules(
        precision="bf16", loss=lambda o, t: seen.append(o.dtype) or F.cross_entropy(o, t, reduction="none")
    )
    train_step(sgd(net()), noise(4), rules=rules)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda o, t: F.cross_entropy(o, t),
            r"returned \(\) for 4 images; return one value per image, shape \(4,\)",
        ),
        (lambda o, t: o, r"returned \(4, 3\) for 4 images"),
        (lambda o, t: F.mse_loss(o[:, :1], t.float(), reduction="none"), r"returned \(4, 4\)"),
        (lambda o, t: (o.sum(1), torch.ones(4, 1)), r"returned \(4,\) \(weights \(4, 1\)\) for 4 images"),
        (lambda o, t: 0.5, r"returned float for 4 images"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_of_the_wrong_shape_is_refused(net, noise, loss, said) -> None:
    with pytest.raises(DataError, match=said):
        train_step(sgd(net()), noise(4), rules=StepRules(loss=loss))


def test_a_loss_of_no_known_name_is_refused(net, noise) -> None:
    with pytest.raises(
        ConfigError, match=r"loss: 'crossentropy' is not one of cross_entropy, focal, bce, mse, huber, mae"
    ):
        train_step(sgd(net()), noise(4), rules=StepRules(loss="crossentropy"))


def test_a_model_that_ends_in_softmax_is_refused_at_its_first_step(net, noise) -> None:
    model = nn.Sequential(net(), nn.Softmax(1))
    with pytest.raises(DataError, match=r"the model's outputs are probabilities"):
        train_step(sgd(model), noise(4), rules=StepRules())


def test_a_label_out_of_range_is_refused_at_any_step(net, noise) -> None:
    state = sgd(net())
    train_step(state, noise(4), rules=StepRules())
    with pytest.raises(DataError, match=r"a label is 3, but the model has 3 outputs"):
        train_step(state, noise(4, targets=torch.tensor([0, 1, 2, 3])), rules=StepRules())


def test_a_row_of_numbers_for_a_column_of_outputs_is_refused(net, noise) -> None:
    with pytest.raises(DataError, match=r"outputs \(4, 1\) and targets \(4,\) differ"):
        train_step(sgd(net(classes=1)), noise(4, targets=torch.rand(4)), rules=StepRules(loss="mse"))


class Several(nn.Module):
    """Two heads on one network, given back as the kind of tuple that it is made with."""

    def __init__(self, net: nn.Module, kind: type) -> None:
        super().__init__()
        self.net, self.other, self.kind = net, nn.Linear(3, 3), kind

    def forward(self, images: torch.Tensor) -> object:
        main = self.net(images)
        return self.kind((main, self.other(main.tanh())))


Auxiliary = namedtuple("Auxiliary", ["logits", "aux_logits"])  # what torchvision's models return


def test_auxiliary_heads_count_as_in_the_paper_and_equal_heads_equally(net, noise) -> None:
    batch = noise(6)
    images = batch.inputs(CPU, torch.contiguous_format).double()
    for kind, shares in ((lambda both: Auxiliary(*both), (1.0, 0.3)), (tuple, (0.5, 0.5))):
        model = Several(net(), kind).double()
        declare_scores(model, "all" if kind is tuple else "auto")
        parts = [F.cross_entropy(scores, batch.targets).item() for scores in model(images)]
        done = train_step(sgd(model), batch, rules=StepRules())
        assert done.loss == pytest.approx(shares[0] * parts[0] + shares[1] * parts[1], rel=1e-6)


def test_torchvisions_inception_gives_main_and_auxiliary_scores() -> None:
    outputs = InceptionOutputs(torch.zeros(2, 3), torch.ones(2, 3))
    assert [share for share, _ in scores_of(outputs)] == [1.0, 0.3]
    without = InceptionOutputs(torch.zeros(2, 3), None)
    assert [share for share, _ in scores_of(without)] == [1.0]


@pytest.mark.parametrize("outputs", [{"scores": torch.zeros(1)}, (), None, [torch.zeros(1)]])
def test_outputs_that_are_no_scores_are_refused(outputs) -> None:
    with pytest.raises(DataError, match=r"the model returns \w+, not a tensor of scores; wrap it"):
        scores_of(outputs)


def test_dropout_is_a_function_of_seed_and_step(net, noise) -> None:
    def loss(*, seed: int, step: int, draws: int) -> float:
        state = sgd(net(dropout=0.5))
        state.step = step
        torch.rand(draws)  # what was drawn before makes no difference
        return train_step(state, noise(8), rules=StepRules(seed=seed)).loss

    assert loss(seed=1, step=4, draws=3) == loss(seed=1, step=4, draws=50)
    assert len({loss(seed=1, step=4, draws=0), loss(seed=2, step=4, draws=0), loss(seed=1, step=5, draws=0)}) == 3


def test_micro_batches_have_dropout_of_their_own(net, noise) -> None:
    twice = noise(4)
    doubled = torch.cat([twice.pixels, twice.pixels])
    batch = noise(8, targets=torch.cat([twice.targets, twice.targets]))
    batch = type(batch)(**{**vars(batch), "pixels": doubled})
    seen = []
    rules = StepRules(
        accumulate=2, loss=lambda o, t: seen.append(o.detach()) or F.cross_entropy(o, t, reduction="none")
    )
    train_step(sgd(net(dropout=0.5)), batch, rules=rules)
    assert not torch.equal(*seen)


def test_training_happens_in_training_mode(net, noise) -> None:
    state = sgd(net(norm=True))
    state.model.eval()
    train_step(state, noise(8), rules=StepRules())
    assert state.model.bn1.num_batches_tracked == 1


def test_a_part_that_was_put_into_eval_between_steps_trains_at_the_next_one(net, noise) -> None:
    state = sgd(net(norm=True))
    train_step(state, noise(8), rules=StepRules())
    state.model.bn1.eval()
    train_step(state, noise(8), rules=StepRules())
    assert state.model.bn1.num_batches_tracked == 2


def test_a_group_that_is_added_between_steps_trains_at_the_next_one(net, noise) -> None:
    model = net()
    model.conv2.requires_grad_(False)
    state = TrainState(model, torch.optim.SGD(model.conv1.parameters(), lr=0.1))
    model.fc.requires_grad_(False)
    train_step(state, noise(8), rules=StepRules())
    model.fc.requires_grad_(True)
    state.optimizer.add_param_group({"params": list(model.fc.parameters())})
    before = model.fc.weight.detach().clone()
    model.fc.weight.grad = torch.full_like(before, 1e3)  # of nobody's step
    train_step(state, noise(8), rules=StepRules())
    assert 0 < (model.fc.weight - before).abs().max() < 1


def test_channels_last_changes_rounding_only(net, noise) -> None:
    plain, last = sgd(net()), sgd(net().to(memory_format=torch.channels_last))
    for state, memory_format in ((plain, "contiguous"), (last, "channels_last")):
        train_step(state, noise(8), rules=StepRules(memory_format=memory_format))
    torch.testing.assert_close(weights(plain.model), weights(last.model), rtol=1e-4, atol=1e-6)


def test_rates_of_a_step_are_the_bodys_and_the_heads(net, noise) -> None:
    model = net()
    freeze(model, rule="backbone")
    state = TrainState(
        model, torch.optim.SGD([{"params": list(model.fc.parameters()), "lr": 0.3, "name": "head (no decay)"}])
    )
    done = train_step(state, noise(4), rules=StepRules())
    assert (done.lr, done.head_lr) == (0.0, 0.3)


def test_a_step_on_numbers_has_the_loss_of_their_standardised_values(net, noise) -> None:
    task = TaskSpec(kind="regress", targets=("x", "y"), mean=(10.0, 0.0), std=(2.0, 1.0))
    batch = noise(3, targets=task.standardise(torch.tensor([[10.0, 1.0], [14.0, -1.0], [8.0, 0.5]])))
    expected = F.mse_loss(
        net(classes=2)(batch.inputs(CPU, torch.contiguous_format)), torch.tensor([[0, 1], [2, -1], [-1, 0.5]])
    )
    done = train_step(sgd(net(classes=2)), batch, rules=StepRules(loss="mse"))
    assert done.loss == pytest.approx(expected.item())


@pytest.mark.parametrize(("size", "accumulate"), [(3, 4), (13, 4), (9, 5), (2, 2), (1, 3), (16, 4)])
def test_no_piece_of_a_step_is_a_single_image_unless_the_step_is(size: int, accumulate: int) -> None:
    pieces = [range(size)[piece] for piece in micro_batches(size, accumulate)]
    assert [place for piece in pieces for place in piece] == list(range(size))
    assert len(pieces) <= accumulate
    assert min(map(len, pieces)) >= min(2, size)


class Small(nn.Module):
    """Has memory for so many images at a time, and counts its calls in a buffer."""

    def __init__(self, inner: nn.Module, *, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.inner(images)


def test_where_memory_runs_out_the_same_step_is_made_in_more_pieces(net, noise) -> None:
    """Equal to the step in one piece, for gradients and batch statistics; later steps begin with as many pieces."""
    whole, cut = sgd(net().double()), sgd(Small(net(dropout=0.0).double(), most=3))
    expected = train_step(whole, noise(12), rules=StepRules(loss=WEIGHTED))
    found = train_step(cut, noise(12), rules=StepRules(loss=WEIGHTED))
    assert (gradients(whole) - gradients(cut)).norm() <= 1e-12 * gradients(whole).norm()
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert (expected.micro_batches, found.micro_batches, cut.micro_batches) == (1, 4, 4)
    assert cut.model.calls == 4, "what the failed tries counted was put back"
    train_step(cut, noise(12), rules=StepRules(loss=WEIGHTED))
    assert cut.model.calls == 8


def test_memory_that_is_too_small_for_two_images_ends_the_run_with_a_way_out(net, noise) -> None:
    state = sgd(Small(net(), most=1))
    said = (
        r"step 1: cpu has no memory left with 2 images at a time \(CUDA out of memory.*\); give --batch.accumulate 8,"
    )
    with pytest.raises(RunError, match=said):
        train_step(state, noise(8), rules=StepRules())
    assert state.step == 0


def test_a_limit_of_infinity_stays_one_in_the_average(net, noise) -> None:
    """As Gemma 4's vision model has them in its buffers; other buffers are averaged."""
    model = nn.Sequential(OrderedDict(inner=net(norm=True)))
    model.register_buffer("limit", torch.tensor([float("inf"), -float("inf")]))
    state = sgd(model)
    state.average = make_average(model, half_life=0.5, total_steps=4)
    for seed in range(3):
        train_step(state, noise(8, seed=seed), rules=StepRules())
    assert state.average.module.limit.tolist() == [float("inf"), -float("inf")]
    own, trained = state.average.module.inner.bn1.running_mean, model.inner.bn1.running_mean
    assert bool(torch.isfinite(own).all()) and not torch.equal(own, trained)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", WEIGHTED], ids=["plain", "weighted"])
def test_copies_that_fill_a_batch_up_count_for_nothing(net, noise, loss, accumulate) -> None:
    """Five images and three copies, as a process's part of a batch may be: the step on the five."""
    full = noise(8)
    filled = dataclasses.replace(full, size=5, total=5)
    real = dataclasses.replace(full, pixels=full.pixels[:5], targets=full.targets[:5], keys=full.keys[:5], size=5)
    found = []
    for batch, pieces in ((real, 1), (filled, accumulate)):
        state = sgd(net().double(), lr=0.0)
        done = train_step(state, batch, rules=StepRules(loss=loss, accumulate=pieces))
        found.append((gradients(state), done))
    (expected, whole), (gradient, done) = found
    assert (gradient - expected).norm() <= 1e-12 * expected.norm()
    assert (done.loss, done.weight, done.grad_norm) == pytest.approx((whole.loss, whole.weight, whole.grad_norm))
    assert (done.images, whole.images) == (5, 5)


def test_a_step_that_is_not_taken_leaves_buffers_as_they_were(net, noise) -> None:
    """Batch statistics, also where the loss fails, and tensors that forward puts in a buffer's place."""

    class Anew(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + 1
            return self.inner(images)

    state = sgd(Anew(net(norm=True)))
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(NonFiniteError):
        train_step(state, noise(8), rules=StepRules(loss=lambda outputs, targets: outputs.sum(1) * float("nan")))
    with pytest.raises(DataError):
        train_step(state, noise(8), rules=StepRules(loss=lambda outputs, targets: outputs))
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    train_step(state, noise(8), rules=StepRules())
    assert (state.model.seen, state.model.inner.bn1.num_batches_tracked) == (1, 1)


def test_a_step_that_would_move_nothing_is_refused(noise) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state = TrainState(model, torch.optim.SGD([{"params": []}], lr=0.1))
    state.average = make_average(model, half_life=0.5, total_steps=4)
    with pytest.raises(ConfigError, match=r"groups hold no parameters, and nothing in the model trains"):
        train_step(state, noise(4), rules=StepRules())
