"""Golden weights, images and probes: pure functions of a name, a shape and a salt."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

PROBES = 64
PROJECTED = 16
_SEPARATOR = "\x1f"

# name -> (mode, width, height)
PICTURES = {
    "synth_rgb.png": ("RGB", 320, 200),
    "synth_rgba.png": ("RGBA", 97, 211),
    "synth_tall.png": ("RGB", 60, 500),
    "synth_gray.png": ("L", 257, 255),
    "synth_palette.png": ("P", 128, 64),
    "synth_tiny.png": ("RGB", 5, 3),
}


def generator(*key: str) -> np.random.Generator:
    seed = int.from_bytes(hashlib.sha256(_SEPARATOR.join(key).encode()).digest(), "little")
    return np.random.Generator(np.random.PCG64(seed))


def weights(shapes: Mapping[str, Iterable[int]], salt: str) -> dict[str, Floats]:
    return {name: weight(name, tuple(shape), salt) for name, shape in shapes.items()}


def weight(name: str, shape: tuple[int, ...], salt: str) -> Floats:
    if name.endswith("attn_pool.pos_embed"):
        return position_table(shape[0], shape[1])
    noise = generator(salt, name).standard_normal(shape)
    return np.ascontiguousarray(_scaled(name, shape, noise), dtype=np.float32)


def _scaled(name: str, shape: tuple[int, ...], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    owner = name.split(".")[-2:-1]
    if owner and owner[0].startswith("ln_"):
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias"):
        return noise * (0.2 if "c_attn" in name else 0.02)
    if name.endswith(("wte.weight", "attn_pool.query")):
        return noise
    if name.endswith("positional_embedding"):
        return 0.5 * noise
    if name.endswith("lm_head.weight"):
        return noise * (3.0 / math.sqrt(shape[1]))
    if name.endswith("visual.proj"):
        return noise / math.sqrt(shape[0])
    if "c_attn" in name or "in_proj" in name:
        return noise * (1.5 / math.sqrt(shape[1]))
    return noise / math.sqrt(math.prod(shape[1:]))


def position_table(count: int, width: int, *, wide: bool = False) -> NDArray[Any]:
    kind = np.float64 if wide else np.float32
    side, half = math.isqrt(count), width // 2
    omega: NDArray[Any] = np.arange(half // 2, dtype=kind)
    omega = 1.0 / 10000 ** (omega / (half / 2.0))
    steps: NDArray[Any] = np.arange(side, dtype=kind)
    rows, columns = np.repeat(steps, side), np.tile(steps, side)
    angles = [axis[:, None] * omega[None] for axis in (columns, rows)]
    parts = [part(angle) for angle in angles for part in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(kind)


def digest(array: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(array.astype("<f4")).tobytes()).hexdigest()


def probe_ids(vocab: int = 151936) -> NDArray[np.int64]:
    """The vocabulary ids whose logits the goldens keep."""
    drawn = generator("qwenvl-golden", f"ids{vocab}").choice(vocab, PROBES - 6, replace=False)
    known = [151643, 151644, 151645, 151857, 151858, vocab - 1]
    return np.sort(np.concatenate([drawn, known]).astype(np.int64))


def projection(hidden: int) -> Floats:
    noise = generator("qwenvl-golden", f"proj{hidden}").standard_normal((hidden, PROJECTED))
    return (noise / math.sqrt(hidden)).astype(np.float32)


def text_ids(count: int, key: str, vocab: int = 151643) -> NDArray[np.int64]:
    return generator("qwenvl-golden", "text", key).integers(0, vocab, size=count).astype(np.int64)


def picture(name: str) -> Image.Image:
    mode, width, height = PICTURES[name]
    channels = {"RGBA": 4, "L": 1}.get(mode, 3)
    planes = _pattern(width, height, name, channels)
    if mode == "L":
        return Image.fromarray(planes[..., 0])
    if mode == "P":
        image = Image.fromarray(planes[..., 0] >> 4, "P")
        image.putpalette([v for i in range(16) for v in (i * 16, 255 - i * 16, i * 53 % 256)])
        return image
    return Image.fromarray(planes)


def _pattern(width: int, height: int, key: str, channels: int) -> NDArray[np.uint8]:
    k = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    planes = []
    for c in range(channels):
        a, b, m = 1 + (k >> 3 * c) % 7, 1 + (k >> 5 * c) % 5, 17 + (k >> 2 * c) % 29
        value = (a * x + b * y + (x // m) * (y // (m + c)) * 37) % 256
        flipped = (x // 40 + y // 32 + c) % 3 == 0
        planes.append(np.where(flipped, 255 - value, value))
    return np.stack(planes, -1).astype(np.uint8)


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        picture(name).save(folder / name)


def verified(shapes: Mapping[str, Any]) -> dict[str, Floats]:
    """The weights of a shapes.json, every digest checked.

    But for the position table: float32 sines differ in their last bit from one processor to
    another, so it is held against the formula in float64 instead.
    """
    made = weights(shapes["shapes"], shapes["salt"])
    wrong = [name for name, array in made.items() if digest(array) != shapes["sha256"][name]]
    tables = [name for name in wrong if name.endswith("attn_pool.pos_embed")]
    for name in tables:
        exact = position_table(*shapes["shapes"][name], wide=True)
        assert np.abs(made[name] - exact).max() < 2e-6, name
    assert wrong == tables, wrong
    return made
