"""A safetensors file in pieces: to the byte what safetensors writes, without a copy."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load, save

from headstart.storage import tensors as tensor_file
from headstart.storage.buffers import Buffers
from headstart.storage.tensors import make_buffers, pack_tensors, view_bytes

KINDS = list(tensor_file._NAMES)


@pytest.mark.parametrize("seed", range(20))
def test_the_bytes_are_those_of_safetensors(seed: int) -> None:
    draw = random.Random(seed)
    tensors = {}
    for number in range(12):
        kind = draw.choice(KINDS)
        values = torch.randint(0, 2 if kind == torch.bool else 100, draw.choice([(), (3,), (0,), (2, 5), (1, 2, 3)]))
        tensors[draw.choice(["a.weight", "ä", 'quote"', "back\\slash", "_"]) + str(number)] = values.to(kind)
    assert pack_tensors(tensors) == save(tensors)


def test_every_kind_is_read_back() -> None:
    tensors = {str(kind): torch.ones(2, 3).to(kind) for kind in KINDS}
    read = load(pack_tensors(tensors))
    assert {name: value.dtype for name, value in read.items()} == {str(kind): kind for kind in KINDS}
    assert all(torch.equal(value.float(), torch.ones(2, 3)) for value in read.values() if not value.is_complex())


def test_memory_order_slices_and_shared_tensors() -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {"last": base.to(memory_format=torch.channels_last), "same": base, "part": base[1:], "turned": base.mT}
    assert pack_tensors(tensors) == save({name: value.clone().contiguous() for name, value in tensors.items()})


def test_nothing_is_copied() -> None:
    weight = torch.zeros(4, 5)
    pieces = make_buffers({"weight": weight})
    before = bytes(pieces)
    weight.fill_(1)
    assert bytes(pieces) != before
    assert bytes(pieces) == save({"weight": torch.ones(4, 5)})


def test_pieces_are_counted_in_bytes() -> None:
    assert len(Buffers(b"ab", b"", memoryview(b"cde"))) == 5
    assert bytes(Buffers(b"ab", b"", memoryview(b"cde"))) == b"abcde"
    with pytest.raises(AssertionError):
        Buffers(memoryview(b"12345678").cast("f"))


def test_a_tensor_can_be_resized_after_its_bytes_were_looked_at() -> None:
    """As observers of quantization resize their buffers in the first forward pass."""
    value = torch.ones(1)
    assert bytes(view_bytes(value)) == value.clone().numpy().tobytes()
    make_buffers({"value": value})
    assert value.resize_(3).shape == (3,)
