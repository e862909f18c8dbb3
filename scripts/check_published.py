"""Fetch what was published with both official clients, compare every byte, and ask it a question.

Endpoints come from MODELSCOPE_ENDPOINT and HF_ENDPOINT, as for any user of those clients.

Examples:
  python scripts/check_published.py build/demo/int4 ferry/Qwen-VL-Tiny-Chat-Int4 build/demo/check
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from model_store.errors import DigestMismatchError, StoreError
from model_store.files import sha256_file, write_text
from model_store.manifest import MANIFEST_NAME, Manifest, read_manifest

# The clients read their environment when they are imported, so each gets a process of its own.
_PROGRAM = """
import sys
from {client} import snapshot_download
snapshot_download(sys.argv[1], local_dir=sys.argv[2])
"""
CLIENTS = ("modelscope", "huggingface_hub")
QUESTION = "How many shapes are in the picture?"


def fetch(client: str, repo_id: str, target: Path) -> None:
    """Download a repository with an unmodified official client, with a cache of its own."""
    cache = target.with_name(target.name + "-cache")
    environment = os.environ | {
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MODELSCOPE_CACHE": str(cache / "ms"),
    }
    # an empty token is not "no token" to the official clients
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        if not environment.get(name):
            environment.pop(name, None)
    done = subprocess.run(  # noqa: S603  our own program text
        [sys.executable, "-c", _PROGRAM.format(client=client), repo_id, str(target)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise StoreError(f"{client} could not fetch {repo_id}: {done.stderr.strip()[-300:]}")


def compare(client: str, folder: Path, expected: Manifest) -> int:
    """Check that `folder` holds exactly the published files; returns how many."""
    for entry in expected.files:
        actual = sha256_file(folder / entry.path)
        if actual != entry.sha256:
            raise DigestMismatchError(entry.path, expected=entry.sha256, actual=actual)
    print(f"{client}: {len(expected.files)} files, all digests equal")
    return len(expected.files)


def ask(folder: Path) -> str:
    """Load a downloaded folder and ask one question about one drawn picture."""
    from qwen_vl.dialogue import chat
    from qwen_vl.loading import load_model, load_tokenizer
    from qwen_vl.scenes import draw_scene

    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    query: list[dict[str, Any]] = [{"image": draw_scene(7).image}, {"text": QUESTION}]
    answer, _ = chat(model, tokenizer, query, do_sample=False, max_new_tokens=12)
    return str(answer)


def main() -> int:
    """Run the check; the report is the last thing written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot", type=Path, help="the snapshot that was published")
    parser.add_argument("repo_id", help="where it was published, on both hubs")
    parser.add_argument("output", type=Path, help="folder for the downloads and check.json")
    args = parser.parse_args()
    expected = read_manifest(args.snapshot)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    for client in CLIENTS:
        folder = args.output / client
        fetch(client, args.repo_id, folder)
        compare(client, folder, expected)
        published = (folder / MANIFEST_NAME).read_bytes()
        if published != (args.snapshot / MANIFEST_NAME).read_bytes():
            raise StoreError(f"{client}: the published manifest is not ours")
    answer = ask(args.output / "modelscope")
    print(f"question: {QUESTION}\nanswer:   {answer}")
    facts = {"files": len(expected.files), "question": QUESTION, "answer": answer}
    write_text(args.output / "check.json", json.dumps(facts, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
