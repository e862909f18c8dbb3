from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import read_recipe
from pipeline.run import main

GOOD = """
name = "t"
work = "w"
[[step]]
name = "one"
uses = "command"
[step.options]
run = ["true"]
output = "{work}/one"
[[step]]
name = "two"
uses = "card"
[step.options]
snapshot = "{one}"
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_keeps_its_steps_in_order_with_their_references(tmp_path: Path) -> None:
    recipe = read_recipe(_write(tmp_path, GOOD))

    assert [step.name for step in recipe.steps] == ["one", "two"]
    assert recipe.steps[1].references == ("one",)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('work = "w"', 'work = "w"\nspeed = 9', "unknown key 'speed'"),
        ('uses = "card"', 'uses = "cards"', "unknown kind 'cards'"),
        ('uses = "card"', 'uses = "card"\nafter = "one"', "unknown key 'after'"),
        ('snapshot = "{one}"', 'snapshot = "{three}"', "{three} names no earlier step"),
        ('snapshot = "{one}"', 'snapshot = "{one}"\ncolour = 1', "unknown key 'colour'"),
        ('snapshot = "{one}"', "snapshot = 3", "wants"),
        ('snapshot = "{one}"', "", "'snapshot' is missing"),
        ('snapshot = "{one}"', 'snapshot = "{one}"\nlicence = "beer"', "not one of"),
        ('name = "two"', 'name = "one"', "is taken"),
        ('name = "two"', 'name = "../x"', "is taken or not"),
        ('name = "t"', 'name = "t', "is not a TOML file"),
        ('name = "t"', "", "'name' is missing"),
        ('[step.options]\nsnapshot = "{one}"', "options = 3", "options are a table"),
        ('work = "w"', 'work = "w"\nhome = "/elsewhere"', "not a folder below work"),
        ('work = "w"', 'work = "w"\nhome = "../elsewhere"', "not a folder below work"),
        ('work = "w"', 'work = "w"\nhome = 3', "'home' is missing or not a text"),
    ],
)
def test_a_wrong_recipe_is_one_line_a_hint_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, complaint: str
) -> None:
    assert old in GOOD
    path = _write(tmp_path, GOOD.replace(old, new))

    status = main([str(path)])

    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert complaint in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(tmp_path / "none.toml")


def test_a_recipe_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least one"):
        read_recipe(_write(tmp_path, 'name = "t"\nwork = "w"\n'))
