"""Training labels of the 2023 recipe.

The loss falls on `<|im_start|>` and on `<|im_end|>` plus newline of every turn, system and user
included, and on the content of the assistant's turns; role names and their newlines are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_vl.errors import ConversationError
from qwen_vl.image_text_tokenizer import ImageTextTokenizer

IGNORED = -100
DEFAULT_SYSTEM = "You are a helpful assistant."
_ROLES = ("user", "assistant")


def labels(
    conversation: Sequence[Mapping[str, str]],
    tokenizer: ImageTextTokenizer,
    max_length: int,
    *,
    system: str = DEFAULT_SYSTEM,
) -> tuple[list[int], list[int]]:
    """Input ids and labels of one conversation, padded with end-of-text or cut to `max_length`.

    A first turn that is not the user's is dropped. Control tokens in the turns count as tokens:
    training data is trusted. Cutting may split an image span; see `is_whole`.

    Args:
        conversation: turns `{"from": "user" | "assistant", "value": text}`.
        tokenizer: the model's.
        max_length: length of both lists.
        system: the system text.

    Raises:
        ConversationError: there is no turn, or its role is unknown.
    """
    if not conversation:
        raise ConversationError("the conversation has no turns")
    roles = [_role(turn) for turn in conversation]
    first = 0 if roles[0] == "user" else 1
    ids, targets = _turn(tokenizer, "system", system)
    for role, turn in zip(roles[first:], conversation[first:], strict=True):
        more_ids, more_targets = _turn(tokenizer, role, turn["value"])
        ids += more_ids
        targets += more_targets
    missing = max(max_length - len(ids), 0)
    ids += [tokenizer.eod_id] * missing
    targets += [IGNORED] * missing
    return ids[:max_length], targets[:max_length]


def _role(turn: Mapping[str, str]) -> str:
    role = turn.get("from")
    if role not in _ROLES:
        raise ConversationError(f"unknown role {role!r}")
    return role


def _turn(tokenizer: ImageTextTokenizer, role: str, text: str) -> tuple[list[int], list[int]]:
    head = tokenizer.encode(role) + tokenizer.encode("\n")
    content = tokenizer.encode(text)
    tail = [tokenizer.im_end_id, *tokenizer.encode("\n")]
    target = content if role == "assistant" else [IGNORED] * len(content)
    start = tokenizer.im_start_id
    return (
        [start, *head, *content, *tail],
        [start, *[IGNORED] * len(head), *target, *tail],
    )


def is_whole(input_ids: Sequence[int], tokenizer: ImageTextTokenizer) -> bool:
    """Whether no image span was cut: such a sample cannot be trained on."""
    layout = tokenizer.spans
    return input_ids.count(layout.start_id) == input_ids.count(layout.end_id)
