"""``fit``, ``train_step`` and ``evaluate`` on batches of the user's own, held against a plain loop of torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import headstart as hs
from headstart.config.schema import Schedule
from headstart.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    made = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(22, 3, 16, 16, generator=made), torch.randint(0, 3, (22,), generator=made))


def loader(data: TensorDataset) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(data, batch_size=8, shuffle=True)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def by_hand(model: nn.Module, data: TensorDataset, *, epochs: int) -> list[float]:
    """A plain loop; losses per step."""
    optimizer, losses = sgd(model), []
    model.train()
    for _ in range(epochs):
        for images, targets in loader(data):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_fit_on_a_data_loader_is_a_plain_loop(net, data) -> None:
    model = net(norm=True)
    plain = copy.deepcopy(model)
    torch.manual_seed(3)
    expected = by_hand(plain, data, epochs=3)
    torch.manual_seed(3)
    events = list(hs.fit(hs.TrainState(model, sgd(model)), loader(data), rules=hs.StepRules(), epochs=3))
    steps = [event for event in events if isinstance(event, hs.StepDone)]
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
    assert [(step.images, step.steps_in_epoch) for step in steps[:3]] == [(8, 3), (8, 3), (6, 3)]
    assert len(events) - len(steps) == 3
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [tuple, list, "batch"])
def test_a_step_takes_pairs_and_batches_alike(net, data, kind) -> None:
    images, targets = data[:8]
    batch = hs.Batch(pixels=images, targets=targets) if kind == "batch" else kind((images, targets.int()))
    model = net()
    plain = copy.deepcopy(model)
    loss = F.cross_entropy(plain(images), targets)
    loss.backward()
    sgd(plain).step()
    done = hs.train_step(hs.TrainState(model, sgd(model)), batch, rules=hs.StepRules())
    assert done.loss == pytest.approx(loss.item(), rel=1e-6)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_pixels_with_mean_and_std_are_normalised(net) -> None:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    batch = hs.Batch(pixels=pixels, targets=torch.tensor([0, 1, 2, 0]), mean=mean, std=std)
    normal = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(batch.inputs(torch.device("cpu"), torch.channels_last), normal)
    assert (batch.size, batch.indices.tolist(), batch.keys[3]) == (4, [0, 1, 2, 3], "images[3]")


def test_tags_as_booleans_are_zeros_and_ones(net, data) -> None:
    images, tags, losses = data.tensors[0][:8], F.one_hot(data.tensors[1][:8], 3), []
    for targets in (tags.bool(), tags.float()):
        model = net()
        batch, rules = (images, targets), hs.StepRules(loss="bce")
        losses.append(hs.train_step(hs.TrainState(model, sgd(model)), batch, rules=rules).loss)
    assert losses[0] == losses[1]


def test_a_restored_state_passes_over_the_batches_that_it_has_seen(net, data) -> None:
    model = net()
    twin, parts = copy.deepcopy(model), [(data.tensors[0][start:][:8], data.tensors[1][start:][:8]) for start in (0, 8)]
    state = hs.TrainState(model, sgd(model))
    whole = list(hs.fit(state, parts, rules=hs.StepRules(), epochs=1))
    other = hs.TrainState(twin, sgd(twin))
    for _ in hs.fit(other, parts, rules=hs.StepRules(), epochs=1):
        break
    rest = list(hs.fit(other, parts, rules=hs.StepRules(), epochs=1, first_epoch=0))
    assert rest[0].loss == whole[1].loss
    assert [type(event).__name__ for event in rest] == ["StepDone", "EpochDone"]


class Sampled(list):
    """Batches whose sampler notes the epochs that it hears of."""

    def __init__(self, batches) -> None:
        super().__init__(batches)
        self.sampler, self.epochs = self, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_a_sampler_hears_of_each_epoch(net, data) -> None:
    batches, model = Sampled([data[:8]]), net()
    list(hs.fit(hs.TrainState(model, sgd(model)), batches, rules=hs.StepRules(), epochs=3))
    assert batches.epochs == [0, 1, 2]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Images one by one, nobody knows how many."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.data[place] for place in range(16)])


def test_a_stream_trains_without_a_schedule_and_is_refused_with_one(net, data) -> None:
    model, stream = net(), DataLoader(Stream(data), batch_size=8)
    state = hs.TrainState(model, sgd(model))
    events = list(hs.fit(state, stream, rules=hs.StepRules(), epochs=2))
    assert [event.images for event in events if isinstance(event, hs.StepDone)] == [8] * 4
    with pytest.raises(ConfigError, match="does not say how many batches it has, which a schedule needs"):
        next(hs.fit(state, stream, rules=hs.StepRules(), epochs=1, schedule=Schedule(kind="cosine")))


REFUSED = {
    "pixels": (lambda x, y: (x.byte(), y), "images of torch.uint8 are not normalised.*hs.Batch"),
    "images alone": (lambda x, _: x, "type Tensor was given; accepted are a pair of tensors"),
    "three parts": (lambda x, y: (x, y, y), "type tuple of Tensor, Tensor, Tensor was given"),
    "a mapping": (lambda x, y: {"image": x, "label": y}, "type dict was given"),
    "lists": (lambda x, y: (x, y.tolist()), "type tuple of Tensor, list was given"),
    "fewer targets": (lambda x, y: (x, y[:3]), r"images \(8, 3, 16, 16\) and targets \(3,\) were given"),
    "one image": (lambda x, y: (x[0], y[:3]), r"images \(3, 16, 16\) and targets"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_batch_is_refused_in_a_sentence(net, data, name: str) -> None:
    model, (change, message) = net(), REFUSED[name]
    before, batch = copy.deepcopy(model.state_dict()), change(*data[:8])
    for call in (
        lambda: hs.train_step(hs.TrainState(model, sgd(model)), batch, rules=hs.StepRules()),
        lambda: list(hs.fit(hs.TrainState(model, sgd(model)), [batch], rules=hs.StepRules(), epochs=1)),
        lambda: hs.evaluate(model, [batch]),
    ):
        with pytest.raises(DataError, match=message):
            call()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_gives_its_batches_once_or_none_is_refused(net, data) -> None:
    model = net()
    state = hs.TrainState(model, sgd(model))
    with pytest.raises(DataError, match="gives its batches only once, and 2 epochs need them each time"):
        next(hs.fit(state, iter([data[:8]]), rules=hs.StepRules(), epochs=2))
    assert len(list(hs.fit(state, iter([data[:8]]), rules=hs.StepRules(), epochs=1))) == 2
    with pytest.raises(DataError, match="epoch 2: fit was given no batch"):
        list(hs.fit(state, [], rules=hs.StepRules(), epochs=1))
    with pytest.raises(DataError, match="evaluate: there is no batch"):
        hs.evaluate(model, [])
    with pytest.raises(DataError, match="type int was given; accepted are"):
        next(hs.fit(state, 5, rules=hs.StepRules(), epochs=1))


def test_evaluation_of_a_data_loader_is_a_plain_loop(net, data) -> None:
    model = net(norm=True, dropout=0.5)
    found = hs.evaluate(model.train(), DataLoader(data, batch_size=8))
    assert model.training
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(data.tensors[0])
    truth = data.tensors[1]
    assert found.metrics["accuracy"] == pytest.approx((logits.argmax(1) == truth).float().mean().item())
    assert found.metrics["nll"] == pytest.approx(F.cross_entropy(logits, truth).item(), rel=1e-5)
    torch.testing.assert_close(found.predictions.outputs, logits.softmax(1), rtol=1e-4, atol=1e-6)
    assert torch.equal(found.truth, truth)
    assert (found.predictions.keys[21], found.predictions.task.classes) == ("images[21]", ("0", "1", "2"))


def test_evaluation_of_numbers_and_tags_asks_which_they_are(net, data) -> None:
    images, model = data.tensors[0][:8], net()
    numbers = torch.randn(8, 3)
    with pytest.raises(DataError, match=r'may be tags or numbers; say which they are, e.g. task="multi'):
        hs.evaluate(model, [(images, numbers)])
    found = hs.evaluate(model, [(images, numbers)], task="regress")
    with torch.no_grad():
        made = model.eval()(images)
    for place, name in enumerate(found.predictions.task.targets):
        expected = (made - numbers)[:, place].abs().mean().item()
        assert found.metrics[f"mae:{name}"] == pytest.approx(expected, rel=1e-5)
    tags = hs.evaluate(model, [(images, (numbers > 0).float())], task="multilabel")
    torch.testing.assert_close(tags.predictions.outputs, made.sigmoid())
    with pytest.raises(DataError, match="1 numbers per image for 3 outputs"):
        hs.evaluate(model, [(images, numbers[:, 0])], task="regress")
    with pytest.raises(DataError, match="from 0 to 7, for 3 classes"):
        hs.evaluate(model, [(images, torch.arange(8))])
    with pytest.raises(ConfigError, match="'tags' is no kind of task; accepted: classify, multilabel, regress"):
        hs.evaluate(model, [(images, numbers)], task="tags")


def test_the_task_of_a_run_gives_its_names(net, data) -> None:
    from headstart.tasks.task import TaskSpec

    task = TaskSpec(kind="classify", classes=("a", "b", "c"))
    found = hs.evaluate(net(), DataLoader(data, batch_size=8), task=task)
    assert found.predictions.task.classes == ("a", "b", "c")


def test_batches_of_images_have_their_own_task(net, images) -> None:
    with pytest.raises(ConfigError, match="task: these batches have their own"):
        hs.evaluate(net(), images.val, task="classify")
