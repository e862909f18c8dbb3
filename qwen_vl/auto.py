"""Importing this module makes transformers' Auto classes know the native Qwen-VL."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from qwen_vl.configuration import QwenVLConfig, QwenVLTextConfig, QwenVLVisionConfig
from qwen_vl.fast_tokenizer import QwenVLTokenizerFast
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.language import QwenVLTextModel
from qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from qwen_vl.original_folders import QWenConfig, QWenTokenizer, answer_for_image_processor
from qwen_vl.processing import QwenVLProcessor
from qwen_vl.tokenization import QwenVLTokenizer
from qwen_vl.vision import QwenVLVisionModel

for _config, _model in (
    (QwenVLConfig, QwenVLModel),
    (QwenVLTextConfig, QwenVLTextModel),
    (QwenVLVisionConfig, QwenVLVisionModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(QwenVLConfig, QwenVLForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    QwenVLConfig, image_processor_classes={"pil": QwenVLImageProcessor}, exist_ok=True
)
# Not under QwenVLConfig: a tokenizer found by config gives way to remote code when a caller of 2023
# says trust_remote_code=True, one found by its name does not.
for _key, _tokenizer in (
    (QwenVLTextConfig, QwenVLTokenizer),
    (QwenVLVisionConfig, QwenVLTokenizerFast),
    (QWenConfig, QWenTokenizer),
):
    AutoTokenizer.register(_key, tokenizer_class=_tokenizer, exist_ok=True)
AutoConfig.register(QWenConfig.model_type, QWenConfig, exist_ok=True)
AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
answer_for_image_processor()
