"""Later stages: the language model learns to answer; the vision side stays, or follows slowly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name

from qwen_vl.language import QwenVLTextModel
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.rotary import Rotation, rotate
from qwen_vl.scene_words import SIDES
from scripts.tiny_model import matrices_and_rest
from scripts.tiny_muon import Muon
from scripts.tiny_pointers import ONE, OTHER, PLACED, Looks, looks_of
from scripts.tiny_rows import REPORTED
from scripts.tiny_warmup import BINS, edge_loss, pixel_values

MUON = 0.004
_ADAM = 1e-3
_SIDES, _ASKED = "sides", "asked"
# of where to look, of boxes that were looked at, and of relations
_WEIGHTS = {"look": 0.3, "place": 0.03, _SIDES: 0.2, _ASKED: 0.2}
_SURE = 0.03  # of the picture: nearer centres are on no side; half of what is asked about


class Language:
    """The stage: the decoder and its head; with `vision`, the vision side too, at a lower rate."""

    def __init__(
        self, model: QwenVLForConditionalGeneration, *, muon: float = MUON, vision: float = 0.0
    ) -> None:
        self.model, self.text, self._follows = model, model.model.language_model, vision > 0
        self.places = place_heads(self.text.config.hidden_size)
        # the frozen side too, so that a state is a whole model
        self.modules: nn.Module = nn.ModuleDict({"qwen": model, "places": self.places})
        self.optimizers: list[torch.optim.Optimizer] = []
        self._learns([*self.text.named_parameters(), ("lm_head", model.lm_head.weight)], muon, 1.0)
        self.optimizers.append(
            torch.optim.AdamW(self.places.parameters(), lr=_ADAM, weight_decay=0.0)
        )
        if self._follows:
            sides = (model.model.vision_tower, model.model.multi_modal_projector)
            named = [parameter for side in sides for parameter in side.named_parameters()]
            self._learns(named, vision, vision / muon)

    def _learns(self, named: list[tuple[str, nn.Parameter]], muon: float, share: float) -> None:
        matrices, rest = matrices_and_rest(named)
        self.optimizers += [
            Muon(matrices, lr=muon),
            torch.optim.AdamW(rest, lr=_ADAM * share, weight_decay=0.0),
        ]

    def step(self, batch: dict[str, Tensor], *, measure: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of packed rows; measured, the share of questions answered right, by kind."""
        embeddings = self.text.embed_tokens(batch["ids"])
        if len(batch["pixels"]):
            with torch.set_grad_enabled(self._follows):
                pictures = pixel_values(batch["pixels"])
                seen: Any = self.model.get_image_features(pictures).pooler_output
            embeddings = embeddings.index_put((batch["places"],), seen.flatten(0, 1))
        looks: dict[str, Tensor] = {}
        hidden = decode_packed(self.text, embeddings, batch, looks, self.places)
        learned = batch["labels"] >= 0
        logits = self.model.lm_head(hidden[learned])
        labels, weights = batch["labels"][learned], batch["weights"][learned]
        each = F.cross_entropy(logits, labels, reduction="none")
        answers = (each * weights).sum() / weights.sum()
        loss = answers
        for name, one in looks.items():
            loss = loss + _WEIGHTS[name.split()[0]] * one
        if not measure:
            return loss, {}
        right = logits.argmax(-1) == labels
        told = {name: float(one.detach()) for name, one in looks.items()}
        told |= {"answers": float(answers.detach())}
        return loss, told | _by_kind(right, batch["questions"][learned], batch["kinds"])


def decode_packed(
    text: QwenVLTextModel,
    embeddings: Tensor,
    batch: dict[str, Tensor],
    looks: dict[str, Tensor] | None = None,
    places: nn.ModuleDict | None = None,
) -> Tensor:
    """Run the decoder over packed rows: (N, hidden) in and out.

    Everything but attention works on single tokens, so only attention pays for padding. `looks`
    gets the losses of the heads that have pointers, as `look <layer>.<head>`; with `places`, from
    `place_heads`, also how well boxes are known after the look, as `place <layer>.<head>`,
    and of relations `sides` and `asked`.
    """
    rows, offsets = batch["rows"], batch["offsets"]
    shape = int(rows.max()) + 1, int(offsets.max()) + 1
    mask = block_mask(rows, offsets, batch["segments"], shape)
    rotation = text.rotary_emb(batch["positions"][None], None, past=0)
    x = embeddings
    layers: Iterable[Any] = text.layers
    for number, layer in enumerate(layers):
        pointed = None if looks is None else looks_of(batch, number)
        mixed, missed = _attend(layer.self_attn, layer.input_layernorm(x), rotation, mask,
                                rows * shape[1] + offsets, pointed)  # fmt: skip
        x = x + mixed
        if looks is not None:
            looks |= {f"look {number}.{head}": loss for head, loss in missed.items()}
            if pointed is not None and places is not None:
                looks |= _placed(x, pointed, number, places)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if looks is not None and pointed is not None and places is not None:
            looks |= _sided(x, pointed, number, places)
    out: Tensor = text.norm(x)
    return out


def place_heads(width: int) -> nn.ModuleDict:
    """What tells a box, to be thrown away: one for each attention head that has to bring it.

    And two for relations: "sides" tells which of both boxes is further right and down, "asked"
    which side the question is about.
    """
    outputs = {_head_name(*head): 4 * BINS for head in PLACED} | {_SIDES: 2, _ASKED: len(SIDES)}
    return nn.ModuleDict(
        {
            name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count))
            for name, count in outputs.items()
        }
    )


def _head_name(layer: int, number: int) -> str:
    return f"{layer}-{number}"  # no dots in the name of a module


def _placed(x: Tensor, pointed: Looks, layer: int, places: nn.ModuleDict) -> dict[str, Tensor]:
    found = {}
    for number in sorted(set(pointed.heads.tolist())):
        mine = (pointed.heads == number) & (pointed.edges[:, 0] >= 0)
        if bool(mine.any()):
            bins = places[_head_name(layer, number)](x[pointed.tokens[mine]])
            loss = edge_loss(bins.view(-1, 4, BINS), pointed.edges[mine])
            found[f"place {layer}.{number}"] = loss
    return found


def _sided(x: Tensor, pointed: Looks, layer: int, places: nn.ModuleDict) -> dict[str, Tensor]:
    """How well the token that has both boxes knows where the first is, and what is asked of it."""
    if layer != ONE.layer:
        return {}
    found = {}
    asked = pointed.sides >= 0
    if bool(asked.any()):
        guessed = places[_ASKED](x[pointed.tokens[asked]])
        found[_ASKED] = F.cross_entropy(guessed, pointed.sides[asked])
    placed = pointed.edges[:, 0] >= 0
    one, other = (placed & (pointed.heads == head.number) for head in (ONE, OTHER))
    if not bool(one.any()):
        return found
    centres = (pointed.edges[:, :2] + pointed.edges[:, 2:]) / 2
    apart = centres[one] - centres[other]
    told = places[_SIDES](x[pointed.tokens[one]])
    each = F.binary_cross_entropy_with_logits(told, (apart > 0).float(), reduction="none")
    sure = apart.abs() >= _SURE
    return {**found, _SIDES: (each * sure).sum() / sure.sum().clamp(min=1)}


def _attend(
    attention: Any,
    x: Tensor,
    rotation: Rotation,
    mask: Tensor,
    places: Tensor,
    pointed: Looks | None,
) -> tuple[Tensor, dict[int, Tensor]]:
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

    queries, keys = spread(q), spread(k)
    mixed = F.scaled_dot_product_attention(queries, keys, spread(v), attn_mask=mask)
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(0, 1)[places].flatten(1))
    return out, {} if pointed is None else pointed.losses(queries, keys, mask)


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
