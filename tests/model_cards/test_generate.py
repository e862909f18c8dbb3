import re
from pathlib import Path

import pytest
import yaml

from model_cards.generate import main
from model_store.files import sha256_file
from model_store.manifest import read_manifest, verify_snapshot
from tests.model_cards.made_snapshot import make_snapshot

APACHE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return make_snapshot(tmp_path / "int4", licence=APACHE.read_text(encoding="utf-8"))


def test_a_card_says_what_manifest_and_records_say(snapshot: Path) -> None:
    digest = read_manifest(snapshot).content_digest

    status = main([str(snapshot)])

    card = (snapshot / "README.md").read_text(encoding="utf-8")
    assert status == 0
    assert "| **mean KL** | 0.0123 nats | 0.01 … 0.02 | &lt;= 0.05 | 24 | pass |" in card
    assert "| boxes | not measured |" in card
    assert "1 linear layers" in card
    assert digest in card
    assert "commit `" + "c" * 40 in card


def test_the_front_matter_serves_both_hubs(snapshot: Path) -> None:
    main([str(snapshot)])

    head = (snapshot / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values = yaml.safe_load(head)
    assert values["license"] == "apache-2.0"
    assert values["base_model"] == "ferry/Qwen-VL-Tiny-Chat"
    assert values["base_model_relation"] == "quantized"
    assert values["pipeline_tag"] == "image-text-to-text"
    assert values["tasks"] == ["visual-question-answering"]


def test_a_card_changes_no_content_digest_and_the_manifest_knows_it(snapshot: Path) -> None:
    before = read_manifest(snapshot).content_digest

    main([str(snapshot)])

    after = verify_snapshot(snapshot)
    assert after.content_digest == before
    assert {"README.md", "NOTICE", "configuration.json"} <= {entry.path for entry in after.files}


def test_the_same_snapshot_gets_the_same_card_twice(snapshot: Path) -> None:
    main([str(snapshot)])
    first = sha256_file(snapshot / "README.md")

    main([str(snapshot)])

    assert sha256_file(snapshot / "README.md") == first


def test_an_unknown_licence_text_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_snapshot(tmp_path / "odd", licence="Do as you like.")

    status = main([str(folder)])

    lines = capsys.readouterr().err.splitlines()
    assert status == 4
    assert re.match("error: odd has a LICENSE of unknown text", lines[0])
    assert lines[1].startswith("hint: ")
    assert not (folder / "README.md").exists()


def test_an_apache_licence_asked_for_is_shipped(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "bare")

    status = main([str(folder), "--licence", "apache-2.0"])

    assert status == 0
    assert (folder / "LICENSE").read_bytes() == APACHE.read_bytes()


def test_the_agreement_is_never_invented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_snapshot(tmp_path / "bare")

    status = main([str(folder), "--licence", "tongyi-qianwen"])

    assert status == 4
    assert "no LICENSE file" in capsys.readouterr().err


def test_a_folder_that_is_no_snapshot_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([str(tmp_path)])

    assert status == 4
    assert "is no snapshot" in capsys.readouterr().err
