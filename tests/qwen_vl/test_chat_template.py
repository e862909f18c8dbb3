from typing import Any

import pytest
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from qwen_vl.chat_template import CHAT_TEMPLATE, render
from qwen_vl.dialogue import DEFAULT_SYSTEM, make_context
from qwen_vl.errors import ConversationError, ImageBlockError, UnsupportedElementError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.processing import QwenVLProcessor
from qwen_vl.tokenization import QwenVLTokenizer
from tests.qwen_vl.text_goldens import golden, published_rank_file, published_tokenizer

PICTURE = Image.new("RGB", (8, 8), "blue")
Message = dict[str, Any]


def _parts(query: str) -> list[Message]:
    """A recorded query as the parts it was written from."""
    head, tag, rest = query.partition("Picture 1:<img>")
    if not tag:
        return [{"type": "text", "text": query}]
    path, _, text = rest.partition("</img>\n")
    assert head == ""
    return [{"type": "image", "path": path}, {"type": "text", "text": text}]


def _conversation(arguments: dict[str, Any]) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": arguments.get("system", "")}]
    for query, response in arguments.get("history") or []:
        messages += [
            {"role": "user", "content": _parts(query)},
            {"role": "assistant", "content": response},
        ]
    return [*messages, {"role": "user", "content": _parts(arguments["query"])}]


def _is_ordinary(case: dict[str, Any]) -> bool:
    """Not about the window, the raw format, or turns without an answer."""
    arguments = case["args"]
    return (
        arguments["chat_format"] == "chatml"
        and arguments["max_window_size"] == 6144
        and all(answer is not None for _, answer in arguments["history"] or [])
    )


ORDINARY = [case for case in golden("context")["make_context"] if _is_ordinary(case)]


@pytest.fixture(scope="module")
def processor() -> QwenVLProcessor:
    image_processor = QwenVLImageProcessor(size={"height": 28, "width": 28})
    return QwenVLProcessor(image_processor, QwenVLTokenizer(published_rank_file()))


@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: case["args"]["query"][:30])
def test_recorded_contexts_come_out_of_messages(case: dict[str, Any]) -> None:
    messages = _conversation(case["args"])

    # recorded with the helper that writes no space before <img>
    prompt = render(published_tokenizer("r1"), messages, add_generation_prompt=True)

    assert prompt == case["raw_text"]
    assert list(prompt.ids) == case["ids"]


CONVERSATION: list[Message] = [
    {
        "role": "user",
        "content": [{"type": "image", "path": "图.png"}, {"type": "text", "text": "?"}],
    },
    {"role": "assistant", "content": "<ref>狗</ref><box>(1,2),(3,4)</box>"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "and "},
            {"type": "image", "image": PICTURE},
            {"type": "image"},
            {"type": "text", "text": " both? "},
        ],
    },
]


@pytest.mark.parametrize("system", [None, "Be kind.", ""])
@pytest.mark.parametrize("more", [True, False])
def test_the_jinja_template_writes_the_same(system: str | None, more: bool) -> None:
    head = [] if system is None else [{"role": "system", "content": system}]
    messages = [*head, *CONVERSATION]
    tokenizer = published_tokenizer()

    ours = render(tokenizer, messages, add_generation_prompt=more)
    render_any: Any = render_jinja_template  # its annotation forgets the second value
    theirs, _ = render_any(
        conversations=[messages], chat_template=CHAT_TEMPLATE, add_generation_prompt=more
    )

    assert theirs == [str(ours)]
    # a picture that comes separately is one placeholder in text, and a whole block in ids
    assert list(ours.ids) == tokenizer.encode(theirs[0].replace("<imgpad>", "<img></img>"))
    assert (DEFAULT_SYSTEM in ours) == (system is None)


def test_it_is_what_chat_lays_out() -> None:
    tokenizer = published_tokenizer()
    asked = tokenizer.from_list_format([{"image": "图.png"}, {"text": "?"}])
    again = tokenizer.from_list_format([{"image": PICTURE}, {"text": "Now?"}])
    messages = [
        *CONVERSATION[:2],
        {"role": "user", "content": again},
    ]

    prompt = render(tokenizer, messages, add_generation_prompt=True)

    history: list[Any] = [(asked, CONVERSATION[1]["content"])]
    text, ids = make_context(tokenizer, again, history=history, system=DEFAULT_SYSTEM)
    assert (str(prompt), list(prompt.ids)) == (text, ids)


def test_pictures_are_taken_from_every_place_they_can_stand(processor: QwenVLProcessor) -> None:
    import base64
    import io

    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    encoded = base64.b64encode(file.getvalue()).decode()
    url = f"data:image/png;base64,{encoded}"
    parts: list[Message] = [
        {"type": "image", "image": PICTURE},
        {"type": "image", "image": file.getvalue()},
        {"type": "image", "url": url},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": url}},
    ]

    made = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True
    )

    assert made["pixel_values"].shape == (5, 3, 28, 28)
    assert (made["pixel_values"] == made["pixel_values"][0]).all()


def test_a_batch_may_hold_any_number_of_pictures_per_row(processor: QwenVLProcessor) -> None:
    image = {"type": "image", "image": PICTURE}
    rows = [[{"role": "user", "content": [image] * n + ["hi"]}] for n in (2, 0, 1)]

    made = processor.apply_chat_template(rows, tokenize=True, return_dict=True)

    start = processor.tokenizer.spans.start_id
    assert [int((row == start).sum()) for row in made["input_ids"]] == [2, 0, 1]
    assert made["pixel_values"].shape[0] == 3
    assert made["attention_mask"][0].all()


def test_pictures_may_come_separately(processor: QwenVLProcessor) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)

    made = processor(text=prompt, images=[PICTURE])

    ids = made["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.spans.pad_id) == 256
    assert processor.apply_chat_template(messages, tokenize=False) in str(prompt)
    with pytest.raises(ImageBlockError):
        processor(text=prompt)


def test_a_final_message_can_be_continued(processor: QwenVLProcessor) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]

    prompt = processor.apply_chat_template(messages, continue_final_message=True)

    assert prompt.endswith("<|im_start|>assistant\nI am")
    assert list(prompt.ids) == processor.tokenizer.encode(prompt)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], ConversationError),
        ([{"role": "tool", "content": "x"}], ConversationError),
        ([{"content": "x"}], ConversationError),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], UnsupportedElementError),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], UnsupportedElementError),
        ([{"role": "user", "content": [7]}], UnsupportedElementError),
    ],
)
def test_what_is_no_conversation_is_refused(
    processor: QwenVLProcessor, messages: list[Message], error: type[Exception]
) -> None:
    with pytest.raises(error):
        processor.apply_chat_template(messages)


def test_another_template_is_refused(processor: QwenVLProcessor) -> None:
    messages = [{"role": "user", "content": "hi"}]

    with pytest.raises(ConversationError, match="guarded"):
        processor.apply_chat_template(messages, chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ConversationError, match="guarded"):
        processor.tokenizer.apply_chat_template(messages, chat_template="{{ 1 }}")
