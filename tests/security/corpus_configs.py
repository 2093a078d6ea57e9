"""Configurations that name code, explode, or are no text."""

from __future__ import annotations

import os
from collections.abc import Iterator

from corpus import Artefact, World


def _texts(world: World) -> dict[str, bytes]:
    mark = world.mark("yaml")
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    return {
        "apply": f"epochs: !!python/object/apply:os.system ['touch {mark}']\n".encode(),
        "new": f"out: !!python/object/new:os.system ['touch {mark}']\n".encode(),
        "name": b"out: !!python/name:os.system\n",
        "module": b"out: !!python/module:os\n",
        "eval": f"seed: !!python/object/apply:eval [\"open('{mark}', 'w')\"]\n".encode(),
        "local-tag": b"epochs: !run 5\n",
        "binary": b"out: !!binary aGVsbG8=\n",
        "tag-directive": b"%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nout: !os.system [id]\n",
        "anchor": b"model: &m {name: starter}\n",
        "alias": b"epochs: *e\n",
        "laughs": laughs.encode(),
        "merge": b"<<: {epochs: 3}\n",
        "twice": b"epochs: 3\nepochs: 4\n",
        "deep": b"[" * 100_000,
        "deep-mapping": b"".join(b" " * n + b"a:\n" for n in range(3000)),
        "documents": b"epochs: 3\n---\nepochs: 4\n",
        "5-MB": b"# " + b"x" * (5 << 20) + b"\nepochs: 3\n",
        "nul": b"epochs: 3\x00\n",
        "utf-16": "epochs: 3\n".encode("utf-16"),
        "latin": b"out: caf\xe9\n",
        "escape": b'out: "\\xZZ"\n',
        "long-number": b"seed: " + b"9" * 5000 + b"\n",
        "infinite": b"optimizer: {lr: 1e999}\n",
        "code-loss": b"loss: {kind: os.system}\n",
        "code-optimizer": b"optimizer: {kind: timm, name: torch.hub.load}\n",
        "code-dotted": b"optimizer: {kind: timm, name: os.system}\n",
        "code-option": b"model: {name: timm/test_resnet, weights: none, options: {block: os.system}}\n",
        "code-checkpoint": b"model: {name: timm/test_resnet, weights: none, options: {checkpoint_path: /etc/passwd}}\n",
        "plugin": b"plugin: evil.py\n",
        "plugins": b"plugins: [evil]\n",
        "import": b"model: {name: 'evil:make_model'}\n",
        "remote": b"model: {name: 'https://evil.example/model.pth'}\n",
        "weights-remote": b"model: {name: timm/test_resnet, weights: 'http://evil.example/model.pth'}\n",
        "weights-private": f"model: {{name: timm/test_resnet, weights: '{world.home / 'id_rsa'}'}}\n".encode(),
        "hub-traversal": b"model: {name: 'hf-hub:../../etc'}\n",
        "source-device": b"data: {source: /dev/zero}\n",
        "device": b"model: {name: timm/test_resnet, weights: none}\ndevice: '__import__(\"os\")'\n",
        "include": b"defaults: [base]\n",
        "surrogate": b'out: "\\ud800"\n',
        "json-proto": b'{"__class__": "os.system", "__init__": {}}\n',
    }


def artefacts(world: World) -> Iterator[Artefact]:
    for name, text in _texts(world).items():
        path = world.at(f"configs/{name}.yaml")
        path.write_bytes(text)
        data = () if name == "source-device" else (str(world.photos),)
        commands = tuple((verb, *data, "--config", str(path)) for verb in ("train", "plan"))
        yield Artefact(name=f"config {name}", commands=commands, codes=frozenset({2}))
    pipe, endless = world.at("configs/pipe.yaml"), world.at("configs/zero.yaml")
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless, world.work):
        command = ("train", str(world.photos), "--config", str(path))
        yield Artefact(name=f"config {path.name}", commands=(command,), codes=frozenset({2}))
