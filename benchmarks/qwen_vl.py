"""Measure the native Qwen-VL: first token and decoding, on a mid-size model with seeded weights.

Examples:
    python benchmarks/qwen_vl.py
    python benchmarks/qwen_vl.py --runs 5 --write

Against the algorithm of 2023 on the same weights (qwen_vl_2023.py), and against a stock Qwen2 of
the same size as the floor, which sees no images. One image, 258 ids. The contenders take turns;
ratios are of runs that stand next to each other, of wall and of CPU seconds: on a busy machine
believe the latter. Peak memory is of a process of its own. `--compiled` adds our decode step under
torch.compile with a static cache, which takes a C++ compiler and a minute. Full size on a GPU:
qwen_vl_gpu.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "qwen_vl.json"
HIDDEN, LAYERS, HEADS, MLP, VOCAB = 512, 4, 4, 1408, 16000
WIDTH, BLOCKS = 256, 3
STEPS = 24
COMPILED = "ours, compiled"
CONTENDERS = ("ours", "algorithm of 2023", "stock Qwen2")
_START = 15000


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, print the table and perhaps keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--peak", choices=CONTENDERS, help="(internal)")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.peak:
        _turns({args.peak: _contenders()[args.peak]}, batch=8, runs=1)
        print(_highest_rss_mb())
        return 0
    contenders = _contenders()
    if not args.compiled:
        del contenders[COMPILED]
    difference = _check(contenders)
    rows = []
    for batch in (1, 8):
        rows += _turns(contenders, batch=batch, runs=args.runs)
    peaks = {name: _peak(name, args.threads) for name in CONTENDERS}
    report = {
        "model": {"hidden": HIDDEN, "layers": LAYERS, "vision": [WIDTH, BLOCKS], "dtype": "F32"},
        "largest_difference_of_logits": difference,
        "runs": args.runs,
        "rows": rows,
        "peak_rss_mb_at_batch_8": peaks,
        "machine": _machine(args.threads),
    }
    _print(report)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _contenders() -> dict[str, Callable[[int], dict[str, tuple[float, float]]]]:
    import torch

    from benchmarks import qwen_vl_2023 as old

    ours, floor = _ours(), _floor()

    def inputs(batch: int) -> tuple[Any, Any]:
        ids = torch.full((batch, 258), 5)
        ids[:, 0], ids[:, -1] = _START, _START + 1
        return ids, torch.rand(batch, 3, 448, 448, generator=torch.Generator().manual_seed(1))

    def run_ours(batch: int) -> dict[str, tuple[float, float]]:
        from transformers import DynamicCache

        ids, pixels = inputs(batch)
        cache = DynamicCache(config=ours.config.text_config)
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        first = _timed(lambda: ours(ids, pixels, **options).logits)
        return {"first token": first, "decode": _decode(lambda t: ours(t, **options).logits, batch)}

    def run_old(batch: int) -> dict[str, tuple[float, float]]:
        ids, pixels = inputs(batch)
        kept: list[Any] = [None]

        def step(tokens: Any, images: Any = None) -> Any:
            logits, kept[0] = old.forward(ours, tokens, images, kept[0])
            return logits

        first = _timed(lambda: step(ids, pixels))
        decode = _decode(step, batch)
        longer = torch.cat([ids, ids[:, 1:2]], dim=1)
        uncached = _timed(lambda: old.forward(ours, longer, pixels, None))
        return {"first token": first, "decode": decode, "decode without cache": uncached}

    def run_floor(batch: int) -> dict[str, tuple[float, float]]:
        from transformers import DynamicCache

        ids, _ = inputs(batch)
        options = {
            "past_key_values": DynamicCache(config=floor.config),
            "use_cache": True,
            "logits_to_keep": 1,
        }
        first = _timed(lambda: floor(ids, **options).logits)
        return {
            "first token": first,
            "decode": _decode(lambda t: floor(t, **options).logits, batch),
        }

    def run_compiled(batch: int) -> dict[str, tuple[float, float]]:
        from transformers import StaticCache

        ids, pixels = inputs(batch)
        length = ids.shape[1] + STEPS
        cache = StaticCache(config=ours.config.text_config, max_cache_len=length)
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        first = _timed(lambda: ours(ids, pixels, **options).logits)
        places = iter(range(ids.shape[1], length))

        def step(tokens: Any) -> Any:
            where = torch.full((batch, 1), next(places))
            return compiled(input_ids=tokens, position_ids=where, **options).logits

        return {"first token": first, "decode": _decode(step, batch)}

    compiled = torch.compile(ours.forward, fullgraph=True, dynamic=False)
    runs = {
        "ours": run_ours,
        COMPILED: run_compiled,
        "algorithm of 2023": run_old,
        "stock Qwen2": run_floor,
    }
    _MODELS.update(ours=ours, inputs=inputs, old=old)
    return runs


_MODELS: dict[str, Any] = {}


def _ours() -> Any:
    from qwen_vl.configuration import QwenVLConfig, QwenVLTextConfig, QwenVLVisionConfig
    from qwen_vl.modeling import QwenVLForConditionalGeneration

    text = QwenVLTextConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HIDDEN // HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    vision = QwenVLVisionConfig(
        hidden_size=WIDTH, intermediate_size=5 * WIDTH, num_hidden_layers=BLOCKS,
        num_attention_heads=4,
    )  # fmt: skip
    config = QwenVLConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), output_dim=HIDDEN,
        projector_num_attention_heads=HEADS, image_start_token_id=_START,
        image_end_token_id=_START + 1, image_token_id=_START + 2,
    )  # fmt: skip
    return QwenVLForConditionalGeneration(config).eval()


def _floor() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _decode(step: Callable[[Any], Any], batch: int) -> tuple[float, float]:
    """Wall and CPU seconds of one greedy step."""
    import torch

    def steps() -> None:
        tokens = torch.full((batch, 1), 7)
        for _ in range(STEPS):
            tokens = step(tokens)[:, -1].argmax(-1, keepdim=True)

    wall, cpu = _timed(steps)
    return wall / STEPS, cpu / STEPS


def _check(contenders: Any) -> float:
    """How far the two algorithms are apart: they must compute the same."""
    import torch

    ids, pixels = _MODELS["inputs"](1)
    with torch.inference_mode():
        ours = _MODELS["ours"](ids, pixels).logits
        theirs, _ = _MODELS["old"].forward(_MODELS["ours"], ids, pixels, None)
    difference = float((ours - theirs).abs().max())
    if difference > 1e-3:
        raise SystemExit(f"the baseline computes something else: {difference}")
    return difference


def _turns(contenders: Any, *, batch: int, runs: int) -> list[dict[str, Any]]:
    if runs > 1:
        for work in contenders.values():
            work(batch)  # to warm up
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(runs):
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            for what, seconds in contenders[name](batch).items():
                measured.setdefault((name, what), []).append(seconds)
    rows = []
    for (name, what), pairs in measured.items():
        same = "decode" if what.startswith("decode") else what
        ours = measured.get(("ours", same), [])
        walls, cpus = (
            [one[place] / own[place] for one, own in zip(pairs, ours, strict=bool(ours))]
            for place in (0, 1)
        )
        rows.append(
            {
                "batch": batch,
                "what": what,
                "who": name,
                "wall_ms": _spread([1000 * wall for wall, _ in pairs]),
                "cpu_ms": _spread([1000 * cpu for _, cpu in pairs]),
                "times_ours": _spread(walls) if ours else None,
                "cpu_times_ours": _spread(cpus) if ours else None,
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def _peak(name: str, threads: int) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", name]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 1)


def _highest_rss_mb() -> float:
    # not ru_maxrss, which a child takes over from its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def _machine(threads: int) -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before_1_min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers")},
    }


def _print(report: dict[str, Any]) -> None:
    print("batch, what, who, median ms, median CPU ms; times ours (CPU): min / median / max")
    for row in report["rows"]:
        ratio, cpu = row["times_ours"], row["cpu_times_ours"]
        form = "{min} / {median} / {max}".format
        shown = f"{form(**ratio)} ({form(**cpu)})" if ratio else ""
        print(
            f"{row['batch']:>5} {row['what']:22} {row['who']:18} "
            f"{row['wall_ms']['median']:>10.1f} {row['cpu_ms']['median']:>9.1f}  {shown}"
        )
    print("peak RSS at batch 8, MB:", report["peak_rss_mb_at_batch_8"])


if __name__ == "__main__":
    sys.exit(main())
