"""Files that are called weights and are something else: each is named, with the way out."""

from __future__ import annotations

from pathlib import Path

from headstart.wording import option

ACCEPTED = (
    "weights are pretrained, none, or a file: .safetensors, or .pth, .pt, .bin, .ckpt as training scripts write them"
)
IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin", "model/model.safetensors")  # as HF and headstart write them
OTHER_FORMATS = {
    ".pkl": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".pickle": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".h5": "a Keras file; port the weights to the timm or torchvision architecture and save them as .safetensors",
    ".keras": "a Keras file; port the weights to the timm or torchvision architecture and save them as .safetensors",
    ".onnx": "an ONNX graph, not trainable weights; export the original model's state dict as .safetensors",
    ".npy": "a NumPy array, which can hold pickled objects; save the state dict as .safetensors",
    ".joblib": "a pickle, which can run code; where it was made, save the state dict with safetensors.torch.save_file",
    ".torchscript": "a TorchScript archive, which is code; where it was made, run: torch.save(torch.jit.load(FILE)"
    ".state_dict(), 'weights.pth'), or save the original model's state dict as .safetensors",
    ".ptl": "a TorchScript archive, which is code; save the original model's state dict as .safetensors",
    ".mar": "a TorchServe archive, which holds code; save the original model's state dict as .safetensors",
    ".distcp": "a shard of a distributed checkpoint (DCP), whose .metadata is a pickle; where it was made, run: from "
    "torch.distributed.checkpoint.format_utils import dcp_to_torch_save; dcp_to_torch_save(FOLDER, 'weights.pth'), or "
    "save the state dict as .safetensors",
    ".npz": "NumPy arrays, as JAX has them; where timm knows them: model = timm.create_model(NAME); "
    "model.load_pretrained(FILE); torch.save(model.state_dict(), 'weights.pth'); else port them to the architecture's "
    "names and save them as .safetensors",
    ".msgpack": "a Flax file; port the weights to the architecture's names and save them as .safetensors",
    ".pt2": "an exported program; where it was made, run: torch.save(torch.export.load(FILE).state_dict, "
    "'weights.pth'), or save the original model's state dict as .safetensors",
}


def what_folder(path: Path) -> str:
    """A folder that was given where a file belongs."""
    if (path / ".metadata").exists() or any(path.glob("*.distcp")):
        return (
            "a distributed checkpoint (DCP), whose .metadata is a pickle, which can run code; where it was made, run: "
            "from torch.distributed.checkpoint.format_utils import dcp_to_torch_save; "
            f"dcp_to_torch_save({str(path)!r}, 'weights.pth')"
        )
    inside = [name for name in IN_A_FOLDER if (path / name).is_file()]
    file = f"its weights are {path / inside[0]} ({option('weights', path / inside[0])}); " if inside else ""
    return f"a folder, not a file; {file}a model folder or run is given as the model ({option('model', path)})"


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
