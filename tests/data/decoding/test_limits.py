"""What decoding may cost: refused by its header where it would be too much, in little memory, and interruptible."""

from __future__ import annotations

import io
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.decoding import decode, eight_bits, limits
from headstart.data.decoding.decode import UnreadableImage, check_image, decode_image, open_jpeg
from headstart.data.decoding.interruptible import map_in_threads, run_interruptibly
from headstart.data.decoding.lazy_image import LazyImage
from headstart.data.decoding.limits import find_excess

DOORS: dict[str, Callable[[bytes], object]] = {
    "decode": lambda content: decode_image(content, where="x"),
    "check": lambda content: check_image(content, where="x"),
    "header": lambda content: open_jpeg(content, where="x"),
    "picture": lambda content: LazyImage(content, where="x"),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[:, :, 0] if channels == 1 else values)


def refusal(content: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(content, where="x")
    return caught.value.reason


def with_scans(count: int, *, size: int = 64, comment: bytes = b"", components: int = 1) -> bytes:
    """A progressive JPEG with so many scans in all: its shortest one of so many components again and again, a comment
    before each.
    """
    whole = encoded(noise(64, 64), "JPEG", progressive=True, quality=50)
    starts = [place for place in range(len(whole) - 1) if whole[place : place + 2] == b"\xff\xda"]
    scans = [whole[begin:end] for begin, end in zip(starts, [*starts[1:], len(whole) - 2], strict=True)]
    header = bytearray(whole[: starts[0]])
    frame = header.index(b"\xff\xc2")
    header[frame + 5 : frame + 9] = struct.pack(">HH", size, size)
    more = comment + min((scan for scan in scans[1:] if scan[4] == components), key=len)
    return bytes(header) + b"".join(scans) + more * (count - len(scans)) + b"\xff\xd9"


@pytest.mark.parametrize("door", DOORS)
def test_a_progressive_jpeg_with_too_many_scans_is_refused_at_every_door(door: str) -> None:
    DOORS[door](with_scans(100))
    with pytest.raises(UnreadableImage, match="101 or more scans"):
        DOORS[door](with_scans(101))


@pytest.mark.parametrize("scans", [10, 20])
def test_a_usual_progressive_jpeg_of_64_megapixels_is_accepted(scans: int) -> None:
    assert find_excess(with_scans(scans, size=8000)) is None


def test_scans_count_by_the_pixels_that_they_go_over() -> None:
    assert find_excess(with_scans(90, size=2000)) is None
    assert "scans of 64.0 megapixels; at most 100 are accepted, of 2,048 million samples" in (
        find_excess(with_scans(90, size=8000)) or ""
    )


def test_a_scan_of_three_components_counts_as_three() -> None:
    assert find_excess(with_scans(25, size=8000)) is None
    assert "scans of 64.0 megapixels" in (find_excess(with_scans(25, size=8000, components=3)) or "")


def test_an_end_of_image_within_a_comment_hides_no_scan() -> None:
    content = with_scans(200, comment=b"\xff\xfe\x00\x06ab\xff\xd9")
    assert "101 or more scans" in refusal(content)


def test_scans_in_a_thumbnail_or_behind_the_end_do_not_count() -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", 502) + b"\xff\xda" * 250
    usual = with_scans(10)
    extended = decode_image(usual[:2] + thumbnail + usual[2:] + b"\xff\xda" * 500, where="x")
    assert extended.tobytes() == decode_image(usual, where="x").tobytes()


def test_a_jpeg_whose_header_never_ends_is_refused() -> None:
    usual = encoded(noise(8, 8), "JPEG")
    for filler in (b"\xff\xfe\x00\x02" * 20_000, b"\xff" * 2**21, bytes(2**21), b"\xff\xed\xff\xff".ljust(65_537) * 80):
        assert "segments before its pixels" in refusal(usual[:2] + filler + usual[2:])
        assert "segments before its pixels" in refusal(usual[:2] + filler)


def test_scans_of_several_components_each_count_as_such() -> None:
    baseline = encoded(noise(64, 64), "JPEG")
    scan = baseline[baseline.index(b"\xff\xda") : -2]
    single = bytearray(scan)
    single[4] = 1  # of components: what follows no longer fits, which the header does not tell
    assert find_excess(baseline) is None
    assert "scans" in (find_excess(baseline[: baseline.index(b"\xff\xda")] + bytes(single) + scan * 120) or "")


def tiff(tags: dict[int, tuple[int, int, int]], *, data: bytes = b"", at: int = 8) -> bytes:
    """A little-endian TIFF: (type, count, value or offset) by tag; ``data`` before the directory."""
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLL", tag, *one) for tag, one in sorted(tags.items()))
    return b"II*\0" + struct.pack("<L", at + len(data)) + data + body + bytes(4)


def grey_tiff(width: int, height: int, **tags: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    usual = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
             273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height)}  # fmt: skip
    return usual | {int(name[1:]): value for name, value in tags.items()}


def test_a_tiff_that_names_the_same_data_again_and_again_is_refused() -> None:
    same = np.full(1000, 8, "<u4").tobytes() + np.full(1000, 8000, "<u4").tobytes()
    content = tiff(
        grey_tiff(100, 1000, t273=(4, 1000, 8), t279=(4, 1000, 4008), t278=(4, 1, 1), t259=(3, 1, 5)), data=same
    )
    assert "strips are the same data" in refusal(content)
    tags = {40_000 + number: (7, 2**20, 8) for number in range(1000)}
    assert "tags name the same data" in refusal(tiff(grey_tiff(8, 8) | tags, data=bytes(2**20)))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (grey_tiff(8, 8, t273=(4, 100_000, 8), t279=(4, 100_000, 8)), "100,000 numbers; at most 65,536"),
        (grey_tiff(8, 8, t258=(3, 10**6, 8)), "tag 258 has 1,000,000 numbers"),
        (grey_tiff(8000, 8000, t258=(3, 1, 64)), "take 512 MB; at most 268 MB are accepted"),
        (grey_tiff(8, 8, t322=(4, 1, 30_000), t323=(4, 1, 30_000), t324=(4, 1, 8), t325=(4, 1, 8)), "tiles have 900"),
        (dict.fromkeys(range(5000), (3, 1, 1)), "5,000 tags"),
    ],
)
def test_a_tiff_with_an_oversized_directory_is_refused(tags: dict[int, tuple[int, int, int]], words: str) -> None:
    assert words in refusal(tiff(tags, data=bytes(64)))


def test_scans_of_jpeg_strips_in_a_tiff_count() -> None:
    strip = with_scans(200)
    content = tiff(grey_tiff(64, 64, t259=(3, 1, 7), t279=(4, 1, len(strip))), data=strip)
    assert "200 scans" in refusal(content)
    image = noise(64, 64)
    assert decode_image(encoded(image, "TIFF", compression="jpeg"), where="x").size == (64, 64)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, width: int = 8, height: int = 8, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def test_a_png_of_too_many_bytes_of_pixels_is_refused() -> None:
    assert "take 512 MB; at most 168 MB" in refusal(png(width=8000, height=8000, depth=16))


def test_a_png_with_more_compressed_data_than_pixels_is_refused() -> None:
    empty = zlib.compress(bytes(8 * 33))[:-4] + bytes(2**21)
    assert "compressed data take 2 MB" in refusal(png(chunk(b"IDAT", empty)))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_data_in_too_many_pieces_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_READS", 2000)
    contents = {
        "PNG": png(*[chunk(b"teSt", b"1234")] * 6000),
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\1" * 100_000,
        "BMP": b"BM" + struct.pack("<LHHL", 200_000, 0, 0, 1078)
        + struct.pack("<LLLHHLLLLLL", 40, 400, 400, 1, 8, 1, 80_000, 0, 0, 256, 0) + bytes(1024) + b"\1\1" * 80_000,
    }  # fmt: skip
    assert "in more than 2,000 pieces" in refusal(contents[kind])


def test_a_decode_that_takes_longer_than_its_bound_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(noise(300, 300), "PNG")
    decode_image(content, where="x")
    monkeypatch.setattr(decode, "_seconds", lambda pixels: -1.0)
    assert "decoding it takes longer than" in refusal(content)


MEMORY = """
import io, resource, sys
import numpy as np
from PIL import Image
from headstart.data.decoding.decode import decode_image
mode, kind, side, channels = sys.argv[1], sys.argv[2], 3000, int(sys.argv[3])
small = np.random.default_rng(0).integers(0, 256, (100, 100, 4), dtype=np.uint8)
image = Image.fromarray(small[:, :, :2].view(np.uint16)[:, :, 0]) if mode == "I;16" else Image.fromarray(small)
image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
options = {"transparency": 3} if mode == "P" else {"lossless": True, "quality": 0} if kind == "WEBP" else {}
def encoded(image):
    file = io.BytesIO(); image.save(file, kind, **options); return file.getvalue()
decode_image(encoded(image), where="x")  # every import
large = image.resize((side, side), Image.Resampling.NEAREST)
content = encoded(large)
del large
open("/proc/self/clear_refs", "w").write("5")
def peak(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
decode_image(content, where="x")
print((peak() - before) * 1024 / (side * side * channels))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("mode", "kind", "channels"), [("I;16", "PNG", 3), ("RGBA", "PNG", 4), ("LA", "PNG", 3), ("P", "PNG", 3)]
)
def test_decoding_takes_at_most_four_times_the_decoded_size(mode: str, kind: str, channels: int) -> None:
    command = [sys.executable, "-c", MEMORY, mode, kind, str(channels)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(37, 23, 4)
    image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
    clear = {"P": 3, "RGB": (1, 2, 3), "L": 7}.get(mode)
    content = encoded(image, "PNG", **({} if clear is None else {"transparency": clear}))
    with Image.open(io.BytesIO(content)) as stored:
        whole = stored.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", whole.size, (255,) * 4), whole).convert("RGB")
    monkeypatch.setattr(eight_bits, "_BAND_PIXELS", 100)
    assert decode_image(content, where="x").tobytes() == expected.tobytes()


class _Heard(Exception):
    pass


@contextmanager
def heard_at(place: threading.Event) -> Iterator[None]:
    """Within, the main thread gets a signal once the event is set, and its handler raises."""

    def hear(*_: object) -> None:
        raise _Heard

    before = signal.signal(signal.SIGUSR1, hear)
    main = threading.main_thread().ident
    assert main is not None

    def send() -> None:
        place.wait(60)
        signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_heard_while_a_large_picture_is_decoded() -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(60)
        ended.set()

    with pytest.raises(_Heard), heard_at(begun):
        run_interruptibly(work, pixels=64_000_000)
    assert not ended.is_set()
    release.set()


def test_a_signal_is_heard_during_the_scan_and_no_further_file_is_begun() -> None:
    begun, release, seen = threading.Event(), threading.Event(), list[int]()

    def work(number: int) -> None:
        seen.append(number)
        begun.set()
        release.wait(60)

    with pytest.raises(_Heard), heard_at(begun), closing(map_in_threads(work, range(100), threads=2)) as outcomes:
        next(outcomes)
    release.set()
    assert len(seen) <= 2


def test_threads_give_everything_in_order_and_errors_where_they_are_waited_for() -> None:
    assert list(map_in_threads(lambda number: number * number, range(50), threads=4)) == [n * n for n in range(50)]
    assert run_interruptibly(lambda: 3, pixels=10**9) == 3
    with pytest.raises(UnreadableImage):
        list(map_in_threads(lambda _: refuse(), range(3), threads=2))
    with pytest.raises(UnreadableImage):
        run_interruptibly(refuse, pixels=10**9)


def refuse() -> None:
    raise UnreadableImage(Path("x"), "for the test")


def test_a_large_picture_is_decoded_off_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    usual = decode._load
    monkeypatch.setattr(decode, "_load", lambda image: (seen.append(threading.current_thread()), usual(image)))
    decode_image(encoded(Image.new("L", (3000, 2000)), "PNG"), where="x")
    decode_image(encoded(Image.new("L", (300, 200)), "PNG"), where="x")
    assert [thread is threading.main_thread() for thread in seen] == [False, True]
