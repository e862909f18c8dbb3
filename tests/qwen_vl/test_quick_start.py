"""The quick starts of the model's README of 2023, as people typed them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel, GenerationConfig

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.errors import ImageNotAllowedError, InputError, StopWordsError
from qwen_vl.image_processing import preprocess
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from qwen_vl.tokenization import QwenVLTokenizer
from scripts.make_tiny_checkpoint import make_checkpoint
from scripts.train_ranks import trained_rank_file

# their annotations name the classes of transformers only
AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM
AutoModelForImageTextToText: Any = transformers.AutoModelForImageTextToText
AutoTokenizer: Any = transformers.AutoTokenizer
BOX = "<ref>the blue one</ref><box>(100,200),(700,800)</box>"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick") / "Qwen-VL-Chat"
    make_checkpoint(folder, seed=5, rank_file=trained_rank_file())
    # nobody may run what a folder brings along
    for name in ("configuration_qwen", "modeling_qwen", "tokenization_qwen"):
        (folder / f"{name}.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


@pytest.fixture(scope="session")
def native(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick") / "native"
    load_model(original).save_pretrained(folder)
    AutoTokenizer.from_pretrained(original).save_pretrained(folder)
    GenerationConfig.from_pretrained(original).save_pretrained(folder)
    return folder


@pytest.fixture(params=["original", "native"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "demo.png"
    Image.new("RGB", (60, 40), "blue").save(path)
    return path


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _words(tokenizer: QwenVLTokenizer, text: str) -> Any:
    """A processor that makes the model say a text."""
    from tests.qwen_vl.test_chat_goldens import Forced

    class Say(Forced):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.prompt_length < 0:
                self.prompt_length = input_ids.shape[1]
            return super().__call__(input_ids, scores)

    return [Say([*tokenizer.encode(text), tokenizer.im_end_id], -1)]


def test_transformers_style(folder: Path, picture: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map="auto", trust_remote_code=True
    ).eval()
    model.generation_config = GenerationConfig.from_pretrained(folder, trust_remote_code=True)
    model.generation_config.max_new_tokens = 6
    torch.manual_seed(1234)

    query = tokenizer.from_list_format([{"image": str(picture)}, {"text": "这是什么?"}])
    response, history = model.chat(tokenizer, query=query, history=None)
    response, history = model.chat(tokenizer, "框出图中的圆形", history=history)
    drawn = tokenizer.draw_bbox_on_latest_picture(BOX, history)
    drawn.save(tmp_path / "1.jpg")

    assert len(history) == 2
    assert history[-1] == ("框出图中的圆形", response)
    assert _size(tmp_path / "1.jpg") == (60, 40)
    assert tokenizer.draw_bbox_on_latest_picture("no box", history) is None
    assert model.dtype == torch.bfloat16  # what config.json says
    assert tokenizer.model_dir == str(folder)


def test_the_base_model_style(folder: Path, picture: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", fp32=True).eval()
    query = tokenizer.from_list_format(
        [{"image": str(picture)}, {"text": "Generate the caption in English with grounding:"}]
    )

    inputs = tokenizer(query, return_tensors="pt").to(model.device)
    say = _words(tokenizer, BOX)
    pred = model.generate(**inputs, max_new_tokens=40, logits_processor=say, stop_words_ids=[[
        tokenizer.im_end_id]])  # fmt: skip
    response = tokenizer.decode(pred.cpu()[0][:-1], skip_special_tokens=False)
    drawn = tokenizer.draw_bbox_on_latest_picture(response)

    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask", "pixel_values"}
    assert torch.equal(inputs["pixel_values"], preprocess([picture], 112))
    assert response == query + BOX
    assert drawn.size == (60, 40)
    assert int(pred[0, -1]) == tokenizer.im_end_id


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.float16),
        ({"fp32": True, "fp16": False}, torch.float32),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": "auto"}, torch.bfloat16),
    ],
)
def test_old_flags_mean_what_they_say(
    folder: Path, flags: dict[str, Any], dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", **flags)

    assert model.dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_both_folders_hold_the_same_model(original: Path, native: Path) -> None:
    models = [AutoModelForImageTextToText.from_pretrained(folder) for folder in (original, native)]

    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(type(model) is QwenVLForConditionalGeneration for model in models)
    assert type(AutoModel.from_pretrained(original)) is QwenVLModel
    configs = [AutoConfig.from_pretrained(folder) for folder in (original, native)]
    assert [type(config) for config in configs] == [QwenVLConfig, QwenVLConfig]
    assert configs[0].vision_config.image_size == configs[1].vision_config.image_size == 112


def test_an_option_that_cannot_be_kept_is_refused(original: Path) -> None:
    with pytest.raises(InputError, match="tp_plan"):
        AutoModelForCausalLM.from_pretrained(original, tp_plan="auto")
    with pytest.raises(InputError, match="one dtype"):
        AutoModelForCausalLM.from_pretrained(original, bf16=True, fp16=True)
    with pytest.raises(InputError, match="leaves model"):
        AutoModelForCausalLM.from_pretrained(original, device_map={"lm_head": 0})


def test_a_prompt_with_a_path_is_opened_only_as_in_2023(folder: Path, picture: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    query = f"<img>{picture}</img>这是什么"
    today = AutoModelForCausalLM.from_pretrained(folder)
    then = AutoModelForCausalLM.from_pretrained(folder, compat="2023")

    with pytest.raises(ImageNotAllowedError):
        today.chat(tokenizer, query=query, history=None)
    _, history = then.chat(tokenizer, query=query, history=None, max_new_tokens=2)
    _, history = then.chat(tokenizer, "还有呢", history=history, max_new_tokens=2)

    assert history[0][0] == query
    drawn = tokenizer.draw_bbox_on_latest_picture(BOX, history)
    assert drawn is not None
    with pytest.raises(ImageNotAllowedError):
        tokenizer.draw_bbox_on_latest_picture(BOX, [(query, "")])


def test_generate_stops_at_stop_words(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, fp32=True)
    inputs = tokenizer("Hi", return_tensors="pt")
    words = tokenizer.encode(" one two STOP three")
    say = _words(tokenizer, " one two STOP three")
    stop = words[3:5]

    out = model.generate(**inputs, max_new_tokens=30, logits_processor=say, stop_words_ids=[stop])

    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert new == words[:5]
    with pytest.raises(StopWordsError):
        model.generate(**inputs, stop_words_ids=[])


MODELSCOPE = """
import os, sys, warnings
warnings.simplefilter("ignore")
import torch
import qwen_vl.auto
from modelscope import snapshot_download, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

model_dir = snapshot_download("qwen/Qwen-VL-Chat", revision="v1.0.0")
torch.manual_seed(1234)
tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
if not hasattr(tokenizer, "model_dir"):
    tokenizer.model_dir = model_dir
model = AutoModelForCausalLM.from_pretrained(
    model_dir, device_map="auto", trust_remote_code=True, fp16=True, compat="2023"
).eval()
model.generation_config = GenerationConfig.from_pretrained(model_dir, trust_remote_code=True)
model.generation_config.max_new_tokens = 4
picture = sys.argv[1]
response, history = model.chat(tokenizer, query=f"<img>{picture}</img>这是什么", history=None)
response, history = model.chat(tokenizer, "输出圆形的检测框", history=history)
image = tokenizer.draw_bbox_on_latest_picture(sys.argv[2], history)
image.save(sys.argv[3])
print("done", tokenizer.model_dir == model_dir, model.dtype, len(history))
"""


def test_modelscope_style(original: Path, picture: Path, tmp_path: Path) -> None:
    pytest.importorskip("modelscope")
    from hub_tools.server.app import running_hub

    shutil.copytree(original, tmp_path / "hub" / "qwen" / "Qwen-VL-Chat@v1.0.0")
    with running_hub(tmp_path / "hub") as hub:
        environment = os.environ | {
            "MODELSCOPE_ENDPOINT": hub.endpoint,
            "MODELSCOPE_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(  # our own interpreter and script
            [sys.executable, "-c", MODELSCOPE, str(picture), BOX, str(tmp_path / "1.png")],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    assert "done True torch.float16 2" in done.stdout, done.stderr[-3000:]
    assert _size(tmp_path / "1.png") == (60, 40)
