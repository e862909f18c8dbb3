"""Fetch what was published with both official clients, compare every byte, and ask about a scene.

Endpoints come from MODELSCOPE_ENDPOINT and HF_ENDPOINT, as for any user of those clients.

Examples:
  python scripts/check_published.py build/demo/int4 ferry/Qwen-VL-Tiny-Chat-Int4 build/demo/check
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_store.errors import DigestMismatchError, StoreError
from model_store.files import sha256_file, write_text
from model_store.manifest import MANIFEST_NAME, Manifest, read_manifest

if TYPE_CHECKING:
    from qwen_vl.scene_drawing import Scene

# The clients read their environment when they are imported, so each gets a process of its own.
_PROGRAM = """
import sys
from {client} import snapshot_download
snapshot_download(sys.argv[1], local_dir=sys.argv[2])
"""
CLIENTS = ("modelscope", "huggingface_hub")
DEMO_SEED = 7


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


def ask(folder: Path, output: Path) -> list[Asked]:
    """Ask a downloaded folder about one drawn scene in both languages; writes a picture and a page.

    The picture, `seen.png`, has the box that the model found drawn on it; `report.html` shows it
    with what was asked and answered.
    """
    from PIL import Image

    from qwen_vl.boxes import draw_boxes, parse_boxes
    from qwen_vl.dialogue import chat
    from qwen_vl.errors import QwenVLError
    from qwen_vl.loading import load_model, load_tokenizer

    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    scene, questions = demo_questions()
    told, seen = [], scene.image.resize((448, 448), Image.Resampling.NEAREST)
    for one in questions:
        query: list[dict[str, Any]] = [{"image": scene.image}, {"text": one.question}]
        reply, _ = chat(model, tokenizer, query, do_sample=False, max_new_tokens=48)
        told.append(replace(one, answer=str(reply)))
        if one.truth.endswith("</box>"):
            try:
                seen = draw_boxes(seen, parse_boxes(reply))
            except QwenVLError as error:
                print(f"no box can be read from {reply!r}: {error}")
    seen.save(output / "seen.png")
    write_text(output / "report.html", page(told, output / "seen.png"))
    return told


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, what is true, and what was answered."""

    question: str
    truth: str
    answer: str = ""


def demo_questions() -> tuple[Scene, list[Asked]]:
    """A scene of the test split and what to ask about it: colour, count, box, in both languages."""
    from qwen_vl.scene_dice import split_dice
    from qwen_vl.scene_drawing import Style, draw_shapes
    from qwen_vl.scene_tasks import caption
    from qwen_vl.scene_words import LANGUAGES

    scene = draw_shapes(split_dice("test", DEMO_SEED), Style(), text=False)
    described = {"en": "Describe the image in English:", "zh": "描述这张图片。"}
    counted = {"en": "How many shapes are there?", "zh": "图中有几个图形？"}
    one, two = scene.objects[0], scene.objects[-1]
    asked = []
    for language in LANGUAGES:
        asked += [
            Asked(described[language], caption(scene, language)),
            Asked(counted[language], str(len(scene.objects))),
        ]
    asked.append(Asked(f"Find the {one.name('en')}.", one.tagged("en")))
    asked.append(Asked(f"框出{two.name('zh')}的位置", two.tagged("zh")))
    return scene, asked


def page(told: list[Asked], picture: Path) -> str:
    """A page that stands alone: the picture inside it, and a row for every question."""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    rows = "".join(
        f"<tr><td>{escape(one.question)}</td><td>{escape(one.answer)}</td>"
        f"<td>{escape(one.truth)}</td></tr>"
        for one in told
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What the published model saw</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
td,th{{padding:.3rem .8rem;text-align:left;vertical-align:top;border-top:1px solid #ccc}}</style>
<h1>What the published model saw 发布的模型看到了什么</h1>
<img alt="the drawn scene, with the boxes that the model found"
 src="data:image/png;base64,{data}" width="448" height="448">
<table><tr><th>asked 问题</th><th>answered 回答</th><th>true 真实</th></tr>{rows}</table></html>
"""


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
    told = ask(args.output / "modelscope", args.output)
    for one in told:
        print(f"question: {one.question}\nanswer:   {one.answer}")
    facts = {"files": len(expected.files), "asked": [asdict(one) for one in told]}
    write_text(args.output / "check.json", json.dumps(facts, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
