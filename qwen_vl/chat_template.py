"""Messages with roles and parts to one guarded prompt, and the same layout as a Jinja template.

The template is for other tools. Here a prompt is laid out piece by piece, so that nothing a message
says becomes a control token, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vl.context import Layout, Part, Role, encode_guarded
from qwen_vl.errors import ConversationError, UnsupportedElementError
from qwen_vl.image_sources import ImageInput, ImageSource, ImageText
from qwen_vl.image_text_tokenizer import ImageTextTokenizer
from qwen_vl.ranks import IM_END, IMG_END, IMG_PAD, IMG_START

DEFAULT_SYSTEM = "You are a helpful assistant."
CHAT_TEMPLATE_FILE = "chat_template.jinja"
_SOURCES = ("image", "path", "url", "base64", "image_url")

# r2's spacing; a picture that comes separately stands as the placeholder that engines look for
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if loop.first and message['role'] != 'system' -%}\n"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
    "{%- if message['content'] is string -%}\n"
    "{{- message['content'] -}}\n"
    "{%- else -%}\n"
    "{%- set seen = namespace(images=0) -%}\n"
    "{%- for part in message['content'] -%}\n"
    "{%- if part is string -%}\n"
    "{{- part -}}\n"
    "{%- elif part['type'] in ('image', 'image_url') -%}\n"
    "{%- set seen.images = seen.images + 1 -%}\n"
    "{%- set given = part['image'] or part['path'] or part['url'] -%}\n"
    "{{- 'Picture ' + seen.images|string + ': ' -}}\n"
    # transformers hands objects over as '<Image>'
    "{%- if given is string and given[:5]|lower != 'data:' and given[:1] != '<' -%}\n"
    "{{- '<img>' + given + '</img>' -}}\n"
    "{%- elif given or part['base64'] or part['image_url'] -%}\n"
    "{{- '<img>image-' + seen.images|string + '</img>' -}}\n"
    "{%- else -%}\n"
    "{{- '<imgpad>' -}}\n"
    "{%- endif -%}\n"
    "{{- '\\n' -}}\n"
    "{%- elif part['type'] == 'text' -%}\n"
    "{{- part['text'] -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- endif -%}\n"
    "{{- '<|im_end|>' -}}\n"
    "{%- if not loop.last or add_generation_prompt -%}\n"
    "{{- '\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


class PromptText(str):
    """A whole prompt that keeps its ids and pictures.

    What string methods return is plain `str`: there, control tokens are only text to our processor.
    """

    __slots__ = ("ids", "images")

    ids: tuple[int, ...]
    images: tuple[ImageInput | None, ...]

    def __new__(
        cls, text: str, ids: Sequence[int] = (), images: Sequence[ImageInput | None] = ()
    ) -> PromptText:
        made = super().__new__(cls, text)
        made.ids, made.images = tuple(ids), tuple(images)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return str(self), self.ids, self.images


@dataclass(frozen=True, slots=True)
class _NoImage:
    """Stands for a picture that is handed to the processor separately."""


def render(
    tokenizer: ImageTextTokenizer,
    conversation: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> PromptText:
    """Lay messages out as one prompt.

    Args:
        tokenizer: the model's.
        conversation: messages `{"role": "system" | "user" | "assistant", "content": …}`; content
            is a text, or parts `{"type": "text", "text": …}` and `{"type": "image", …}` with the
            picture under `image`, `path`, `url` or `base64`, or nowhere: then it comes separately.
        add_generation_prompt: end where the assistant speaks.
        continue_final_message: leave the last message open.

    Raises:
        ConversationError: no message, an unknown role, or both flags.
        UnsupportedElementError: a part of an unknown kind.
        ImageNotAllowedError: a text holds an `<img>` of its own.
    """
    if not conversation:
        raise ConversationError("the conversation has no messages")
    if add_generation_prompt and continue_final_message:
        raise ConversationError("a final message cannot be continued and answered at once")
    layout = Layout(tokenizer, encode_guarded)
    messages = list(conversation)
    if messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": DEFAULT_SYSTEM})
    prompt = Part("", ())
    images: list[ImageInput | None] = []
    for number, message in enumerate(messages):
        text, found = _content(tokenizer, message.get("content"))
        images += found
        prompt += (layout.plain("\n") if number else Part("", ())) + layout.block(
            _role(message), text
        )
    if continue_final_message:
        prompt = Part(prompt.text[: -len(IM_END)], prompt.ids[:-1])
    if add_generation_prompt:
        prompt += layout.plain("\n") + layout.opening()
    # a text may not hold an <img>, so this finds the pictures that come separately, and only them
    return PromptText(prompt.text.replace(IMG_START + IMG_END, IMG_PAD), prompt.ids, images)


def is_batch(conversation: Any) -> bool:
    """Whether these are several conversations."""
    return bool(conversation) and isinstance(conversation[0], list | tuple)


def refuse_other_template(chat_template: str | None) -> None:
    """Our layout is the only one.

    Raises:
        ConversationError: another template was asked for.
    """
    if chat_template not in (None, CHAT_TEMPLATE):
        raise ConversationError(
            "another chat template cannot be guarded",
            hint="Render it with Jinja yourself, and encode only what you trust.",
        )


def _role(message: Mapping[str, Any]) -> Role:
    role = message.get("role")
    if role not in ("system", "user", "assistant"):
        raise ConversationError(f"unknown role {role!r}")
    return role  # type: ignore[no-any-return]  # one of the three


def _content(tokenizer: ImageTextTokenizer, content: Any) -> tuple[str, list[ImageInput | None]]:
    if isinstance(content, str):
        return content, [source.image for source in getattr(content, "images", ())]
    if content is None:
        return "", []
    elements = [_element(part) for part in content]
    text = tokenizer.from_list_format(
        {"image": b""} if isinstance(e.get("image"), _NoImage) else e for e in elements
    )
    images = [e["image"] for e in elements if "image" in e]
    return _unnamed(text, images), [None if isinstance(i, _NoImage) else i for i in images]


def _element(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Mapping):
        kind = part.get("type", "text" if "text" in part else "image")
        if kind == "text":
            return {"text": part.get("text")}
        if kind in ("image", "image_url"):
            return {"image": _picture(part)}
    raise UnsupportedElementError(
        f"not a part of a message: {part!r:.80}",
        hint='Use {"type": "text", "text": …} or {"type": "image", "image": …}.',
    )


def _picture(part: Mapping[str, Any]) -> Any:
    key = next((key for key in _SOURCES if part.get(key) is not None), None)
    if key is None:
        return _NoImage()
    value = part[key]
    if key == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
        return f"data:image/unknown;base64,{value}"
    return value


def _unnamed(text: ImageText, images: Sequence[Any]) -> ImageText:
    """The same text, with nothing between the tags of pictures that come separately."""
    pieces: list[str] = []
    sources: list[ImageSource] = []
    position = length = 0
    for source, image in zip(text.images, images, strict=True):
        name = "" if isinstance(image, _NoImage) else source.name
        before = str(text[position : source.start])
        start = length + len(before)
        span = IMG_START + name + IMG_END
        pieces += [before, span]
        length = start + len(span)
        sources.append(ImageSource(source.image, name, start, length))
        position = source.stop
    return ImageText("".join(pieces) + str(text[position:]), sources)
