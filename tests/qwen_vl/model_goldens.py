"""Recorded results of the 2023 model, and folders that hold its weights.

`cases.json` and `numbers.npz` keep, of each case, the logits of every fourth probe id at every
eighth position and the last four; the vision rows are every sixteenth.
"""

import json
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from qwen_vl.image_processing import preprocess
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import golden_weights
from tests.qwen_vl.text_goldens import ASSETS, published_rank_file

SHARED = Path(__file__).resolve().parents[3] / "shared" / "qwen_vl"

PUBLISHED_IDS = 151860
LOGITS_ATOL = 2e-4
VISION_ATOL = 5e-5
HIDDEN_ATOL = 5e-5


def probes() -> Tensor:
    return torch.from_numpy(golden_weights.probe_ids())


def kept_positions(count: int) -> list[int]:
    return sorted({*range(0, count, 8), *range(max(0, count - 4), count)})


def write_folder(folder: Path, source: Path) -> Path:
    """A folder of the 2023 layout: config.json, safetensors and the rank file."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = json.loads((source / "shapes.json").read_text())
    save_file(golden_weights.verified(shapes), folder / "model.safetensors")
    shutil.copyfile(source / "config.json", folder / "config.json")
    shutil.copyfile(published_rank_file(), folder / "qwen.tiktoken")
    return folder


@dataclass(frozen=True)
class Golden:
    """One recorded model, loaded by `load_model`, beside the numbers that it must give."""

    model: QwenVLForConditionalGeneration
    folder: Path
    assets: Path

    @classmethod
    def of(cls, name: str, model: QwenVLForConditionalGeneration, folder: Path) -> "Golden":
        return cls(model, folder, ASSETS / name)

    @cached_property
    def cases(self) -> Any:
        return json.loads((self.assets / "cases.json").read_text())

    @cached_property
    def numbers(self) -> dict[str, Tensor]:
        with np.load(self.assets / "numbers.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    @property
    def image_size(self) -> int:
        return int(self.model.config.vision_config.image_size)

    def pixels(self, names: list[str]) -> Tensor | None:
        if not names:
            return None
        return preprocess([golden_weights.picture(name) for name in names], self.image_size)

    def run(self, case: dict[str, Any], **options: Any) -> Tensor:
        """Logits (rows, kept positions, kept probes) of a case."""
        ids = torch.tensor(case["input_ids"])
        out = self.probed(ids, self.pixels(case["images"]), _mask(case), **options)
        return out[:, kept_positions(ids.shape[1])]

    def probed(
        self, ids: Tensor, pixels: Tensor | None = None, mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Logits (rows, positions, kept probes): the head's other rows would take the time."""
        with torch.no_grad():
            hidden = self.model.model(
                input_ids=ids, pixel_values=pixels, attention_mask=mask, **options
            ).last_hidden_state
            head = self.model.lm_head.weight
            head = head[probes()[::4]] if len(head) > PUBLISHED_IDS else head
            logits: Tensor = hidden @ head.T
        return logits

    def real(self, case: dict[str, Any]) -> Tensor:
        """Which of the kept positions are no padding."""
        ids, mask = torch.tensor(case["input_ids"]), _mask(case)
        mask = torch.ones_like(ids) if mask is None else mask
        return mask[:, kept_positions(ids.shape[1])].bool()


def features(model: Any, pixels: Tensor | None) -> Tensor:
    """Image rows (images, n_queries, hidden)."""
    with torch.no_grad():
        rows: Tensor = model.get_image_features(pixels).pooler_output
    return rows


def generate(model: Any, **options: Any) -> Tensor:
    """`model.generate` with one return type: ids (rows, prompt and new tokens), greedy."""
    made: Tensor = model.generate(do_sample=False, **options)
    return made


def _mask(case: dict[str, Any]) -> Tensor | None:
    mask = case.get("attention_mask")
    return None if mask is None else torch.tensor(mask)


def shared_pictures(case: dict[str, Any]) -> list[Path]:
    """The pictures that a case of the full goldens names in its prompts."""
    prompts = case.get("prompts") or [case["prompt"]]
    return [SHARED / path for text in prompts for path in re.findall("<img>(.*?)</img>", text)]
