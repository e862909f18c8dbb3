"""One space tells the two helper revisions of 2023 apart; a folder's own files say which it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_vl.chat_template import CHAT_TEMPLATE
from qwen_vl.helper_revision import helper_revision

_OLD = CHAT_TEMPLATE.replace("': ' -", "':' -")


def test_a_folder_that_does_not_say_is_r2(tmp_path: Path) -> None:
    assert helper_revision(tmp_path) == "r2"


@pytest.mark.parametrize(("template", "style"), [(CHAT_TEMPLATE, "r2"), (_OLD, "r1")])
def test_the_chat_template_says_it(tmp_path: Path, template: str, style: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")

    assert template == CHAT_TEMPLATE or _OLD != CHAT_TEMPLATE
    assert helper_revision(tmp_path) == style


@pytest.mark.parametrize(
    ("line", "style"),
    [("text += f'Picture {count}:'", "r1"), ("text += f'Picture {count}: '", "r2")],
)
def test_code_that_lies_beside_is_read_and_never_run(tmp_path: Path, line: str, style: str) -> None:
    code = f"raise SystemExit('this must never run')\n{line}\n"
    (tmp_path / "tokenization_qwen.py").write_text(code, encoding="utf-8")

    assert helper_revision(tmp_path) == style


def test_the_tokenizer_config_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"style": "r1"}), encoding="utf-8")

    assert helper_revision(tmp_path) == "r1"


def test_a_broken_config_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[1, 2", encoding="utf-8")

    assert helper_revision(tmp_path) == "r2"
