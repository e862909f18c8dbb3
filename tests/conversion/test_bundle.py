"""The modelling file for those who have transformers and not us."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageTextToText

import qwen_vl.auto  # noqa: F401  registers the classes
from conversion.bundle import BUNDLE, bundle_source
from conversion.bundle_names import inspect_statement
from conversion.options import ToOriginalOptions, ToTransformersOptions
from conversion.steps import to_original, to_transformers
from qwen_vl.loading import load_model, load_processor
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.conversion import published

# Runs without the checkout on the path, and refuses our packages however they might be found.
ALONE = Path(__file__).with_name("load_bundle_alone.py")
TEXT = "<img>a</img>hello <box>(1,2),(3,4)</box> 你好 123"


def _bundled(tmp_path: Path, *, int4: bool) -> Path:
    source = published.make_snapshot(tmp_path / "source", int4=int4)
    options = ToTransformersOptions(str(source), bundle=True)
    return to_transformers(source, tmp_path / "native", options).folder


def _picture() -> Image.Image:
    rng = np.random.default_rng(0)
    pixels: NDArray[np.uint8] = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _run_alone(folder: Path, picture: Path, place: Path) -> dict[str, Any]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "HF_HOME": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-I", str(ALONE), str(folder), str(picture), TEXT]
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize(
    "int4", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["bf16", "int4"]
)
def test_a_bundled_folder_works_where_we_are_not_installed(tmp_path: Path, int4: bool) -> None:
    torch.set_num_threads(1)
    folder = _bundled(tmp_path, int4=int4)
    _picture().save(tmp_path / "picture.png")
    place = tmp_path / "elsewhere"
    place.mkdir()

    said = _run_alone(folder, tmp_path / "picture.png", place)

    processor, model = load_processor(folder), load_model(folder, dtype="float32")
    inputs = processor(text=TEXT, images=[_picture()])
    with torch.no_grad():
        logits = model(**inputs).logits
    assert said["ids"] == processor.tokenizer.encode(TEXT) == inputs["input_ids"][0].tolist()
    assert said["logits"] == {name: logits[0, -1].tolist() for name in said["logits"]}
    assert set(said["logits"]) == {"AutoModelForCausalLM", "AutoModelForImageTextToText"}
    assert said["rows"] == [1, 256, published.HIDDEN]
    assert said["answer"] is not None
    assert set(said["modules"]) == {"modeling_qwen_vl"}
    assert said["saved_logits_equal"]


def test_with_us_imported_the_rooms_own_classes_win(tmp_path: Path) -> None:
    folder = _bundled(tmp_path, int4=False)

    model: Any = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

    assert type(model) is QwenVLForConditionalGeneration


def test_the_file_is_the_same_every_time_and_imports_nothing_of_ours() -> None:
    code = (
        "import sys; from conversion.bundle import bundle_source; "
        "sys.stdout.buffer.write(bundle_source())"
    )
    command = [sys.executable, "-c", code]
    seeded = {**os.environ, "PYTHONHASHSEED": "7"}

    source = bundle_source()
    again = subprocess.run(command, env=seeded, capture_output=True, check=True).stdout

    assert again == source
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    assert modules
    assert not any(str(module).startswith(("qwen_vl", "model_store")) for module in modules)


def test_going_back_leaves_no_modelling_file(tmp_path: Path) -> None:
    folder = _bundled(tmp_path, int4=False)

    back = to_original(folder, tmp_path / "back", ToOriginalOptions(str(folder))).folder

    assert (folder / BUNDLE).is_file()
    assert not (back / BUNDLE).exists()
    original = json.loads((tmp_path / "source" / "config.json").read_text())
    assert json.loads((back / "config.json").read_text()) == original


def test_names_are_told_apart_by_scope() -> None:
    [function] = ast.parse(
        "def f(a, b=B):\n"
        "    from qwen_vl.rotary import rotate as turn\n"
        "    c = [d for d in turn(D)]\n"
        "    class G:\n"
        "        h = H\n"
        "        def i(self): return h, a\n"
        "    return c, G\n"
    ).body

    found = inspect_statement(function, ("qwen_vl",))

    assert {use.name for use in found.uses} == {"B", "rotate", "D", "H", "h"}
    assert [use.origin for use in found.uses if use.name == "rotate"] == [
        ("qwen_vl.rotary", "rotate")
    ]
    assert len(found.local_imports) == 1
