"""Models that several test files share; each is written and loaded once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import Golden, write_folder
from tests.qwen_vl.text_goldens import ASSETS


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


def _golden(name: str, factory: pytest.TempPathFactory) -> Golden:
    folder = write_folder(factory.mktemp(name), ASSETS / name)
    return Golden.of(name, load_model(folder), folder)


@pytest.fixture(scope="session")
def _pub_a(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return _golden("pub_a", tmp_path_factory)


@pytest.fixture(scope="session")
def _pub_b(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return _golden("pub_b", tmp_path_factory)


@pytest.fixture
def pub_a(_pub_a: Golden) -> Golden:
    """Trained length 2048: nothing here is long."""
    _pub_a.model.compat = "default"
    return _pub_a


@pytest.fixture
def pub_b(_pub_b: Golden) -> Golden:
    """Trained length 64: an image alone is long."""
    _pub_b.model.compat = "default"
    return _pub_b


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    folder = tiny_model.write_small_folder(tmp_path / "tiny")
    save_file(tiny_model.tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> QwenVLForConditionalGeneration:
    return load_model(tiny_folder)
