"""Load model, tokenizer and processor from a folder, whichever of the two layouts it has.

Weights come through the checkpoint reader, so no pickle runs, and through the weight map, so that
every parameter is filled exactly once or the load fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from model_store.canonical import parse_json
from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.errors import StoreError
from model_store.tensors import RawTensor
from model_store.weight_rules import TensorInfo, moved, planned
from qwen_vl.config_map import (
    END_OF_TEXT_BEFORE_IMAGE,
    image_start_of,
    is_original_layout,
    ranks_before,
    to_native_config,
)
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.errors import ConfigError, RankFileError, UnknownDtypeError, WeightNamesError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.int4 import (
    QuantizedFormat,
    QuantizedLinear,
    is_packed,
    put_quantized,
    quantized_modules,
)
from qwen_vl.int4_kernels import use_kernels
from qwen_vl.list_format import Style
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.placement import Placement
from qwen_vl.processing import QwenVLProcessor
from qwen_vl.ranks import read_ranks
from qwen_vl.tokenization import QwenVLTokenizer
from qwen_vl.weight_map import native_plan

_MAX_JSON = 10_000_000
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """A folder's configuration in native terms."""

    native: dict[str, Any]
    original_layout: bool
    quantization: QuantizedFormat | None
    quantization_config: dict[str, Any] | None = None  # as written in the folder

    @classmethod
    def read(cls, folder: Path) -> FolderConfig:
        """Read config.json, and quantize_config.json where there is one; no weight is touched.

        Raises:
            UnsupportedArchitectureError: not Qwen-VL.
            ConfigError: no config.json, or one that contradicts itself.
            UnsupportedQuantizationError: quantized in a way that is not read.
        """
        config = _read_json(folder / "config.json")
        original = is_original_layout(config)
        native = (
            to_native_config(config, n_ranks=_count_ranks(folder, config)) if original else config
        )
        quantization = native.pop("quantization_config", None)
        if quantization is None and (folder / "quantize_config.json").is_file():
            quantization = _read_json(folder / "quantize_config.json")
        form = None if quantization is None else QuantizedFormat.from_config(quantization)
        if quantization is not None:  # the file of its own did not say which method
            quantization = {"quant_method": "gptq", **quantization}
        return cls(native, original, form, quantization)

    def build(self) -> QwenVLConfig:
        """Make the config object.

        Raises:
            ConfigError: a native config.json whose values transformers refuses.
        """
        try:
            return QwenVLConfig(**self.native)
        except (TypeError, ValueError, AttributeError) as error:
            line = str(error).splitlines()[0]
            raise ConfigError(f"config.json cannot be used: {line}") from error


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    compat: str = "default",
    kernels: str = "auto",
    placement: Placement | None = None,
) -> QwenVLForConditionalGeneration:
    """Load a Qwen-VL model in eval mode, from a folder of the 2023 or of the native layout.

    Args:
        folder: config.json, weights (safetensors or torch .bin) and usually the rank file.
        dtype: float32, bfloat16 or float16; None for the one config.json names. Int4 layers keep
            their integers and float16 scales, and compute in the dtype of their input.
        device: where the weights go, tensor by tensor.
        compat: "default" repairs the defects of 2023, "2023" reproduces those that change results.
        kernels: of Int4 layers: "reference" is exact and slow, "gptqmodel" takes that library's,
            "auto" takes them where they can be had and the dtype is a half precision.
        placement: instead of `device`, a map that spreads the model over devices and disk.

    Raises:
        ModelError: the folder or an argument; see qwen_vl.errors.
        CheckpointError: weights that cannot be read, or would run code.
    """
    folder = Path(folder)
    described = FolderConfig.read(folder)
    wanted = _dtype(dtype if dtype is not None else described.native.get("dtype") or "float32")
    config = described.build()
    config.dtype = config.text_config.dtype = config.vision_config.dtype = wanted
    with open_checkpoint(folder) as checkpoint, torch.device("meta"):
        source = _NativeTensors(checkpoint, described, config)
        model = QwenVLForConditionalGeneration(config)
        if described.quantization is not None:
            put_quantized(model, quantized_modules(source.infos), described.quantization)
        _check_names(model, source.infos)
        places = (placement or Placement(device)).resolve(model, wanted)
        with torch.device("cpu"):
            for name, tensor in source.tensors():
                _check_integers(model, name, tensor)
                _assign(model, name, places.put(name, _cast(name, tensor, wanted)))
    rotary = model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.frequencies(
        places.device_for_buffers("model.language_model.rotary_emb")
    )
    if described.quantization_config is not None:
        # for save_pretrained; set late, so that transformers looks for no kernels of its own
        config.quantization_config = described.quantization_config
    model.generation_config = _generation_config(folder, config)
    model.compat = compat
    model.eval()
    use_kernels(model, kernels, dtype=wanted)
    places.dispatch(model)
    return model


def load_tokenizer(folder: Path | str, *, style: Style = "r2") -> QwenVLTokenizer:
    """Load the tokenizer from a folder's rank file.

    Args:
        folder: with one `*.tiktoken` file; config.json says how many ids an image has.
        style: helper revision of 2023, "r1" or "r2".

    Raises:
        RankFileError: no rank file, several, or one that cannot be used.
    """
    folder = Path(folder)
    rank_file = find_rank_file(folder)
    if rank_file is None:
        raise RankFileError(
            f"{folder} has no *.tiktoken file", hint="Fetch qwen.tiktoken into the folder."
        )
    n_queries = 256
    if (folder / "config.json").is_file():
        n_queries = int(FolderConfig.read(folder).native.get("n_queries", n_queries))
    return QwenVLTokenizer(rank_file, style=style, n_image_tokens=n_queries)


def load_processor(folder: Path | str) -> QwenVLProcessor:
    """Load tokenizer and image processor as one.

    Raises:
        RankFileError: see `load_tokenizer`.
        ModelError: see `FolderConfig.read`.
    """
    folder = Path(folder)
    side = FolderConfig.read(folder).build().vision_config.image_size
    image_processor = QwenVLImageProcessor(size={"height": side, "width": side})
    return QwenVLProcessor(image_processor, load_tokenizer(folder))


def find_rank_file(folder: Path) -> Path | None:
    """Find a folder's tiktoken rank file; qwen.tiktoken wins.

    Raises:
        RankFileError: several, and none of that name.
    """
    found = sorted(folder.glob("*.tiktoken"))
    named = [file for file in found if file.name == "qwen.tiktoken"]
    if len(found) > 1 and not named:
        names = ", ".join(file.name for file in found)
        raise RankFileError(f"{folder} has several rank files: {names}", hint="Keep one of them.")
    return next(iter(named or found), None)


class _NativeTensors:
    """A checkpoint's tensors under their native names, whatever they are called in the files."""

    def __init__(
        self, checkpoint: Checkpoint, described: FolderConfig, config: QwenVLConfig
    ) -> None:
        found = {name: checkpoint.info(name) for name in checkpoint.names()}
        self._read = checkpoint.read
        self._plan = None
        self.infos: Mapping[str, TensorInfo] = found
        if described.original_layout:
            heads = config.vision_config.num_attention_heads
            self._plan = native_plan(found, vision_heads=heads)
            self.infos = planned(self._plan)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self._plan is not None:
            named = moved(self._plan, self._read)
        else:
            named = ((name, self._read(name)) for name in self.infos)
        for name, raw in named:
            yield name, to_torch(raw)


def to_torch(raw: RawTensor) -> Tensor:
    """Copy a raw tensor into torch's memory, bit for bit.

    Raises:
        WeightNamesError: a dtype that no weight of this model has.
    """
    dtype = _TORCH_DTYPES.get(raw.dtype)
    if dtype is None:
        raise WeightNamesError(f"the checkpoint holds {raw.dtype} tensors, which no weight is")
    data = np.frombuffer(raw.data, dtype=np.uint8).copy()
    return torch.from_numpy(data).view(dtype).reshape(raw.shape)


def _cast(name: str, tensor: Tensor, wanted: torch.dtype) -> Tensor:
    keep = is_packed(name) or not tensor.is_floating_point()
    return tensor if keep else tensor.to(wanted)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    old = getattr(module, leaf)
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    else:
        module.register_buffer(leaf, tensor)


def _check_integers(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    layer = model.get_submodule(module)
    if isinstance(layer, QuantizedLinear):
        layer.check_part(leaf, tensor, name=module)


def _check_names(model: nn.Module, infos: Mapping[str, TensorInfo]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for kind, names in (
        ("lacks", sorted(wanted.keys() - infos.keys())),
        ("has, and the model has not,", sorted(infos.keys() - wanted.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise WeightNamesError(f"the checkpoint {kind} {', '.join(names[:3])}{more}")
    for name, shape in wanted.items():
        if tuple(infos[name].shape) != shape:
            raise WeightNamesError(
                f"{name} is of shape {tuple(infos[name].shape)}, config.json makes it {shape}"
            )


def _generation_config(folder: Path, config: QwenVLConfig) -> GenerationConfig:
    path = folder / "generation_config.json"
    values = _read_json(path) if path.is_file() else {}
    end = config.image_start_token_id - END_OF_TEXT_BEFORE_IMAGE
    return GenerationConfig(**{"eos_token_id": end, "pad_token_id": end} | values)


def _count_ranks(folder: Path, config: Mapping[str, Any]) -> int:
    rank_file = find_rank_file(folder)
    if rank_file is not None:
        return len(read_ranks(rank_file))
    start = image_start_of(config)
    if start is None:
        raise ConfigError(
            "neither a rank file nor visual.image_start_id says which id <img> has",
            hint="Fetch qwen.tiktoken into the folder.",
        )
    return ranks_before(start)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UnknownDtypeError(f"the model does not run in {dtype}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as source:
            data = source.read(_MAX_JSON + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_JSON:
        raise ConfigError(f"{path} is too large for a configuration")
    try:
        value = parse_json(data, name=str(path))
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return value
