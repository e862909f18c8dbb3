"""Small checkpoints with the names, dtypes and files of the published ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from model_store.manifest import Manifest, Source, scan, write_manifest

N_RANKS = 260
HIDDEN, HEADS, LAYERS, MLP = 64, 4, 2, 48
WIDTH, EYE_HEADS, BLOCKS, EYE_MLP = 48, 3, 2, 236
PATCH, IMAGE = 14, 56
VOCABULARY = N_RANKS + 220
GROUP = 32

SOURCE = Source("modelscope", "qwen/Qwen-VL-Chat", "master", "ab" * 20)
GENERATION = (
    b'{"chat_format": "chatml", "do_sample": true, "top_p": 0.3, "max_window_size": 6144}\n'
)
TOKENIZER: dict[str, Any] = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}


def config(*, int4: bool = False, no_bias: bool = True) -> dict[str, Any]:
    """A config.json of 2023."""
    values: dict[str, Any] = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "model_type": "qwen",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "kv_channels": HIDDEN // HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * MLP,
        "vocab_size": VOCABULARY,
        "no_bias": no_bias,
        "onnx_safe": None,
        "bf16": not int4,
        "fp16": int4,
        "seq_length": 2048,
        "torch_dtype": "float16" if int4 else "bfloat16",
        "visual": {
            "heads": EYE_HEADS,
            "image_size": IMAGE,
            "image_start_id": N_RANKS + 214,
            "layers": BLOCKS,
            "mlp_ratio": 4.9231,
            "output_dim": HIDDEN,
            "patch_size": PATCH,
            "width": WIDTH,
        },
    }
    if int4:
        values["quantization_config"] = {
            "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "quant_method": "gptq",
        }  # fmt: skip
    return values


def _shapes(*, int4: bool, no_bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "transformer.wte.weight", (VOCABULARY, HIDDEN)
    for n in range(LAYERS):
        h = f"transformer.h.{n}."
        yield h + "ln_1.weight", (HIDDEN,)
        yield h + "ln_2.weight", (HIDDEN,)
        for module, out, in_ in (
            ("attn.c_attn", 3 * HIDDEN, HIDDEN),
            ("attn.c_proj", HIDDEN, HIDDEN),
            ("mlp.w1", MLP, HIDDEN),
            ("mlp.w2", MLP, HIDDEN),
            ("mlp.c_proj", HIDDEN, MLP),
        ):
            groups = -(-in_ // GROUP)
            if int4:
                yield h + module + ".qweight", (in_ // 8, out)
                yield h + module + ".qzeros", (groups, out // 8)
                yield h + module + ".scales", (groups, out)
                yield h + module + ".g_idx", (in_,)
            else:
                yield h + module + ".weight", (out, in_)
            if int4 or module == "attn.c_attn" or not no_bias:
                yield h + module + ".bias", (out,)
    yield "transformer.ln_f.weight", (HIDDEN,)
    yield from _vision()
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def _vision() -> Iterator[tuple[str, tuple[int, ...]]]:
    v = "transformer.visual."
    yield v + "positional_embedding", (256, WIDTH)
    yield v + "proj", (HIDDEN, HIDDEN)
    yield v + "conv1.weight", (WIDTH, 3, PATCH, PATCH)
    yield from _both(v + "ln_pre", WIDTH)
    yield from _both(v + "ln_post", HIDDEN)
    for n in range(BLOCKS):
        b = f"{v}transformer.resblocks.{n}."
        yield from _both(b + "ln_1", WIDTH)
        yield from _both(b + "ln_2", WIDTH)
        yield from _both(b + "attn.in_proj", 3 * WIDTH, WIDTH)
        yield from _both(b + "attn.out_proj", WIDTH, WIDTH)
        yield from _both(b + "mlp.c_fc", EYE_MLP, WIDTH)
        yield from _both(b + "mlp.c_proj", WIDTH, EYE_MLP)
    yield v + "attn_pool.query", (256, HIDDEN)
    yield v + "attn_pool.pos_embed", (256, HIDDEN)
    yield v + "attn_pool.kv_proj.weight", (HIDDEN, WIDTH)
    yield v + "attn_pool.attn.in_proj_weight", (3 * HIDDEN, HIDDEN)
    yield v + "attn_pool.attn.in_proj_bias", (3 * HIDDEN,)
    yield from _both(v + "attn_pool.attn.out_proj", HIDDEN, HIDDEN)
    yield from _both(v + "attn_pool.ln_q", HIDDEN)
    yield from _both(v + "attn_pool.ln_kv", HIDDEN)


def _both(module: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield module + ".weight", shape
    yield module + ".bias", shape[:1]


def tensors(*, int4: bool = False, no_bias: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of 2023, its values drawn from `seed`."""
    rng = np.random.default_rng(seed)
    made: dict[str, torch.Tensor] = {}
    for name, shape in _shapes(int4=int4, no_bias=no_bias):
        kind = name.rpartition(".")[2]
        if kind == "g_idx":
            made[name] = torch.arange(shape[0], dtype=torch.int32) // GROUP
        elif kind in ("qweight", "qzeros"):
            words = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.int32)
            if kind == "qzeros":  # no zero point of 16, which readers refuse
                words &= 0x77777777
            made[name] = torch.from_numpy(words)
        else:
            values = torch.from_numpy(0.1 * rng.standard_normal(shape))
            made[name] = values.to(torch.float16 if int4 else torch.bfloat16)
    return made


def rank_file() -> bytes:
    """256 bytes and a few merges, in tiktoken's text format."""
    tokens = [bytes([n]) for n in range(256)] + [b"he", b"ll", b"hell", b"hello"]
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    return b"".join(lines)


def write_files(
    folder: Path, state: Mapping[str, torch.Tensor], values: Mapping[str, Any], *, kind: str
) -> None:
    """Write a folder as it was published: two shards, their index, and the files beside them."""
    folder.mkdir(parents=True)
    stem, suffix = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    names = list(state)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        shard = {name: state[name] for name in part}
        if kind == "bin":
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_bytes(GENERATION)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "qwen.tiktoken").write_bytes(rank_file())
    (folder / "modeling_qwen.py").write_text("raise SystemExit('remote code ran')\n")
    (folder / "README.md").write_text("# the published card\n")
    (folder / "LICENSE").write_text("an agreement\n")
    (folder / "NOTICE").write_text("a notice\n")


def make_manifest(folder: Path) -> Manifest:
    """Make a folder a snapshot that came from a hub."""
    manifest = Manifest(files=scan(folder), source=SOURCE)
    write_manifest(folder, manifest)
    return manifest


def make_snapshot(folder: Path, *, kind: str = "bin", int4: bool = False) -> Path:
    """Write a whole original snapshot."""
    write_files(folder, tensors(int4=int4), config(int4=int4), kind=kind)
    make_manifest(folder)
    return folder
