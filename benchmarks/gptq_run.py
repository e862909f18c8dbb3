"""One quantization by one tool, in the environment of that tool: the worker of gptq.py.

Writes `weights.safetensors` (every quantized linear, dequantized, float32) and `run.json` (seconds
of wall and CPU from the checkpoint on disk to the saved result, imports not counted, and the peak
resident memory of the process).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Weights = dict[str, torch.Tensor]
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tool, _, variant = args.contender.partition(":")
    prepare = {"gptqmodel": _gptqmodel, "llmcompressor": _llmcompressor, "ours": _ours}[tool]
    from safetensors.torch import load_file

    samples = load_file(args.model / "calibration.safetensors")["ids"]
    work, collect = prepare(args.model, args.out, samples, variant)
    wall, cpu = time.perf_counter(), _cpu()
    work()
    told: dict[str, Any] = {
        "contender": args.contender,
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(_cpu() - cpu, 2),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch": torch.__version__,
    }
    told |= {"load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d", time.gmtime())}
    from safetensors.torch import save_file

    save_file(collect(told), args.out / "weights.safetensors")
    (args.out / "run.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


Prepared = tuple[Callable[[], None], Callable[[dict[str, Any]], Weights]]


def _gptqmodel(model: Path, out: Path, samples: torch.Tensor, variant: str) -> Prepared:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    options: dict[str, Any] = {"bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    if variant == "best":
        options |= {"desc_act": True, "static_groups": True, "mse": 2.4}
    if variant == "gptaq":
        from gptqmodel.quantization.config import GPTAQConfig

        options["gptaq"] = GPTAQConfig()
    data = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in samples]

    def work() -> None:
        loaded = GPTQModel.load(str(model), QuantizeConfig(**options), dtype=torch.float32)
        loaded.quantize(data, batch_size=4)
        loaded.save(str(out / "saved"))

    return work, lambda told: _dequantized(out / "saved")


def _dequantized(folder: Path) -> Weights:
    """Dequantize a symmetric 4-bit `gptq` checkpoint, written out so that no reader is trusted."""
    from safetensors.torch import load_file

    held: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    shifts = torch.arange(0, 32, 4)
    found = {}
    for key in [key for key in held if key.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        codes = (held[key][:, None, :] >> shifts[None, :, None]) & 15
        codes = codes.reshape(-1, codes.shape[-1])
        group = held[f"{name}.g_idx"].long()
        scales = held[f"{name}.scales"].float()[group]
        found[f"{name}.weight"] = ((codes - 8) * scales).T.contiguous()
    return found


def _llmcompressor(model: Path, out: Path, samples: torch.Tensor, variant: str) -> Prepared:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM

    observer = "mse" if variant == "mse" else "minmax"
    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=128, observer=observer
    )
    recipe = GPTQModifier(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["lm_head"],
    )
    rows = samples.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    kept: dict[str, Any] = {}

    def work() -> None:
        kept["model"] = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        oneshot(model=kept["model"], dataset=data, recipe=recipe, max_seq_length=samples.shape[1],
                num_calibration_samples=len(samples))  # fmt: skip
        collected.update(_linears(kept["model"]))
        kept["model"].save_pretrained(out / "saved", save_compressed=True)

    collected: Weights = {}
    return work, lambda told: collected


def _linears(model: Any) -> Weights:
    return {
        f"{name}.weight": module.weight.detach().float().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }


def _ours(model: Path, out: Path, samples: torch.Tensor, variant: str) -> Prepared:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gptq_ours import prepare

    return prepare(model, out, samples, variant)


if __name__ == "__main__":
    sys.exit(main())
