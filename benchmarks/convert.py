"""Measure conversions against `cp` and against what others use, on one sharded .bin checkpoint.

Examples:
    python benchmarks/convert.py --size 400MB --runs 1
    python benchmarks/convert.py --size 4GB --write

Every runner is a process of its own: wall and CPU seconds (children included), peak resident and
peak anonymous memory, sampled from /proc. The peers run in the interpreter that runs this script
and need its torch, safetensors and transformers. Warm means that the source is in the page cache,
cold that it was dropped (POSIX_FADV_DONTNEED). "quiet" is the least of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "convert.json"
_LAYER_BYTES = 2 * (4 * 2304 * 2304 + 3 * 2304 * 6912)
_UNITS = {"MB": 10**6, "GB": 10**9}
_HEADS = 24  # every dim 0 here divides by 3 * 24


@dataclass(frozen=True, slots=True)
class Run:
    """One process, measured from outside."""

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    peak_anon_mb: float
    load: float  # the machine's, just before


@dataclass(frozen=True, slots=True)
class Row:
    """A runner's measurements in one cache state."""

    work: str
    cache: str
    quiet_wall_s: float
    median_wall_s: float
    median_cpu_s: float
    least_cpu_s: float
    peak_rss_mb: float
    peak_anon_mb: float
    load: tuple[float, float]
    runs: int


def main(argv: Sequence[str] | None = None) -> int:
    """Make the source, run every runner, print and perhaps keep the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="4GB", help="bytes of weights (default: 4GB)")
    parser.add_argument("--runs", type=int, default=3, help="warm runs of each (default: 3)")
    parser.add_argument("--only", nargs="*", help="names of runners")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "convert")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="(internal)")
    args = parser.parse_args(argv)
    if args.run:
        sys.path.insert(0, str(ROOT))
        RUNNERS[args.run[0]](Path(args.run[1]), Path(args.run[2]))
        return 0
    source = args.work / f"source-{args.size}"
    if not source.is_dir():
        building = source.with_name(source.name + ".partial")
        shutil.rmtree(building, ignore_errors=True)
        _self("make_source", Path(args.size), building)
        building.rename(source)
    names = args.only or [name for name in RUNNERS if name != "make_source"]
    rows = [row for name in names for row in _measured(name, source, args.work, args.runs)]
    _print(rows)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(_report(args, rows), indent=1) + "\n", encoding="utf-8")
    return 0


def _measured(name: str, source: Path, work: Path, runs: int) -> list[Row]:
    warm: list[Run] = []
    cold: list[Run] = []
    for number in range(runs + 1):
        _cache(source, warm=number < runs)
        run = _watched(name, source, work / "target")
        (warm if number < runs else cold).append(run)
    return [_row(name, "warm", warm), _row(name, "cold", cold)]


def _row(name: str, cache: str, runs: list[Run]) -> Row:
    return Row(
        work=name,
        cache=cache,
        quiet_wall_s=round(min(run.wall_s for run in runs), 2),
        median_wall_s=round(statistics.median(run.wall_s for run in runs), 2),
        median_cpu_s=round(statistics.median(run.cpu_s for run in runs), 2),
        least_cpu_s=round(min(run.cpu_s for run in runs), 2),
        peak_rss_mb=round(max(run.peak_rss_mb for run in runs)),
        peak_anon_mb=round(max(run.peak_anon_mb for run in runs)),
        load=(min(run.load for run in runs), max(run.load for run in runs)),
        runs=len(runs),
    )


def _cache(source: Path, *, warm: bool) -> None:
    os.sync()
    for path in source.iterdir():
        with path.open("rb", buffering=0) as file:
            if warm:
                while file.read(1 << 22):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _watched(name: str, source: Path, target: Path) -> Run:
    shutil.rmtree(target, ignore_errors=True)
    load = round(os.getloadavg()[0], 1)
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(_command(name, source, target), cwd=ROOT)
    rss = anon = 0.0
    while process.poll() is None:
        now = [_memory(pid) for pid in _family(process.pid)]
        rss, anon = max([rss, *(n[0] for n in now)]), max([anon, *(n[1] for n in now)])
        time.sleep(0.02)
    wall, after = time.perf_counter() - started, os.times()
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    shutil.rmtree(target, ignore_errors=True)
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Run(wall, cpu, rss, anon, load)


def _command(name: str, source: Path, target: Path) -> list[str]:
    if name == "cp":
        return ["cp", "-r", str(source), str(target)]
    return [sys.executable, str(Path(__file__)), "--run", name, str(source), str(target)]


def _self(name: str, source: Path, target: Path) -> None:
    subprocess.run(_command(name, source, target), check=True, cwd=ROOT)


def _family(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(int(child) for child in text.split())]


def _memory(pid: int) -> tuple[float, float]:
    """Peak resident and present anonymous memory, in MB (1e6)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return int(found.get("VmHWM", 0)) * 1.024e-3, int(found.get("RssAnon", 0)) * 1.024e-3


# --- what is run; each in its own process, and imports what it needs


def cp(source: Path, target: Path) -> None:
    """`cp -r`: the measure of everything."""


def cp_and_sha256(source: Path, target: Path) -> None:
    """`cp -r`, then the sha256 of every copy by hashlib."""
    import hashlib

    subprocess.run(["cp", "-r", str(source), str(target)], check=True)  # noqa: S607
    for path in target.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()


def to_safetensors(source: Path, target: Path) -> None:
    """Ours: the source verified, digests of every tensor and file of the result."""
    _convert(source, target, verify=True)


def to_safetensors_no_verify(source: Path, target: Path) -> None:
    """Ours with --no-verify: digests of every tensor and file of the result."""
    _convert(source, target, verify=False)


def reshard(source: Path, target: Path) -> None:
    """Ours into shards a quarter of the size, with --no-verify."""
    _convert(source, target, verify=False, size="250MB")


def _convert(source: Path, target: Path, *, verify: bool, size: str = "1GB") -> None:
    from conversion.options import ToSafetensorsOptions
    from conversion.steps import to_safetensors as step

    step(source, target, ToSafetensorsOptions(str(source), max_shard_size=size, verify=verify))


def ours_without_digests(source: Path, target: Path) -> None:
    """Our reader, and its bytes written one after the other: what the digests are added to."""
    from model_store.mapped_file import file_range

    from model_store.checkpoint import open_checkpoint

    target.mkdir()
    buffer = memoryview(bytearray(1 << 20))
    with open_checkpoint(source) as checkpoint, (target / "all").open("wb", buffering=0) as out:
        for name in checkpoint.names():
            tensor = checkpoint.read(name)
            place = file_range(tensor.data)
            assert place is not None  # noqa: S101  every tensor here has bytes
            for start in range(0, tensor.nbytes, len(buffer)):
                chunk = buffer[: tensor.nbytes - start]
                place.read_into(chunk, start)
                out.write(chunk)


def split_rows(source: Path, target: Path) -> None:
    """Ours: every matrix split into three by rows, as c_attn is; all digests."""
    _split(source, target, "rows")


def split_heads(source: Path, target: Path) -> None:
    """Ours: every matrix split into three, rows interleaved per head, as in_proj is."""
    _split(source, target, "heads")


def _split(source: Path, target: Path, kind: str) -> None:
    from model_store.checkpoint import open_checkpoint
    from model_store.shard_writer import ShardWriter
    from model_store.weight_rules import Move, Op, TensorSpec, moved, planned

    target.mkdir()
    with open_checkpoint(source) as checkpoint:
        moves = []
        for name in checkpoint.names():
            info = checkpoint.info(name)
            parts = 3 if len(info.shape) == 2 else 1
            shape = (info.shape[0] // parts, *info.shape[1:])
            targets = tuple(TensorSpec(f"{name}.{n}", info.dtype, shape) for n in range(parts))
            moves.append(Move(Op(kind) if parts > 1 else Op.RENAME, (name,), targets, _HEADS))
        plan = [(spec.name, spec.dtype, spec.shape) for spec in planned(moves).values()]
        with ShardWriter(target, plan, max_shard_bytes=10**9) as writer:
            for name, tensor in moved(moves, checkpoint.read):
                writer.add(name, tensor)
            writer.finish()


def torch_load_save_file(source: Path, target: Path) -> None:
    """As safetensors' convert script does: torch.load(weights_only=True), then save_file."""
    import torch
    from safetensors.torch import save_file

    target.mkdir()
    for path in sorted(source.glob("*.bin")):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: tensor.contiguous() for name, tensor in loaded.items()}
        save_file(tensors, target / f"{path.stem}.safetensors", metadata={"format": "pt"})


def transformers_load_save(source: Path, target: Path) -> None:
    """from_pretrained and save_pretrained of the model's class."""
    import torch
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(target, max_shard_size="1GB")


def make_source(size: Path, target: Path) -> None:
    """A Qwen2-shaped checkpoint in .bin shards of 1 GB, its values from seeded blocks."""
    import torch
    from transformers import Qwen2Config

    from model_store.manifest import Manifest, scan, write_manifest

    layers = max(1, round(int(size.name[:-2]) * _UNITS[size.name[-2:]] / _LAYER_BYTES))
    target.mkdir(parents=True)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(16)).bfloat16()
    weight_map: dict[str, str] = {}
    shapes = _shapes(layers)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * torch.Size(s).numel() for s in shards[-1].values()) > 9 * 10**8:
            shards.append({})
        shards[-1][name] = shape
    for number, shard in enumerate(shards, start=1):
        file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        tensors = {}
        for name, shape in shard.items():
            count = torch.Size(shape).numel()
            whole = block.repeat(-(-count // len(block)))
            tensors[name] = whole[:count].clone().reshape(shape)
        torch.save(tensors, target / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    Qwen2Config(
        hidden_size=2304, intermediate_size=6912, num_hidden_layers=layers, vocab_size=7200,
        num_attention_heads=_HEADS, num_key_value_heads=_HEADS, tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"], dtype="bfloat16",
    ).save_pretrained(target)  # fmt: skip
    write_manifest(target, Manifest(files=scan(target)))


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (7200, 2304)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for part in "qkv":
            shapes[f"{at}self_attn.{part}_proj.weight"] = (2304, 2304)
            shapes[f"{at}self_attn.{part}_proj.bias"] = (2304,)
        shapes[f"{at}self_attn.o_proj.weight"] = (2304, 2304)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (6912, 2304)
        shapes[f"{at}mlp.down_proj.weight"] = (2304, 6912)
        for norm in ("input", "post_attention"):
            shapes[f"{at}{norm}_layernorm.weight"] = (2304,)
    return shapes | {"model.norm.weight": (2304,), "lm_head.weight": (7200, 2304)}


RUNNERS: dict[str, Callable[[Path, Path], None]] = {
    made.__name__: made
    for made in (
        cp, cp_and_sha256, ours_without_digests, to_safetensors_no_verify, to_safetensors, reshard,
        split_rows, split_heads, torch_load_save_file, transformers_load_save, make_source,
    )
}  # fmt: skip


def _print(rows: list[Row]) -> None:
    print(f"{'work':26} cache  quiet wall  CPU (least)    RSS MB  anon MB  load")
    for row in rows:
        print(
            f"{row.work:26} {row.cache:5} {row.quiet_wall_s:10.2f} {row.median_cpu_s:6.2f} "
            f"({row.least_cpu_s:5.2f}) {row.peak_rss_mb:8.0f} {row.peak_anon_mb:8.0f}  {row.load}"
        )


def _report(args: argparse.Namespace, rows: list[Row]) -> dict[str, object]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ("torch", "safetensors", "transformers", "numpy")
    return {
        "command": f"python benchmarks/convert.py --size {args.size} --runs {args.runs} --write",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in packages},
        "what": {name: str(runner.__doc__) for name, runner in RUNNERS.items()},
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
