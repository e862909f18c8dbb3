"""Qwen-VL for transformers 5: vision tower, projector and decoder behind one generation model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from qwen_vl.configuration import QwenVLConfig
from qwen_vl.conversing import ConversingModel
from qwen_vl.errors import ImageBlockError, InputError, UnknownCompatError
from qwen_vl.folder_loading import FolderLoading
from qwen_vl.image_blocks import BlockTokens, image_places
from qwen_vl.language import QwenVLTextModel
from qwen_vl.projector import QwenVLProjector, sincos_table
from qwen_vl.rotary import QwenVLRotaryEmbedding
from qwen_vl.vision import QwenVLVisionModel

COMPAT_MODES = ("default", "2023")


@dataclass
class QwenVLModelOutputWithPast(BaseModelOutputWithPast):
    """The decoder's output, and the image rows that went in."""

    image_hidden_states: Tensor | None = None


@dataclass
class QwenVLCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Logits, and the image rows that went in."""

    image_hidden_states: Tensor | None = None


class QwenVLPreTrainedModel(FolderLoading, PreTrainedModel):  # type: ignore[misc]  # from_pretrained
    """What the two outer classes share."""

    config: QwenVLConfig
    config_class = QwenVLConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012  # the base class's protocol
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012  # the base class's protocol
        "QwenVLDecoderLayer",
        "QwenVLVisionLayer",
        "QwenVLProjector",
    ]
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # the base class's protocol
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def device(self) -> torch.device:
        """Where inputs go: not where weights wait on disk, which is no device."""
        first: torch.device = super().device
        spread: dict[str, Any] = getattr(self, "hf_device_map", {})
        if first.type != "meta" or not spread:
            return first
        devices = [device for device in spread.values() if device not in ("cpu", "disk")]
        return torch.device(devices[0] if devices else "cpu")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, QwenVLProjector):
            count, width = module.position_embedding.shape
            init.normal_(module.query, std=self.config.initializer_range)
            init.copy_(module.position_embedding, sincos_table(count, width))
        elif isinstance(module, QwenVLRotaryEmbedding):
            init.copy_(module.inv_freq, module.frequencies())


class QwenVLModel(QwenVLPreTrainedModel):
    """Everything but the head: images are encoded and written over their places."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.vision_tower = QwenVLVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = QwenVLProjector(config)
        self.language_model = QwenVLTextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.language_model.embed_tokens
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images (images, 3, S, S); `pooler_output` is (images, n_queries, hidden)."""
        kwargs["return_dict"] = True
        seen = self.vision_tower(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=seen.last_hidden_state,
            pooler_output=self.multi_modal_projector(seen.last_hidden_state),
            hidden_states=seen.hidden_states,
            attentions=seen.attentions,
        )

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> QwenVLModelOutputWithPast:
        """Run images and text.

        Args:
            input_ids: (rows, n); every image is a block of start token, n_queries ids of any kind,
                end token.
            pixel_values: (images, 3, S, S), the images of these ids in reading order.
            attention_mask: (rows, cached + n), zero at padding.
            position_ids: see the decoder.
            past_key_values: see the decoder; images may come after a cached prefix.
            inputs_embeds: instead of `input_ids`; images are then already in it.
            kwargs: passed on to the decoder.

        Raises:
            ImageBlockError: blocks and images do not fit each other.
            InputError: pixel_values without ids that say where they belong.
        """
        rows: Tensor | None = None
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            inputs_embeds, rows = self._write_images(input_ids, inputs_embeds, pixel_values)
        elif pixel_values is not None or input_ids is not None:
            raise InputError("pass inputs_embeds alone: pixel_values need input_ids")
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return QwenVLModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=rows,
        )

    def get_placeholder_mask(
        self, input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor
    ) -> Tensor:
        """Say which positions images take: (rows, n, 1), to broadcast over `inputs_embeds`.

        Args:
            input_ids: (rows, n) with whole image blocks.
            inputs_embeds: (rows, n, hidden).
            image_features: (images, n_queries, hidden), for their number only.

        Raises:
            ImageBlockError: blocks and images do not fit each other.
        """
        where = image_places(input_ids, self._block_tokens, images=len(image_features))
        mask = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        mask[where] = True
        return mask[..., None]

    @property
    def _block_tokens(self) -> BlockTokens:
        config = self.config
        return BlockTokens(config.image_start_token_id, config.image_end_token_id, config.n_queries)

    def _write_images(
        self, input_ids: Tensor, embeddings: Tensor, pixel_values: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        tokens = self._block_tokens
        if pixel_values is None:
            _check_no_blocks(input_ids, tokens)
            return embeddings, None
        where = image_places(input_ids, tokens, images=len(pixel_values))
        rows = self.get_image_features(pixel_values, return_dict=True).pooler_output
        return embeddings.index_put(where, rows.to(embeddings)), rows


class QwenVLForConditionalGeneration(  # type: ignore[misc]  # from_pretrained
    ConversingModel, QwenVLPreTrainedModel, GenerationMixin
):
    """Qwen-VL with its language head."""

    _tied_weights_keys = {  # noqa: RUF012  # the base class's protocol
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012  # the base class's protocol

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = QwenVLModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @property
    def compat(self) -> str:
        """How positions and NTK are counted: "default", or "2023" with the original's defects."""
        mode: str = self.model.language_model.rotary_emb.compat
        return mode

    @compat.setter
    def compat(self, mode: str) -> None:
        if mode not in COMPAT_MODES:
            raise UnknownCompatError(mode, known=COMPAT_MODES)
        rotary = self.model.language_model.rotary_emb
        rotary.compat, rotary.leftover_step = mode, 0

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images (images, 3, S, S); `pooler_output` is (images, n_queries, hidden)."""
        seen: BaseModelOutputWithPooling = self.model.get_image_features(pixel_values, **kwargs)
        return seen

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> QwenVLCausalLMOutputWithPast:
        """Run the model and its head; the arguments are those of `QwenVLModel.forward`.

        `labels` (rows, n), -100 where there is no loss, give the `loss`, shifted by one position.
        `logits_to_keep` asks for logits of the last so many positions (0: all), or of given ones.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            vocab = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **kwargs)
        return QwenVLCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _check_no_blocks(input_ids: Tensor, tokens: BlockTokens) -> None:
    # a whole block cannot hide in fewer ids, so decode steps pay nothing
    if input_ids.shape[1] < tokens.rows + 2 or torch.compiler.is_compiling():
        return
    span = tokens.rows + 1
    blocks = int(
        ((input_ids[:, :-span] == tokens.start) & (input_ids[:, span:] == tokens.end)).sum()
    )
    if blocks:
        raise ImageBlockError(
            f"the ids hold {blocks} image blocks, and there are no pixel_values",
            hint="Pass pixel_values: the processor makes them from pictures.",
        )
