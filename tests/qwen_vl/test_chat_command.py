import io
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.chat_options import ChatOptions
from qwen_vl.errors import ImageNotFoundError
from qwen_vl.terminal import Screen, talk
from qwen_vl.terminal_model import ModelSession
from qwen_vl.tokenization import QwenVLTokenizer
from scripts.make_tiny_checkpoint import make_checkpoint
from scripts.train_ranks import trained_rank_file
from tests.qwen_vl.text_goldens import published_rank_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    make_checkpoint(folder, seed=2023, rank_file=trained_rank_file())
    return folder


def _run(folder: Path, lines: str, cwd: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}
    return subprocess.run(  # our own interpreter
        [sys.executable, "-m", "qwen_vl.chat", str(folder), *flags],
        input=lines, cwd=cwd, env=environment, encoding="utf-8", capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_a_piped_conversation(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "图.png")
    flags = ("--max-new-tokens", "8", "--seed", "1", "--json")

    done = _run(
        checkpoint,
        "/image 图.png\n这是什么?\nAnd what else?\n/box\n/image gone.png\n/reset\n/frob\n\nHi",
        tmp_path,
        *flags,
    )

    assert done.returncode == 0, done.stderr
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert kinds == ["image", "answer", "answer", "box", "error", "reset", "error", "answer"]
    assert "Traceback" not in done.stderr


def test_an_address_is_refused_without_the_flag(checkpoint: Path, tmp_path: Path) -> None:
    lines = "/image http://127.0.0.1:9/a.png\n"

    refused = _run(checkpoint, lines, tmp_path)
    private = _run(checkpoint, lines, tmp_path, "--allow-http")

    assert "--allow-http" in refused.stdout
    assert "private address" in private.stdout


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path, "", tmp_path)

    assert done.returncode == 4
    assert done.stderr.startswith("error: ")


class FakeSession:
    """Answers in two pieces."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add_image(self, source: str) -> str:
        self.calls.append(f"image {source}")
        if source == "gone":
            raise ImageNotFoundError("no such image file: 'gone'")
        return "3x2"

    def draw(self) -> Path | None:
        self.calls.append("draw")
        return Path("boxes-1.png")

    def reset(self) -> None:
        self.calls.append("reset")

    def ask(self, text: str) -> Generator[str]:
        self.calls.append(f"ask {text}")
        yield "你"
        yield "你好\x1b[2J"


def _talk(lines: str) -> tuple[list[str], str]:
    session, out = FakeSession(), io.StringIO()
    talk(session, Screen(io.StringIO(lines), out))
    return session.calls, out.getvalue()


def test_lines_do_what_they_say_until_one_leaves() -> None:
    calls, _ = _talk('/image "a b.png"\nhello\n/box\n/reset\n\n/quit\nnever\n')

    assert calls == ["image a b.png", "ask hello", "draw", "reset"]


def test_an_answer_grows_and_cannot_touch_the_terminal() -> None:
    _, shown = _talk("hello\n")

    assert shown == "你好\ufffd[2J\n"


def test_a_failed_line_is_told_and_the_talk_goes_on() -> None:
    calls, shown = _talk("/image gone\n/image\n/help\nhello\n")

    assert "error: no such image file" in shown
    assert "/reset" in shown
    assert calls[-1] == "ask hello"


def test_boxes_are_drawn_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "boxes-1.png").write_bytes(b"mine")
    tokenizer = QwenVLTokenizer(published_rank_file())
    session = ModelSession(None, tokenizer, ChatOptions(tmp_path, boxes=tmp_path))
    query = tokenizer.from_list_format([{"image": Image.new("RGB", (60, 40))}])
    session.history = [(query, "<ref>x</ref><box>(1,2),(300,400)</box>")]

    path = session.draw()
    session.reset()

    assert path == tmp_path / "boxes-2.png"
    assert (tmp_path / "boxes-1.png").read_bytes() == b"mine"
    assert session.draw() is None
