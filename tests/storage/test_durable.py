"""Durable files: what is read is what was written, damage is refused, and no crash loses what was acknowledged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import StorageError
from headstart.storage.disk import DISK
from headstart.storage.durable import (
    MANIFEST,
    explain_os_errors,
    free_bytes,
    json_bytes,
    lock_folder,
    make_folder,
    read_folder,
    read_json,
    read_json_lines,
    sweep,
    write_file,
    write_folder,
    write_json,
)

FILES = {"a.bin": bytes(range(256)), "state.json": b"{}", "empty": b""}


class Recorder:
    """A disk that does everything and writes it down."""

    def __init__(self) -> None:
        self.done: list[tuple[str, tuple[object, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def operation(*arguments: object) -> None:
            getattr(DISK, name)(*arguments)
            self.done.append((name, arguments))

        return operation


def replayed(done: list[tuple[str, tuple[object, ...]]], old: Path, new: Path) -> None:
    """The operations again, in another folder."""
    for name, arguments in done:
        moved = [new / a.relative_to(old) if isinstance(a, Path) else a for a in arguments]
        getattr(DISK, name)(*moved)


def test_a_folder_is_read_as_it_was_written(tmp_path) -> None:
    write_folder(tmp_path / "deep" / "x", FILES)
    assert read_folder(tmp_path / "deep" / "x") == FILES
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]


def test_a_folder_is_replaced_as_a_whole(tmp_path) -> None:
    write_folder(tmp_path / "x", FILES)
    write_folder(tmp_path / "x", {"other": b"1"})
    assert read_folder(tmp_path / "x") == {"other": b"1"}
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [MANIFEST, "other"]


def test_equal_files_give_equal_manifests(tmp_path) -> None:
    write_folder(tmp_path / "x", FILES)
    write_folder(tmp_path / "y", dict(reversed(FILES.items())))
    assert (tmp_path / "x" / MANIFEST).read_bytes() == (tmp_path / "y" / MANIFEST).read_bytes()


@given(st.data())
def test_one_flipped_bit_anywhere_is_refused(tmp_path_factory, data) -> None:
    root = tmp_path_factory.mktemp("flip")
    write_folder(root / "x", {"a.bin": FILES["a.bin"], "b": b"word"})
    path = root / "x" / data.draw(st.sampled_from(["a.bin", "b", MANIFEST]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    if path.name == MANIFEST and same_json(bytes(content), root / "x"):
        return  # white space
    with pytest.raises(StorageError, match="damaged"):
        read_folder(root / "x")


def same_json(content: bytes, folder: Path) -> bool:
    write_folder(folder.with_name("again"), {"a.bin": FILES["a.bin"], "b": b"word"})
    try:
        return json.loads(content) == read_json(folder.with_name("again") / MANIFEST)
    except ValueError:
        return False


@pytest.mark.parametrize("change", ["missing", "cut", "longer", "link", "pipe", "folder"])
def test_a_file_that_is_not_the_one_written_is_refused(tmp_path, change) -> None:
    write_folder(tmp_path / "x", FILES)
    path = tmp_path / "x" / "a.bin"
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[:-1])
    elif change == "longer":
        path.write_bytes(content + b"\0")
    elif change == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "pipe":
        os.mkfifo(path)
    elif change == "folder":
        path.mkdir()
    with pytest.raises(StorageError, match=r"a\.bin: (cannot be read|[\d,]+ bytes that do not match)"):
        read_folder(tmp_path / "x")


def forged(folder: Path, entries: object) -> None:
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps({"files": entries, "digest": digest}))


@pytest.mark.parametrize("name", ["../secret", "..", ".", "/etc/hostname", "a/b", "a\\b", "a\nb", "", MANIFEST, "ä"])
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path, name) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    fact = {"size": 1, "sha256": hashlib.sha256(b"1").hexdigest()}
    forged(tmp_path / "x", {name: fact})
    with pytest.raises(StorageError, match="names a file outside; the folder is damaged"):
        read_folder(tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"files": [], "digest": ""}', '{"files": {"a": 1}, "digest": ""}', "[" * 100_000, "\xff\xfe",
     '{"files": {"a": {"size": 1e999, "sha256": ""}}, "digest": ""}'],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path, text) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(StorageError, match="damaged"):
        read_folder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"MANIFEST.json: cannot be read: No such file or directory"):
        read_folder(tmp_path / "nowhere")


def test_a_file_is_replaced_whole_and_json_is_read_as_written(tmp_path) -> None:
    write_file(tmp_path / "x", b"old")
    write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    value = {"name": "Käse", "numbers": [1, 2.5, 0.1 + 0.2], "bad name": "\udcff"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.json"]


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"loss": float("nan")})


def test_json_that_is_none_is_refused(tmp_path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(StorageError, match=r"x: not valid JSON .* the file is damaged"):
        read_json(tmp_path / "x")


def test_every_state_that_a_crash_can_leave_has_the_old_folder_or_the_new(tmp_path) -> None:
    """Every prefix of the operations, the last write also cut in half; then what a crash left is swept."""
    old, disk = tmp_path / "real", Recorder()
    old.mkdir()
    one, two = {"v": b"1" * 100}, {"v": b"2" * 100, "more": b"3"}
    write_folder(old / "x", one, disk=disk)
    acknowledged = len(disk.done)
    write_folder(old / "x", two, disk=disk)
    for count in range(len(disk.done) + 1):
        for half in (False, True):
            new = tmp_path / f"{count}{half}"
            new.mkdir()
            replayed(disk.done[:count], old, new)
            if half and not cut_last_write(disk.done[:count], old, new):
                continue
            sweep(new)
            left = read_folder(new / "x") if (new / "x").exists() else None
            if count < acknowledged:
                assert left in (None, one)
            else:
                assert left in ((one, two) if count < len(disk.done) else (two,))
            assert [path.name for path in new.iterdir() if path.name != "x"] == []


def cut_last_write(done: list[tuple[str, tuple[object, ...]]], old: Path, new: Path) -> bool:
    if not done or done[-1][0] != "write":
        return False
    path = new / done[-1][1][0].relative_to(old)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return True


def test_everything_is_synced_before_it_gets_its_name(tmp_path) -> None:
    """Each file and the folder before the rename, the parent after it: else a power cut leaves a name without data."""
    disk = Recorder()
    write_folder(tmp_path / "x", FILES, disk=disk)
    names = [name for name, _ in disk.done]
    rename = names.index("rename")
    written = [arguments[0] for name, arguments in disk.done if name == "write"]
    assert len(written) == len(FILES) + 1
    assert {arguments[0] for name, arguments in disk.done[:rename] if name == "fsync"} == set(written)
    assert disk.done[rename - 1] == ("fsync_dir", (tmp_path / ".new-x",))
    assert disk.done[rename + 1] == ("fsync_dir", (tmp_path,))
    disk.done.clear()
    write_file(tmp_path / "f", b"1", disk=disk)
    assert [name for name, _ in disk.done] == ["write", "fsync", "rename", "fsync_dir"]


def test_new_folders_are_synced_into_their_parents(tmp_path) -> None:
    disk = Recorder()
    make_folder(tmp_path / "a" / "b", disk=disk)
    assert disk.done == [
        ("mkdir", (tmp_path / "a",)), ("fsync_dir", (tmp_path,)),
        ("mkdir", (tmp_path / "a" / "b",)), ("fsync_dir", (tmp_path / "a",)),
    ]  # fmt: skip


def test_a_crash_while_replacing_does_not_stop_the_next_write(tmp_path) -> None:
    """Left by a crash just before the old folder was removed, in a process that does not sweep."""
    write_folder(tmp_path / "x", {"v": b"2"})
    write_folder(tmp_path / ".old-x", {"v": b"1"})
    write_folder(tmp_path / "x", {"v": b"3"})
    assert read_folder(tmp_path / "x") == {"v": b"3"}
    shutil.move(tmp_path / "x", tmp_path / ".old-x")
    write_folder(tmp_path / "x", {"v": b"4"})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


class Failing:
    """A disk that takes some bytes and then fails."""

    def __init__(self, code: int, *, after: int) -> None:
        self.code, self.left = code, after

    def write(self, path: Path, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code), str(path))
        DISK.write(path, data)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(DISK, name)


def test_a_full_disk_is_named_and_leaves_the_old_folder(tmp_path) -> None:
    write_folder(tmp_path / "x", {"v": b"1"})
    with pytest.raises(StorageError) as caught:
        write_folder(tmp_path / "x", {"v": b"2" * 5000}, disk=Failing(errno.ENOSPC, after=100))
    needed = sum(path.stat().st_size for path in write_sample(tmp_path / "sample", {"v": b"2" * 5000}).iterdir())
    assert needed > 5000
    assert f"v: cannot be written: No space left on device ({needed:,} bytes needed, " in str(caught.value)
    assert "earlier checkpoints are intact; free some space or choose another folder with --out" in str(caught.value)
    assert caught.value.exit_code == 4
    assert read_folder(tmp_path / "x") == {"v": b"1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample", "x"]  # its space is given back


def write_sample(path: Path, files: dict[str, bytes]) -> Path:
    write_folder(path, files)
    return path


def test_what_a_failed_replacement_moved_aside_is_back_at_once(tmp_path) -> None:
    class FailsToPutInPlace(Recorder):
        def rename(self, source: Path, target: Path) -> None:
            if source.name.startswith(".new-"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
            DISK.rename(source, target)

    write_folder(tmp_path / "x", {"v": b"1"})
    said = (
        r"x: cannot be written: Input/output error .*check the disk, which seems to fail \(dmesg says more\), or choose"
    )
    with pytest.raises(StorageError, match=said):
        write_folder(tmp_path / "x", {"v": b"2"}, disk=FailsToPutInPlace())
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert read_folder(tmp_path / "x") == {"v": b"1"}


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path) -> None:
    write_file(tmp_path / "x", b"old")
    with pytest.raises(StorageError, match=r"\.new-x: cannot be written: .* \(3 bytes needed, [\d,]+ free\)"):
        write_file(tmp_path / "x", b"new", disk=Failing(errno.ENOSPC, after=0))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]
    with pytest.raises(StorageError, match=r"\(5,000 bytes needed"):
        write_file(tmp_path / "x", b"new", disk=Failing(errno.ENOSPC, after=0), needed=5000)


def test_a_failure_while_clearing_up_does_not_hide_the_first_one(tmp_path) -> None:
    def fails() -> None:
        raise OSError(errno.EIO, "and this fails too")

    with pytest.raises(StorageError, match="No space left"), explain_os_errors(tmp_path, needed=1, undo=fails):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_free_bytes_are_those_of_the_nearest_folder_that_can_be_asked(tmp_path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    (tmp_path / "file").write_bytes(b"")
    assert free_bytes(tmp_path / "file" / "below") is not None
    assert free_bytes(Path("/proc")) is None  # says nothing of its size


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_refused_with_the_bytes_free(tmp_path) -> None:
    """The folder may not even be looked into."""
    code = """
import os, sys
from pathlib import Path
from headstart.storage.durable import write_folder
from headstart.errors import StorageError
os.setgid(65534); os.setuid(65534)
try:
    write_folder(Path(sys.argv[1]), {"v": b"1"})
except StorageError as error:
    print(error)
"""
    tmp_path.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "deep" / "x")], capture_output=True, text=True, timeout=60
    )
    assert "cannot be written: Permission denied (" in done.stdout, done.stderr
    assert re.search(r"[\d,]+ bytes needed, [\d,]+ free\); .* check the folder's permissions", done.stdout)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "check the folder's permissions"),
        (errno.EDQUOT, r"free on the disk, less within your quota\).*; free some space, ask for a larger quota"),
    ],
)
def test_a_read_only_disk_and_a_quota_have_their_own_remedy(tmp_path, code, remedy) -> None:
    with pytest.raises(StorageError, match=rf"{os.strerror(code)} .*{remedy} or choose another folder with --out"):
        write_folder(tmp_path / "x", FILES, disk=Failing(code, after=0))


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot be written: Not a directory .* check the folder's permissions"):
        write_folder(tmp_path / "file" / "x", FILES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(
        StorageError, match=r"x: cannot be written: Permission denied .* check the folder's permissions"
    ):
        write_folder(tmp_path / "x", FILES)


HOLDER = """
import sys, time
from pathlib import Path
from headstart.storage.durable import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_firsts_number(tmp_path, holder) -> None:
    said = rf"run: process {holder.pid} is using this run; wait for it or choose another --out"
    with pytest.raises(StorageError, match=said), lock_folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
    with lock_folder(tmp_path / "run"):
        pass


def test_orphans_of_a_killed_process_are_waited_for(tmp_path) -> None:
    """A loading process inherits the lock and outlives its parent by up to 5 s."""
    code = HOLDER.replace(
        "    time.sleep(60)", textwrap.indent("import os\nif os.fork() == 0:\n    time.sleep(1.5)", "    ")
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.DEVNULL, check=True, timeout=60
    )
    started = time.monotonic()
    with lock_folder(tmp_path / "run"):
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_in_one_sentence(tmp_path, monkeypatch, code) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    said = (
        rf"run: its file system cannot lock files \({os.strerror(code)}\), so two processes could write this run at "
        "once; choose a folder on a local disk with --out"
    )
    with pytest.raises(StorageError, match=said) as caught, lock_folder(tmp_path / "run"):
        pass
    assert caught.value.exit_code == 4


def test_a_process_that_has_not_yet_said_its_number_is_asked_again(tmp_path) -> None:
    code = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(0.5)
os.pwrite(descriptor, str(os.getpid()).encode(), 0)
time.sleep(60)
"""
    (tmp_path / "run").mkdir()
    words = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=rf"process {process.pid} is using this run"),
            lock_folder(tmp_path / "run"),
        ):
            pass
        process.kill()


def test_a_full_disk_at_the_lock_is_said_too(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("/dev/full")
    with (
        pytest.raises(StorageError, match=r"\.lock: cannot be written: .* bytes needed"),
        lock_folder(tmp_path / "run"),
    ):
        pass


def test_the_lock_of_this_very_process_is_a_lock_too(tmp_path) -> None:
    said = rf"process {os.getpid()} is using this run"
    with lock_folder(tmp_path / "run"), pytest.raises(StorageError, match=said), lock_folder(tmp_path / "run"):
        pass


def test_lines_that_hold_no_object_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n{"a": 3}\n' + "[" * 100_000 + '\n{"a": 4')
    assert read_json_lines(path) == ([{"a": 1}, {"a": 3}], 3)
    with pytest.raises(StorageError):
        read_json_lines(tmp_path / "none.jsonl")
