"""Fetching weights: from a hub and an https server of the test's own, from caches good and bad, and offline."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save

from headstart.errors import ModelError
from headstart.models import fetch
from headstart.models.sources import open_model
from tests.security.bomb import Bomb

TINY = "timm/test_resnet.r160_in1k"
REPO = "timm/test_resnet.r160_in1k"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by path; as the hub does, the hash of what it should serve is in the headers."""

    files: dict[str, bytes]
    published: dict[str, str]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", "a" * 40)
        digest = self.server.published.get(self.path) or hashlib.sha256(data).hexdigest()
        self.send_header("ETag", f'"{digest}"')
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def serve(server: Server) -> None:
    server.files, server.published, server.asked = {}, {}, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        serve(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An https server on loopback whose certificate is trusted for the length of a test."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    pem = tmp_path / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {pem} -out {tmp_path / 'c'} -days 1 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + (tmp_path / "c").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with Server(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serve(server)
        yield server
        server.shutdown()


def drip(listener: socket.socket) -> None:
    """Answer one question a byte a second: never silent for as long as a client's own time limit."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\n" * 2:
            connection.send(bytes([byte]))
            time.sleep(1)


def tiny_weights() -> bytes:
    return save({name: value.contiguous() for name, value in timm.create_model("test_resnet").state_dict().items()})


def path_of(name: str = "model.safetensors") -> str:
    return f"/{REPO}/resolve/main/{name}"


def test_hub_weights_are_fetched_once_then_taken_from_the_cache_offline(
    hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_weights()
    hub.files[path_of()] = data
    first = open_model(TINY)
    assert first.weights.sha256 == hashlib.sha256(data).hexdigest()
    assert (first.coverage.loaded, first.coverage.missing) == (first.coverage.total, ())
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = open_model(TINY)
    assert len(hub.asked) == asked
    assert torch.equal(next(again.module.parameters()), next(first.module.parameters()))


def test_a_hub_that_sends_other_bytes_than_it_publishes_is_refused(hub: Server) -> None:
    hub.files[path_of()] = tiny_weights()
    hub.published[path_of()] = "0" * 64
    with pytest.raises(ModelError, match=r"the file's hash is .* published is 0000"):
        open_model(TINY)


def test_a_changed_cache_is_refused_by_name(hub: Server, tmp_path: Path) -> None:
    hub.files[path_of()] = tiny_weights()
    open_model(TINY)
    (blob,) = (path for path in (tmp_path / "hf").rglob("blobs/*") if len(path.name) == 64)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: the file's hash is .* Delete it"):
        open_model(TINY)


def test_a_pickle_on_the_hub_is_read_as_tensors_and_never_run(hub: Server, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": Bomb(Path.touch, proof)}, tmp_path / "bomb.bin")
    hub.files[path_of("pytorch_model.bin")] = (tmp_path / "bomb.bin").read_bytes()
    with pytest.raises(ModelError, match="code in a file is never run"):
        open_model(TINY)
    assert not proof.exists()


def test_a_repository_without_weights_says_what_the_hub_answered(hub: Server) -> None:
    with pytest.raises(ModelError, match="answered 404"):
        open_model(TINY)


def test_a_model_folder_on_the_hub_is_opened(hub: Server) -> None:
    config = b'{"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 96, 96]}}'
    hub.files["/someone/shells/resolve/main/config.json"] = config
    hub.files["/someone/shells/resolve/main/model.safetensors"] = tiny_weights()
    opened = open_model("hf-hub:someone/shells")
    assert (opened.architecture, opened.preprocess.height) == ("test_resnet", 96)
    assert opened.coverage.loaded == opened.coverage.total


@pytest.mark.parametrize("case", ["closed", "dripping"])
def test_an_unreachable_hub_is_one_error_within_seconds_that_names_the_ways_on(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hf" / "hub" / "models--timm--test_vit.r160_in1k" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "model.safetensors").touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if case == "dripping":
            listener.listen()
            threading.Thread(target=drip, args=(listener,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        begin = time.perf_counter()
        with pytest.raises(ModelError) as caught:
            open_model(TINY)
        assert time.perf_counter() - begin < 10
    for way in ("timm/test_vit.r160_in1k", "a local folder", "--model starter"):
        assert way in str(caught.value)


def test_offline_without_a_copy_says_so_and_asks_nobody(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; ways on"):
        open_model(TINY)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set; ways on"):
        open_model("torchvision/squeezenet1_0")
    assert hub.asked == []


def test_a_poisoned_torch_cache_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    entry = torchvision.models.SqueezeNet1_0_Weights.DEFAULT
    path = tmp_path / "torch" / "hub" / "checkpoints" / Path(entry.url).name
    path.parent.mkdir(parents=True)
    torch.save(Bomb(Path.touch, proof), path)
    with pytest.raises(ModelError, match=r"squeezenet1_0-b66bff10\.pth: the file's hash is .* Delete it and run again"):
        open_model("torchvision/squeezenet1_0")
    assert not proof.exists()


def test_a_poisoned_cache_whose_name_has_the_right_hash_runs_nothing_either(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "torch" / "hub" / "checkpoints" / "x"
    path.parent.mkdir(parents=True)
    torch.save(Bomb(Path.touch, proof), path)
    name = f"tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(path.with_name(name))
    fetched = fetch.url_file(f"https://example.invalid/{name}")
    from headstart.models.weights import read_weights

    with pytest.raises(ModelError, match="code in a file is never run"):
        read_weights(fetched.path, expected=fetched.digest)
    assert not proof.exists()


def test_a_download_over_https_is_kept_whole_with_its_hash_checked(site: Server, tmp_path: Path) -> None:
    name = f"tiny-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    site.files[f"/{name}"] = b"weights"
    fetched = fetch.url_file(f"https://localhost:{site.server_port}/{name}")
    assert fetched.path == tmp_path / "torch" / "hub" / "checkpoints" / name
    assert fetched.path.read_bytes() == b"weights"
    assert fetch.url_file(f"https://localhost:{site.server_port}/{name}").path == fetched.path
    assert site.asked == [f"/{name}"]


def test_a_download_of_other_bytes_than_its_name_says_leaves_nothing(site: Server, tmp_path: Path) -> None:
    site.files["/tiny-01234567.pth"] = b"weights"
    with pytest.raises(ModelError, match="published is 01234567"):
        fetch.url_file(f"https://localhost:{site.server_port}/tiny-01234567.pth")
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]


def test_plain_http_is_not_fetched() -> None:
    with pytest.raises(ModelError, match="only https is fetched"):
        fetch.url_file("http://127.0.0.1:9/tiny-01234567.pth")
