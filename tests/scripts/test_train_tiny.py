"""The tiny model's training: what it learns from is what `chat` asks, and a minute of it helps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store.command import run_command
from qwen_vl.dialogue import chat_inputs
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.ranks import IMG_START, build_encoding, parse_ranks
from qwen_vl.scene_dice import split_dice
from qwen_vl.scene_drawing import GRID, Scene, draw, draw_shapes
from qwen_vl.scene_pairs import compare
from qwen_vl.scene_tasks import (
    Question,
    ask_presence,
    choose,
    count_things,
    describe,
    ground,
    read,
    relate,
)
from qwen_vl.scene_words import COLOURS, LANGUAGES, SIDES, Language
from qwen_vl.scenes import MIXED, PORTABLE, Sample, samples
from scripts.tiny_cells import CELLS, CLASSES, SIDE, cell_targets, cells_of
from scripts.tiny_export import trained_model
from scripts.tiny_language import Language as LanguageStage
from scripts.tiny_language import _sided, decode_packed, place_heads
from scripts.tiny_model import IMAGE_SIZE, IMAGE_TOKENS, fresh_model, original_config
from scripts.tiny_muon import orthogonalised
from scripts.tiny_pointers import (
    AGAIN,
    ALL,
    ALL_SECOND,
    CHOSEN,
    COUNTED,
    KIND,
    NAMED,
    NAMED_SECOND,
    ONE,
    OTHER,
    PLACED,
    TOLD,
    Head,
    Looks,
    pointers,
)
from scripts.tiny_prompts import Writer
from scripts.tiny_rows import LanguageBatches, make_row, pack
from scripts.tiny_running import Plan, Run, rate
from scripts.tiny_scenes import training_dice, training_style
from scripts.tiny_vocabulary import template_texts, tiny_rank_file
from scripts.tiny_warmup import edge_loss, pixel_values
from scripts.train_tiny import add_arguments, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rank_file() -> bytes:
    return tiny_rank_file()


@pytest.fixture(scope="module")
def writer(rank_file: bytes) -> Writer:
    return Writer(build_encoding(parse_ranks(rank_file, "ranks")))


@pytest.fixture(scope="module")
def model(rank_file: bytes) -> QwenVLForConditionalGeneration:
    torch.manual_seed(0)
    return fresh_model(rank_file.count(b"\n"))


def _question(sample: Sample) -> Question:
    earlier = tuple(
        (query if isinstance(query, str) else str(query[-1]["text"]), answer)
        for query, answer in sample.history
    )
    return Question(sample.kind, sample.language, sample.question, sample.answer, earlier)


def test_what_is_trained_on_is_the_prompt_that_chat_makes(
    tmp_path: Path, rank_file: bytes, writer: Writer
) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(rank_file)
    config = original_config(rank_file.count(b"\n"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    start = tokenizer.special_ids[IMG_START]

    mixed, unknown = samples(5, 2 * len(MIXED)), samples(5, 12, kinds=("unknown",))
    for sample in (*mixed, *unknown):
        prefix = writer.chat_prefix(len(sample.images), labelled=True)
        asked = writer.chat(_question(sample))
        inputs = chat_inputs(
            tokenizer, sample.elements, image_size=IMAGE_SIZE, history=list(sample.history)
        )
        theirs = list(inputs.input_ids)
        for at in (n for n, token in enumerate(theirs) if token == start):
            theirs[at + 1 : at + 1 + IMAGE_TOKENS] = [writer.pad_id] * IMAGE_TOKENS
        ours = [*prefix, *asked.ids]
        assert ours[: len(theirs)] == theirs, sample.kind
        learned = list(asked.learned)[len(theirs) - len(prefix) :]
        assert all(learned), sample.kind
        answer = writer.encoding.decode(ours[len(theirs) : -1])
        assert answer == sample.answer


@torch.no_grad()
def test_packed_questions_get_the_logits_of_each_one_alone(
    model: QwenVLForConditionalGeneration, writer: Writer
) -> None:
    rows = [make_row(split_dice("train", 3, n), writer, PORTABLE) for n in range(3)]
    batch = {k: torch.from_numpy(v) for k, v in pack(rows, writer.pad_id).items()}
    pictures = pixel_values(batch["pixels"])
    features: Any = model.get_image_features(pictures)
    seen = features.pooler_output.flatten(0, 1)
    text = model.model.language_model
    embeddings = text.embed_tokens(batch["ids"]).index_put((batch["places"],), seen)

    packed = model.lm_head(decode_packed(text, embeddings, batch))

    first = 0
    for number, row in enumerate(rows):
        shown = pictures[first : first + len(row.images)]
        first += len(row.images)
        for segment in (1, len(row.asked)):
            chosen = (batch["rows"] == number) & (
                (batch["segments"] == 0) | (batch["segments"] == segment)
            )
            ids = batch["ids"][chosen][None]
            alone = model(input_ids=ids, pixel_values=shown if len(shown) else None).logits[0]
            assert torch.allclose(packed[chosen], alone, atol=2e-5)


def test_only_answers_and_their_ends_are_learned(writer: Writer) -> None:
    row = make_row(split_dice("train", 11), writer, PORTABLE)
    batch = pack([row], writer.pad_id)

    start = len(row.prefix)
    assert (batch["labels"][:start] == -100).all()
    for asked in row.asked:
        labels = batch["labels"][start : start + len(asked.ids)]
        told = [ids for ids, learned in zip(asked.ids, asked.learned, strict=True) if learned]
        assert labels[labels >= 0].tolist() == told
        start += len(asked.ids)


def test_a_batch_without_a_picture_is_learned_from_too(
    model: QwenVLForConditionalGeneration, writer: Writer
) -> None:
    rows = [make_row(split_dice("train", 12, n), writer, PORTABLE) for n in range(120)]
    texts = [row for row in rows if not row.images][:2]
    kinds = [asked.kind for asked in texts[0].asked]
    assert kinds[:2] == ["small talk"] * 2
    assert {*kinds[2:]} == {"unknown"}
    assert all(len(row.prefix) + sum(len(a.ids) for a in row.asked) <= 320 for row in texts)

    batch = {k: torch.from_numpy(v) for k, v in pack(texts, writer.pad_id).items()}
    loss, facts = LanguageStage(model).step(batch, measure=True)

    assert len(batch["pixels"]) == 0
    assert {*facts} == {"answers", "small talk", "unknown"}
    assert 0 < float(loss.detach()) == pytest.approx(facts["answers"])


def _pointed(writer: Writer, question: Question, scenes: tuple[Scene, ...]) -> dict[Head, Any]:
    """What each head is pointed at, by the text up to the token that looks."""
    asked = writer.chat(question)
    found: dict[Head, Any] = {}
    for one in pointers(asked, question, scenes, writer.encoding):
        told = writer.encoding.decode(list(asked.ids[: one.place + 1]))
        words = [writer.encoding.decode([asked.ids[place]]) for place in one.tokens]
        found.setdefault(one.head, []).append((told, one, words))
    return found


def _asked(task: Any, scene: Scene, language: Language, n: int) -> Iterator[Question]:
    for turn in range(8):
        question = task(split_dice("train", 31, n, turn), scene, language)
        if question is not None:
            yield question


@pytest.mark.parametrize("language", LANGUAGES)
def test_heads_are_told_to_look_where_the_object_is_that_the_text_names(
    writer: Writer, language: Language
) -> None:
    for n in range(6):
        scene = draw_shapes(split_dice("train", 21, n), PORTABLE, text=False)
        for question in _asked(ground, scene, language, n):
            thing = next(t for t in scene.objects if t.box == question.box)
            found = _pointed(writer, question, (scene,))
            assert set(found) == {NAMED, TOLD}
            assert len(found[NAMED]) == 2  # in the question and in the answer
            for told, one, _ in found[NAMED]:
                assert told.endswith(thing.name(language))
                assert one.cells == cells_of(thing.box)
            box = thing.tagged(language).partition("<box>")[2]
            assert len(found[TOLD]) == sum(sign.isdigit() for sign in box)
            assert all(one.cells == cells_of(thing.box) for _, one, _ in found[TOLD])
            assert all(told[-1] in "(,0123456789" for told, _, _ in found[TOLD])


def test_training_often_has_several_of_a_colour_to_count() -> None:
    style, answers = training_style(1.0), []
    for n in range(2000):
        dice = training_dice(31, 0, n)
        question = count_things(dice, draw_shapes(dice, style, text=False), "en")
        assert question is not None
        if question.sought in {colour.en for colour in COLOURS}:
            answers.append(int(question.answer))

    # by chance alone there would be several in one of seven or eight
    assert sum(answer > 1 for answer in answers) > 0.18 * len(answers) > 60
    assert max(answers) > 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_counting_looks_at_each_thing_from_the_word_for_it_and_at_the_first_token(
    writer: Writer, language: Language
) -> None:
    numbers = set()
    for n in range(8):
        scene = draw_shapes(split_dice("train", 22, n), PORTABLE)
        shown = {cells_of(thing.box): thing for thing in scene.objects}
        for question in _asked(count_things, scene, language, n):
            found = _pointed(writer, question, (scene,))
            ((told, one, _),), ((_, again, _),) = found[COUNTED], found[AGAIN]
            assert again == replace(one, head=AGAIN)
            assert told.endswith(question.sought)
            assert one.first
            assert not one.cells
            ((asking, kind, _),) = found[KIND]
            assert asking.endswith("assistant\n")
            assert kind.tokens == (one.place,)
            assert len(set(one.counted)) == int(question.answer)
            things = [shown[cells] for cells in one.counted]
            words = [
                t.colour.word(language) for t in things if t.colour.word(language) in question.text
            ] + [t.shape.zh for t in things if t.shape.zh in question.text]
            plural = all(t.shape.plural in question.text for t in things)
            everything = len(things) == len(scene.objects)
            assert everything or plural or len(words) >= len(things)
            numbers.add(int(question.answer))
    assert len(numbers) > 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_relation_looks_at_both_names_and_a_choice_at_the_right_option(
    writer: Writer, language: Language
) -> None:
    seen = set()
    for n in range(8):
        scene = draw_shapes(split_dice("train", 23, n), PORTABLE)
        for question in _asked(relate, scene, language, n):
            found = _pointed(writer, question, (scene,))
            ((told, _, one),), ((_, _, other),) = found[ONE], found[OTHER]
            assert told.endswith("assistant\n")
            assert not told.endswith(question.answer)
            for head, box in zip((ONE, OTHER), question.about, strict=True):
                assert [point.box for _, point, _ in found[head]] == [box]
            names = [next(t for t in scene.objects if t.box == box) for box in question.about]
            assert question.text.index(names[0].name(language)) < question.text.index(
                names[1].name(language)
            )
            for (word,), thing in zip((one, other), names, strict=True):
                assert thing.name(language).endswith(word.strip())
            said = [side.word(language) for side in SIDES.values()]
            asked_for = [word for word in said if word in question.text]
            for (told, point, (word,)), side in zip(found.get(TOLD, []), asked_for, strict=True):
                assert told.endswith("assistant\n")
                assert side.endswith(word.strip())
                assert said[point.side] == side
            seen.add("side" if asked_for else "relation")
        for question in _asked(choose, scene, language, n):
            right = question.choices["ABCD".index(question.answer)]
            found = _pointed(writer, question, (scene,))
            ((_, _, (word,)),) = found[CHOSEN]
            assert right.endswith(word.strip())
            assert (KIND if right.isdigit() else TOLD) in found
            assert (COUNTED in found) == (AGAIN in found) == right.isdigit()
            seen.add("number" if right.isdigit() else "word")
    assert seen == {"relation", "side", "number", "word"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_not_there_is_looked_for_at_the_first_token(
    writer: Writer, language: Language
) -> None:
    answers = set()
    for n in range(6):
        scene = draw_shapes(split_dice("train", 24, n), PORTABLE)
        for question in _asked(ask_presence, scene, language, n):
            (told, one, _), *_ = _pointed(writer, question, (scene,))[NAMED]
            shown = [t for t in scene.objects if t.name(language) == question.sought]
            assert told.endswith(question.sought)
            assert one.cells == (cells_of(shown[0].box) if shown else ())
            assert one.first == (not shown)
            answers.add(bool(shown))
    assert answers == {True, False}


@pytest.mark.parametrize("language", LANGUAGES)
def test_two_pictures_are_looked_at_apart(writer: Writer, language: Language) -> None:
    kinds = set()
    for n in range(12):
        dice = split_dice("train", 25, n)
        two = (draw_shapes(dice, PORTABLE, text=False), draw_shapes(dice, PORTABLE, text=False))
        question = compare(dice, two, language)
        if question is None:
            continue
        found = _pointed(writer, question, two)
        heads = (NAMED, NAMED_SECOND) if question.sought else (ALL, ALL_SECOND)
        assert set(found) == set(heads)
        for number, (scene, head) in enumerate(zip(two, heads, strict=True)):
            ((_, one, _),) = found[head]
            looked = (*one.cells, *(cell for thing in one.counted for cell in thing))
            assert {cell // CELLS for cell in looked} <= {number}
            cells = {cell % CELLS for cell in one.cells}
            if question.sought:
                shown = [t.box for t in scene.objects if question.sought in t.name(language)]
                assert cells == {cell for box in shown for cell in cells_of(box)}
            else:
                things = [tuple(cell % CELLS for cell in thing) for thing in one.counted]
                assert things == [cells_of(thing.box) for thing in scene.objects]
        kinds.add(bool(question.sought))
    assert kinds == {True, False}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_caption_looks_at_each_thing_as_it_names_it(writer: Writer, language: Language) -> None:
    scene = draw_shapes(split_dice("train", 26), PORTABLE, text=True)
    (question, *_) = _asked(describe, scene, language, 0)
    found = _pointed(writer, question, (scene,))

    for thing in scene.objects:
        mine = [told for told, one, _ in found[TOLD] if one.cells == cells_of(thing.box)]
        before = question.answer.partition(thing.name(language))[0]
        assert mine[0].endswith(before.rstrip())
    assert scene.printed is not None
    characters = [one.cells for _, one, _ in found[TOLD]][-len(scene.printed.text) :]
    assert characters == [cells_of(box, wide=True) for box in scene.printed.boxes]


def test_each_printed_character_points_to_its_own_cells(writer: Writer) -> None:
    scene = draw("text", split_dice("train", 5), PORTABLE)
    question = read(split_dice("train", 6), scene, "en")
    assert question is not None
    assert scene.printed is not None
    asked = writer.chat(question)

    found = pointers(asked, question, (scene,), writer.encoding)

    told = "".join(writer.encoding.decode([asked.ids[one.place + 1]]) for one in found)
    assert told == question.answer
    cells = [cells_of(box, wide=True) for box in scene.printed.boxes]
    assert [one.cells for one in found] == cells


def test_pointers_lie_where_the_batch_has_their_keys(writer: Writer) -> None:
    rows = [make_row(split_dice("train", 7, n), writer, PORTABLE) for n in range(12)]
    batch = pack(rows, writer.pad_id)
    ids = batch["ids"]
    starts = [int(np.flatnonzero(batch["rows"] == number)[0]) for number in range(len(rows))]

    number = 0
    for row, start in zip(rows, starts, strict=True):
        at = len(row.prefix)
        for asked, points in zip(row.asked, row.pointers, strict=False):
            for one in points:
                token = int(batch["pointer_tokens"][number])
                line = batch["pointer_keys"][number]
                assert token == start + at + one.place
                things = [np.flatnonzero(line == thing) for thing in range(1, line.max() + 1)]
                shown = [[k for k in keys if ids[start + k] == writer.pad_id] for keys in things]
                told = one.counted or ((one.cells,) if one.cells else ())
                assert [len(keys) for keys in shown if keys] == [len(cells) for cells in told]
                assert (list(things[0]) == [0]) == one.first
                words = [k - at for k in things[0] if k >= at]
                assert words == list(one.tokens)
                edges = [-1000] * 4 if one.box is None else list(one.box)
                assert batch["pointer_edges"][number] * 1000 == pytest.approx(edges)
                assert batch["pointer_sides"][number] == one.side
                number += 1
            at += len(asked.ids)
    assert number == len(batch["pointer_tokens"]) > 100
    assert {len(row.images) for row in rows} >= {1, 2}


def test_the_loss_of_a_look_is_what_the_head_does_not_see() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 70, 8), torch.randn(2, 3, 70, 8)
    mask = torch.ones(70, 70, dtype=torch.bool).tril().expand(2, 1, 70, 70)
    looked: list[tuple[int, int, int, list[list[int]]]] = [
        (0, 1, 60, [[5]]), (0, 0, 50, [[7, 8]]), (2, 1, 40, [[0], [3, 4], [9]]), (2, 0, 30, [[0]])
    ]  # fmt: skip
    keys = torch.zeros(len(looked), 70, dtype=torch.long)
    expected: dict[int, list[torch.Tensor]] = {}
    for number, (head, row, token, things) in enumerate(looked):
        weights = (k[row, head, : token + 1] @ q[row, head, token] / 8**0.5).softmax(0)
        shares = torch.stack([weights[on].sum() for on in things])
        missed = -(len(things) * shares).log().mean()
        if len(things) > 1:
            apart = (1 / weights[0] - 1).div(len(things) - 1).log().abs()
            missed = missed + torch.where(apart < 1, apart**2, 2 * apart - 1)
        expected.setdefault(head, []).append(missed)
        for thing, on in enumerate(things, start=1):
            keys[number, on] = thing
    heads, rows, tokens = (torch.tensor([one[n] for one in looked]) for n in (0, 1, 2))
    looks = Looks(heads, rows, tokens, keys, tokens, -torch.ones(4, 4), -tokens)

    found = looks.losses(q, k, mask)

    assert found.keys() == expected.keys() == {0, 2}
    for head, losses in expected.items():
        assert torch.allclose(found[head], torch.stack(losses).mean(), atol=1e-5)


def test_an_even_look_costs_nothing() -> None:
    keys = torch.tensor([[1, 0, 2, 0, 3, 3]])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    # the third thing has two cells, and either will do
    k = torch.tensor([100.0, -100.0, 100.0, -100.0, -100.0, 100.0])[None, None, :, None]
    nought, last = torch.tensor([0]), torch.tensor([5])
    looks = Looks(nought, nought, last, keys, last, -torch.ones(1, 4), nought - 1)

    assert float(looks.losses(torch.ones(1, 1, 6, 1), k, mask)[0]) == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_looking_changes_nothing_that_the_model_computes(
    model: QwenVLForConditionalGeneration, writer: Writer
) -> None:
    rows = [make_row(split_dice("train", 3, n), writer, PORTABLE) for n in range(30)]
    batch = {k: torch.from_numpy(v) for k, v in pack(rows, writer.pad_id).items()}
    text = model.model.language_model
    embeddings = text.embed_tokens(batch["ids"])
    looks: dict[str, torch.Tensor] = {}

    with_looks = decode_packed(text, embeddings, batch, looks)

    assert torch.equal(with_looks, decode_packed(text, embeddings, batch))
    heads = (NAMED, NAMED_SECOND, TOLD, ONE, OTHER, COUNTED, AGAIN, KIND, CHOSEN)
    assert looks.keys() == {f"look {layer}.{number}" for layer, number in heads}
    # an untrained head looks everywhere alike, at a hundred keys or two, of which a few are right;
    # where it counts, so many are also far from the true number
    count = {f"look {layer}.{number}" for layer, number in (COUNTED, AGAIN, ALL, ALL_SECOND)}
    for name, look in looks.items():
        assert 1.5 < float(look) < (30 if name in count else 6)


def test_every_template_word_is_one_token(writer: Writer) -> None:
    texts = template_texts()[:2000]
    tokens = sum(len(writer.encoding.encode(text)) for text in texts)
    words = sum(len(text.split()) for text in texts)

    # Chinese has no spaces and numbers are single digits, so it cannot be less than one
    assert tokens / words < 3.2
    for word in (" circle", " red", "红色", "三角形", " relative", "十字形", "背景上"):
        assert len(writer.encoding.encode(word)) == 1, word


def test_a_cell_is_labelled_with_what_its_centre_shows() -> None:
    scene = draw_shapes(split_dice("train", 4), PORTABLE, text=False)
    targets = cell_targets(scene)

    names = list(CLASSES)
    colour, owner = targets.classes[names.index("colour")], targets.classes[names.index("owner")]
    assert (owner == 0).sum() == len(scene.objects)
    for cell in range(CELLS):
        row, column = divmod(cell, SIDE)
        x, y = ((n + 0.5) * GRID / SIDE for n in (column, row))
        on = [t for t in scene.objects if t.box[0] <= x < t.box[2] and t.box[1] <= y < t.box[3]]
        if on:
            assert COLOURS[colour[cell]] == on[0].colour
            assert targets.places[2:, cell] == pytest.approx([e / GRID for e in on[0].box])
        elif owner[cell] != 0:
            assert colour[cell] == CLASSES["colour"] - 1


def test_a_nearer_bin_is_less_wrong() -> None:
    edges = torch.tensor([[0.2, 0.4, 0.6, 0.83]])

    def loss(guess: int) -> float:
        bins = torch.zeros(1, 4, 100)
        for row in range(4):
            bins[0, row, int(edges[0, row] * 100) + guess] = 5.0
        return float(edge_loss(bins, edges))

    right, near, far = loss(0), loss(1), loss(9)
    assert right < near < far
    even = float(edge_loss(torch.zeros(1, 4, 100), edges))
    assert even == pytest.approx(4 * np.log(100), rel=1e-4)


def test_a_box_is_asked_for_where_a_head_brought_it(
    model: QwenVLForConditionalGeneration, writer: Writer
) -> None:
    rows = [make_row(split_dice("train", 3, n), writer, PORTABLE) for n in range(30)]
    batch = {k: torch.from_numpy(v) for k, v in pack(rows, writer.pad_id).items()}
    text = model.model.language_model
    places = place_heads(text.config.hidden_size)
    asked = {
        (int(layer), int(head))
        for layer, head, edges in zip(
            batch["pointer_layers"], batch["pointer_heads"], batch["pointer_edges"], strict=True
        )
        if edges[0] >= 0
    }
    assert asked == set(PLACED)
    looks: dict[str, torch.Tensor] = {}

    decode_packed(text, text.embed_tokens(batch["ids"]), batch, looks, places)

    for layer, head in PLACED:
        loss = looks[f"place {layer}.{head}"]
        # nothing is known yet
        assert float(loss.detach()) == pytest.approx(4 * np.log(100), rel=0.1)
        bringing = text.layers[layer].self_attn.v_proj.weight
        (moved,) = torch.autograd.grad(loss, [bringing], retain_graph=True)
        assert moved.abs().max() > 0
    later = text.layers[PLACED[0].layer + 1].self_attn.v_proj.weight
    first = looks["place 1.0"]
    untouched: Any = torch.autograd.grad(first, [later], retain_graph=True, allow_unused=True)
    assert untouched == (None,)
    assert float(looks["sides"].detach()) == pytest.approx(np.log(2), rel=0.5)
    compared = [text.layers[n].mlp.down_proj.weight for n in (ONE.layer, ONE.layer + 1)]
    assert float(looks["asked"].detach()) == pytest.approx(np.log(4), rel=0.5)
    for name in ("sides", "asked"):
        moves: Any = torch.autograd.grad(
            looks[name], compared, retain_graph=True, allow_unused=True
        )
        here, after = moves
        assert here.abs().max() > 0
        assert after is None


def test_sides_are_those_of_the_first_box_seen_from_the_second() -> None:
    above_right = (0.6, 0.1, 0.8, 0.3), (0.2, 0.5, 0.4, 0.7)
    above_alone = (0.1, 0.1, 0.2, 0.2), (0.1, 0.9, 0.2, 1.0)
    near = (0.1, 0.1, 0.2, 0.2), (0.12, 0.12, 0.22, 0.22)  # on no side
    boxes = torch.tensor((*above_right, *above_alone, *near))
    heads = torch.tensor([ONE.number, OTHER.number] * 3)
    rest = torch.zeros(6, dtype=torch.long)
    keys = torch.ones(6, 1, dtype=torch.long)
    asked, tokens = torch.tensor([-1, 1, 0, -1, -1, -1]), torch.tensor([0, 0, 1, 1, 0, 0])
    looks = Looks(heads, rest, rest, keys, tokens, boxes, asked)
    places = place_heads(2)
    places["sides"] = places["asked"] = torch.nn.Identity()  # what is known is what is told

    def loss(*told: tuple[float, float], name: str = "sides") -> float:
        return float(_sided(torch.tensor(told).float(), looks, ONE.layer, places)[name])

    assert loss((9, -9), (9, -9)) < 0.01
    assert loss((9, -9), (-9, -9)) < 0.01  # where there is no side, nothing is wrong
    assert loss((-9, -9), (0, -9)) == pytest.approx(3, rel=0.01)  # one of three is wrong
    assert loss((9, 9), (0, 9)) == pytest.approx(6, rel=0.01)
    assert loss((-9, 9), (9, -9), name="asked") < 0.01
    assert loss((-9, 9), (-9, 9), name="asked") == pytest.approx(9, rel=0.01)
    assert _sided(torch.zeros(2, 2), looks, ONE.layer + 1, places) == {}


def test_a_muon_step_is_nearly_orthogonal() -> None:
    torch.manual_seed(1)
    for shape in ((3, 24, 48), (2, 48, 24)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.3


@pytest.mark.parametrize("follows", [False, True])
def test_the_vision_side_moves_only_in_the_joint_stage(
    rank_file: bytes, writer: Writer, follows: bool
) -> None:
    torch.manual_seed(0)
    model = fresh_model(rank_file.count(b"\n"))
    stage = LanguageStage(model, vision=0.0005 if follows else 0.0)
    rows = [make_row(split_dice("train", 3, n), writer, PORTABLE) for n in range(2)]
    batch = {k: torch.from_numpy(v) for k, v in pack(rows, writer.pad_id).items()}
    before = {name: value.clone() for name, value in model.state_dict().items()}

    loss, _ = stage.step(batch, measure=False)
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in stage.optimizers:
        optimizer.step()

    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    sides = {".".join(name.split(".")[:2]) for name in moved}
    seen = {"model.vision_tower", "model.multi_modal_projector"}
    assert {"model.language_model", "lm_head.weight"} <= sides
    assert sides & seen == (seen if follows else set())


def test_the_rate_rises_stays_and_falls() -> None:
    assert rate(0, 0.0) < 0.1
    assert rate(100, 0.3) == 1
    assert rate(100, 0.7) == pytest.approx(0.5)
    assert rate(1000, 0.99) < 0.1


class _Line:
    """The smallest thing to train: one weight that should become three."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.modules = torch.nn.Linear(1, 1, bias=False)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.modules.parameters(), lr=0.05)
        ]

    def step(
        self, batch: dict[str, Any], *, measure: bool
    ) -> tuple[torch.Tensor, dict[str, float]]:
        x = batch["x"]
        return (self.modules(x) - 3 * x).square().mean(), {}


def _batches(start: int, stop: int) -> Any:
    return iter([{"x": torch.full((4, 1), 1.0 + n % 3)} for n in range(start, stop)])


def test_a_stopped_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    plan = Plan(steps=60, minutes=1e9, save_every=20)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = Run(tmp_path / "a", "line", _Line(), plan)
    whole.go(_batches(0, 60))
    Run(tmp_path / "b", "line", _Line(), plan).go(_batches(0, 30))

    rest = Run(tmp_path / "b", "line", _Line(), plan)
    assert rest.step == 30
    rest.go(_batches(30, 60))

    ours, theirs = (run.stage.modules.state_dict()["weight"] for run in (rest, whole))
    assert torch.equal(ours, theirs)


def test_a_batch_follows_from_seed_and_step(rank_file: bytes) -> None:
    ranks = parse_ranks(rank_file, "ranks")
    first, again = (LanguageBatches(ranks, 5, 100)[7] for _ in range(2))
    other = LanguageBatches(ranks, 6, 100)[7]

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["ids"], other["ids"])


def _losses(folder: Path, stage: str, name: str) -> list[float]:
    lines = (folder / f"{stage}.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def _train(folder: Path, stage: str, *flags: str) -> None:
    script = ROOT / "scripts" / "train_tiny.py"
    subprocess.run([sys.executable, script, folder, stage, *flags], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_the_vision_side_that_was_trained_again(tmp_path: Path) -> None:
    start = ROOT / "checkpoints" / "Qwen-VL-Tiny-Chat"
    shipped = {name: value.float() for name, value in load_model(start).state_dict().items()}
    _train(tmp_path, "vision", "--start", str(start), "--steps", "2", "--rows", "2")
    _train(tmp_path, "further", "--start", str(start), "--steps", "1", "--rows", "2")

    sight = torch.load(tmp_path / "vision.pt", weights_only=True)["modules"]
    kept = torch.load(tmp_path / "further.pt", weights_only=True)["modules"]
    last = {name.removeprefix("qwen."): one for name, one in kept.items() if "qwen." in name}
    for number, side in enumerate(("vision_tower", "multi_modal_projector")):
        names = [name for name in last if name.startswith(f"model.{side}.")]
        assert names
        again = {name: sight[f"{number}.{name.removeprefix(f'model.{side}.')}"] for name in names}
        assert all(torch.equal(last[name], again[name]) for name in names)
        assert any(not torch.equal(last[name], shipped[name]) for name in names)
    head = "lm_head.weight"
    assert 0 < float((last[head] - shipped[head]).abs().max()) < 0.01
    trained = trained_model(tmp_path, (start / "qwen.tiktoken").read_bytes()).state_dict()
    assert trained.keys() == last.keys()
    assert all(torch.equal(trained[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["further"], "name it with --start"),
        (["joint"], "name it with --start"),
        (["language", "--start", "checkpoints/Qwen-VL-Tiny-Chat"], "use `further`"),
        (["joint", "--start", "nowhere"], "nowhere is no checkpoint"),
        (["language"], "run the stage `vision` there first"),
    ],
)
def test_a_stage_says_what_it_starts_from(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "training"
    assert run_command(add_arguments, run, [str(folder), *words], about="About.") == 2
    assert told in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_a_minute_of_training_lowers_both_losses(tmp_path: Path) -> None:
    # which heads a batch has lessons for differs, so of the language stage its answers are compared
    for stage, rows, name in (("vision", "24", "loss"), ("language", "4", "answers")):
        _train(tmp_path, stage, "--steps", "30", "--rows", rows)
        losses = _losses(tmp_path, stage, name)
        assert len(losses) == 3
        assert losses[-1] < 0.93 * losses[0], stage
