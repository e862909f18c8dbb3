from pathlib import Path

import pytest

from hub_tools.errors import BadNameError
from hub_tools.names import FolderName, RepoName, hub_revision, parse_name, parse_repo


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("qwen/Qwen-VL-Chat", RepoName("qwen", "Qwen-VL-Chat")),
        (
            "modelscope:qwen/Qwen-VL-Chat@v1.0.0",
            RepoName("qwen", "Qwen-VL-Chat", "modelscope", "v1.0.0"),
        ),
        ("huggingface:Qwen/Qwen-VL-Chat", RepoName("Qwen", "Qwen-VL-Chat", "huggingface")),
        ("local:me/tiny-int4", RepoName("me", "tiny-int4", "local")),
        ("o/n@refs/pr/1", RepoName("o", "n", None, "refs/pr/1")),
        (
            "modelscope:o/n@listing-sha256:" + "0" * 64,
            RepoName("o", "n", "modelscope", "listing-sha256:" + "0" * 64),
        ),
    ],
)
def test_a_name_is_read_and_written_back(text: str, name: RepoName) -> None:
    parsed = parse_name(text)

    assert parsed == name
    assert str(parsed) == text


@pytest.mark.parametrize("text", [".", "./x", "/tmp/x", "../a/b", "~/models/x"])
def test_what_looks_like_a_path_is_a_folder(text: str) -> None:
    assert isinstance(parse_name(text), FolderName)


def test_an_existing_folder_wins_over_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qwen" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert parse_name("qwen/tiny") == FolderName(Path("qwen/tiny"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tiny",
        "a/b/c",
        "a/",
        "github:a/b",
        "a/b@",
        "a/b@../../x",
        "a/b@-x",
        "a/..b/",
        "a/b..c",
        "a/b\n",
        "a b/c",
        "https://huggingface.co/a/b",
        "modelscope:",
        "a/b@x y",
        "a/b@x\0",
    ],
)
def test_nonsense_is_a_usage_error(text: str) -> None:
    with pytest.raises(BadNameError) as caught:
        parse_repo(text)

    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("revision", [None, "master", "main"])
def test_master_and_main_are_each_hubs_default_branch(revision: str | None) -> None:
    assert hub_revision("modelscope", revision) == "master"
    assert hub_revision("huggingface", revision) == "main"


def test_two_different_revisions_for_one_name_are_refused() -> None:
    name = parse_repo("a/b@v1")

    assert name.at("v1") == name
    with pytest.raises(BadNameError):
        name.at("v2")
