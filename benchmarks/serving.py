"""Images per second and waiting times of ``headstart serve``, beside the model called in a loop and a plain endpoint.

    python -m benchmarks.serving [--images 256] [--clients 1 8 64] [--model timm/resnet18]

One image per request, JPEGs of 640 x 480. The loop decodes, resizes and computes one image after the other, as the
usual script does it with Pillow and timm; the plain endpoint is FastAPI around the same lines, as tutorials show it.
The model, its weights and torch's threads are the same in all three. The clients run on the same cores. It prints its
table.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BOUNDARY = "a-boundary-of-the-benchmark"
SIZE = (640, 480)


def draw_photos(count: int) -> list[bytes]:
    """JPEGs as smooth and as noisy as photos are."""
    import numpy as np
    from PIL import Image

    draw, photos = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            SIZE, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse) + draw.normal(0, 6, (SIZE[1], SIZE[0], 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(written := io.BytesIO(), "JPEG", quality=88)
        photos.append(written.getvalue())
    return photos


def train(folder: Path, model: str, photos: list[bytes]) -> Path:
    """A run whose weights are of no use: only its speed counts."""
    import headstart as hs

    for number, photo in enumerate(photos[:32]):
        path = folder / "photos" / ("a", "b")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo)
    settings = {
        "data": {"source": str(folder / "photos")}, "model": {"name": model, "weights": "none"}, "recipe": "probe",
        "epochs": 1, "batch": {"size": 16}, "device": "cpu", "out": str(folder / "run"),
    }  # fmt: skip
    return Path(hs.train(hs.load_config(settings)).path)


def plain_prediction(run: str) -> Callable[[bytes], dict[str, float]]:
    """What the usual script does with an image: Pillow, timm's transform, one forward pass."""
    import timm
    import torch
    from PIL import Image

    import headstart as hs

    opened = hs.open_run(run)
    config = {
        "input_size": (3, opened.preprocess.height, opened.preprocess.width), "mean": opened.preprocess.mean,
        "std": opened.preprocess.std, "interpolation": opened.preprocess.interpolation,
        "crop_pct": opened.preprocess.crop_pct,
    }  # fmt: skip
    transform, model = timm.data.create_transform(**config, is_training=False), opened.model

    def predict(content: bytes) -> dict[str, float]:
        pixels = transform(Image.open(io.BytesIO(content)).convert("RGB"))
        with torch.inference_mode():
            values = model(pixels[None]).softmax(1)[0].tolist()
        return dict(zip(opened.task.classes, values, strict=True))

    return predict


def serve_plainly(run: str, port: int) -> None:
    """FastAPI around the script."""
    import fastapi
    import uvicorn

    app, predict = fastapi.FastAPI(), plain_prediction(run)

    def answer(files: fastapi.UploadFile) -> dict[str, float]:
        return predict(files.file.read())

    answer.__annotations__["files"] = fastapi.UploadFile  # a text until now, whose names FastAPI does not find here
    app.post("/predict")(answer)
    print("ready", flush=True)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


@contextmanager
def started(command: list[str]) -> Iterator[str]:
    """The first line of a service that runs meanwhile."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(port: int, photos: list[bytes], clients: int) -> dict[str, Any]:
    """Images per second, waiting times and statuses of so many clients, each with a connection of its own."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'.encode()
    bodies = [head + photo + f"\r\n--{BOUNDARY}--\r\n".encode() for photo in photos]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def work(first: int) -> list[tuple[float, int]]:
        connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=300), []
        for body in bodies[first::clients]:
            begun = time.perf_counter()
            connection.request("POST", "/predict", body=body, headers=headers)
            reply = connection.getresponse()
            reply.read()
            found.append((time.perf_counter() - begun, reply.status))
        return found

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        rows = [row for found in pool.map(work, range(clients)) for row in found]
    seconds = time.perf_counter() - begun
    times = sorted(row[0] for row in rows)
    return {
        "rate": len(rows) / seconds, "p50": 1000 * statistics.median(times),
        "p99": 1000 * times[min(len(times) - 1, int(0.99 * len(times)))],
        "refused": sum(status == 503 for _, status in rows),
        "lost": sum(status not in (200, 503) for _, status in rows),
    }  # fmt: skip


def wait_for(port: int) -> None:
    """Return once something listens."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("nothing listens")


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--model", default="timm/resnet18")
    parser.add_argument("--plain", nargs=2, metavar=("RUN", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        serve_plainly(args.plain[0], int(args.plain[1]))
        return
    photos = draw_photos(args.images)
    with tempfile.TemporaryDirectory() as folder:
        run = str(train(Path(folder), args.model, photos))
        measure(run, photos, args.clients)


def measure(run: str, photos: list[bytes], clients: list[int]) -> None:
    """Print the table: the loop, then both services at each number of clients, in turns."""
    predict = plain_prediction(run)
    predict(photos[0])

    def loop() -> float:
        begun = time.perf_counter()
        for photo in photos:
            predict(photo)
        return len(photos) / (time.perf_counter() - begun)

    plain, port = [sys.executable, "-m", "benchmarks.serving", "--plain", run], free_port()
    ours = [sys.executable, "-m", "headstart", "serve", run, "--port", "0"]
    print(f"load {os.getloadavg()[0]:.1f}; OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print("| | clients | images/s | of the loop | p50 ms | p99 ms | 503 | lost |\n|---|--:|--:|--:|--:|--:|--:|--:|")
    with started(ours) as line, started([*plain, str(port)]):
        wait_for(port)
        found = re.search(r":(\d+) ", line)
        assert found is not None, line
        ports = {"headstart serve": int(found[1]), "plain FastAPI": port}
        for each in ports.values():
            ask(each, photos[:8], 2)
        for count in clients:
            rate = loop()  # anew: others' work on this machine comes and goes
            print(f"| loop | | {rate:.1f} | 1.00 | {1000 / rate:.0f} | | | |")
            for name, each in ports.items():
                row = ask(each, photos, count)
                print(
                    f"| {name} | {count} | {row['rate']:.1f} | {row['rate'] / rate:.2f} | {row['p50']:.0f} | "
                    f"{row['p99']:.0f} | {row['refused']} | {row['lost']} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
