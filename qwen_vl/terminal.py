"""The terminal chat's lines: what they ask for, and what is shown; no torch in here."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from model_store.errors import ToolkitError

HELP = """\
/image PATH   put a picture into the next question · 把图片放进下一个问题
/box          draw the last answer's boxes into a PNG · 把上一个回答的框画成 PNG
/reset        forget the conversation · 清空对话
/help         this list · 帮助
/quit         leave, as the end of the input does · 退出
Ctrl-C        stop an answer; at the prompt, leave · 停止回答；在提示符处退出"""
PROMPT = "> "
STOPPED = "stopped; this question is forgotten · 已停止，本次提问不计入对话"
# a model's text must not move the cursor or colour the screen
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Session(Protocol):
    """What a line can do to the conversation. Failures are ToolkitErrors."""

    def add_image(self, source: str) -> str: ...  # what was added, for people
    def draw(self) -> Path | None: ...  # the PNG; None without boxes or picture
    def reset(self) -> None: ...
    # the answer so far, each time it grew; closing it stops the model
    def ask(self, text: str) -> Generator[str]: ...


@dataclass(frozen=True, slots=True)
class Screen:
    """Where lines come from and answers go; prompts appear only to somebody at a terminal."""

    source: TextIO
    out: TextIO
    json: bool = False
    quiet: bool = False

    @property
    def is_terminal(self) -> bool:
        return self.source.isatty() and self.out.isatty() and not self.json

    def lines(self) -> Iterator[str]:
        """Lines of input, until it ends."""
        while (line := self._line()) is not None:
            yield line.strip()

    def _line(self) -> str | None:
        if self.is_terminal and self.source is sys.stdin:
            with contextlib.suppress(ImportError):  # edits lines and recalls them, where it exists
                import readline  # noqa: F401  # input() uses it once it is there
            try:
                return input(PROMPT)
            except EOFError:
                self.write("\n")
                return None
        if self.is_terminal:
            self.write(PROMPT)
        return self.source.readline() or None

    def write(self, text: str) -> None:
        """Write a stretch of text."""
        self.out.write(_UNPRINTABLE.sub("\ufffd", text))
        self.out.flush()

    def say(self, kind: str, text: str, **more: Any) -> None:
        """Write one result: a line, or with --json an object."""
        if self.json:
            self.write(json.dumps({"kind": kind, "text": text, **more}, ensure_ascii=False) + "\n")
        elif kind != "answer":  # that one was shown while it grew
            self.write(text + "\n")

    def grow(self, shown: str, text: str) -> None:
        """Show what came since `shown`."""
        if not self.json:
            self.write(text[len(shown) :] if text.startswith(shown) else f"\n{text}")


def talk(session: Session, screen: Screen) -> None:
    """Obey lines until the input ends or one says /quit; a failed line is told and forgotten."""
    if not screen.quiet and screen.is_terminal:
        screen.say("help", HELP)
    for line in screen.lines():
        if line in ("/quit", "/exit"):
            return
        try:
            _obey(line, session, screen)
        except ToolkitError as error:
            hint = f" ({error.hint})" if error.hint else ""
            screen.say("error", f"error: {error}{hint}")


def _obey(line: str, session: Session, screen: Screen) -> None:
    word, _, rest = line.partition(" ")
    if word == "/image":
        source = rest.strip().strip("'\"")
        if not source:
            screen.say("help", "/image PATH")
            return
        screen.say("image", f"image: {session.add_image(source)}")
    elif word == "/box":
        path = session.draw()
        screen.say("box", str(path) if path else "no box", path=None if path is None else str(path))
    elif word == "/reset":
        session.reset()
        screen.say("reset", "reset")
    elif word == "/help":
        screen.say("help", HELP)
    elif word.startswith("/") and word[1:].isalpha():
        screen.say("error", f"error: unknown command {word}; /help lists them")
    elif line:
        _answer(line, session, screen)


def _answer(line: str, session: Session, screen: Screen) -> None:
    shown = ""
    answer = session.ask(line)
    try:
        for text in answer:
            screen.grow(shown, text)
            shown = text
    except KeyboardInterrupt:  # stops the answer, not the talk; at the prompt it leaves
        answer.close()
        screen.grow(shown, shown + "\n")
        screen.say("stopped", STOPPED)
        return
    screen.grow(shown, shown + "\n")
    screen.say("answer", shown)
