"""config.json and quantize_config.json of a result, as every reader of GPTQ files accepts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from model_store.errors import UsageError
from quantization.module_rules import as_regex, parse_rules
from quantization.options import GptqConfig
from quantization.source import Source, SourceSnapshot
from qwen_vl.config_map import to_original_config

# what AutoGPTQ of 2023 takes; another key makes it fail
_KEYS_2023 = (
    "bits", "group_size", "damp_percent", "desc_act", "static_groups", "sym", "true_sequential",
)  # fmt: skip


def check_layout(source: Source, config: GptqConfig) -> None:
    """Look whether the source can be written in the layout that is asked for.

    Raises:
        UsageError: it was not read from the original layout.
    """
    if config.layout == "native":
        return
    if not isinstance(source, SourceSnapshot) or not source.original_layout:
        raise UsageError(
            "--layout original needs a Qwen-VL snapshot in the layout of 2023",
            hint="Quantize the folder that the native one was converted from.",
        )
    if config.modules or config.include or config.exclude or config.format != "gptq":
        raise UsageError(
            "--layout original is version 1 with one width for all linears of the decoder",
            hint="Leave out --modules, --include, --exclude and --format.",
        )


def result_files(
    source: Source, model: nn.Module, layers: Sequence[str], config: GptqConfig, tool: str
) -> dict[str, Any]:
    """The JSON files that are written anew: name -> value or bytes."""
    told = quantization_config(config, model, layers, tool)
    if config.layout == "native":
        described = {**source.config, "quantization_config": told}
        return {**source.made_files(), "config.json": described, "quantize_config.json": told}
    plain = {key: told[key] for key in _KEYS_2023}
    plain |= {"model_name_or_path": None, "model_file_base_name": "model"}
    native = {**source.config, "quantization_config": {**plain, "quant_method": "gptq"}}
    return {"config.json": to_original_config(native), "quantize_config.json": plain}


def quantization_config(
    config: GptqConfig, model: nn.Module, layers: Sequence[str], tool: str
) -> dict[str, Any]:
    """The `quantization_config` of config.json, as AutoGPTQ and its heirs read it.

    `desc_act` is false for a static order too: the files hold groups of neighbours, and readers
    need not permute anything.
    """
    blocks = [name for name in layers if any(part.isdigit() for part in name.split("."))]
    inside_layers = list(dict.fromkeys(_inside_layer(name) for name in blocks))
    return {
        "quant_method": "gptq",
        "checkpoint_format": config.format,
        "format": config.format,
        "bits": config.bits,
        "group_size": config.group_size,
        "sym": True,
        "desc_act": config.act_order == "dynamic",
        "static_groups": config.act_order == "static",
        "true_sequential": True,
        "damp_percent": config.damping,
        "lm_head": "lm_head" in layers,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [[name] for name in inside_layers],
        "dynamic": _dynamic(config, model, layers),
        "meta": {
            "quantizer": tool,
            "method": config.method,
            "act_order": config.act_order,
            "scale_search": config.scale_search,
            "sweeps": config.sweeps,
            "signed_scales": config.signed_scales,
        },
    }


def _dynamic(config: GptqConfig, model: nn.Module, layers: Sequence[str]) -> dict[str, Any]:
    """What is not quantized, or otherwise, by regular expression; the first that fits counts."""
    # engines match the block's names in vision towers too, unless told otherwise
    told: dict[str, Any] = {f"-:.*{part}.*": {} for part in _other_parts(model, layers)}
    told |= {f"-:{as_regex(pattern)}": {} for pattern in config.exclude}
    for rule in parse_rules(config.modules):
        own = {"bits": rule.bits, "group_size": rule.group_size}
        told[f"+:{as_regex(rule.pattern)}"] = {k: v for k, v in own.items() if v is not None}
    return told


def _inside_layer(name: str) -> str:
    parts = name.split(".")
    index = next(n for n in reversed(range(len(parts))) if parts[n].isdigit())
    return ".".join(parts[index + 1 :])


def _other_parts(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The model's parts (`vision_tower`, …) that have linears, none of them quantized."""
    quantized = set(layers)
    touched = {name.split(".")[1] for name in quantized if "." in name}
    found = {
        name.split(".")[1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.count(".") >= 1
    }
    return sorted(found - touched)
