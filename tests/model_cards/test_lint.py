from collections.abc import Callable
from pathlib import Path

import pytest

from model_cards.errors import CardLintError
from model_cards.generate import main as generate
from model_cards.lint import main as lint
from model_cards.linting import check_card, lint_card
from model_store.manifest import Manifest, scan, write_manifest
from tests.model_cards.made_snapshot import make_snapshot


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = make_snapshot(tmp_path / "int4")
    assert generate([str(folder), "--licence", "apache-2.0"]) == 0
    return folder


def test_a_generated_card_passes_its_own_lint(snapshot: Path) -> None:
    assert lint_card(snapshot) == []
    assert lint([str(snapshot)]) == 0


def test_the_card_of_an_unchanged_snapshot_passes_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, Manifest(scan(tmp_path)))

    status = generate([str(tmp_path), "--licence", "apache-2.0"])

    assert status == 0
    assert lint_card(tmp_path) == []


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8")
        assert old in text
        card.write_text(text.replace(old, new), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_edit("0.0123 nats", "0.0013 nats"), "mean KL"),
        (_edit("base_model: ferry", "base_model: other"), "base_model"),
        (_edit("license: apache-2.0", "license: mit"), "no licence"),
        (_edit("# Qwen", "see /home/someone/x\n\n# Qwen"), "machine's path"),
        (_edit("---\nlanguage", "language"), "no front matter"),
        (lambda folder: (folder / "LICENSE").write_text("mine"), "LICENSE"),
        (lambda folder: (folder / "NOTICE").unlink(), "NOTICE is missing"),
        (lambda folder: (folder / "CHANGES.md").unlink(), "CHANGES.md"),
    ],
    ids=["figure", "base", "licence", "path", "fence", "licence-text", "notice", "changes"],
)
def test_a_card_that_drifted_is_named(
    snapshot: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(snapshot)

    problems = lint_card(snapshot)

    assert any(complaint in problem for problem in problems), problems
    assert lint([str(snapshot)]) == 1
    with pytest.raises(CardLintError):
        check_card(snapshot)
