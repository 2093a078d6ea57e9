"""Pretrained weights from the hub or a URL, through the caches that timm and torchvision use, never unverified."""

from __future__ import annotations

import http.client
import os
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from headstart.config.home import expand_home
from headstart.errors import ModelError
from headstart.models.weights import Digest, check_digest, hash_prefix, list_names
from headstart.storage.durable import write_file
from headstart.wording import option

CONTACT_SECONDS = 8.0  # until the first answer of a server, name look-up and all its addresses included
_USER = re.compile(r"//[^/@\s]*@")
_T = TypeVar("_T")


class NotThere(ModelError):
    """The server answered: it has no such file, or does not give it."""


@dataclass(frozen=True)
class Fetched:
    """A file in a cache, the hash that it must have, and where it is published."""

    path: Path
    digest: Digest | None
    where: str


def hub_file(repo: str, filename: str, *, revision: str | None = None) -> Fetched:
    """A file of a hub repository: from HF_HOME's cache, else downloaded into it (never with HF_HUB_OFFLINE).

    Raises: ModelError: not cached and the hub is offline, unreachable within seconds, or has no such file.
    """
    import huggingface_hub

    where = f"https://huggingface.co/{repo}/{filename}"
    cached = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir=hub_cache(), revision=revision)
    if isinstance(cached, str):
        digest = _blob_digest(Path(cached))
        return Fetched(
            Path(cached), digest or _fetch_digest(repo, filename, revision, lack="a hash to check it with"), where
        )
    digest = _fetch_digest(repo, filename, revision, lack="a copy")
    path = _ask_within(
        lambda: huggingface_hub.hf_hub_download(
            repo,
            filename,
            revision=revision,
            cache_dir=hub_cache(),
            endpoint=_endpoint(),
            etag_timeout=CONTACT_SECONDS,
        ),
        what=f"downloading {repo}/{filename}",
        seconds=None,
    )
    return Fetched(Path(path), digest, where)


def find_cached(repo: str, filename: str) -> Path | None:
    """A file of a hub repository that is in the cache already; nothing is fetched."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir=hub_cache())
    except HFValidationError:  # no repository's name
        return None
    return Path(cached) if isinstance(cached, str) else None


def url_file(url: str) -> Fetched:
    """A weights file of torchvision or a timm release: from TORCH_HOME's cache, else downloaded into it.

    Raises: ModelError: not cached and offline or unreachable, not https, or not the published hash.
    """
    name = Path(urllib.parse.urlparse(url).path).name
    path = torch_cache() / name
    if not path.is_file():
        if urllib.parse.urlparse(url).scheme != "https":
            raise ModelError(
                f"weights {url}: only https is fetched; download the file yourself and give it as {option('weights')}"
            )
        if offline():
            raise ModelError(f"weights {name} are not in {torch_cache()} and HF_HUB_OFFLINE is set; {ways_on()}")
        _download(url, path)
    return Fetched(path, hash_prefix(name), url)


def hub_cache() -> Path:
    """The hub's cache, from HF_HUB_CACHE, HF_HOME or the default, read at each call."""
    if os.environ.get("HF_HUB_CACHE"):
        return expand_home(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return expand_home(home) / "hub"


def torch_cache() -> Path:
    """The folder in which torchvision keeps weights, from TORCH_HOME or the default."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def list_cached_models() -> tuple[str, ...]:
    """Model specs and files that can be had without a network: the hub's cache, then torch's."""
    found = []
    for folder in sorted(hub_cache().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        if any(folder.glob("snapshots/*/model.safetensors")):
            found.append(repo if repo.startswith("timm/") else f"hf-hub:{repo}")
    return (*found, *(str(path) for path in sorted(torch_cache().glob("*.pth"))))


def ways_on() -> str:
    """What works without the network, for the end of an error message."""
    cached = list_cached_models()
    models = f"a cached model ({list_names(cached)})" if cached else "a cached model (there are none yet)"
    return (
        f"ways on: {models}, a local folder or weights file ({option('model', fill='FOLDER')}, "
        f"{option('weights', fill='FILE')}), or {option('model', 'starter')}"
    )


def _blob_digest(path: Path) -> Digest | None:
    """The hub's cache names a blob by its hash: SHA-256 for large files, git's for small ones."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Digest("sha256", name)
    return Digest("git", name) if re.fullmatch(r"[0-9a-f]{40}", name) else None


def _fetch_digest(repo: str, filename: str, revision: str | None, *, lack: str) -> Digest:
    import huggingface_hub

    if offline():
        raise ModelError(f"{repo}/{filename}: {hub_cache()} lacks {lack}, and HF_HUB_OFFLINE is set; {ways_on()}")
    url = huggingface_hub.hf_hub_url(repo, filename, revision=revision, endpoint=_endpoint())
    facts = _ask_within(
        lambda: huggingface_hub.get_hf_file_metadata(url, timeout=CONTACT_SECONDS, endpoint=_endpoint()),
        what=f"the hub ({_host(url)}), asked for {repo}/{filename},",
        seconds=CONTACT_SECONDS,
    )
    etag = facts.etag or ""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return Digest("sha256", etag)
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        return Digest("git", etag)
    raise ModelError(
        f"the hub publishes no hash of {repo}/{filename} ({etag!r}); download it and give it as "
        f"{option('weights', fill='FILE')}"
    )


def _host(url: str) -> str:
    """The server's name and port, without a user's name and password."""
    return urllib.parse.urlparse(url).netloc.rpartition("@")[2]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # its bases are OSError and the root of its client's errors, httpx in version 1, httpx2 in version 2
    return (*HfHubHTTPError.__bases__, http.client.HTTPException, ValueError, RuntimeError)


def _ask_within(question: Callable[[], _T], *, what: str, seconds: float | None) -> _T:
    """The answer, or a ModelError within ``seconds``: libraries' own time limits hold per address and per try."""
    answers: list[_T] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except _network_errors() as error:
            failures.append(error)

    worker = threading.Thread(target=ask, daemon=True)
    worker.start()
    worker.join(seconds)
    if answers:
        return answers[0]
    if not failures:
        assert worker.is_alive(), f"{what}: failed with an error that is not the network's"
        raise ModelError(f"{what} did not answer within {seconds:.0f} s; {ways_on()}")
    failure = failures[0]
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    status = getattr(getattr(failure, "response", None), "status_code", None)
    reason = _USER.sub("//", reason)  # a name and password in a proxy's or mirror's address
    if status in (401, 403, 404):
        raise NotThere(f"{what} answered {status}: {reason}") from failure
    raise ModelError(f"{what} cannot be reached ({reason}); {ways_on()}") from failure


def _download(url: str, path: Path) -> None:
    answer = _ask_within(
        lambda: urllib.request.urlopen(url, timeout=CONTACT_SECONDS),
        what=f"{_host(url)}, asked for {path.name},",
        seconds=CONTACT_SECONDS,
    )
    with answer:
        if urllib.parse.urlparse(answer.url).scheme != "https":
            raise ModelError(
                f"weights {url}: redirected to {answer.url}, which is not https; give the file as "
                f"{option('weights', fill='FILE')}"
            )
        try:
            data = answer.read()
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise ModelError(f"weights {url}: the download broke off ({error}); run again, or {ways_on()}") from error
    expected = hash_prefix(path.name)
    if expected is not None:
        check_digest(
            data, expected, where=path, remedy=f"Nothing was kept: run again, or give the file as {option('weights')}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)
