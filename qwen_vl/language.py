"""The decoder: Qwen2's blocks, rotated by stepwise NTK, queries scaled by log-n."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from qwen_vl.attention import eager_attention
from qwen_vl.configuration import QwenVLTextConfig
from qwen_vl.errors import InputError
from qwen_vl.rotary import (
    QwenVLRotaryEmbedding,
    Rotation,
    rotate,
    scale_queries,
    token_positions,
)


def summed_mask(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """The additive mask of 2023 (rows, 1, n, cached + n): causal and padding penalties, summed.

    Real tokens see what they should. A padding token sees the padding before it and the real
    tokens behind it, which shows in a loss whose first label stands at the first real token.
    """
    if attention_mask is None or attention_mask.ndim != 2:
        return attention_mask
    n, total = like.shape[1], attention_mask.shape[1]
    least = torch.finfo(like.dtype).min
    future = torch.ones(n, total, dtype=torch.bool, device=like.device).triu(total - n + 1)
    padding = (attention_mask == 0).to(like.device)[:, None, None, :]
    return (future * least + padding * least).to(like.dtype)


class QwenVLRMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to the input's dtype, then times the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class QwenVLAttention(nn.Module):
    def __init__(self, config: QwenVLTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = True
        hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, width, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, hidden, bias=config.attention_out_bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotation,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query = scale_queries(rotate(query, position_embeddings), position_embeddings)
        key = rotate(key, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*shape, -1).contiguous()), weights


class QwenVLMLP(nn.Module):
    def __init__(self, config: QwenVLTextConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, hidden, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class QwenVLDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: QwenVLTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = QwenVLRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = QwenVLAttention(config, layer_idx)
        self.post_attention_layernorm = QwenVLRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = QwenVLMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + mixed
        out: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return out


class QwenVLTextModel(PreTrainedModel):
    """Embeddings or ids to final hidden states, with or without a cache."""

    config: QwenVLTextConfig
    config_class = QwenVLTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QwenVLDecoderLayer"]  # noqa: RUF012  # the base class's protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # the base class's protocol
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012  # the base class's protocol
        "hidden_states": QwenVLDecoderLayer,
        "attentions": QwenVLAttention,
    }

    def __init__(self, config: QwenVLTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [QwenVLDecoderLayer(config, n) for n in range(config.num_hidden_layers)]
        )
        self.norm = QwenVLRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = QwenVLRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, QwenVLRotaryEmbedding):
            # not in any checkpoint: empty after a meta initialisation
            init.copy_(module.inv_freq, module.frequencies())

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: (rows, n); or `inputs_embeds` (rows, n, hidden), never both.
            attention_mask: (rows, cached + n), zero at padding; or a ready 4-D mask.
            position_ids: (rows, n); derived from the mask when absent, ignored by compat "2023".
            past_key_values: grows by n; made here when `use_cache` asks for one.
            inputs_embeds: see `input_ids`.
            use_cache: return the cache.
            kwargs: passed on to every layer.

        Raises:
            InputError: both or neither of ids and embeddings.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass input_ids or inputs_embeds, and not both")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        old = self.rotary_emb.compat == "2023"
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=summed_mask(attention_mask, hidden_states) if old else attention_mask,
            past_key_values=past_key_values,
            position_ids=None if old else position_ids,
        )
        if old or position_ids is None:  # absolute indices in 2023, padding included
            counted = None if old else attention_mask
            position_ids = token_positions(counted, past=past, like=hidden_states)
        position_ids = position_ids.expand(len(hidden_states), -1)
        rotation = self.rotary_emb(position_ids, past_key_values, past=past)
        if self.training:
            hidden_states = nn.functional.dropout(hidden_states, self.config.embedding_dropout)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=rotation,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )
