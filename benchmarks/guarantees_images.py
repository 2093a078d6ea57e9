"""No image takes long, or much memory, or keeps a run from hearing SIGTERM: decoded soon, or refused by name.

python -m benchmarks.guarantees_images [--mutants 2000] [--seed 0] [--out FILE]

Mutants (bytes flipped, cut, put in, taken out) of six formats; the largest files that are accepted; files that are made
to cost hours. Each is decoded in a child process, whose CPU seconds and memory (beyond the file's own bytes) count;
memory against the decoded size: width x height x channels of the file or of the picture that comes out, whichever are
more, a byte each. The largest are decoded once more, by the main thread, while SIGTERM comes every now and then.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from headstart.data.decoding.decode import FORMATS, UnreadableImage, decode_image
from headstart.data.decoding.lazy_image import LazyImage
from tests.reliability.damaged_images import mutated

SIDE = 8000
Door = Callable[[bytes], tuple[int, int]]
_SMALL = 16 * 2**20  # what a process grows by for a small picture says nothing about it
_EACH = 250  # mutants of a child, which is what can be gone on from


@dataclass(frozen=True)
class Cost:
    """Of one file: CPU and clock seconds, memory against the decoded size, and why it was refused ("": it was not)."""

    name: str
    cpu: float
    seconds: float
    ratio: float
    refusal: str
    bytes: int


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def whole(content: bytes) -> tuple[int, int]:
    """The picture's size, once it is decoded as a whole."""
    return decode_image(content, where="x").size


def shown(content: bytes) -> tuple[int, int]:
    """The picture's size, once it is decoded to all its pixels as a training image is."""
    picture = LazyImage(content, where="x")
    picture.region((0, 0, *picture.size), scaled=picture.size, gap=1.0)
    return picture.size


def _decode(content: bytes, door: Door) -> tuple[int, str]:
    """(Decoded size, why it was refused)."""
    try:
        size = door(content)
    except UnreadableImage as error:
        return 0, error.reason
    with Image.open(io.BytesIO(content)) as image:
        channels = 4 if image.format == "WEBP" else len(image.getbands())  # which libwebp gives, clear or not
        return size[0] * size[1] * max(3, channels), ""


def measured(name: str, content: bytes, door: Door) -> Cost:
    """In this process, of which nothing larger was asked before."""
    before, cpu, begun = _peak(), time.process_time(), time.monotonic()
    size, refusal = _decode(content, door)
    cpu, seconds, grown = time.process_time() - cpu, time.monotonic() - begun, _peak() - before
    ratio = grown / size if size >= _SMALL else 0.0
    return Cost(name, cpu, seconds, ratio, refusal, len(content))


def in_child(work: Callable[..., Any], *given: Any) -> Any:
    """What it returns in a process of its own; None where that died."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        theirs.send(work(*given))

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        child.join()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of this format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mutants(kind: str, *, first: int, count: int, seed: int) -> list[Cost]:
    """The costs of so many mutants; each is a function of its number."""
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 4), dtype=np.uint8)
    files = [
        encoded(Image.fromarray(noise[:, :, :3]), kind),
        encoded(Image.fromarray(noise).convert({"GIF": "P", "JPEG": "RGB", "BMP": "RGB"}.get(kind, "RGBA")), kind),
        encoded(Image.fromarray(noise[:, :, 0]), kind, **({"progressive": True} if kind == "JPEG" else {})),
    ]  # fmt: skip
    found = []
    for number in range(first, first + count):
        draw = random.Random(f"{seed}/{kind}/{number}")
        content = mutated(files[number % len(files)], draw)
        if kind == "PNG" and number % 2:
            content = with_checksums(content)
        found += [measured(f"{kind} {number}", content, door) for door in (whole, shown)]
    return found


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to them."""
    data, place = bytearray(content), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def _photo(side: int = 1000) -> np.ndarray[Any, np.dtype[np.uint8]]:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (64, 64, 4), dtype=np.uint8), "RGBA")
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + draw.normal(0, 6, (side, side, 4)), 0, 255).astype(np.uint8)


def largest() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Ordinary pictures of 64 megapixels (16-bit colour: 27), as their name and what makes the file."""
    ImageFile.MAXBLOCK = 400 * 2**20

    def tiled(mode: str, side: int = SIDE) -> Image.Image:
        image = Image.fromarray(np.tile(_photo(), (side // 1000, side // 1000, 1)))
        return image.quantize(256, Image.Quantize.FASTOCTREE) if mode == "P" else image.convert(mode)

    def grey16() -> Image.Image:
        return Image.fromarray(np.tile(_photo()[:, :, :2].copy().view(np.uint16)[:, :, 0], (SIDE // 1000,) * 2))

    yield "JPEG", lambda: encoded(tiled("RGB"), "JPEG", quality=90)
    yield "JPEG, progressive", lambda: encoded(tiled("RGB"), "JPEG", quality=90, progressive=True)
    yield "JPEG, CMYK, progressive", lambda: encoded(tiled("CMYK"), "JPEG", quality=85, progressive=True)
    yield "JPEG, 22 scans", lambda: with_scans(12)
    for mode in ("RGB", "RGBA", "LA", "L"):
        yield f"PNG, {mode}", lambda mode=mode: encoded(tiled(mode), "PNG", compress_level=1)  # type: ignore[misc]
    yield "PNG, palette with a clear colour", lambda: encoded(tiled("P"), "PNG", compress_level=1, transparency=3)
    yield "PNG, RGB with a clear colour", lambda: encoded(tiled("RGB"), "PNG", compress_level=1, transparency=(1, 2, 3))
    yield "PNG, 16-bit grey", lambda: encoded(grey16(), "PNG", compress_level=1)
    yield "PNG, 16-bit colour, 27 megapixels", lambda: _deep(5200, 2)
    yield "WEBP", lambda: encoded(tiled("RGB"), "WEBP", quality=80, method=0)
    yield "WEBP, lossless, RGBA", lambda: encoded(tiled("RGBA"), "WEBP", lossless=True, quality=0, method=0)
    yield "GIF", lambda: encoded(tiled("P"), "GIF")
    yield "BMP", lambda: encoded(tiled("RGB"), "BMP")
    yield "TIFF, 16-bit grey", lambda: encoded(grey16(), "TIFF")
    for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd"):
        mode = "RGB" if name == "jpeg" else "RGBA"
        yield f"TIFF, {name}, {mode}", lambda name=name, mode=mode: encoded(tiled(mode), "TIFF", compression=name)  # type: ignore[misc]


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def _deep(side: int, colour: int) -> bytes:
    """16 bits a channel, RGB, of noise that compresses to a half."""
    draw = np.random.default_rng(0)
    rows = np.clip(draw.normal(0, 3, (100, 1 + side * 6)), -128, 127).astype(np.int8).view(np.uint8)
    rows[:, 0] = 4
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(rows.tobytes()) for _ in range(side // 100)) + packer.flush()
    pieces = [chunk(b"IDAT", data[at : at + 2**16]) for at in range(0, len(data), 2**16)]
    return png(side, side, *pieces, depth=16, colour=colour)


def with_scans(more: int, *, side: int = SIDE) -> bytes:
    """A progressive JPEG with its shortest scan so many times more."""
    whole = encoded(Image.fromarray(_photo()[:, :, :3].copy()).resize((side, side)), "JPEG", progressive=True)
    starts = [place for place in range(len(whole) - 1) if whole[place : place + 2] == b"\xff\xda"]
    scans = [whole[begin:end] for begin, end in zip(starts, [*starts[1:], len(whole) - 2], strict=True)]
    return whole[:-2] + min(scans[1:], key=len) * more + b"\xff\xd9"


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """A TIFF with this directory behind the data, which begin at byte 8."""
    usual = {258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)} | tags
    body = b"".join(struct.pack("<HHLL", tag, *one) for tag, one in sorted(usual.items()))
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + struct.pack("<H", len(usual)) + body + bytes(4)


def costly() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Files that would take minutes to hours, or gigabytes."""
    plain = encoded(Image.new("RGB", (64, 64), (9, 99, 199)), "JPEG")
    frame = encoded(Image.new("P", (8, 8)), "GIF")
    empty = zlib.compressobj(9)
    blocks = b"".join(empty.compress(b"") + empty.flush(zlib.Z_FULL_FLUSH) for _ in range(1000))
    strips = np.full(20_000, 8, "<u4").tobytes() + np.full(20_000, 150_000, "<u4").tobytes()
    same_strips = {256: (4, 1, 1000), 257: (4, 1, 20_000), 259: (3, 1, 5), 278: (4, 1, 1), 273: (4, 20_000, 8),
                   279: (4, 20_000, 80_008)}  # fmt: skip
    square = {256: (4, 1, 64), 257: (4, 1, 64), 273: (4, 1, 8), 278: (4, 1, 64), 279: (4, 1, 4096)}
    rle = struct.pack("<LLLHHLLLLLL", 40, 8000, 8000, 1, 8, 1, 6_000_000, 0, 0, 256, 0) + bytes(1024)
    yield "JPEG, 500 more scans", lambda: with_scans(500, side=4000)
    yield "JPEG, 6,000 more scans", lambda: with_scans(6000, side=4000)
    yield "JPEG, 2 million comments", lambda: plain[:2] + b"\xff\xfe\0\2" * 2_000_000 + plain[2:]
    yield "JPEG, 16 MB of padding", lambda: plain[:2] + b"\xff" * 2**24 + plain[2:]
    yield (
        "JPEG, EXIF in 900 segments",
        lambda: plain[:2] + (b"\xff\xe1\xff\xffExif\0\0II*\0" + bytes(65_523)) * 900 + plain[2:],
    )
    yield "PNG, 60,000 x 60,000", lambda: png(60_000, 60_000)
    yield "PNG, 512 MB of pixels", lambda: png(SIDE, SIDE, depth=16, colour=6)
    yield "PNG, 2 million chunks", lambda: png(8, 8, *[chunk(b"teSt", b"")] * 2_000_000)
    yield "PNG, 20 MB of empty blocks", lambda: png(8, 8, chunk(b"IDAT", blocks * (20_000_000 // len(blocks))))
    yield "PNG, 64 MB of text", lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20))))
    yield "GIF, 20,000 frames", lambda: frame[:-1] + frame[frame.rindex(b",") : -1] * 20_000 + b";"
    yield "GIF, 8 MB of junk", lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\1" * 2**23
    yield "GIF, 16 MB of comments", lambda: frame[:13] + (b"!\xfe" + b"\xff" + bytes(255)) * 60_000 + frame[13:]
    yield "BMP, 3 million runs", lambda: b"BM" + struct.pack("<LHHL", 6_001_078, 0, 0, 1078) + rle + b"\1\1" * 3_000_000
    yield "TIFF, 20,000 strips that are the same", lambda: tiff(same_strips, strips)
    yield (
        "TIFF, 4,000 tags of the same 8 MB",
        lambda: tiff(square | {30_000 + n: (7, 2**23, 8) for n in range(4000)}, bytes(2**23)),
    )
    yield "TIFF, 100 million strips", lambda: tiff(square | {273: (4, 10**8, 8), 279: (4, 10**8, 8)}, bytes(4096))
    yield (
        "TIFF, a tile of 900 megapixels",
        lambda: tiff(
            {
                256: (4, 1, 64),
                257: (4, 1, 64),
                322: (4, 1, 30_000),
                323: (4, 1, 30_000),
                324: (4, 1, 8),
                325: (4, 1, 4096),
            },
            bytes(4096),
        ),
    )
    yield (
        "TIFF, a strip of JPEG with 2,000 scans",
        lambda: (
            lambda strip: tiff(
                square
                | {256: (4, 1, 512), 257: (4, 1, 512), 278: (4, 1, 512), 259: (3, 1, 7), 279: (4, 1, len(strip))},
                strip,
            )
        )(with_scans(2000, side=512)),
    )
    yield "WEBP, 20,000 frames", lambda: _frames(20_000)


def _frames(count: int) -> bytes:
    small = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    body = bytes(6) + b"\7\0\0\7\0\0" + bytes(3) + b"\0" + small
    one = b"ANMF" + struct.pack("<L", len(body)) + body
    head = b"VP8X" + struct.pack("<LLHBHB", 10, 2, 7, 0, 7, 0) + b"ANIM" + struct.pack("<LLH", 6, 0, 0)
    return b"RIFF" + struct.pack("<L", 4 + len(head) + count * len(one)) + b"WEBP" + head + one * count


def latency(content: bytes, *, after: float) -> float:
    """Seconds from SIGTERM, sent ``after`` so many of them, to the end of a process that decodes the file."""
    child = multiprocessing.get_context("fork").Process(target=_until_told, args=(content,))
    child.start()
    time.sleep(after)
    assert child.pid is not None
    sent = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    return time.monotonic() - sent


def _until_told(content: bytes) -> None:
    def leave(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
    while True:
        _decode(content, shown)


def line(name: str, costs: list[Cost], heard: str) -> str:
    """A row of the table."""
    worst, most = max(costs, key=lambda one: one.cpu), max(one.ratio for one in costs)
    refused = sum(bool(one.refusal) for one in costs)
    what = f"{refused // 2:,} of {len(costs) // 2:,}" if len(costs) > 2 else costs[0].refusal or "accepted"
    ratio = f"{most:.1f}" if most else "-"
    return f"| {name} | {worst.bytes / 1e6:,.1f} | {worst.cpu:.2f} | {worst.seconds:.2f} | {ratio} | {what} | {heard} |"


def main() -> None:
    """Print the table; with ``--out`` also keep each result, and go on from those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    kept: dict[str, Any] = {}
    if args.out and args.out.exists():
        kept = {one["key"]: one["value"] for one in map(json.loads, args.out.read_text().splitlines())}

    def once(key: str, work: Callable[[], Any]) -> Any:
        if key not in kept:
            kept[key] = work()
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "value": kept[key]}) + "\n")
        return kept[key]

    def costs_of(work: Callable[..., list[Cost]], *given: Any, **named: Any) -> list[dict[str, Any]]:
        found = in_child(lambda: work(*given, **named))
        assert found is not None, "a process died"
        return [asdict(one) for one in found]

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, seed {args.seed}\n")
    print(
        "| file | MB | CPU s | clock s | memory / decoded | refused | SIGTERM heard, s |\n|---|---|---|---|---|---|---|"
    )
    for kind in FORMATS:
        found: list[Cost] = []
        for first in range(0, args.mutants, _EACH):
            key, count = f"{args.seed}/{kind}/{first}", min(_EACH, args.mutants - first)
            work = lambda kind=kind, first=first, count=count: costs_of(  # noqa: E731
                mutants, kind, first=first, count=count, seed=args.seed
            )
            found += [Cost(**one) for one in once(f"{key}/{count}", work)]
        print(line(f"{args.mutants:,} mutants of {kind}", found, "-"), flush=True)
    for group, listen in ((largest, True), (costly, False)):
        for name, make in group():

            def one(name: str = name, make: Callable[[], bytes] = make, listen: bool = listen) -> Any:
                content = in_child(make)
                costs = [costs_of(lambda door=door: [measured(name, content, door)])[0] for door in (whole, shown)]
                heard = [latency(content, after=after) for after in (0.3, 0.8)] if listen else []
                return costs, heard

            costs, heard = once(f"{args.seed}/{name}", one)
            print(line(name, [Cost(**one) for one in costs], f"{max(heard):.2f}" if heard else "-"), flush=True)


if __name__ == "__main__":
    main()
