"""`from_pretrained` for folders of either layout, with the flags of 2023."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen_vl.errors import InputError, KernelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from qwen_vl.modeling import QwenVLForConditionalGeneration

_FLAGS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# of no consequence when the weights are read from a folder by ourselves
_IGNORED = frozenset(
    {
        "config", "trust_remote_code", "adapter_kwargs", "revision", "cache_dir", "token",
        "force_download", "local_files_only", "proxies", "use_safetensors", "weights_only",
        "low_cpu_mem_usage", "use_flash_attn", "use_cache_quantization", "use_cache_kernel",
    }
)  # fmt: skip


class FolderLoading:
    """Mixed into every Qwen-VL model in front of PreTrainedModel."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as every transformers model, and from a folder of 2023 or an Int4 one as well.

        Args:
            folder: a folder, or a repo id in the native layout.
            args: passed on.
            kwargs: passed on; besides `bf16`, `fp16`, `fp32` choose the dtype, `compat` and
                `kernels` are those of `load_model`, and `trust_remote_code` changes nothing: no
                code of the folder runs.

        Raises:
            InputError: two dtypes, or an option that a folder of 2023 cannot be loaded with.
            ModelError: see `load_model`.
        """
        chosen = [dtype for flag, dtype in _FLAGS.items() if kwargs.pop(flag, None) is True]
        for key in ("torch_dtype", "dtype"):
            given = kwargs.pop(key, None)
            chosen += [] if given in (None, "auto") else [given]
        if len(chosen) > 1:
            raise InputError("one dtype, please: bf16, fp16, fp32 and dtype exclude each other")
        compat = kwargs.pop("compat", "default")
        if _is_ours_to_read(Path(folder)):
            return _load(cls, Path(folder), chosen[0] if chosen else None, compat, kwargs)
        if chosen:
            kwargs["dtype"] = chosen[0]
        model = super().from_pretrained(folder, *args, **kwargs)  # type: ignore[misc]  # PreTrainedModel's
        loaded = model[0] if isinstance(model, tuple) else model
        if compat != "default":
            loaded.compat = compat
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as every transformers model.

        Raises:
            KernelError: Int4 layers whose integers a kernel has put into its own order.
        """
        from qwen_vl.int4_kernels import uses_kernels

        if uses_kernels(self):  # type: ignore[arg-type]  # the class that mixes this in is a Module
            raise KernelError("a model that runs on integer kernels cannot be saved")
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]  # PreTrainedModel's


def _is_ours_to_read(folder: Path) -> bool:
    """Whether transformers cannot: the layout of 2023, or integers."""
    if not (folder / "config.json").is_file():
        return False
    config = json.loads((folder / "config.json").read_bytes())
    return (
        config.get("model_type") == "qwen"
        or "quantization_config" in config
        or (folder / "quantize_config.json").is_file()
    )


def _load(cls: type, folder: Path, dtype: Any, compat: str, options: dict[str, Any]) -> Any:
    from qwen_vl.loading import load_model
    from qwen_vl.placement import Placement

    attention = options.pop("attn_implementation", None)
    kernels = options.pop("kernels", "auto")
    placement = Placement(
        options.pop("device_map", None),
        options.pop("max_memory", None),
        _path(options.pop("offload_folder", None)),
        bool(options.pop("offload_buffers", False)),
    )
    unknown = sorted(key for key in options if key not in _IGNORED and not key.startswith("_"))
    if unknown:
        raise InputError(
            f"a folder of 2023 cannot be loaded with {', '.join(unknown)}",
            hint="Convert it first: python -m conversion.to_transformers.",
        )
    model = load_model(folder, dtype=dtype, compat=compat, kernels=kernels, placement=placement)
    if attention is not None:
        model.set_attn_implementation(attention)
    return _part(cls, model)


def _part(cls: type, model: QwenVLForConditionalGeneration) -> Any:
    for part in (model, model.model, model.model.language_model, model.model.vision_tower):
        if isinstance(part, cls):
            return part
    raise UnsupportedArchitectureError(f"a Qwen-VL folder holds no {cls.__name__}")


def _path(folder: Any) -> Path | None:
    return None if folder is None else Path(folder)
