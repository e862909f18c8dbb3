"""COMMANDS: the subcommands of `ferry` and the modules that hold them, in the journey's order."""

from __future__ import annotations

COMMANDS = {
    "run": "pipeline.run",
    "download": "hub_tools.download",
    "verify": "hub_tools.verify",
    "adopt": "hub_tools.adopt",
    "to-transformers": "conversion.to_transformers",
    "to-original": "conversion.to_original",
    "to-safetensors": "conversion.to_safetensors",
    "reshard": "conversion.reshard",
    "cast": "conversion.cast",
    "text-only": "conversion.text_only",
    "dequantize": "conversion.dequantize",
    "merge-lora": "conversion.merge_lora",
    "convert-lora": "conversion.convert_lora",
    "rename": "conversion.rename",
    "inspect": "conversion.inspect",
    "diff": "conversion.diff",
    "verify-conversion": "conversion.verify",
    "chat": "qwen_vl.chat",
    "quantize": "quantization.gptq",
    "compare": "verification.compare",
    "bless": "verification.bless",
    "card": "model_cards.generate",
    "lint-card": "model_cards.lint",
    "publish": "hub_tools.publish",
    "serve": "hub_tools.serve",
}
