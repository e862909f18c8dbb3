"""Measure the full-size Qwen-VL on a GPU: random weights, bf16 and Int4, against the memory limit.

Examples:
    python benchmarks/qwen_vl_gpu.py --write
    python benchmarks/qwen_vl_gpu.py --dtypes int4 --runs 5
    python benchmarks/qwen_vl_gpu.py --device cpu --tiny

Every token reads the decoder, the head and the cache once, so memory bandwidth bounds tokens per
second; the share of that limit is what an engine can be judged by. Without a GPU the answer is
"not measured". `--device cpu --tiny` only shows that the script runs; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "qwen_vl_gpu.json"
# bytes per second, from the makers' data sheets
BANDWIDTH = {"H100 PCIe": 2.0e12, "H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12}
KINDS = ("bf16", "int4")
NOT_MEASURED = {"status": "not measured", "reason": "no GPU at hand"}


@dataclass(frozen=True)
class Size:
    """A shape of the model, and how long its texts get."""

    hidden: int = 4096
    layers: int = 32
    heads: int = 32
    mlp: int = 11008
    vocab: int = 151936
    vision: int = 1664
    blocks: int = 48
    vision_mlp: int = 8192
    vision_heads: int = 16
    queries: int = 256
    image: int = 448
    context: int = 2048
    steps: int = 128


TINY = Size(64, 2, 2, 128, 512, 32, 1, 64, 2, 16, 56, 64, 8)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and perhaps keep what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--kernels", default="auto", help="of Int4 layers, as in load_model")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tiny", action="store_true", help="a toy, to see that this runs")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        report: dict[str, Any] = dict(NOT_MEASURED)
        print("GPU: not measured: there is none here")
    else:
        report = _measured(args)
    if args.write:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    size = TINY if args.tiny else Size()
    ways = ["dynamic cache"] + ([] if args.no_compile else ["static cache, compiled"])
    rows: list[dict[str, Any]] = []
    for kind in args.dtypes:
        model = _model(kind, size, args.device, args.kernels)
        for batch in args.batches:
            for way in ways:
                _reset_peak(args.device)
                row = {
                    "kind": kind,
                    "batch": batch,
                    "way": way,
                    **_run(model, size, way, batch, args),
                }
                rows.append(row)
                print(json.dumps(row))
        del model
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return {
        "status": "measured",
        "rows": rows,
        "machine": {
            "device": _device_name(args.device),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "transformers")},
        },
    }


def _model(kind: str, size: Size, device: str, kernels: str) -> Any:
    """A model with random weights, made on its device."""
    import torch

    from qwen_vl.int4 import QuantizedFormat, put_quantized
    from qwen_vl.int4_kernels import use_kernels
    from qwen_vl.modeling import QwenVLForConditionalGeneration

    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    torch.manual_seed(0)
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(_config(size))
        if kind == "int4":
            names = [
                name
                for name, part in model.named_modules()
                if ".layers." in name and "language_model" in name and type(part) is torch.nn.Linear
            ]
            group = 128 if size.hidden % 128 == 0 else 32
            put_quantized(model, dict.fromkeys(names, True), QuantizedFormat(4, group))
    for owner in model.modules():
        for name, tensor in list(owner._parameters.items()):
            if tensor is not None:
                owner._parameters[name] = torch.nn.Parameter(
                    _drawn(name, tensor, dtype, device), requires_grad=False
                )
        for name, tensor in list(owner._buffers.items()):
            if tensor is not None:
                owner._buffers[name] = _drawn(name, tensor, dtype, device)
    rotary = model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.frequencies(torch.device(device))
    model.config.text_config.dtype = model.config.dtype = dtype
    model.eval()
    use_kernels(model, kernels, dtype=dtype)
    return model


def _drawn(name: str, like: Any, dtype: Any, device: str) -> Any:
    import torch

    if name == "qweight":
        return torch.randint(-(2**31), 2**31, like.shape, dtype=torch.int32, device=device)
    if name == "qzeros":
        return torch.full(like.shape, 0x77777777, dtype=torch.int32, device=device)
    if name == "scales":
        return torch.full(like.shape, 0.002, dtype=torch.float16, device=device)
    if name == "g_idx":
        columns = torch.arange(len(like), dtype=torch.int32, device=device)
        return columns // (128 if len(like) % 128 == 0 else 32)
    made = torch.empty(like.shape, dtype=dtype, device=device)
    return made.normal_(std=0.02) if made.ndim > 1 else made.fill_(1 if name == "weight" else 0)


def _config(size: Size) -> Any:
    from qwen_vl.configuration import QwenVLConfig, QwenVLTextConfig, QwenVLVisionConfig

    text = QwenVLTextConfig(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.mlp,
        num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=size.heads, head_dim=size.hidden // size.heads,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = QwenVLVisionConfig(
        hidden_size=size.vision, intermediate_size=size.vision_mlp, num_hidden_layers=size.blocks,
        num_attention_heads=size.vision_heads, image_size=size.image,
    )  # fmt: skip
    return QwenVLConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), n_queries=size.queries,
        output_dim=size.hidden, projector_num_attention_heads=size.heads,
        image_start_token_id=size.vocab - 3, image_end_token_id=size.vocab - 2,
        image_token_id=size.vocab - 1,
    )  # fmt: skip


def _run(model: Any, size: Size, way: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one way to run, and hold it against the limit of the memory."""
    import torch

    step = _step_of(model, way)
    # the first one compiles and warms up
    turns = [_turn(model, step, size, way, batch, args.device) for _ in range(args.runs + 1)][1:]
    firsts, decodes = [one[0] for one in turns], [one[1] for one in turns]
    rate = statistics.median(decodes)
    read = _bytes_per_step(model) + batch * _bytes_of_cache(model, size.context - size.steps // 2)
    found: dict[str, Any] = {
        "first_token_ms": round(1000 * statistics.median(firsts), 1),
        "tokens_per_s": round(rate, 2),
        "tokens_per_s_all": [round(one, 2) for one in decodes],
        "bytes_per_step": read,
        "layers": type(model.model.language_model.layers[0].mlp.up_proj).__name__,
    }
    bandwidth = next((b for n, b in BANDWIDTH.items() if n in _device_name(args.device)), None)
    if bandwidth:
        limit = batch * bandwidth / read
        found |= {"limit_tokens_per_s": round(limit, 1), "share_of_limit": round(rate / limit, 3)}
    if args.device.startswith("cuda"):
        found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def _turn(
    model: Any, step: Any, size: Size, way: str, batch: int, device: str
) -> tuple[float, float]:
    """Seconds to the first token with an image per row, and tokens/s at the context's end."""
    import torch

    ids, pixels = _prompt(size, batch, device)
    cache, start = _cache(model, size, way), size.context - size.steps
    with torch.inference_mode():
        first = _timed(
            lambda: model(ids, pixels, past_key_values=cache, use_cache=True, logits_to_keep=1),
            device,
        )
        _fill(model, cache, size, batch, device)
        seconds = _timed(lambda: _decode(step, cache, start, size, batch), device)
    return first, batch * size.steps / seconds


def _prompt(size: Size, batch: int, device: str) -> tuple[Any, Any]:
    import torch

    ids = torch.full((batch, size.queries + 2), 5, device=device)
    ids[:, 0], ids[:, -1] = size.vocab - 3, size.vocab - 2
    return ids, torch.rand(batch, 3, size.image, size.image, device=device)


def _cache(model: Any, size: Size, way: str) -> Any:
    from transformers import DynamicCache, StaticCache

    config = model.config.text_config
    if way == "dynamic cache":
        return DynamicCache(config=config)
    return StaticCache(config=config, max_cache_len=size.context)


def _fill(model: Any, cache: Any, size: Size, batch: int, device: str) -> None:
    """Bring the cache to where decoding is measured."""
    import torch

    missing = size.context - size.steps - (size.queries + 2)
    if missing > 0:
        text = torch.full((batch, missing), 7, device=device)
        model(text, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _step_of(model: Any, way: str) -> Callable[..., Any]:
    import torch

    if way == "dynamic cache":
        return model
    compiled: Callable[..., Any] = torch.compile(model.forward, mode="reduce-overhead")
    return compiled


def _decode(step: Callable[..., Any], cache: Any, start: int, size: Size, batch: int) -> None:
    import torch

    device = cache.layers[0].keys.device
    token = torch.full((batch, 1), 7, device=device)
    for position in range(start, start + size.steps):
        where = torch.full((batch, 1), position, device=device)
        logits = step(
            input_ids=token, position_ids=where, past_key_values=cache, use_cache=True
        ).logits
        token = logits[:, -1].argmax(-1, keepdim=True).clone()


def _timed(work: Callable[[], Any], device: str) -> float:
    import torch

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _bytes_per_step(model: Any) -> int:
    """What one step reads of weights: the decoder and the head, not the embeddings."""
    parts = [*model.model.language_model.layers, model.model.language_model.norm, model.lm_head]
    return sum(tensor.nbytes for part in parts for tensor in _tensors(part))


def _tensors(part: Any) -> Iterator[Any]:
    yield from part.parameters()
    yield from part.buffers()


def _bytes_of_cache(model: Any, positions: int) -> int:
    config = model.config.text_config
    width = config.num_key_value_heads * config.head_dim
    return int(2 * config.num_hidden_layers * width * 2 * positions)


def _reset_peak(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else device


if __name__ == "__main__":
    sys.exit(main())
