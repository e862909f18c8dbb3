"""A user's table renames, splits, fuses and transposes; every name is accounted for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import rename as rename_command
from conversion.diff import diff_checkpoints
from conversion.errors import RuleTableError
from conversion.options import RenameOptions
from conversion.rename_table import parse_rules, rename
from model_store.errors import UnevenSplitError, UnmappedTensorError
from model_store.manifest import Manifest, scan, verify_snapshot, write_manifest

_RULES = """
[[rule]]
source = "h.{}.qkv"
targets = ["layers.{}.q", "layers.{}.k", "layers.{}.v"]
op = "rows"

[[rule]]
sources = ["h.{}.gate", "h.{}.up"]
target = "layers.{}.gate_up"
op = "columns"

[[rule]]
source = "head"
target = "lm_head"
op = "transpose"

[[drop]]
name = "h.{}.mask"
reason = "made by the model"
"""


def _source(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    state = {"head": torch.randn(4, 6)}
    for n in range(2):
        state[f"h.{n}.qkv"] = torch.randn(6, 4)
        state[f"h.{n}.gate"], state[f"h.{n}.up"] = torch.randn(2, 3), torch.randn(2, 3)
        state[f"h.{n}.mask"] = torch.zeros(1)
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder, state


def _rename(source: Path, rules: str, target: Path) -> Path:
    table = source.parent / "rules.toml"
    table.write_text(rules)
    return rename(source, target, RenameOptions(str(source), rules=table)).folder


def test_the_table_is_carried_out(tmp_path: Path) -> None:
    source, state = _source(tmp_path / "s")

    made = _rename(source, _RULES, tmp_path / "t")

    found = load_file(made / "model.safetensors")
    q, k, v = state["h.1.qkv"].chunk(3)
    for name, expected in {
        "layers.1.q": q, "layers.1.k": k, "layers.1.v": v, "lm_head": state["head"].T,
        "layers.0.gate_up": torch.cat([state["h.0.gate"], state["h.0.up"]], dim=1),
    }.items():  # fmt: skip
        assert torch.equal(found[name], expected)
    assert len(found) == 9
    facts = verify_snapshot(made).lineage[-1].facts
    assert facts["dropped"] == dict.fromkeys(("h.0.mask", "h.1.mask"), "made by the model")
    assert "`h.0.mask` was dropped: made by the model" in (made / "CHANGES.md").read_text()


def test_the_way_back_gives_every_byte_again(tmp_path: Path) -> None:
    source, state = _source(tmp_path / "s")
    there = _rename(source, _RULES, tmp_path / "t")
    backwards = """
rule = [
  {sources = ["layers.{}.q", "layers.{}.k", "layers.{}.v"], target = "h.{}.qkv", op = "rows"},
  {source = "layers.{}.gate_up", targets = ["h.{}.gate", "h.{}.up"], op = "columns"},
  {source = "lm_head", target = "head", op = "transpose"},
]
"""

    back = load_file(_rename(there, backwards, tmp_path / "b") / "model.safetensors")

    assert all(torch.equal(back[name], state[name]) for name in state if "mask" not in name)


def test_both_sides_of_a_table_are_compared_through_it(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "s")
    made, table = _rename(source, _RULES, tmp_path / "t"), tmp_path / "rules.toml"

    same = diff_checkpoints(source, made, rules=table)
    path = made / "model.safetensors"
    state = load_file(path)
    state["layers.1.k"][0, 0] += 1
    save_file(state, path)
    other = diff_checkpoints(source, made, rules=table)

    assert same.identical
    assert same.compared == 9
    assert [(found.name, found.differing) for found in other.unequal] == [("layers.1.k", 1)]
    assert not diff_checkpoints(source, made).identical


def test_an_unmapped_name_is_an_error_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = _source(tmp_path / "s")
    rules = tmp_path / "rules.toml"
    rules.write_text(_RULES.partition("[[drop]]")[0])

    status = rename_command.main([str(source), "--rules", str(rules), "--into", f"{tmp_path}/t"])

    err = capsys.readouterr().err
    assert status == 4
    assert "no rule maps tensor 'h.0.mask'" in err
    assert "[[drop]]" in err
    with pytest.raises(UnmappedTensorError):
        _rename(source, _RULES.partition("[[drop]]")[0], tmp_path / "t")


def test_a_tensor_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    source, _ = _source(tmp_path / "s")

    with pytest.raises(UnevenSplitError, match="head"):
        _rename(source, _RULES.replace('target = "lm_head"\nop = "transpose"', (
            'targets = ["a", "b", "c", "d", "e"]\nop = "rows"'
        )), tmp_path / "t")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[rule]\n", r"at line 1"),
        ("a = 1\n", "unknown table 'a'"),
        (
            "\n\n[[rule]]\nsource = 'a'\ntarget = 'b'\nopp = 1\n",
            "line 3, rule 1: unknown key",
        ),
        ("[[rule]]\nsource = 'a'\n", "needs target or targets"),
        ("[[rule]]\nsource = 'a'\ntarget = 'b'\nop = 'heads'\n", "unknown op 'heads'"),
        ("[[rule]]\nsource = 'a.{}'\ntarget = 'b'\n", r"rule 1 \('a.\{\}'\)"),
        ("[[rule]]\nsource = 'a'\ntargets = ['b', 'c']\n", "does not fit this many"),
        ("[[rule]]\nsource = 'a'\ntarget = 'b{0}'\n", "brace"),
        ("[[rule]]\nsource = 'a'\ntarget = 3\n", "no tensor's name"),
        ("rule = 3\n", r"write \[\[rule\]\]"),
        ("[[rule]]\nsource = 'a'\ntarget = 'b'\n[[drop]]\nname = 'c'\n", "drop 1.*reason"),
        (2 * "[[rule]]\nsource = 'a'\ntarget = 'b'\n", "read by two rules"),
        ("[[rule]]\nsource='a'\ntarget='b'\n[[rule]]\nsource='c'\ntarget='b'\n", "written by two"),
        ("[[drop]]\nname = 'a'\nreason = 'b'\n", "no \\[\\[rule\\]\\]"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_with_the_place(text: str, match: str) -> None:
    with pytest.raises(RuleTableError, match=match):
        parse_rules(text.encode(), name="rules.toml")


def test_a_dry_run_checks_the_table_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = _source(tmp_path / "s")
    rules = tmp_path / "rules.toml"
    rules.write_text(_RULES)

    argv = [str(source), "--rules", str(rules), "--into", f"{tmp_path}/t", "--dry-run", "--json"]
    status = rename_command.main([*argv, "--quiet"])

    plan = json.loads(capsys.readouterr().out)
    assert (status, plan["tensors_in"], plan["tensors_out"]) == (0, 7, 9)
