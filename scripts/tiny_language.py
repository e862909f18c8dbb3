"""Second stage: the language model learns to answer, from a vision side that no longer changes."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name

from qwen_vl.language import QwenVLTextModel
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.rotary import Rotation, rotate
from scripts.tiny_model import matrices_and_rest
from scripts.tiny_muon import Muon
from scripts.tiny_rows import REPORTED
from scripts.tiny_warmup import pixel_values

MUON = 0.004
_ADAM = 1e-3


class Language:
    """The stage: the decoder and its head."""

    def __init__(self, model: QwenVLForConditionalGeneration, *, muon: float = MUON) -> None:
        self.model, self.text = model, model.model.language_model
        self.modules = nn.ModuleList([self.text, model.lm_head])
        matrices, rest = matrices_and_rest(
            [*self.text.named_parameters(), ("lm_head", model.lm_head.weight)]
        )
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon),
            torch.optim.AdamW(rest, lr=_ADAM, weight_decay=0.0),
        ]

    def step(self, batch: dict[str, Tensor], *, measure: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of packed rows; measured, the share of questions answered right, by kind."""
        embeddings = self.text.embed_tokens(batch["ids"])
        with torch.no_grad():
            seen = self.model.get_image_features(pixel_values(batch["pixels"])).pooler_output
        embeddings = embeddings.index_put((batch["places"],), seen.flatten(0, 1))
        hidden = decode_packed(self.text, embeddings, batch)
        learned = batch["labels"] >= 0
        logits = self.model.lm_head(hidden[learned])
        labels, weights = batch["labels"][learned], batch["weights"][learned]
        each = F.cross_entropy(logits, labels, reduction="none")
        loss = (each * weights).sum() / weights.sum()
        if not measure:
            return loss, {}
        right = logits.argmax(-1) == labels
        return loss, _by_kind(right, batch["questions"][learned], batch["kinds"])


def decode_packed(text: QwenVLTextModel, embeddings: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Run the decoder over packed rows: (N, hidden) in and out.

    Everything but attention works on single tokens, so only attention pays for padding.
    """
    rows, offsets = batch["rows"], batch["offsets"]
    shape = int(rows.max()) + 1, int(offsets.max()) + 1
    mask = block_mask(rows, offsets, batch["segments"], shape)
    rotation = text.rotary_emb(batch["positions"][None], None, past=0)
    x = embeddings
    for layer in text.layers:
        x = x + _attend(layer.self_attn, layer.input_layernorm(x), rotation, mask,
                        rows * shape[1] + offsets)  # fmt: skip
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    out: Tensor = text.norm(x)
    return out


def _attend(
    attention: nn.Module, x: Tensor, rotation: Rotation, mask: Tensor, places: Tensor
) -> Tensor:
    heads = (1, len(x), -1, attention.head_dim)
    q, k, v = (
        project(x).view(heads).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = rotate(q, rotation), rotate(k, rotation)

    def spread(flat: Tensor) -> Tensor:
        tokens = flat[0].transpose(0, 1)
        padded = tokens.new_zeros(mask.shape[0] * mask.shape[2], *tokens.shape[1:])
        padded = padded.index_put((places,), tokens)
        return padded.view(mask.shape[0], mask.shape[2], *tokens.shape[1:]).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(spread(q), spread(k), spread(v), attn_mask=mask)
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(0, 1)[places].flatten(1))
    return out


def block_mask(rows: Tensor, offsets: Tensor, segments: Tensor, shape: tuple[int, int]) -> Tensor:
    """(rows, 1, n, n): a token sees what is before it in its prefix and in its own question."""
    grid = segments.new_full(shape, -1)
    grid[rows, offsets] = segments
    same = (grid[:, None, :] == 0) | (grid[:, None, :] == grid[:, :, None])
    before = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    return (same & before)[:, None]


def _by_kind(right: Tensor, questions: Tensor, kinds: Tensor) -> dict[str, float]:
    """Share of questions whose every token is right: what greedy decoding would answer right."""
    wrong = torch.zeros(len(kinds)).index_put((questions,), (~right).float(), accumulate=True)
    found: dict[str, list[float]] = defaultdict(list)
    for kind, errors in zip(kinds.tolist(), wrong.tolist(), strict=True):
        found[REPORTED[kind]].append(float(errors == 0))
    return {kind: sum(values) / len(values) for kind, values in sorted(found.items())}
