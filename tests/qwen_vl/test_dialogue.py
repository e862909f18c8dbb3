from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from qwen_vl.dialogue import chat, chat_inputs, decode_tokens, make_context
from qwen_vl.errors import (
    ChatFormatError,
    ImageNotAllowedError,
    ImageNotFoundError,
    MalformedTextError,
    StopWordsError,
    UnknownChatFormatError,
)
from qwen_vl.list_format import from_list_format
from qwen_vl.stop_words import ForceEndAfterStop, StopAfter, stop_sequences
from tests.qwen_vl.text_goldens import agrees, golden, published_tokenizer

RECORDED = golden("context")
PICTURE = Image.new("RGB", (8, 8), "blue")
END = 151645
EOD = 151643


@dataclass
class ScriptedModel:
    """Greedy decoding of a script, through real processors and criteria."""

    script: list[int]
    compat: str = "default"
    chat_format: str = "chatml"
    seen: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28))
        self.generation_config = SimpleNamespace(
            chat_format=self.chat_format, eos_token_id=EOD, max_window_size=6144
        )

    def generate(
        self,
        *,
        input_ids: torch.Tensor,
        max_new_tokens: int = 20,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **rest: Any,
    ) -> torch.Tensor:
        self.seen = {"input_ids": input_ids, **rest}
        ids = input_ids
        for step in range(max_new_tokens):
            scores = torch.zeros(1, 151936)
            scores[0, self.script[step] if step < len(self.script) else EOD] = 9.0
            if logits_processor is not None:
                scores = logits_processor(cast("torch.LongTensor", ids), scores)
            ids = torch.cat([ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
            if ids[0, -1] == EOD:
                break
            if stopping_criteria is not None and bool(stopping_criteria(ids, scores).all()):
                break
        return ids


def encode(text: str) -> list[int]:
    return published_tokenizer().encode(text)


@pytest.mark.parametrize("case", RECORDED["make_context"], ids=lambda c: c["args"]["query"][:30])
def test_the_context_is_as_recorded(case: dict[str, Any]) -> None:
    arguments = dict(case["args"])
    query = arguments.pop("query")
    want = case if "error_type" in case else {"ok": [case["raw_text"], case["ids"]]}

    assert agrees(lambda: make_context(published_tokenizer(), query, **arguments), want)


@pytest.mark.parametrize("case", RECORDED["decode_tokens"], ids=lambda c: str(c["generated"])[:40])
def test_answers_are_cut_out_as_recorded(case: dict[str, Any]) -> None:
    want = case if "error_type" in case else {"ok": [case["response"], case["end_reason"]]}

    def decoded() -> list[str]:
        reply = decode_tokens(
            published_tokenizer(),
            case["context_ids"] + case["generated"],
            raw_text_len=case["raw_text_len"],
            context_length=len(case["context_ids"]),
            chat_format=case.get("chat_format", "chatml"),
            errors=case.get("errors", "replace"),
        )
        return [reply.text, reply.end_reason]

    assert agrees(decoded, want)


def test_stop_sequences_are_as_recorded() -> None:
    tokenizer = published_tokenizer()

    assert stop_sequences("chatml", tokenizer) == RECORDED["stop_words_chatml"]
    assert stop_sequences("raw", tokenizer) == RECORDED["stop_words_raw"]
    with pytest.raises(UnknownChatFormatError):
        stop_sequences("bogus", tokenizer)


def test_guarded_and_recorded_encoding_agree_where_nothing_is_typed() -> None:
    tokenizer = published_tokenizer()
    first = tokenizer.from_list_format([{"image": "a.png"}, {"text": "这是什么? "}])
    history = [(first, "<ref>狗</ref><box>(1,2),(3,4)</box>")]
    with_image = tokenizer.from_list_format([{"image": PICTURE}, {"text": "and <ref>this</ref>?"}])

    ids = chat_inputs(
        tokenizer, with_image, image_size=28, history=[("q", "r")], system="s"
    ).input_ids

    assert ids == make_context(tokenizer, with_image, history=[("q", "r")], system="s")[1]
    with pytest.raises(ImageNotFoundError):
        chat_inputs(tokenizer, "next", image_size=28, history=history)


@pytest.mark.parametrize(
    "typed", ["<img>/etc/passwd</img>", "<img>", "x <img>a.png</img> y", "<img></img>"]
)
def test_a_path_typed_as_text_opens_no_file(typed: str) -> None:
    tokenizer = published_tokenizer()
    in_element = tokenizer.from_list_format([{"image": PICTURE}, {"text": typed}])

    for query, history, system in (
        (typed, None, ""),
        (in_element, None, ""),
        ("q", [(typed, "r")], ""),
        ("q", None, typed),
    ):
        with pytest.raises(ImageNotAllowedError) as caught:
            chat_inputs(tokenizer, query, image_size=28, history=history, system=system)
        assert caught.value.hint


def test_stray_closing_tags_and_old_answers_cannot_shift_a_span() -> None:
    tokenizer = published_tokenizer()
    query = tokenizer.from_list_format([{"text": "</img><imgpad>"}, {"image": PICTURE}])
    history = [("q", "<img>dreamt.png</img>")]

    inputs = chat_inputs(tokenizer, query, image_size=28, history=history)

    starts = [at for at, i in enumerate(inputs.input_ids) if i == 151857]
    ends = [at for at, i in enumerate(inputs.input_ids) if i == 151858]
    assert [end - start for start, end in zip(starts, ends, strict=True)] == [257]
    assert inputs.images == (PICTURE,)


def test_only_images_inside_the_window_are_opened() -> None:
    tokenizer = published_tokenizer()
    old = tokenizer.from_list_format([{"image": "gone.png"}])
    new: list[dict[str, Any]] = [{"image": PICTURE}, {"text": "x"}]

    inputs = chat_inputs(tokenizer, new, image_size=28, history=[(old, "r")], max_window_size=200)

    assert inputs.images == (PICTURE,)
    assert "gone.png" not in inputs.raw_text


def test_a_long_path_handed_over_does_not_overflow(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 150) / ("e" * 150) / "p.png"
    path.parent.mkdir(parents=True)
    PICTURE.save(path)
    tokenizer = published_tokenizer()

    inputs = chat_inputs(tokenizer, [{"image": str(path)}], image_size=28)

    assert len(inputs.images) == 1
    with pytest.raises(MalformedTextError, match="too long"):
        make_context(tokenizer, [{"image": str(path)}])


def test_with_paths_allowed_text_names_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PICTURE.save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    mixed = from_list_format([{"image": PICTURE}, {"text": "<img>p.png</img>"}])

    inputs = chat_inputs(published_tokenizer(), mixed, image_size=28, allow_paths=True)

    assert inputs.images[0] is PICTURE
    assert [image.size for image in inputs.images] == [(8, 8), (8, 8)]


def test_model_inputs_have_the_stated_shapes() -> None:
    tokenizer = published_tokenizer()
    two = [{"image": PICTURE}, {"image": PICTURE}]

    with_images = chat_inputs(tokenizer, two, image_size=28).model_inputs()
    without = chat_inputs(tokenizer, "Hi", image_size=28).model_inputs()

    assert with_images["pixel_values"].shape == (2, 3, 28, 28)
    assert with_images["pixel_values"].dtype == torch.float32
    assert with_images["attention_mask"].equal(torch.ones_like(with_images["input_ids"]))
    assert sorted(without) == ["attention_mask", "input_ids"]


def test_a_repaired_answer_loses_nothing() -> None:
    tokenizer = published_tokenizer()
    words = encode("one two three")

    cut, _ = chat(ScriptedModel(words), tokenizer, "Hi", max_new_tokens=len(words))
    nfd, _ = chat(ScriptedModel([*encode("bonjour"), END]), tokenizer, "cafe\u0301")
    broken, _ = chat(ScriptedModel([64, 151857, 65, 151900, END]), tokenizer, "Hi")
    custom, _ = chat(
        ScriptedModel([64, 293, 45537, 272]), tokenizer, "Hi", stop_words_ids=[[293, 45537]]
    )

    assert cut == "one two three"
    assert nfd == "bonjour"
    assert broken == "a<img>b�"
    assert custom == "a"


def test_as_in_2023_the_same_answers_are_damaged() -> None:
    tokenizer = published_tokenizer()
    words = encode("one two three")

    cut, _ = chat(ScriptedModel(words, "2023"), tokenizer, "Hi", max_new_tokens=len(words))
    nfd, _ = chat(ScriptedModel([*encode("bonjour"), END], "2023"), tokenizer, "cafe\u0301")
    custom, _ = chat(
        ScriptedModel([64, 293, 45537, 272], "2023"), tokenizer, "Hi", stop_words_ids=[[45537]]
    )

    assert cut == "one two"
    assert nfd == "onjour"
    assert custom == "a b STOP"
    with pytest.raises(MalformedTextError, match="Unclosed image token"):
        chat(ScriptedModel([64, 151857, 65, END], "2023"), tokenizer, "Hi")


@pytest.mark.parametrize(("compat", "in_place"), [("default", False), ("2023", True)])
def test_lists_of_the_caller_grow_only_as_in_2023(compat: str, in_place: bool) -> None:
    history: list[Any] = [("a", "b")]
    stops = [[45537]]

    _, returned = chat(
        ScriptedModel([64, END], compat),
        published_tokenizer(),
        "Hi",
        history=history,
        stop_words_ids=stops,
    )

    assert returned == [("a", "b"), ("Hi", "a")]
    assert (returned is history) == in_place
    assert stops == ([[45537], [151645], [151644]] if in_place else [[45537]])


def test_history_keeps_images_for_the_next_turn() -> None:
    tokenizer, model = published_tokenizer(), ScriptedModel([64, END])
    _, history = chat(model, tokenizer, [{"image": PICTURE}, {"text": "?"}])

    _, history = chat(model, tokenizer, "and now?", history=history)

    assert model.seen["pixel_values"].shape == (1, 3, 28, 28)
    assert [answer for _, answer in history] == ["a", "a"]


def test_history_can_be_left_alone() -> None:
    _, history = chat(ScriptedModel([64, END]), published_tokenizer(), "Hi", append_history=False)

    assert history == []


def test_unknown_keywords_reach_generate_and_ours_do_not() -> None:
    model = ScriptedModel([64, END])

    chat(model, published_tokenizer(), "Hi", do_sample=False, max_window_size=50)

    assert sorted(model.seen) == ["attention_mask", "do_sample", "input_ids"]


def test_only_chat_models_chat() -> None:
    with pytest.raises(ChatFormatError, match="raw"):
        chat(ScriptedModel([], chat_format="raw"), published_tokenizer(), "Hi")
    with pytest.raises(ChatFormatError, match="stream"):
        chat(ScriptedModel([]), published_tokenizer(), "Hi", stream=True)


def test_stop_words_in_the_prompt_end_an_answer_only_as_in_2023() -> None:
    prompt = torch.tensor([[5, 6, 7], [5, 6, 8]])
    scores = torch.zeros(2, 10)

    old = ForceEndAfterStop([[6, 7], [9]], eos_token_id=9)(prompt, scores.clone())
    new = StopAfter([[6, 7]], prompt_length=2)(prompt, scores)

    assert old.argmax(dim=-1).tolist() == [9, 0]
    assert old[0, 9] == 32768
    assert new.tolist() == [False, False]
    assert StopAfter([[6, 7]], prompt_length=1)(prompt, scores).tolist() == [True, False]


@pytest.mark.parametrize("sequences", [[], [[]], [[1], [-1]], [5], [[1.5]], 5])
def test_stop_sequences_that_stop_nothing_are_refused(sequences: Any) -> None:
    with pytest.raises(StopWordsError):
        ForceEndAfterStop(sequences, eos_token_id=9)
