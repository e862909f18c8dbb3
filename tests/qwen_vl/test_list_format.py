import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwen_vl.errors import MalformedTextError, UnsupportedElementError
from qwen_vl.image_sources import ImageText
from qwen_vl.list_format import Style, from_list_format, to_list_format
from tests.qwen_vl.text_goldens import agrees, golden, published_tokenizer

RECORDED = golden("tokenizer")


@pytest.mark.parametrize("case", RECORDED["from_list_format"], ids=lambda c: str(c["list"])[:40])
@pytest.mark.parametrize("style", ["r1", "r2"])
def test_elements_are_written_as_recorded(case: dict[str, Any], style: Style) -> None:
    tokenizer = published_tokenizer(style)

    assert agrees(lambda: tokenizer.from_list_format(case["list"]), case[style])
    if f"{style}_ids" in case:
        text = tokenizer.from_list_format(case["list"])
        assert agrees(lambda: tokenizer.encode(text), case[f"{style}_ids"])
        assert agrees(lambda: tokenizer.to_list_format(text), case[f"{style}_to_list_format"])


@pytest.mark.parametrize("case", RECORDED["strings"], ids=lambda c: ascii(c["text"])[:30])
def test_text_is_split_as_recorded(case: dict[str, Any]) -> None:
    assert agrees(lambda: to_list_format(case["text"]), case["to_list_format"])


def test_images_that_are_no_paths_get_neutral_names_and_are_kept() -> None:
    picture = Image.new("RGB", (2, 2))
    given_images: list[Any] = [picture, b"bytes", Path("a/long/path.png"), "data:image/png;base64,"]

    text = from_list_format([{"image": image} for image in given_images])

    assert text.startswith("Picture 1: <img>image-1</img>\nPicture 2: <img>image-2</img>\n")
    assert [source.image for source in text.images] == given_images
    assert [text[s.start : s.stop] for s in text.images] == [
        f"<img>image-{n}</img>" for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(("limit", "name"), [(7, "image-1"), (6, "1"), (0, "")])
def test_a_neutral_name_fits_the_span(limit: int, name: str) -> None:
    text = from_list_format([{"image": b"x"}], name_limit=limit)

    assert text.images[0].name == name


def test_string_methods_lose_the_images() -> None:
    text = from_list_format([{"image": "a.png"}, {"text": "What is it? "}])

    assert isinstance(text, ImageText)
    assert not isinstance(text.strip(), ImageText)
    assert not isinstance(text + "!", ImageText)


def test_copies_keep_the_images() -> None:
    text = from_list_format([{"image": "a.png"}])

    for twin in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert twin == text
        assert twin.images == text.images


@pytest.mark.parametrize(
    "element",
    [
        {"image": None},
        {"text": 3},
        {"ref": 3, "box": []},
        {"box": None},
        {"box": [["1", "2", "3", "4"]]},
        {"box": [[float("inf"), 2, 3, 4]]},
        "text",
    ],
)
def test_unusable_elements_are_refused_in_one_line(element: Any) -> None:
    with pytest.raises(UnsupportedElementError) as caught:
        from_list_format([element])

    assert "\n" not in str(caught.value)


_WORDS = st.text(alphabet="ab é<>/", max_size=8).filter(lambda text: "<" not in text)


@given(
    st.lists(
        st.one_of(
            _WORDS.filter(bool).map(lambda w: {"text": w}),
            st.builds(lambda w: {"image": w + ".png"}, _WORDS),
            st.builds(lambda w, b: {"ref": w, "box": [b]}, _WORDS, st.tuples(*[st.integers()] * 4)),
        ),
        max_size=6,
    )
)
def test_images_and_refs_survive_a_round_trip(elements: list[dict[str, Any]]) -> None:
    back = to_list_format(from_list_format(elements))

    assert [e["image"] for e in back if "image" in e] == [
        e["image"] for e in elements if "image" in e
    ]
    assert [e["ref"] for e in back if "ref" in e] == [e["ref"] for e in elements if "ref" in e]


def test_a_control_token_in_text_is_named() -> None:
    with pytest.raises(MalformedTextError, match=r"<\|extra_7\|>"):
        to_list_format("a <|extra_7|>")
