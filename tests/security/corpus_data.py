"""Data sets: pictures that are bombs or programs, tables that lead out of their folder, files that never end."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Iterator

from corpus import Artefact, World, draw, plan, train
from PIL import Image


def png(width: int, height: int, *, data: bytes = b"", extra: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims this size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _deflated(size: int) -> bytes:
    packer = zlib.compressobj(9)
    step = bytes(1 << 20)
    return b"".join(packer.compress(step) for _ in range(size >> 20)) + packer.flush()


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xc0" + frame + b"\xff\xd9"


def _tiff(width: int, height: int, strips: int) -> bytes:
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, strips, 8),
        (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, strips, 8),
    ]  # fmt: skip
    return (
        b"II*\0"
        + struct.pack("<L", 8)
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHLL", *t) for t in tags)
        + bytes(4)
    )


def _scans() -> bytes:
    """A progressive JPEG with its shortest scan a thousand times more."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 127).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 1000 + b"\xff\xd9"


def _same_tags() -> bytes:
    """A TIFF of a megabyte, of which a thousand tags hold all."""
    tags = b"".join(struct.pack("<HHLL", 40_000 + number, 7, 2**20, 8) for number in range(1000))
    return b"II*\0" + struct.pack("<L", 8 + 2**20) + bytes(2**20) + struct.pack("<H", 1000) + tags + bytes(4)


def _pictures(world: World) -> dict[str, bytes]:
    text = b"Comment\0\0" + _deflated(64 << 20)
    profile = b"icc\0\0" + _deflated(64 << 20)
    mark = world.mark("eps")
    return {
        "header-60000.png": png(60_000, 60_000),
        "pixels-200-MP.png": png(14_143, 14_143, data=_deflated(25 << 20), depth=1, colour=0),
        "pixels-2^31.png": png(2**31 - 1, 2**31 - 1),
        "strip.png": png(20_000, 1, data=zlib.compress(bytes(60_001))),
        "text-bomb.png": png(60_000, 60_000, extra=_chunk(b"zTXt", text)),
        "text-bomb-small.png": png(8, 8, extra=_chunk(b"zTXt", text), data=b"x"),
        "profile-bomb.png": png(8, 8, extra=_chunk(b"iCCP", profile), data=b"x"),
        "header-65000.jpg": _jpeg(65_000, 65_000),
        "screen.gif": b"GIF89a"
        + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
        + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
        "tiles.tiff": _tiff(100, 100, 2**31 - 1),
        "size.tiff": _tiff(2**31 - 1, 2**31 - 1, 1),
        "size.webp": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0/" + struct.pack("<L", 0x0FFFFFFF) + bytes(12),
        "size.bmp": b"BM" + struct.pack("<LHHLLLLHHLLLLLL", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "scans.jpg": _scans(),
        "same-tags.tiff": _same_tags(),
        "junk.gif": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\1" * 3_000_000,
        "script.jpg": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {mark}) (r) file\n".encode(),
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "vector.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "document.jpg": b"%PDF-1.4\n",
        "archive.jpg": b"PK\x03\x04" + bytes(64),
        "photoshop.jpg": b"8BPS" + bytes(64),
        "icon.jpg": b"\0\0\1\0\1\0\xff\xff" + bytes(64),
        "fits.jpg": b"SIMPLE  =                    T" + bytes(2880),
        "tga.jpg": bytes((0, 0, 2)) + bytes(9) + struct.pack("<HHBB", 65_535, 65_535, 24, 0),
        "pixmap.jpg": b"P6\n60000 60000\n255\n",
        "jpeg2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(32),
        "pickle.jpg": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        "empty.jpg": b"",
    }


def _image_sets(world: World) -> Iterator[Artefact]:
    for name, data in _pictures(world).items():
        root = draw(world.at(f"images/{name}"))
        (root / "cat" / name).write_bytes(data)
        image = str(root / "cat" / name)
        commands = (
            train(world, data=root),
            ("evaluate", str(world.run), str(root), "--include-trained"),
            ("predict", str(world.run), image),
        )
        yield Artefact(name=f"image {name}", commands=commands, codes=frozenset({2}), told=name.replace("^", r"\^"))
    for name in ("pipe.jpg", "device.jpg", "socket.jpg", "loop.jpg", "outside.png", "folder-loop", "folder-outside"):
        root = draw(world.at(f"images/{name}"))
        path = root / "cat" / name
        if name == "pipe.jpg":
            os.mkfifo(path)
        elif name == "socket.jpg":
            with socket.socket(socket.AF_UNIX) as made:
                os.chdir(path.parent)  # its name may have 107 bytes
                made.bind(name)
        else:
            targets = {"device.jpg": "/dev/zero", "loop.jpg": path, "outside.png": world.home / "private.png",
                       "folder-loop": root, "folder-outside": world.home}  # fmt: skip
            path.symlink_to(targets[name])
        commands = (
            train(world, data=root), plan(world, data=root), ("evaluate", str(world.run), str(root)),
            ("predict", str(world.run), str(root)),
        )  # fmt: skip
        yield Artefact(name=f"image {name}", commands=commands, codes=frozenset({2} if "folder" in name else {0, 2}))


def _tables(world: World) -> Iterator[Artefact]:
    private = world.home / "private.png"
    cells = {
        "traversal": "../../home/private.png", "absolute": str(private), "nul": "a\0.png", "device": "/dev/zero",
        "url": "http://127.0.0.1:9/x.png", "tilde": "~/private.png", "link": "link.png", "pipe": "pipe.png",
        "dot": "../table-dot/../../home/private.png", "windows": "..\\..\\home\\private.png", "file-url": f"file://{private}",
    }  # fmt: skip
    for name, cell in cells.items():
        root = world.at(f"table-{name}")
        root.mkdir()
        for number in range(6):
            Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(root / f"{number}.png")
        (root / "link.png").symlink_to(private)
        os.mkfifo(root / "pipe.png")
        rows = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(6))
        (root / "t.csv").write_text(f"image,label\n{rows}{cell},a\n")
        commands = (train(world, data=root / "t.csv"), ("evaluate", str(world.run), str(root / "t.csv")))
        yield Artefact(name=f"table {name}", commands=commands, codes=frozenset({2}))
    contents = {
        "wide.csv": b"a.png," * 300_000 + b"x\n", "field.csv": b"image,label\na.png," + b"x" * 300_000 + b"\n",
        "quotes.csv": b'image,label\n"' + b'""' * 100_000 + b"\n", "binary.csv": bytes(range(256)) * 10,
        "pickle.parquet": b"\x80\x04cos\nsystem\n(S'id'\ntR.", "lying.parquet": b"PAR1" + bytes(64) + b"\xff\xff\xff\x7fPAR1",  # noqa: E501
        "zip.parquet": b"PK\x03\x04" + bytes(64),
    }  # fmt: skip
    for name, data in contents.items():
        path = world.at(name)
        path.write_bytes(data)
        commands = (train(world, data=path), ("evaluate", str(world.run), str(path)))
        yield Artefact(name=f"table {name}", commands=commands, codes=frozenset({2}))
    pipe, endless, loop = world.at("pipe.csv"), world.at("zero.csv"), world.at("loop.csv")
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    pipe_parquet = world.at("pipe.parquet")
    os.mkfifo(pipe_parquet)
    for path in (pipe, endless, loop, pipe_parquet):
        commands = (train(world, data=path), ("evaluate", str(world.run), str(path)))
        yield Artefact(name=f"table {path.name}", commands=commands, codes=frozenset({2}))


def artefacts(world: World) -> Iterator[Artefact]:
    yield from _image_sets(world)
    yield from _tables(world)
