"""What every model of transformers 5 is expected to do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    StaticCache,
)
from transformers.generation.streamers import BaseStreamer
from transformers.masking_utils import flash_attention_mask

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.errors import ImageBlockError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from qwen_vl.processing import QwenVLProcessor
from qwen_vl.tokenization import QwenVLTokenizer
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import LOGITS_ATOL, generate

AUTO_MODELS = [
    (AutoModel, QwenVLModel),
    (AutoModelForImageTextToText, QwenVLForConditionalGeneration),
    (AutoModelForCausalLM, QwenVLForConditionalGeneration),
]
PIXELS = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def image_and_text(count: int = 9) -> Tensor:
    return torch.cat([tiny_model.image_ids(), tiny_model.text_ids(count)])[None]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


@pytest.mark.parametrize(("auto", "expected"), AUTO_MODELS)
@pytest.mark.parametrize("layout", ["original", "native"])
def test_model_classes_resolve_for_both_layouts(
    layout: str, auto: Any, expected: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_folder
    if layout == "native":
        folder = tmp_path / "native"
        load_model(tiny_folder).save_pretrained(folder)

    model: Any = auto.from_pretrained(folder)

    assert type(model) is expected
    whole = load_model(tiny_folder)
    wanted: torch.nn.Module = whole.model if auto is AutoModel else whole
    assert equal(model.state_dict(), wanted.state_dict())


def test_the_other_auto_classes_resolve(tiny_folder: Path, tmp_path: Path) -> None:
    native = tmp_path / "native"
    published = {"tokenizer_class": "QWenTokenizer", "model_max_length": 8192}
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps(published))
    load_model(tiny_folder).save_pretrained(native)
    AutoProcessor.from_pretrained(tiny_folder).save_pretrained(native)

    for folder in (tiny_folder, native):
        assert type(AutoConfig.from_pretrained(folder)) is QwenVLConfig
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer) is QwenVLTokenizer
        processor: Any = AutoProcessor.from_pretrained(folder)
        assert type(processor) is QwenVLProcessor
        assert processor.image_processor.size.height == 28
        assert processor.tokenizer.n_image_tokens == tiny_model.QUERIES
        image_processor: Any = AutoImageProcessor.from_pretrained(folder)
        assert type(image_processor) is QwenVLImageProcessor
        size: Any = image_processor.size
        assert size.height == 28


def test_folders_of_others_find_their_own_image_processor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(OSError, match="preprocessor_config"):
        AutoImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}'
    )

    made: Any = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    assert type(made).__name__.startswith("CLIPImageProcessor")


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
@pytest.mark.parametrize("layout", ["original", "native"])
def test_a_device_map_is_taken(
    layout: str, device_map: Any, tiny: QwenVLForConditionalGeneration, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    if layout == "native":
        folder = tmp_path / "native"
        tiny.save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)

    assert equal(model.state_dict(), tiny.state_dict())


def test_what_is_saved_is_bit_for_bit_what_was_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    tiny = load_model(tiny_folder, dtype="bfloat16")
    tiny.save_pretrained(tmp_path / "first")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")

    files = [load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")]
    assert equal(files[0], files[1])
    assert equal(again.state_dict(), tiny.state_dict())
    configs = [(tmp_path / name / "config.json").read_text() for name in ("first", "second")]
    assert configs[0] == configs[1]


def test_a_model_made_on_meta_has_no_garbage_buffers(
    tiny: QwenVLForConditionalGeneration, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "native")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "native", device_map="cpu")
    with torch.device("meta"):
        hollow = QwenVLForConditionalGeneration(tiny.config)
    hollow.to_empty(device="cpu")
    for buffer in hollow.buffers():
        buffer.fill_(float("nan"))
    hollow.init_weights()

    wanted = dict(tiny.named_buffers())
    assert wanted
    for model in (loaded, hollow):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, wanted[name]), name


@pytest.mark.parametrize(
    "implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it compiles
def test_every_attention_gives_the_same_logits(
    implementation: str, tiny: QwenVLForConditionalGeneration
) -> None:
    ids = image_and_text()
    batch = torch.cat([ids, torch.nn.functional.pad(ids[:, :-4], (4, 0))])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    inputs = {"input_ids": batch, "attention_mask": mask, "pixel_values": PIXELS.repeat(2, 1, 1, 1)}

    with torch.no_grad():
        sdpa = tiny(**inputs).logits
        tiny.set_attn_implementation(implementation)
        other = tiny(**inputs).logits

    parts = (tiny.model.vision_tower, tiny.model.language_model, tiny.model)
    assert {part.config._attn_implementation for part in parts} == {implementation}
    real = mask.bool()
    torch.testing.assert_close(other[real], sdpa[real], rtol=0, atol=LOGITS_ATOL)


def flash_on_cpu(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What flash kernels do with what they are handed: rows without padding, no mask of scores."""
    causal = module.is_causal if is_causal is None else is_causal
    mixed = torch.zeros_like(query)
    for row, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        real = torch.ones(k.shape[1], dtype=torch.bool)
        if attention_mask is not None:
            assert attention_mask.ndim == 2
            real = attention_mask[row].bool()
        asked = real[-q.shape[1] :]
        n, total = int(asked.sum()), int(real.sum())
        seen = torch.ones(n, total, dtype=torch.bool).tril(total - n) if causal else None
        mixed[row][:, asked] = torch.nn.functional.scaled_dot_product_attention(
            q[:, asked], k[:, real], v[:, real], attn_mask=seen, scale=scaling
        )
    return mixed.transpose(1, 2).contiguous(), None


def test_flash_kernels_are_handed_what_they_need(tiny: QwenVLForConditionalGeneration) -> None:
    AttentionInterface.register("padless_on_cpu", flash_on_cpu)
    AttentionMaskInterface.register("padless_on_cpu", flash_attention_mask)
    ids = image_and_text()
    batch = torch.cat([ids, torch.nn.functional.pad(ids[:, :-4], (4, 0))])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0

    def logits() -> list[Tensor]:
        cache = DynamicCache(config=tiny.config.text_config)
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        longer = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        with torch.no_grad():
            first = tiny(batch, PIXELS.repeat(2, 1, 1, 1), attention_mask=mask, **options).logits
            step = tiny(batch[:, -1:], attention_mask=longer, **options).logits
        return [first[mask.bool()], step]

    sdpa = logits()
    tiny.set_attn_implementation("padless_on_cpu")

    for got, expected in zip(logits(), sdpa, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=LOGITS_ATOL)


def test_generate_streams_every_token(tiny: QwenVLForConditionalGeneration) -> None:
    class Heard(BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    heard, ids = Heard(), image_and_text()

    made = generate(
        tiny,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=PIXELS,
        max_new_tokens=5,
        streamer=heard,
    )

    assert heard.ended
    assert heard.ids == made[0].tolist()


def _compiled_steps(model: QwenVLForConditionalGeneration, backend: str) -> tuple[Tensor, Tensor]:
    ids, new = image_and_text(), tiny_model.text_ids(4)
    rows = []
    for run in (model.forward, torch.compile(model.forward, fullgraph=True, backend=backend)):
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        with torch.no_grad():
            model(ids, PIXELS, past_key_values=cache, use_cache=True)
            steps = [
                run(
                    input_ids=new[None, n : n + 1],
                    position_ids=torch.tensor([[ids.shape[1] + n]]),
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                for n in range(4)
            ]
        rows.append(torch.cat(steps, dim=1))
    return rows[0], rows[1]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_decode_step_compiles_into_one_graph(
    backend: str, tiny: QwenVLForConditionalGeneration
) -> None:
    torch._dynamo.reset()

    plain, compiled = _compiled_steps(tiny, backend)

    # the image alone is longer than the trained length, so the step of the cache shows
    assert tiny.config.text_config.seq_length < tiny_model.QUERIES + 2
    torch.testing.assert_close(compiled, plain, rtol=0, atol=LOGITS_ATOL)


def test_gradient_checkpointing_gives_the_same_gradients(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    ids = image_and_text()

    def gradients() -> dict[str, Tensor]:
        tiny.zero_grad()
        tiny(input_ids=ids, pixel_values=PIXELS, labels=ids).loss.backward()
        found = {name: p.grad for name, p in tiny.named_parameters() if p.grad is not None}
        return {name: grad.clone() for name, grad in found.items()}

    tiny.train()
    plain = gradients()
    tiny.activation_checkpointing_enable()
    checkpointed = gradients()

    assert tiny.is_activation_checkpointing
    trained = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert plain.keys() == checkpointed.keys() == trained
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-5, atol=1e-6)


def test_the_tensor_parallel_plan_names_modules_that_exist(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    names = {name for name, module in tiny.named_modules() if isinstance(module, torch.nn.Linear)}

    for model, prefix in ((tiny, ""), (tiny.model, "model.")):
        planned = {
            prefix + rule.replace("*", str(layer))
            for rule in model.tp_plan
            for layer in range(tiny.config.text_config.num_hidden_layers)
        }
        layers = {name for name in names if name.startswith("model.language_model.layers")}
        assert layers <= planned
        assert planned - names <= {"model.language_model.embed_tokens"}


def test_parts_are_where_transformers_looks_for_them(tiny: QwenVLForConditionalGeneration) -> None:
    assert tiny.get_decoder() is tiny.model.language_model
    assert tiny.get_encoder(modality="image") is tiny.model.vision_tower
    assert tiny.model.get_encoder(modality="image") is tiny.model.vision_tower
    assert tiny.config.get_text_config() is tiny.config.text_config
    assert tiny.config.get_text_config().vocab_size == tiny.lm_head.out_features
    assert tiny.base_model is tiny.model


def test_the_placeholder_mask_is_where_the_images_go(tiny: QwenVLForConditionalGeneration) -> None:
    ids = image_and_text()
    embedded = tiny.get_input_embeddings()(ids)
    rows: Any = tiny.get_image_features(PIXELS).pooler_output

    mask = tiny.model.get_placeholder_mask(ids, embedded, rows)

    written = embedded.masked_scatter(mask, rows)
    with torch.no_grad():
        expected = tiny(input_ids=ids, pixel_values=PIXELS).logits
        torch.testing.assert_close(tiny(inputs_embeds=written).logits, expected)
    with pytest.raises(ImageBlockError):
        tiny.model.get_placeholder_mask(ids, embedded, torch.cat([rows, rows]))


def test_a_saved_config_does_not_carry_keys_of_2023(
    tiny: QwenVLForConditionalGeneration, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "native")

    saved = json.loads((tmp_path / "native" / "config.json").read_text())

    assert {"bf16", "fp16", "use_flash_attn", "visual"}.isdisjoint(saved)
    assert saved["original_config"] == tiny_model.CONFIG
