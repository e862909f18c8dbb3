"""Files appear whole or not at all, and locks end with their holder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model_store.errors import BusyError
from model_store.files import (
    copy_file,
    exclusive,
    link_or_copy,
    replacing,
    sha256_file,
    write_bytes,
    write_text,
)


def test_a_digest_is_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"abc")

    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_text_has_lf_ends_and_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "x" / "y" / "a.txt", "é\nb\n")

    assert (tmp_path / "x" / "y" / "a.txt").read_bytes() == "é\nb\n".encode()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")

    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as out:
        out.write(b"half" * (1 // 0))

    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_name_is_taken_only_at_the_end(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as out:
        out.write(b"x")
        assert not (tmp_path / "a").exists()

    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_link_shares_bytes_and_a_copy_does_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_bytes(source, b"x")
    source.chmod(0o444)

    link_or_copy(source, tmp_path / "in" / "link")
    copy_file(source, tmp_path / "in" / "copy")

    assert (tmp_path / "in" / "link").samefile(source)
    assert (tmp_path / "in" / "copy").read_bytes() == b"x"
    assert (tmp_path / "in" / "copy").stat().st_mode & 0o200


def test_linking_replaces_what_was_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"new")
    write_bytes(tmp_path / "b", b"old")

    link_or_copy(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").read_bytes() == b"new"


HOLD = """
import sys
from pathlib import Path
from model_store.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_excludes_other_processes_and_ends_when_its_holder_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "x.lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        with (
            pytest.raises(BusyError, match="the snapshot"),
            exclusive(lock, wait=False, what="the snapshot"),
        ):
            pass
        holder.kill()

    with exclusive(lock, wait=False):
        pass


def test_who_waited_for_a_lock_file_that_was_removed_locks_the_new_one(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    seen: list[bool] = []

    def wait() -> None:
        with exclusive(lock):
            seen.append(lock.exists())

    waiter = threading.Thread(target=wait)
    with exclusive(lock):
        waiter.start()
        time.sleep(0.2)  # the waiter has the old file open by now
        lock.unlink()
    waiter.join()

    assert seen == [True]
