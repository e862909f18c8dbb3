"""Seeded decoders for the GPTQ benchmark: nothing is downloaded, and two machines make the same.

Plain random weights would flatter rounding: real inputs are correlated and of unequal size, real
weights have tails. So the embedding's spectrum falls by a power law, norms scale channels unevenly,
weights have log-normal tails, attention and MLP add less than what they read, and token frequencies
follow Zipf. With these numbers plain rounding to 4 bits errs by about .018 of a layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CALIBRATION, HELD_OUT, TUNING = 1, 2, 3  # streams of tokens; TUNING is for choosing options only
_SPECTRUM = 0.8
_TAILS = 0.3
_GAINS = 0.3
_OUTPUTS = 0.5
_HEAD = 0.08
_ZIPF = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's size."""

    architecture: str  # qwen2 | llama
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    samples: int
    length: int = 512
    held_out: int = 4
    vocabulary: int = 4096


SHAPES = {
    "qwen2": Shape("qwen2", 8, 1024, 2816, 16, 16, samples=32),
    "llama": Shape("llama", 6, 768, 2048, 12, 4, samples=32),
    "small": Shape("qwen2", 2, 512, 1408, 8, 8, samples=16),  # to try the benchmark itself
    "block": Shape("qwen2", 1, 4096, 11008, 32, 32, samples=16),  # one block of Qwen-VL's width
}


def config(shape: Shape) -> Any:
    """The transformers config."""
    from transformers import LlamaConfig, Qwen2Config

    made = LlamaConfig if shape.architecture == "llama" else Qwen2Config
    return made(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="float32",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


@torch.no_grad()
def make_model(shape: Shape, seed: int) -> Any:
    """The model in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(shape)).eval()
    dice = torch.Generator().manual_seed(1000 + seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=dice)
        parameter.copy_(_values(name, noise, dice))
    return model


def _values(name: str, noise: Tensor, dice: torch.Generator) -> Tensor:
    if noise.ndim == 1:
        return torch.exp(_GAINS * noise) if "norm" in name else 0.1 * noise
    if "lm_head" in name:
        return _HEAD * noise * (1024 / noise.shape[1]) ** 0.5
    width = noise.shape[1]
    if "embed" in name:
        fall = torch.arange(1, width + 1).float() ** -_SPECTRUM
        turn = torch.linalg.qr(torch.randn(width, width, generator=dice))[0]
        rows = (noise * fall) @ turn
        return rows / rows.square().mean().sqrt()
    tailed = noise * torch.exp(_TAILS * torch.randn(noise.shape, generator=dice))
    reach = _OUTPUTS if "o_proj" in name or "down_proj" in name else 1.0
    return tailed / tailed.std() * reach * width**-0.5


def tokens(shape: Shape, seed: int, stream: int, count: int) -> Tensor:
    """(count, length) int64 ids of one stream; streams never share a draw."""
    dice = torch.Generator().manual_seed(10_000 * stream + seed)
    chance = torch.arange(1, shape.vocabulary + 1).float() ** -_ZIPF
    drawn = torch.multinomial(chance, count * shape.length, replacement=True, generator=dice)
    return drawn.view(count, shape.length)


def write_model(shape: Shape, seed: int, folder: Path) -> Path:
    """Write the checkpoint, a tokenizer of numbers, and the calibration tokens, once."""
    if (folder / "calibration.safetensors").is_file():
        return folder
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    make_model(shape, seed).save_pretrained(folder)
    _write_tokenizer(shape, folder)
    ids = tokens(shape, seed, CALIBRATION, shape.samples)
    save_file({"ids": ids}, folder / "calibration.safetensors")
    return folder


def _write_tokenizer(shape: Shape, folder: Path) -> None:
    # peers insist on a tokenizer; word "17" is id 17, and the benchmark never uses it
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(shape.vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="0"))  # noqa: S106  no password: word 0
    made.pre_tokenizer = Whitespace()
    special = {"unk_token": "0", "pad_token": "0", "bos_token": "1", "eos_token": "2"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    wrapped.save_pretrained(folder)
