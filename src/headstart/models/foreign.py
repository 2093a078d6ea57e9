"""Files that are called weights and are something else: each is named, with the way out."""

from __future__ import annotations

import re
from pathlib import Path

OTHER_FORMATS = {
    ".pkl": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".pickle": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".ckpt": "a training checkpoint; take its state dict out and save it with safetensors.torch.save_file",
    ".h5": "a Keras file; port the weights to the timm or torchvision architecture and save them as .safetensors",
    ".keras": "a Keras file; port the weights to the timm or torchvision architecture and save them as .safetensors",
    ".onnx": "an ONNX graph, not trainable weights; export the original model's state dict as .safetensors",
    ".npy": "a NumPy array, which can hold pickled objects; save the state dict as .safetensors",
    ".joblib": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".torchscript": "a TorchScript archive, which is code; save the original model's state dict as .safetensors",
    ".ptl": "a TorchScript archive, which is code; save the original model's state dict as .safetensors",
    ".mar": "a TorchServe archive, which holds code; save the original model's state dict as .safetensors",
    ".distcp": "a shard of a distributed checkpoint (DCP), whose .metadata is a pickle; where it was made, load it and "
    "save the state dict as .safetensors",
    ".npz": "NumPy arrays; port them to the architecture's names and save them as .safetensors",
    ".msgpack": "a Flax file; port the weights to the architecture's names and save them as .safetensors",
    ".pt2": "an exported program; save the original model's state dict as .safetensors",
}


def what_folder(path: Path) -> str:
    """A folder that was given where a file belongs."""
    if (path / ".metadata").exists() or any(path.glob("*.distcp")):
        return (
            "a distributed checkpoint (DCP), whose .metadata is a pickle, which can run code; where it was made, load "
            "it and save the state dict with safetensors.torch.save_file"
        )
    return "a folder, not a file; a model folder or run is given as the model (--model FOLDER)"


def what_it_is(data: bytes, *, suffix: str) -> str | None:
    """What a file holds that cannot be weights of this ending, and what to do; None where nothing is plain to see."""
    head = data[:512].lstrip().lower()
    if not data:
        return "the file is empty; fetch or copy it again"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it is a web page (HTML), not weights: a download that was answered with a page; fetch the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights; fetch the file itself with git lfs pull"
    if not data.strip(b"\0"):
        return f"all of its {len(data):,} bytes are zero; fetch or copy it again"
    is_safetensors = data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data)  # the header's length, first
    if suffix == ".safetensors" and not is_safetensors and data.startswith((b"PK\3\4", b"\x80")):
        return "it is a file of torch.save, not safetensors; give it the ending .pth"
    if suffix != ".safetensors" and is_safetensors:
        return "it is a safetensors file; give it the ending .safetensors"
    return None


def reason(error: Exception) -> str:
    """Why torch did not read a file, without its advice to read it unsafely."""
    text = str(error)
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {wanted[1]}, which is no tensor"
    if operand := re.search(r"Unsupported operand (\d+)", text):
        return f"it is no file of torch.save, or a damaged one: operand {operand[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "weights_only" not in line]
    return lines[0][:200] if lines else type(error).__name__
