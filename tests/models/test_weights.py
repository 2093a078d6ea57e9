"""Weights files: what is read, what is refused and how, and what is counted."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import ModelError
from headstart.models import weights
from headstart.models.weights import Coverage, Digest, cover, load_by_coverage, read_weights, refuse_memory
from tests.security.bomb import Bomb


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def head() -> tuple[str, ...]:
    return ("3.weight", "3.bias")


def covered(found: dict[str, Tensor]) -> Coverage:
    return cover(small_net().state_dict(), found, heads=head, where="w.pth")


@pytest.mark.parametrize("first", [0x80, 0x50, 0x3C])
def test_safetensors_are_known_whatever_the_length_of_their_header(tmp_path: Path, first: int) -> None:
    """The length comes first: one of 32 files begins with 0x80, as a pickle does."""
    path, state = tmp_path / "w.safetensors", {"a": torch.arange(3.0)}
    for padding in range(0, 2048, 8):
        save_file(state, path, metadata={"note": "x" * padding})
        if path.read_bytes()[0] == first - first % 8:
            break
    else:
        pytest.fail("no such header was made")
    assert torch.equal(read_weights(path).tensors["a"], state["a"])


def test_a_pickle_is_refused_where_torch_does_not_read_it_safely(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(weights, "_READS_SAFELY", (2, 10))
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"torch 2\.9\.1\+cpu run code \(CVE-2026-24747\); install torch 2\.10"):
        read_weights(tmp_path / "w.pth")
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").tensors["a"].tolist() == [1, 1]
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git")
    assert read_weights(tmp_path / "w.pth").tensors["a"].tolist() == [1, 1]


def test_safetensors_and_pth_give_the_same_tensors_and_the_file_hash(tmp_path: Path) -> None:
    state = small_net().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        file = read_weights(path)
        assert set(file.tensors) == set(state)
        assert all(torch.equal(file.tensors[name], state[name]) for name in state)
        assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([0.5, 2.0], dtype=torch.float16)}, tmp_path / "w.safetensors")
    value = read_weights(tmp_path / "w.safetensors").tensors["a"]
    assert value.dtype == torch.float32
    assert value.tolist() == [0.5, 2.0]


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_nested_state_dict_is_unwrapped_and_said(tmp_path: Path, key: str) -> None:
    torch.save({key: small_net().state_dict(), "epoch": 3}, tmp_path / "w.pt")
    file = read_weights(tmp_path / "w.pt")
    assert set(file.tensors) == set(small_net().state_dict())
    assert any(key in note for note in file.notes)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("form", ["plain", "torch", "nested", "legacy"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / "w.pth"
    bomb = Bomb(Path.touch, proof)
    if form == "plain":
        path.write_bytes(pickle.dumps(bomb))
    else:
        content = {"state_dict": {"a": bomb}} if form == "nested" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(ModelError, match="code in a file is never run"):
        read_weights(path)
    assert not proof.exists()


def test_the_bomb_of_these_tests_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(Path.touch, tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("suffix", [".pkl", ".h5", ".onnx", ".npz", ".pt2", ".docx", ""])
def test_other_formats_are_refused_by_name_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.touch()
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    assert suffix in str(caught.value)
    assert ".safetensors" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
def test_torchscript_is_refused_as_code(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    traced.save(str(tmp_path / "w.pt"))
    with pytest.raises(ModelError, match="TorchScript"):
        read_weights(tmp_path / "w.pt")


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as old,
        zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match="unpacks to more"):
        read_weights(tmp_path / "z.pth")


def test_damage_is_refused(tmp_path: Path) -> None:
    save_file(small_net().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for damaged in (whole[:-5], b"", struct.pack("<Q", 1 << 60) + whole[8:]):
        (tmp_path / "w.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match=r"not a whole safetensors file|the file is empty"):
            read_weights(tmp_path / "w.safetensors")
    torch.save(small_net().state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-300])
    with pytest.raises(ModelError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"a": 1}, {"a": {"b": [torch.ones(1)]}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"not names and tensors|are not tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor(tmp_path: Path, bad: float) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, bad])}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="broken holds NaN or infinity"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ["sha256", "git", "prefix"])
def test_one_changed_bit_fails_the_published_hash(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    values = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "git": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        "prefix": hashlib.sha256(data).hexdigest()[:8],
    }
    expected = Digest(kind, values[kind])  # type: ignore[arg-type]
    assert read_weights(path, expected=expected).tensors["a"].tolist() == [1, 1, 1]
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="Delete it and run again"):
        read_weights(path, expected=expected)


def test_a_whole_file_covers_everything() -> None:
    coverage = covered(small_net().state_dict())
    assert (coverage.loaded, coverage.total, str(coverage)) == (9, 9, "9 of 9 tensors loaded")


def test_a_missing_head_is_counted_and_named() -> None:
    found = {name: value for name, value in small_net().state_dict().items() if name not in head()}
    coverage = covered(found)
    assert coverage.missing == head()
    assert str(coverage) == "7 of 9 tensors loaded, head new"


def test_a_head_of_another_shape_and_extra_tensors_are_counted_and_named() -> None:
    found = dict(small_net().state_dict()) | {
        "3.weight": torch.ones(7, 4),
        "3.bias": torch.ones(7),
        "ema": torch.ones(1),
    }
    coverage = covered(found)
    assert coverage.misshaped == head()
    assert coverage.unexpected == ("ema",)
    assert str(coverage) == "7 of 9 tensors loaded, head new; 1 of the file not used: ema"


def test_more_than_the_head_missing_names_ten_and_counts_the_rest() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(14)))
    found = {"13.weight": torch.ones(2, 2), "other": torch.ones(1)}
    with pytest.raises(ModelError) as caught:
        cover(net.state_dict(), found, heads=lambda: ("13.weight",), where="w.pth")
    assert "13 tensors outside the head are missing: 0.weight" in str(caught.value)
    assert "and 3 more" in str(caught.value)
    assert "1 are not the model's: other" in str(caught.value)


def test_a_body_tensor_of_another_shape_is_refused_with_both_shapes() -> None:
    found = dict(small_net().state_dict()) | {"0.bias": torch.ones(8)}
    with pytest.raises(ModelError, match=r"0\.bias \(8,\) instead of \(4,\)"):
        covered(found)


def test_batchnorm_counters_that_old_files_lack_are_not_missing() -> None:
    found = {name: value for name, value in small_net().state_dict().items() if "num_batches" not in name}
    coverage = covered(found)
    assert (coverage.loaded, coverage.total, coverage.missing) == (8, 8, ())


def test_loading_changes_what_was_counted_and_nothing_else() -> None:
    net, other = small_net(), small_net()
    found = dict(other.state_dict()) | {"3.weight": torch.ones(7, 4), "extra": torch.ones(1)}
    before = net.state_dict()["3.weight"].clone()
    load_by_coverage(net, found, covered(found))
    assert torch.equal(net.state_dict()["0.weight"], other.state_dict()["0.weight"])
    assert torch.equal(net.state_dict()["3.bias"], other.state_dict()["3.bias"])
    assert torch.equal(net.state_dict()["3.weight"], before)


def test_more_memory_than_there_is_is_refused_with_the_figures() -> None:
    with pytest.raises(ModelError, match=r"needs 1,000,000\.0 GB of memory, [\d,.]+ GB are free"):
        refuse_memory(10**15, what="the model")
    refuse_memory(1, what="the model")
