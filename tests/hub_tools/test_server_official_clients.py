"""The unmodified official clients against the local hub, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_tools.server.app import RunningHub, running_hub
from tests.hub_tools.hub_calls import (
    ODD_NAME,
    OLD_WEIGHTS,
    WEIGHTS,
    call,
    files_below,
    sample_root,
)

TOKEN = "hub-test-token"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RunningHub]:
    with running_hub(sample_root(tmp_path / "root"), token=TOKEN, page_size=2) as running:
        yield running


def _run(hub: RunningHub, home: Path, code: str, *, token: str | None = None) -> Any:
    """Run code that prints one line of JSON last, with the clients' variables set."""
    home.mkdir(exist_ok=True)
    known = {
        key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH") if key in os.environ
    }
    variables = {
        "HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "MODELSCOPE_ENDPOINT": hub.endpoint,
        "MODELSCOPE_CACHE": str(home / "ms"),
        "MODELSCOPE_HOME": str(home / "ms-home"),
    }
    if token is not None:
        variables |= {"HF_TOKEN": token, "MODELSCOPE_API_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", "import json\n" + code],
        env={**known, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _expected(root: Path) -> dict[str, bytes]:
    return files_below(root / "qwen/Demo")


def test_huggingface_hub_fetches_branch_tag_and_commit(hub: RunningHub, tmp_path: Path) -> None:
    sha = call(hub.endpoint, "GET", "/api/models/qwen/Demo").json()["sha"]
    code = f"""
from huggingface_hub import hf_hub_download, snapshot_download
found = [snapshot_download("qwen/Demo", revision=r) for r in (None, "v1.0.0", "{sha}", "master")]
one = hf_hub_download("Qwen/Demo", "{ODD_NAME}")
plain = snapshot_download("qwen/Demo", local_dir="{tmp_path / "plain"}")
print(json.dumps([*found, one, plain]))
"""
    main, tag, commit, master, one, plain = map(Path, _run(hub, tmp_path / "home", code))

    assert files_below(main) == _expected(hub.root) == files_below(plain)
    assert (tag / "model.safetensors").read_bytes() == OLD_WEIGHTS
    assert main == commit == master
    assert main.name == sha
    assert one.read_bytes() == '"空"'.encode()


def test_huggingface_hub_reads_what_it_asks_about_a_repository(
    hub: RunningHub, tmp_path: Path
) -> None:
    code = f"""
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
api = HfApi()
info = api.model_info("qwen/Demo", files_metadata=True)
refs = api.list_repo_refs("qwen/Demo")
meta = get_hf_file_metadata(hf_hub_url("qwen/Demo", "model.safetensors"))
tree = list(api.list_repo_tree("qwen/Demo", recursive=True))
print(json.dumps({{
    "sha": info.sha, "files": sorted(api.list_repo_files("qwen/Demo")),
    "sizes": {{s.rfilename: s.size for s in info.siblings}},
    "tags": [t.name for t in refs.tags], "branches": [b.name for b in refs.branches],
    "size": meta.size, "commit": meta.commit_hash, "exists": api.file_exists("qwen/Demo", "none"),
    "tree": len(tree), "commits": len(api.list_repo_commits("qwen/Demo")),
    "paths": [p.path for p in api.get_paths_info("qwen/Demo", ["README.md", "数据", "none"])],
    "models": [m.id for m in api.list_models(search="demo")],
    "who": api.whoami(token="{TOKEN}")["name"],
}}))
"""
    found = _run(hub, tmp_path / "home", code)

    assert found["files"] == sorted(_expected(hub.root))
    assert found["sizes"]["model.safetensors"] == found["size"] == len(WEIGHTS)
    assert found["sha"] == found["commit"]
    assert (found["tags"], found["branches"]) == (["v1.0.0"], ["main"])
    assert found["exists"] is False
    assert found["tree"] == len(_expected(hub.root)) + 1  # and one folder
    assert found["commits"] == 1
    assert found["paths"] == ["README.md", "数据"]
    assert found["models"] == ["qwen/Demo"]
    assert found["who"] == "local"


def test_huggingface_hub_raises_its_own_errors(hub: RunningHub, tmp_path: Path) -> None:
    code = """
from huggingface_hub import HfApi, hf_hub_download
def caught(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
api = HfApi()
print(json.dumps([
    caught(api.model_info, "qwen/None"),
    caught(api.model_info, "qwen/Demo", revision="v9"),
    caught(hf_hub_download, "qwen/Demo", "none.bin"),
    caught(api.whoami, token="wrong"),
    caught(api.create_repo, "me/New"),
]))
"""
    repo, revision, file, token, write = _run(hub, tmp_path / "home", code)

    assert repo == "RepositoryNotFoundError"
    assert revision == "RevisionNotFoundError"
    assert file == "RemoteEntryNotFoundError"
    assert token == write == "HfHubHTTPError"


def test_huggingface_hub_creates_a_repository_and_tags_it(hub: RunningHub, tmp_path: Path) -> None:
    code = """
from huggingface_hub import HfApi
api = HfApi()
url = api.create_repo("me/New", private=True)
again = api.create_repo("me/New", private=True, exist_ok=True)
commit = api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id="me/New")
api.create_tag("me/New", tag="v1")
refs = api.list_repo_refs("me/New")
print(json.dumps([url == again, commit.oid, refs.tags[0].target_commit,
                  api.model_info("me/New").private]))
"""
    same, commit, tagged, private = _run(hub, tmp_path / "home", code, token=TOKEN)

    assert same is True
    assert commit == tagged
    assert private is True


def test_modelscope_fetches_branch_tag_and_commit(hub: RunningHub, tmp_path: Path) -> None:
    sha = call(hub.endpoint, "GET", "/api/models/qwen/Demo").json()["sha"]
    code = f"""
from modelscope import snapshot_download
from modelscope.hub.file_download import model_file_download
found = [snapshot_download("qwen/Demo", revision=r) for r in (None, "v1.0.0", "{sha}", "main")]
one = model_file_download("Qwen/Demo", "{ODD_NAME}")
plain = snapshot_download("qwen/Demo", local_dir="{tmp_path / "plain"}")
print(json.dumps([*found, one, plain]))
"""
    master, tag, commit, main, one, plain = map(Path, _run(hub, tmp_path / "home", code))

    assert files_below(master) == files_below(commit) == files_below(main) == _expected(hub.root)
    assert files_below(plain) == _expected(hub.root)
    assert (tag / "model.safetensors").read_bytes() == OLD_WEIGHTS
    assert one.read_bytes() == '"空"'.encode()


def test_modelscope_reads_what_it_asks_about_a_repository(hub: RunningHub, tmp_path: Path) -> None:
    code = f"""
from modelscope.hub.api import HubApi
def caught(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
api = HubApi()
api.login("{TOKEN}")
files = api.get_model_files("qwen/Demo", recursive=True)
print(json.dumps({{
    "sizes": {{f["Path"]: f["Size"] for f in files}},
    "exists": [api.repo_exists("qwen/Demo"), api.repo_exists("qwen/None")],
    "errors": [caught(api.get_model_files, "qwen/None"), caught(api.login, "wrong")],
}}))
"""
    found = _run(hub, tmp_path / "home", code)

    sizes = {path: len(data) for path, data in _expected(hub.root).items()}
    assert {path: size for path, size in found["sizes"].items() if path in sizes} == sizes
    assert found["exists"] == [True, False]
    assert found["errors"] == ["NotExistError", "AuthenticationError"]
