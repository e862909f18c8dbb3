"""The vision tower: patches, a fixed position table stretched to the grid, pre-norm blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from qwen_vl.attention import eager_attention
from qwen_vl.configuration import QwenVLVisionConfig
from qwen_vl.errors import ImageShapeError


def stretch_positions(table: Tensor, count: int) -> Tensor:
    """Resize a square position table (rows, width) to `count` rows: bicubic, in float32.

    Raises:
        ImageShapeError: one of the two grids is not square.
    """
    if len(table) == count:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(count)
    if old * old != len(table) or new * new != count:
        raise ImageShapeError(f"{len(table)} positions cannot be stretched to {count}: not square")
    grid = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(count, -1).to(table.dtype)


class QwenVLVisionAttention(nn.Module):
    """Full self-attention over patches."""

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.out_proj(mixed.reshape(*shape, -1).contiguous()), weights


class QwenVLVisionMLP(nn.Module):
    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return out


class QwenVLVisionLayer(GradientCheckpointingLayer):
    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = QwenVLVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = QwenVLVisionMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + mixed
        out: Tensor = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return out


class QwenVLVisionModel(PreTrainedModel):
    """Pixels (images, 3, S, S) to patch features (images, patches, width); no norm after."""

    config: QwenVLVisionConfig
    config_class = QwenVLVisionConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QwenVLVisionLayer"]  # noqa: RUF012  # the base class's protocol
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012  # the base class's protocol
        "hidden_states": QwenVLVisionLayer,
        "attentions": QwenVLVisionAttention,
    }

    def __init__(self, config: QwenVLVisionConfig) -> None:
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=False,
        )
        table = torch.empty(config.num_position_embeddings, config.hidden_size)
        self.position_embedding = nn.Parameter(table)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            [QwenVLVisionLayer(config) for _ in range(config.num_hidden_layers)]
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, QwenVLVisionModel):
            init.normal_(module.position_embedding, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embedding

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encode images.

        Raises:
            ImageShapeError: images are not square, or not a whole number of patches.
        """
        height, width = pixel_values.shape[-2:]
        if height != width or height % self.config.patch_size:
            raise ImageShapeError(f"pixel_values of {height} x {width} do not make a square grid")
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        positions = stretch_positions(self.position_embedding, patches.shape[1])
        hidden_states = patches + positions.to(patches.device)  # apart where a map splits the tower
        hidden_states = self.pre_layernorm(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)
