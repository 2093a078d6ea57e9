"""The service answers as ``hs.predict`` does, and whatever else is sent with a sentence and a status of its own."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

import headstart as hs
from headstart.errors import NonFiniteError
from headstart.prediction.rows import as_dict

Pictures = dict[str, bytes]


def form(pictures: Pictures) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("files", (name, content, "image/*")) for name, content in pictures.items()]


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a hundred bytes of header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def expected(run, pictures: Pictures, **options: object) -> list[dict[str, object]]:
    rows = hs.Predictor(run, **options).predict(list(pictures.values()))
    return [
        {"name": name, **{key: value for key, value in as_dict(row, top=5).items() if key != "path"}}
        for name, row in zip(pictures, rows, strict=True)
    ]


def test_answers_have_the_bits_of_predict_at_the_same_batch_shape(open_client, served_run, pictures) -> None:
    exact = open_client(exact=True)
    answer = exact.post("/predict", files=form(pictures))
    assert answer.status_code == 200
    assert answer.json()["predictions"] == expected(served_run, pictures)
    one_by_one = open_client(batch_size=1)
    assert one_by_one.post("/predict", files=form(pictures)).json()["predictions"] == expected(
        served_run, pictures, batch_size=1
    )


def test_files_and_base64_get_the_same_answers(open_client, pictures) -> None:
    client = open_client(exact=True)
    texts = [base64.b64encode(content).decode() for content in pictures.values()]
    named = client.post("/predict", files=form(pictures)).json()["predictions"]
    listed = client.post("/predict", json=texts).json()["predictions"]
    assert [row["labels"] for row in listed] == [row["labels"] for row in named]
    assert [row["name"] for row in listed] == [f"images[{number}]" for number in range(len(texts))]
    (top,) = client.post("/predict?top=1", json=texts[:1]).json()["predictions"]
    assert top["labels"] == named[0]["labels"][:1]


def test_tags_and_numbers_are_answered_too(open_client, train_on, colours, tmp_path, pictures) -> None:
    names = sorted(path.relative_to(colours) for path in colours.rglob("*.png"))
    tags = "".join(f"{colours / name},{int(i % 2 == 0)},{int(i % 3 == 0)}\n" for i, name in enumerate(names))
    (tmp_path / "tags.csv").write_text("image,wet,warm\n" + tags)
    (tmp_path / "numbers.csv").write_text(
        "image,price\n" + "".join(f"{colours / name},{i * 1.5}\n" for i, name in enumerate(names))
    )
    for table, data in (("tags", {}), ("numbers", {"target": "price"})):
        source = tmp_path / f"{table}.csv"
        run = train_on(source, tmp_path / table, images=str(colours), **data)
        client = open_client(run=run, exact=True)
        assert client.post("/predict", files=form(pictures)).json()["predictions"] == expected(run, pictures)
        facts = client.get("/model").json()
        assert facts["names"] == list(hs.open_run(run).task.names)


def test_an_unreadable_image_keeps_its_place_and_says_why(open_client, pictures) -> None:
    client, (name, content) = open_client(), next(iter(pictures.items()))
    sent = {"torn.jpg": content[: len(content) // 2], name: content, "bomb.png": bomb(), "text.png": b"hello"}
    answer = client.post("/predict", files=form(sent))
    assert answer.status_code == 200
    rows = answer.json()["predictions"]
    assert [row["name"] for row in rows] == list(sent)
    assert ["error" in row for row in rows] == [True, False, True, True]
    assert "pixels" in rows[2]["error"]
    alone = client.post("/predict", files=form({"bomb.png": sent["bomb.png"]}))
    assert alone.status_code == 422 and "pixels" in alone.json()["predictions"][0]["error"]
    assert "bomb.png" not in alone.json()["error"]


LIMITS = {"max_images": 3, "max_file_bytes": 20_000, "max_request_bytes": 50_000, "queue": 8}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
REFUSED = {
    "another type": ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain"),
    "no type": ({"content": b"x"}, 415, "none"),
    "no body": ({}, 415, "none"),
    "an image by itself": ({"content": b"x", "headers": {"Content-Type": "image/png"}}, 415, "image/png"),
    "no JSON": ({"content": b"{", "headers": JSON}, 400, "no JSON"),
    "deep JSON": ({"content": b"[" * 40_000, "headers": JSON}, 400, "no JSON"),
    "letters that are none": ({"content": b'["\xff"]', "headers": JSON}, 400, "JSON"),
    "an object": ({"json": {"image": "x"}}, 422, "no list of texts"),
    "numbers": ({"json": [1, 2]}, 422, "no list of texts"),
    "nothing": ({"json": []}, 422, "no image"),
    "no base64": ({"json": ["%%%"]}, 422, "could be read"),
    "letters beyond ASCII": ({"content": rb'["\u00e9", "\ud800"]', "headers": JSON}, 422, "could be read"),
    "an address": ({"json": ["http://127.0.0.1:1/cat.jpg"]}, 422, "could be read"),
    "a path": ({"json": ["/etc/passwd"]}, 422, "could be read"),
    "a field of text": ({"data": {"files": "/etc/passwd"}, "files": {}}, 415, "urlencoded"),
    "a form without its boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "form"),
    "a damaged form": ({"content": b"no form", "headers": FORM}, 400, "form"),
    "a form without parts": ({"content": b"--x--\r\n", "headers": FORM}, 422, "no image"),
    "large headers": (
        {"content": b"--x\r\nA: " + b"b" * 9_000 + b"\r\n\r\n\r\n--x--\r\n", "headers": FORM}, 400, "part",
    ),
    "many images": ({"files": [("files", (f"{n}.png", b"x")) for n in range(4)]}, 413, "more than 3 images"),
    "many parts": ({"files": [("files", (None, b"x")) for n in range(40)]}, 413, "more than 19 parts"),
    "many texts": ({"json": ["aGk="] * 4}, 413, "more than 3 images"),
    "a large file": ({"files": {"files": ("large.png", b"x" * 30_000)}}, 413, "large.png"),
    "a large body": ({"content": b"x" * 60_000, "headers": FORM}, 413, "larger than 0.05 MB"),
    "a huge body": ({"content": b"x" * 900_000, "headers": FORM}, 413, "larger than 0.05 MB"),
    "a huge body in pieces": (
        {"content": (b"x" * 1_000 for _ in range(900)), "headers": FORM}, 413, "larger than 0.05 MB",
    ),
    "an empty file": ({"files": {"files": ("empty.png", b"")}}, 422, "could be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_refused_with_a_sentence(case: str, open_client) -> None:
    request, status, words = REFUSED[case]
    answer = open_client(**LIMITS).post("/predict", **request)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.parametrize("top", ["0", "-1", "x", "9" * 30, ""])
def test_a_number_of_classes_that_is_none_is_refused(top: str, open_client) -> None:
    answer = open_client().post(f"/predict?top={top}", json=["aGk="])
    assert answer.status_code == 422 and "top" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/nothing", "/predict/", "/../etc/passwd", "/%2e%2e/x", "/docs", "/redoc", "/static"])
def test_unknown_addresses_and_methods_are_refused(path: str, open_client) -> None:
    client = open_client()
    assert client.get(path).status_code == 404 and "error" in client.get(path).json()
    for method, known in (("GET", "/predict"), ("PUT", "/predict"), ("POST", "/model"), ("DELETE", "/health")):
        answer = client.request(method, known)
        assert answer.status_code == 405 and "method" in answer.json()["error"]


def test_names_are_text_and_nothing_else(open_client, pictures, tmp_path) -> None:
    content, client = next(iter(pictures.values())), open_client()
    (tmp_path / "secret.png").write_bytes(content)
    for name in (
        "../../etc/passwd",
        str(tmp_path / "secret.png"),
        "a\\b.png",
        "<script>.png",
        "é\u202e.png",
        "a" * 3000,
    ):
        (row,) = client.post("/predict", files={"files": (name, content)}).json()["predictions"]
        assert row["name"] == name and row["labels"]
    reply = client.post("/predict", files={"files": (str(tmp_path / "secret.png"), b"")})
    assert reply.status_code == 422, "the file of that name is not read"
    raw = (
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="\xff\xfe.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    (row,) = client.post("/predict", content=raw, headers=FORM).json()["predictions"]
    assert row["labels"] and row["name"].isascii()


def test_a_token_is_asked_for(open_client) -> None:
    client = open_client(token="a secret")
    assert client.get("/health").status_code == 200
    for headers in (
        {},
        {"Authorization": "a secret"},
        {"Authorization": "Bearer a secre"},
        {"Authorization": "Bearer "},
    ):
        for path in ("/model", "/metrics", "/openapi.json", "/nothing"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401 and "a secret" not in answer.text
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.post("/predict", json=["aGk="], headers=headers).status_code == 401
    known = {"Authorization": "Bearer a secret"}
    assert client.get("/model", headers=known).status_code == 200
    assert "a secret" not in repr(client.service) + repr(client.service.gate)


def test_a_full_queue_is_said_with_a_time_to_ask_again(open_client, pictures) -> None:
    client = open_client(queue=4, batch_size=1)
    go, real = threading.Event(), client.service.batcher._compute
    client.service.batcher._compute = lambda items: (go.wait(30), real(items))
    content = next(iter(pictures.values()))
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(client.post, "/predict", files={"f": ("a.png", content)}) for _ in range(4)]
        while client.get("/health").json()["waiting"] < 4:
            time.sleep(0.01)
        refused = client.post("/predict", files={"f": ("a.png", content)})
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        go.set()
        assert [answer.result().status_code for answer in first] == [200] * 4
    assert client.post("/predict", files={"f": ("a.png", content)}).status_code == 200
    assert client.get("/health").json()["waiting"] == 0


def test_a_request_that_takes_too_long_is_said_and_computed_no_further(open_client, pictures) -> None:
    client = open_client(batch_size=1, max_seconds=0.3)
    go, real, seen = threading.Event(), client.service.batcher._compute, []
    client.service.batcher._compute = lambda items: (seen.extend(items), go.wait(30), real(items))
    late = client.post("/predict", files=form(pictures))
    assert late.status_code == 503 and "0.3 s" in late.json()["error"] and late.headers["Retry-After"]
    go.set()
    while client.get("/health").json()["waiting"]:
        time.sleep(0.01)
    assert len(seen) == 1, "the others were cancelled"


def test_a_model_that_fails_at_one_image_answers_the_others(open_client, pictures, monkeypatch) -> None:
    from headstart.serve import batcher

    real = batcher.predict_decoded

    def fail(predictor, images, *, rows):
        if any(image.name == "03.jpeg" for image in images):
            raise NonFiniteError("inf")
        return real(predictor, images, rows=rows)

    monkeypatch.setattr(batcher, "predict_decoded", fail)
    rows = open_client().post("/predict", files=form(pictures)).json()["predictions"]
    assert [row["name"] for row in rows if "error" in row] == ["03.jpeg"]
    assert "not finite" in rows[3]["error"]


def test_no_answer_is_lost_or_swapped_among_32_threads(open_client, served_run, pictures) -> None:
    client, names = open_client(exact=True, wait_seconds=0.01), list(pictures)
    wanted = {row["name"]: row for row in expected(served_run, pictures)}

    def ask(number: int) -> bool:
        mine = [names[(number + step) % len(names)] for step in range(1 + number % 3)]
        sent = [("files", (name, pictures[name])) for name in mine]
        return client.post("/predict", files=sent).json()["predictions"] == [wanted[name] for name in mine]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(128)))
    text = client.get("/metrics").text
    assert f'headstart_images_total{{outcome="predicted"}} {sum(1 + n % 3 for n in range(128))}\n' in text
    assert client.service.counters.read("headstart_waiting_images") == 0
    batches = float(text.split("headstart_batch_images_count ")[1].split()[0])
    assert batches < 128, "images of several requests are computed together"


def test_metrics_are_in_the_form_of_prometheus(open_client, pictures) -> None:
    client = open_client()
    client.post("/predict", files=form(pictures))
    client.get("/nothing")
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'headstart_requests_total{code="200"} 1\n' in answer.text
    assert 'headstart_requests_total{code="404"} 1\n' in answer.text
    for name in ("headstart_request_seconds", "headstart_batch_images"):
        counts = [float(line.split()[1]) for line in answer.text.splitlines() if line.startswith(f"{name}_bucket")]
        assert counts == sorted(counts) and f"{name}_count {counts[-1]:g}\n" in answer.text


def test_the_service_describes_itself(open_client, served_run) -> None:
    client, opened = open_client(), hs.open_run(served_run)
    facts = client.get("/model").json()
    assert facts["names"] == list(opened.task.classes) and facts["input"] == {"height": 32, "width": 32, "channels": 3}
    assert facts["metrics"]["accuracy"] == opened.facts["metrics"]["accuracy"] and facts["licence"]
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/health", "/model", "/metrics"}
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert json.dumps(described).count("https://") == 0
    for path in ("/health", "/model"):
        headers = client.get(path).headers
        assert (
            headers["X-Content-Type-Options"] == "nosniff"
            and "default-src 'none'" in headers["Content-Security-Policy"]
        )


def test_bodies_beyond_the_memory_of_all_requests_are_refused(open_client, pictures) -> None:
    client = open_client()
    client.service.state.held_bytes = client.service.settings.max_held_bytes
    refused = client.post("/predict", files=form(pictures))
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
    client.service.state.held_bytes = 0
    assert client.post("/predict", files=form(pictures)).status_code == 200
    assert client.service.state.held_bytes == 0


def test_a_service_that_ends_refuses_what_is_new(open_client) -> None:
    client = open_client()
    client.service.state.ending = True
    answer = client.get("/model")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1" and "ending" in answer.json()["error"]
