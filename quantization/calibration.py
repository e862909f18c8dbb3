"""Calibration samples in the model's own prompt format, the answers teacher-forced.

Either drawn scenes (`qwen_vl.scenes`), or the user's conversations: a file with one JSON object a
line and a folder of images,

    {"conversations": [
        {"from": "user", "value": [{"image": "a.png"}, {"text": "What is this?"}]},
        {"from": "assistant", "value": "A dog."}]}

where turns alternate and a plain text may stand for a list of elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.random import PCG64

from model_store.canonical import canonical_digest, parse_json
from model_store.errors import StoreError, UnsafePathError
from model_store.paths import inside
from quantization.batches import CalibrationInput
from quantization.errors import CalibrationError
from quantization.options import BUILTIN, GptqConfig
from qwen_vl import scenes
from qwen_vl.context import Turn, encode_guarded
from qwen_vl.dialogue import chat_inputs
from qwen_vl.errors import QwenVLError
from qwen_vl.tokenization import QwenVLTokenizer

MAX_FILE = 1 << 30
_ELEMENTS = ({"image"}, {"text"}, {"box"}, {"ref", "box"})

T = TypeVar("T")
Elements = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns up to a question, and the answer to it; `place` is for error messages."""

    history: tuple[tuple[Elements, str], ...]
    query: Elements
    answer: str
    place: str


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Samples as the model takes them, and the digest of what they were made from."""

    inputs: tuple[CalibrationInput, ...]
    origin: str  # "builtin", or "conversations"
    digest: str

    @property
    def tokens(self) -> int:
        return sum(len(sample.input_ids) for sample in self.inputs)

    def facts(self) -> dict[str, Any]:
        """What a manifest says about the set: no path, no name."""
        return {
            "origin": self.origin,
            "digest": self.digest,
            "samples": len(self.inputs),
            "tokens": self.tokens,
            "images": sum(
                0 if one.pixel_values is None else len(one.pixel_values) for one in self.inputs
            ),
        }


def calibration_set(
    config: GptqConfig, tokenizer: QwenVLTokenizer, *, image_size: int
) -> CalibrationSet:
    """Make the set that the options ask for.

    Raises:
        CalibrationError: the file is missing, empty or malformed, or a sample is too long.
    """
    if config.calibration == BUILTIN:
        drawn = list(scenes.samples(config.seed, config.samples, split="calibration"))
        conversations = [
            Conversation(_history(one), one.elements, one.answer, f"drawn sample {number}")
            for number, one in enumerate(drawn)
        ]
        origin, digest = "builtin", scenes.digest(drawn)
    else:
        path = Path(config.calibration).expanduser()
        known = list(read_conversations(path, images=config.images))
        conversations = pick(known, config.samples, config.seed)
        origin, digest = "conversations", conversations_digest(conversations)
    inputs = tuple(
        _encoded(one, tokenizer, image_size=image_size, longest=config.max_tokens)
        for one in conversations
    )
    return CalibrationSet(inputs, origin, digest)


def _history(sample: scenes.Sample) -> tuple[tuple[Elements, str], ...]:
    return tuple(
        (({"text": query},) if isinstance(query, str) else query, answer)
        for query, answer in sample.history
    )


def pick(known: list[T], count: int, seed: int) -> list[T]:
    """Pick `count` of a longer list, by seed, and keep their order."""
    if len(known) <= count:
        return known
    words = PCG64(seed)  # raw words: the part of the generator whose stream is promised
    left = list(range(len(known)))
    picked = {left.pop(int(words.random_raw()) % len(left)) for _ in range(count)}
    return [known[number] for number in sorted(picked)]


def _encoded(
    one: Conversation, tokenizer: QwenVLTokenizer, *, image_size: int, longest: int
) -> CalibrationInput:
    history: list[Turn] = list(one.history)
    try:
        prompt = chat_inputs(tokenizer, one.query, image_size=image_size, history=history)
        answer = encode_guarded(tokenizer, "assistant", one.answer)
    except QwenVLError as error:
        raise CalibrationError(f"{one.place}: {error}", hint=error.hint) from error
    ids = [*prompt.input_ids, *answer.ids, tokenizer.im_end_id]
    if len(ids) > longest:
        raise CalibrationError(
            f"{one.place} has {len(ids)} tokens, over the limit of {longest}",
            hint="Shorten it, or raise --max-tokens; memory grows with the longest sample.",
        )
    pixels = prompt.model_inputs().get("pixel_values")
    return CalibrationInput(torch.tensor(ids, dtype=torch.int64), pixels)


def read_conversations(path: Path, *, images: Path | None) -> Iterator[Conversation]:
    """Read a file of conversations; images become paths below `images`.

    Raises:
        CalibrationError: no such file, no conversation in it, or a malformed line, by number.
    """
    for line, place in filled_lines(path, nothing="no conversation"):
        yield _conversation(line, place, images)


def filled_lines(
    path: Path, *, nothing: str, hint: str | None = None
) -> Iterator[tuple[bytes, str]]:
    """The lines of a calibration file that are not empty, and how to name each in an error.

    Raises:
        CalibrationError: no such file, too large, or no such line: it "holds `nothing`".
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise CalibrationError(f"{path} is over {MAX_FILE} bytes")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CalibrationError(f"calibration file {path}: {error.strerror}") from error
    if not any(line.strip() for line in lines):
        raise CalibrationError(f"{path.name} holds {nothing}", hint=hint)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield line, f"{path.name} line {number}"


def _conversation(line: bytes, place: str, images: Path | None) -> Conversation:
    try:
        value = parse_json(line, name=place)
    except StoreError as error:
        raise CalibrationError(str(error)) from error
    turns = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        raise CalibrationError(f"{place}: no conversation of user and assistant, in turns")
    told = [_turn(turn, place, number) for number, turn in enumerate(turns)]
    asked = [_elements(value, place, images) for value in told[::2]]
    answers = [_answer(value, place) for value in told[1::2]]
    history = tuple(zip(asked[:-1], answers[:-1], strict=True))
    return Conversation(history, asked[-1], answers[-1], place)


def _turn(turn: Any, place: str, number: int) -> Any:
    speaker = ("user", "assistant")[number % 2]
    if not isinstance(turn, dict) or turn.get("from") != speaker or "value" not in turn:
        raise CalibrationError(f"{place}: turn {number + 1} is not one of the {speaker}")
    return turn["value"]


def _answer(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise CalibrationError(f"{place}: an answer must be a text that is not empty")
    return value


def _elements(value: Any, place: str, images: Path | None) -> Elements:
    if isinstance(value, str):
        return ({"text": value},)
    if not isinstance(value, list) or not value:
        raise CalibrationError(f"{place}: a question must be a text or a list of elements")
    return tuple(_element(element, place, images) for element in value)


def _element(element: Any, place: str, images: Path | None) -> Mapping[str, Any]:
    if not isinstance(element, dict) or set(element) not in _ELEMENTS:
        raise CalibrationError(f'{place}: an element is {{"image": …}} or {{"text": …}}')
    if "image" not in element:
        return element
    name = element["image"]
    if not isinstance(name, str):
        raise CalibrationError(f"{place}: an image is named by a text")
    if images is None:
        raise CalibrationError(f"{place} names an image", hint="Say where: --images DIR.")
    try:
        return {"image": inside(images, name)}
    except UnsafePathError as error:
        raise CalibrationError(f"{place}: {error}", hint=error.hint) from error


def conversations_digest(conversations: Sequence[Conversation]) -> str:
    """sha256 over texts and the images' bytes, in order; where the images lie is no matter.

    Raises:
        CalibrationError: an image that cannot be read.
    """
    return canonical_digest(
        [
            [[*_told(query, one.place), answer] for query, answer in one.history]
            + [[*_told(one.query, one.place), one.answer]]
            for one in conversations
        ]
    )


def _told(elements: Elements, place: str) -> list[Any]:
    return [_fingerprint(element["image"], place) if "image" in element else dict(element)
            for element in elements]  # fmt: skip


def _fingerprint(image: Path, place: str) -> dict[str, str]:
    try:
        with image.open("rb") as source:
            return {"image": hashlib.file_digest(source, "sha256").hexdigest()}
    except OSError as error:
        raise CalibrationError(f"{place}: image {image.name}: {error.strerror}") from error
