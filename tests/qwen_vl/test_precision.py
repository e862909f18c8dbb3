"""Half precision, and options that no published checkpoint uses."""

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import LOGITS_ATOL, SHARED, Golden

# Of the 2023 code, half precision against float32 on the model of `pub_a`, 24 and 266 positions:
# mean difference of logits of deviation 3.0, and share of positions with the same first choice.
YARDSTICK = {
    "bfloat16": {"text": (0.0323, 1.0), "one_image": (0.0483, 0.951)},
    "float16": {"text": (0.0038, 1.0), "one_image": (0.0059, 0.989)},
}


@pytest.mark.parametrize("dtype", YARDSTICK)
def test_half_precision_errs_no_more_than_that_of_2023(dtype: str, pub_a: Golden) -> None:
    half = Golden(load_model(pub_a.folder, dtype=dtype), pub_a.folder, pub_a.assets)

    for case, (mean, agreeing) in YARDSTICK[dtype].items():
        recorded = pub_a.cases["logits"][case]
        exact, rounded = _logits(pub_a, recorded), _logits(half, recorded)

        assert (rounded.float() - exact).abs().mean() < 1.25 * mean
        same = (rounded.argmax(-1) == exact.argmax(-1)).float().mean()
        assert same >= agreeing - 0.05
    rotary = half.model.model.language_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32


def _logits(golden: Golden, recorded: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = golden.model(
            input_ids=torch.tensor(recorded["input_ids"]),
            pixel_values=golden.pixels(recorded["images"]),
        ).logits
    return out


@pytest.mark.shared
def test_the_yardstick_is_the_recorded_one() -> None:
    path = SHARED / "full" / "revisions_and_precision.json"
    if not path.is_file():
        pytest.skip("the golden data is not beside the checkout")
    recorded = json.loads(path.read_text())

    for dtype, cases in YARDSTICK.items():
        for case, (mean, agreeing) in cases.items():
            measured = recorded[f"torch.{dtype}_{case.removeprefix('one_')}"]
            assert measured["mean_abs"] == pytest.approx(mean, abs=6e-5)
            assert measured["argmax_agree"] == pytest.approx(agreeing, abs=6e-4)


def reference_logits(weights: dict[str, Tensor], config: dict[str, Any], ids: Tensor) -> Tensor:
    """The decoder of 2023 written down once more, in float64, one head and position at a time."""
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in weights.items()}
    n, heads, dim = len(ids), config["num_attention_heads"], config["kv_channels"]
    length, turned = config["seq_length"], int(dim * config["rotary_pct"])
    alpha = 1.0
    if config["use_dynamic_ntk"] and n > length:
        alpha = 2 ** math.ceil(math.log2(n / length) + 1) - 1
    base = config["rotary_emb_base"] * alpha ** (turned / (turned - 2))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"]
        normed: Tensor = x / mean.sqrt() * weight
        return normed

    def turn(x: Tensor, position: int) -> Tensor:
        half, out = turned // 2, x.clone()
        for i in range(half):
            angle = position * base ** (-2 * i / turned)
            a, b = x[i], x[i + half]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def attend(qkv: Tensor) -> Tensor:
        out = torch.zeros(n, heads * dim, dtype=torch.float64)
        for h in range(heads):
            q, k, v = (part[:, h * dim : (h + 1) * dim] for part in qkv.chunk(3, dim=-1))
            k = torch.stack([turn(k[p], p) for p in range(n)])
            for p in range(n):
                query = turn(q[p], p)
                if config["use_logn_attn"]:
                    query = query * max(math.log(p + 1, length), 1.0)
                weights = (k[: p + 1] @ query / math.sqrt(dim)).softmax(-1)
                out[p, h * dim : (h + 1) * dim] = weights @ v[: p + 1]
        return out

    x = w["wte.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"h.{layer}."
        qkv = norm(x, w[at + "ln_1.weight"]) @ w[at + "attn.c_attn.weight"].T
        x = x + attend(qkv + w[at + "attn.c_attn.bias"]) @ w[at + "attn.c_proj.weight"].T
        y = norm(x, w[at + "ln_2.weight"])
        gated = (y @ w[at + "mlp.w1.weight"].T) * torch.nn.functional.silu(
            y @ w[at + "mlp.w2.weight"].T
        )
        x = x + gated @ w[at + "mlp.c_proj.weight"].T
    return norm(x, w["ln_f.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("rotary_pct", [1.0, 0.5])
@pytest.mark.parametrize(("ntk", "logn"), [(True, True), (True, False), (False, True)])
def test_every_option_follows_its_formula(
    ntk: bool, logn: bool, rotary_pct: float, tmp_path: Any
) -> None:
    options = {"rotary_pct": rotary_pct, "use_dynamic_ntk": ntk, "use_logn_attn": logn}
    folder = tiny_model.write_small_folder(tmp_path / "tiny", **options)
    save_file(tiny_model.tensors(), folder / "model.safetensors")
    model: QwenVLForConditionalGeneration = load_model(folder)

    for count in (16, 40):
        ids = tiny_model.text_ids(count)
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        expected = reference_logits(tiny_model.tensors(), tiny_model.CONFIG | options, ids)
        torch.testing.assert_close(logits.double(), expected, rtol=0, atol=LOGITS_ATOL)
