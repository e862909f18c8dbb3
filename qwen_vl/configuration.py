"""The native Qwen-VL configuration, in the conventions of transformers 5."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig


class QwenVLTextConfig(PreTrainedConfig):
    """The decoder: Qwen2's shape, with stepwise dynamic NTK and log-n attention beside it."""

    model_type: ClassVar[str] = "qwen_vl_text"
    base_config_key: ClassVar[str] = "text_config"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 11008  # the MLP's width: half of the 2023 key of this name
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    seq_length: int = 2048  # the training length: NTK and log-n begin behind it
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    attention_bias: bool = True  # of q, k and v
    attention_out_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def rotary_dim(self) -> int:
        """Leading channels of a head that are rotated."""
        factor = (self.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        return int(self.head_dim * factor)


class QwenVLVisionConfig(PreTrainedConfig):
    """The vision tower: a ViT without class token, its position table of a fixed 16 x 16 grid."""

    model_type: ClassVar[str] = "qwen_vl_vision"
    base_config_key: ClassVar[str] = "vision_config"

    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    num_position_embeddings: int = 256
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6  # never the decoder's epsilon
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


class QwenVLConfig(PreTrainedConfig):
    """Vision tower, projector (a resampler with `n_queries` rows per image) and decoder."""

    model_type: ClassVar[str] = "qwen_vl"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": QwenVLTextConfig,
        "vision_config": QwenVLVisionConfig,
    }

    text_config: Any = None  # a QwenVLTextConfig, made from a dict
    vision_config: Any = None  # a QwenVLVisionConfig, likewise
    n_queries: int = 256
    output_dim: int = 4096
    projector_num_attention_heads: int = 32
    projector_layer_norm_eps: float = 1e-6
    image_start_token_id: int = 151857
    image_end_token_id: int = 151858
    image_token_id: int = 151859
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    original_config: dict[str, Any] | None = None  # the 2023 config.json, for the way back

    @property
    def image_seq_length(self) -> int:
        """Rows that one image takes between its start and end token."""
        return self.n_queries
