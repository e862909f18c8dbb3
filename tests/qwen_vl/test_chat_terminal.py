"""The terminal chat in a terminal: a pseudo-terminal of its own, keys included."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest
from PIL import Image

from scripts.make_tiny_checkpoint import make_checkpoint
from scripts.train_ranks import trained_rank_file

ROOT = Path(__file__).parents[2]
CTRL_C, CTRL_D = b"\x03", b"\x04"
PATIENCE = 300  # seconds, on a machine that does other things too


class Terminal:
    """A chat whose terminal we hold."""

    def __init__(self, folder: Path, cwd: Path, *flags: str) -> None:
        self.keys, follower = pty.openpty()
        self.seen = b""
        self.process = subprocess.Popen(  # our own interpreter
            [sys.executable, "-m", "qwen_vl.chat", str(folder), *flags],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "LC_ALL": "C.UTF-8"},
            preexec_fn=lambda: os.login_tty(follower),  # its controlling terminal
        )
        os.close(follower)

    def press(self, keys: str | bytes) -> None:
        os.write(self.keys, keys.encode() if isinstance(keys, str) else keys)

    def expect(self, pattern: str) -> str:
        """Wait for a pattern, and forget everything up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern.encode(), self.seen)):
            assert time.monotonic() < deadline, self.seen[-500:]
            if select.select([self.keys], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.keys, 4096)
                except OSError:  # how a terminal says that nobody is there any more
                    raise AssertionError(self.seen[-500:]) from None
        self.seen = self.seen[found.end() :]
        return found[0].decode()

    def leave(self) -> int:
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.kill()  # one that hangs must not outlive its test
        self.process.wait()
        os.close(self.keys)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    make_checkpoint(folder, seed=2023, rank_file=trained_rank_file())
    return folder


# Every key waits for its prompt: between two prompts the terminal is a plain one, which echoes what
# is typed and turns Ctrl-D into a NUL that no line editor takes for an end.
@pytest.mark.slow
def test_a_conversation_at_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "图.png")
    with Terminal(checkpoint, tmp_path, "--max-new-tokens", "4000", "--seed", "3") as chat:
        chat.expect("Ctrl-C.*\n(.*\n)*> ")
        chat.press("/image 没有.png\n")
        chat.expect("error: no such image file.*\n> ")
        chat.press("/image 图.png\n")
        chat.expect("image: 60x40\r\n> ")
        chat.press("这是什么?\n")
        chat.expect(r"这是什么\?\r\n[^>]{40}")  # an answer is growing
        chat.press(CTRL_C)
        chat.expect("stopped; this question is forgotten.*\n> ")
        chat.press("/box\n")
        chat.expect("no box\r\n> ")
        chat.press("/reset\n")
        chat.expect("reset\r\nreset\r\n> ")  # as it was typed, and what it says
        chat.press(CTRL_D)

        assert chat.leave() == 0


@pytest.mark.slow
def test_an_interrupt_at_the_prompt_leaves(checkpoint: Path, tmp_path: Path) -> None:
    with Terminal(checkpoint, tmp_path, "--quiet") as chat:
        chat.expect("> ")
        chat.press(CTRL_C)

        assert chat.leave() == 130
        assert b"Traceback" not in chat.seen
