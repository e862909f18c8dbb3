"""What a tokenizer must know of the model beside it: ids per image, and its size in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model_store.canonical import parse_json
from model_store.errors import StoreError
from qwen_vl.config_map import is_original_layout
from qwen_vl.errors import ConfigError

_MAX_JSON = 10_000_000


def image_settings(folder: Path) -> dict[str, int]:
    """`n_image_tokens` and `image_size` as config.json has them; empty without a config.json.

    Raises:
        UnsupportedArchitectureError: the config of another model.
        ConfigError: a config.json that cannot be read, or has no such numbers.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        data = file.read(_MAX_JSON + 1)
    try:
        config = parse_json(data, name=path.name) if len(data) <= _MAX_JSON else None
    except StoreError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(config, Mapping):
        raise ConfigError(f"{path.name} holds no JSON object")
    if is_original_layout(config):
        visual = config["visual"]
        found = {
            "n_image_tokens": visual.get("n_queries", 256),
            "image_size": visual.get("image_size"),
        }
    else:
        vision = config.get("vision_config")
        found = {
            "n_image_tokens": config.get("n_queries"),
            "image_size": vision.get("image_size") if isinstance(vision, Mapping) else None,
        }
    for key, value in found.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{path.name} does not say the model's {key}")
    return found
