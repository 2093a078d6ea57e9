"""The command itself: it starts on a free port, answers, and ends in order; several processes share the port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import headstart as hs
from headstart.cli.main import main

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(served_run: Path) -> Iterator[Start]:
    """Starts the command: ``start("--workers", "2", token="secret")`` gives the process and its address."""
    processes = []

    def begin(*words: str, workers: int = 1, token: str | None = None) -> tuple[subprocess.Popen[str], str]:
        environment = {name: value for name, value in os.environ.items() if name != "HEADSTART_TOKEN"}
        command = [sys.executable, "-m", "headstart", "serve", str(served_run), "--port", "0", *words]
        command += ["--workers", str(workers)] if workers > 1 else []
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | ({"HEADSTART_TOKEN": token} if token else {}),
        )
        processes.append(process)
        lines = [process.stdout.readline() for _ in range(workers)]
        found = [re.search(r"serving .* at (http://\S+?),? ", line) for line in lines]
        assert all(found), lines
        return process, found[0][1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_sigterm_answers_what_was_asked_and_refuses_what_is_new(start, served_run, pictures) -> None:
    process, address = start("--exact", "--batch-size", "1", "--wait-ms", "0")
    wanted = {name: hs.predict(served_run, content, batch_size=1)[0].labels for name, content in pictures.items()}
    many = [("files", (name, content)) for name, content in pictures.items()] * 5

    def ask(_: int) -> list[dict[str, object]]:
        answer = httpx.post(f"{address}/predict", files=many, timeout=60)
        return answer.json()["predictions"] if answer.status_code == 200 else []

    client = httpx.Client(base_url=address, timeout=60)
    assert client.get("/health").json()["status"] == "ok"
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        while client.get("/health").json()["waiting"] < 180:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        statuses = set()
        try:
            while True:
                answer = client.get("/health")
                statuses.add(answer.status_code)
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"] == "1"
        except httpx.TransportError:  # the listener is closed at the end
            pass
        for answers in asked:
            rows = answers.result()
            assert [row["name"] for row in rows] == list(pictures) * 5
            assert all(
                [(label["name"], label["confidence"]) for label in row["labels"]] == list(wanted[row["name"]])
                for row in rows
            )
    assert 503 in statuses
    assert process.wait(30) == 0


def test_several_processes_share_a_port_and_count_together(start, pictures) -> None:
    process, address = start(workers=2)
    answers = [httpx.post(f"{address}/predict", files={"f": item}).status_code for item in pictures.items()]
    assert answers == [200] * len(pictures)
    text = httpx.get(f"{address}/metrics").text
    assert f'headstart_images_total{{outcome="predicted"}} {len(pictures)}\n' in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_token_of_the_environment_is_asked_for_and_never_printed(start) -> None:
    process, address = start("--host", "0.0.0.0", token="a-long-secret")
    address = address.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{address}/model").status_code == 401
    assert httpx.get(f"{address}/model", headers={"Authorization": "Bearer a-long-secret"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "a-long-secret" not in process.stdout.read()


def test_a_body_that_is_too_large_is_answered_before_it_is_whole(start) -> None:
    _, address = start("--max-request-mb", "1", "--max-seconds", "5")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{address}/predict", content=b"x" * 3_500_000, headers=headers)
    assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]
    with socket.create_connection((address.split(":")[1][2:], int(address.split(":")[2]))) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n["
        )
        slow.settimeout(20)
        assert b" 503 " in slow.recv(4096).split(b"\r\n")[0], "a client that sends nothing more is left"
    with socket.create_connection((address.split(":")[1][2:], int(address.split(":")[2]))) as odd:
        odd.sendall(b"no HTTP at all\r\n\r\n")
        assert b" 400 " in odd.recv(4096).split(b"\r\n")[0]
    assert httpx.get(f"{address}/health").status_code == 200


WRONG = {
    "a port that is none": (["--port", "70000"], "--port: 70000"),
    "no workers": (["--workers", "0"], "--workers: 0"),
    "no images": (["--max-images", "0"], "--max-images: 0"),
    "a queue that is too short": (["--queue", "8"], "--queue 64"),
    "no time": (["--max-seconds", "0"], "--max-seconds: 0"),
    "a wait without end": (["--wait-ms", "5000"], "--wait-ms 5"),
    "no batch": (["--batch-size", "0"], "--batch-size: 0"),
    "other machines": (["--host", "0.0.0.0"], "set HEADSTART_TOKEN, or give --open"),
    "every address": (["--host", "::"], "set HEADSTART_TOKEN, or give --open"),
    "a name of this machine": (["--host", socket.gethostname() or "machine"], "set HEADSTART_TOKEN, or give --open"),
    "no address": (["--host", "nowhere.invalid", "--open"], "nowhere.invalid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_served_is_said_in_a_line(case: str, served_run, capsys, monkeypatch) -> None:
    words, said = WRONG[case]
    monkeypatch.delenv("HEADSTART_TOKEN", raising=False)
    assert main(["serve", str(served_run), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_is_none_and_a_port_that_is_taken_are_said(served_run, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("HEADSTART_TOKEN", raising=False)
    assert main(["serve", str(tmp_path / "none")]) == 2
    assert "no finished run" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(served_run), "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
    for token in ("", " ", "ü", "a\nb"):
        monkeypatch.setenv("HEADSTART_TOKEN", token)
        assert main(["serve", str(served_run)]) == 2
        assert "HEADSTART_TOKEN" in capsys.readouterr().err


def test_without_the_extra_one_sentence_names_it(served_run, capsys, monkeypatch) -> None:
    from headstart.cli import serve

    monkeypatch.delenv("HEADSTART_TOKEN", raising=False)
    monkeypatch.setattr(serve, "_NEEDED", ("a_library_that_is_not_there",))
    assert main(["serve", str(served_run)]) == 2
    assert "pip install 'headstart[serve]'" in capsys.readouterr().err
