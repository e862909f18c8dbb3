"""Convert a seeded checkpoint of Qwen-VL-Chat's true size there and back, and compare every tensor.

Examples:
    python benchmarks/full_scale.py --layers 1 --blocks 1
    python benchmarks/full_scale.py --write

853 tensors under the published names, shapes and shard map (19.3 GB, ../shared/qwen_vl/full/) are
saved by torch, converted .bin -> native -> .bin by our commands as a user runs them, and read by
torch again. Every tensor's sha256 is taken by hashlib when it is drawn and when it comes back; our
own digests are not asked. At most two copies are on the disk (39 GB): a copy that was consumed goes
before the next one comes, and the last one shard by shard.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FACTS = ROOT.parent / "shared" / "qwen_vl" / "full"
RESULT = ROOT / "benchmarks" / "results" / "full_scale.json"
_BLOCK = 4_194_301  # a prime, so that no two rows of a tensor are the same piece of the block
_RANKS = 151_643
_GB = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """Make, convert, convert back, compare; print and perhaps keep the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, help="only so many decoder layers, for a quick look")
    parser.add_argument("--blocks", type=int, help="only so many vision blocks")
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "full_scale")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--stage", choices=("make", "compare"), help="(internal)")
    args = parser.parse_args(argv)
    if args.stage == "make":
        return _make(args)
    if args.stage == "compare":
        return _compare(args)
    from watching import machine, watched

    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    places = {name: str(args.work / name) for name in ("source", "native", "back")}
    try:
        stages: dict[str, Any] = {}
        for stage, command, consumed in (
            ("make", _again(args, "make"), None),
            ("to_transformers", _ours("to_transformers", places["source"], places["native"]), None),
            ("verify", _proved(places["native"], places["source"]), "source"),
            ("to_original", _ours("to_original", places["native"], places["back"]), "native"),
            ("compare", _again(args, "compare"), "back"),
        ):
            stages[stage] = asdict(watched(command, cwd=ROOT))
            print(stage, {key: round(value, 1) for key, value in stages[stage].items()})
            if consumed is not None:
                shutil.rmtree(places[consumed])
        compared = json.loads((args.work / "compared.json").read_text())
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    report = {
        "command": "python benchmarks/full_scale.py --write",
        **machine("torch", "numpy"),
        "seed": args.seed,
        **compared,
        "stages": {
            name: {key: round(value, 1) for key, value in run.items()}
            for name, run in stages.items()
        },
    }
    print(json.dumps(compared))
    if args.write and compared["differing"] == [] and args.layers is None and args.blocks is None:
        RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if compared["differing"] == [] else 1


def _again(args: argparse.Namespace, stage: str) -> list[str]:
    limits = [
        f"--{name}={value}"
        for name, value in (("layers", args.layers), ("blocks", args.blocks))
        if value is not None
    ]
    own = [f"--stage={stage}", f"--seed={args.seed}", f"--work={args.work}"]
    return [sys.executable, str(Path(__file__)), *own, *limits]


def _ours(step: str, source: str, target: str) -> list[str]:
    return [sys.executable, "-m", f"conversion.{step}", source, "--into", target, "--quiet"]


def _proved(converted: str, source: str) -> list[str]:
    return [
        sys.executable, "-m", "conversion.verify", converted, "--source", source, "--quiet",
    ]  # fmt: skip


# --- the two stages that are not ours: torch writes, torch reads, hashlib hashes


def _shapes(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    published = json.loads((FACTS / "state_dict_bf16.json").read_text())
    limits = (
        ("transformer.h.", args.layers),
        ("transformer.visual.transformer.resblocks.", args.blocks),
    )
    kept = {}
    for name, info in published.items():
        index = {
            prefix: int(name.removeprefix(prefix).partition(".")[0])
            for prefix, limit in limits
            if limit is not None and name.startswith(prefix)
        }
        if all(index[prefix] < (limit or 0) for prefix, limit in limits if prefix in index):
            kept[name] = tuple(info["shape"])
    return kept


def _make(args: argparse.Namespace) -> int:
    """Save the shards with torch, the files beside them, and the digest of every tensor."""
    import numpy as np
    import torch

    folder = args.work / "source"
    folder.mkdir()
    shapes = _shapes(args)
    published = json.loads((FACTS / "shards_bf16.json").read_text())["weight_map"]
    rng = np.random.default_rng(args.seed)
    block = rng.standard_normal(_BLOCK, np.float32).view(np.uint32)
    words = (block >> 16).astype(np.uint16)  # bfloat16 patterns of ordinary numbers
    digests: dict[str, str] = {}
    for file in sorted(set(published.values())):
        shard = {}
        for name, shape in shapes.items():
            if published[name] == file:
                values = _drawn(words, name, int(np.prod(shape)))
                digests[name] = hashlib.sha256(values.data).hexdigest()
                shard[name] = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
                shard[name] = shard[name].reshape(shape)
        if shard:
            torch.save(shard, folder / file)
    _write_beside(folder, args, {name: published[name] for name in shapes}, shapes)
    (args.work / "digests.json").write_text(json.dumps(digests))
    return 0


def _drawn(words: Any, name: str, count: int) -> Any:
    """The block from a place of the tensor's own on, sign and last bits flipped by its name."""
    import numpy as np

    key = hashlib.sha256(name.encode()).digest()
    start = int.from_bytes(key[:4]) % len(words)
    values = np.resize(np.roll(words, -start), count)
    values ^= np.uint16(int.from_bytes(key[4:6]) & 0x807F)
    return values


def _write_beside(
    folder: Path,
    args: argparse.Namespace,
    weight_map: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    from model_store.manifest import Manifest, scan, write_manifest

    summary = json.loads((FACTS / "summary.json").read_text())
    config = summary["config"]["Qwen-VL-Chat"]
    if args.layers is not None:
        config["num_hidden_layers"] = args.layers
    if args.blocks is not None:
        config["visual"]["layers"] = args.blocks
    total = sum(2 * _product(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    for name, value in (
        ("pytorch_model.bin.index.json", index),
        ("config.json", config),
        ("generation_config.json", summary["generation_config"]["Qwen-VL-Chat"]),
        ("tokenizer_config.json", summary["tokenizer_config"]),
    ):
        (folder / name).write_text(json.dumps(value))
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(_tokens()))
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    write_manifest(folder, Manifest(files=scan(folder)))


def _tokens() -> Iterator[bytes]:
    """As many ranks as the true file has; each is two earlier ones joined."""
    lengths = (itertools.product(range(256), repeat=size) for size in (1, 2, 3))
    return itertools.islice(map(bytes, itertools.chain(*lengths)), _RANKS)


def _product(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _compare(args: argparse.Namespace) -> int:
    """Read the result with torch, compare, and remove each shard when it was read."""
    import torch

    drawn = json.loads((args.work / "digests.json").read_text())
    shapes, came_back, size = _shapes(args), {}, 0
    folder = args.work / "back"
    index = folder / "pytorch_model.bin.index.json"
    named = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    for path in sorted(folder.glob("*.bin")):
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, tensor in shard.items():
            if tuple(tensor.shape) != shapes[name] or tensor.dtype is not torch.bfloat16:
                came_back[name] = f"{tensor.dtype} {tuple(tensor.shape)}"
            elif named and named[name] != path.name:
                came_back[name] = f"in {path.name}, the index says {named[name]}"
            else:
                flat = tensor.contiguous().view(torch.int16).reshape(-1)
                came_back[name] = hashlib.sha256(flat.numpy().data).hexdigest()
            size += tensor.numel() * 2
        del shard
        path.unlink()
    differing = sorted(
        n for n in drawn.keys() | came_back.keys() if drawn.get(n) != came_back.get(n)
    )
    state = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    report = {
        "tensors": len(came_back),
        "gigabytes": round(size / _GB, 3),
        "differing": differing,
        "digest_of_all_tensors": state,
    }
    (args.work / "compared.json").write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
