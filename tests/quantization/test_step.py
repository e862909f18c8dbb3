"""The whole step: a snapshot in, a snapshot out that loads as what was computed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.options import ToTransformersOptions
from conversion.steps import to_transformers
from hub_tools.targets import result_folder
from model_store.checkpoint import open_checkpoint
from model_store.errors import (
    DigestMismatchError,
    NotASnapshotError,
    TargetExistsError,
    ToolkitError,
    UsageError,
)
from model_store.manifest import (
    Manifest,
    Source,
    read_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)
from model_store.options import from_args, from_table, provenance, to_argv
from model_store.progress import NoProgress, Task
from model_store.records import read_records
from quantization import gptq
from quantization.calibration import calibration_set
from quantization.errors import (
    AlreadyQuantizedError,
    CalibrationError,
    GroupSizeError,
    UnsupportedModelError,
    WrittenModelError,
)
from quantization.options import GptqConfig
from quantization.proof import check_linears, check_tensors, logits
from quantization.sequential import decoder_layers, linears, quantize_model
from quantization.solver import round_linear
from quantization.source import NativeTensors
from quantization.step import quantize_snapshot
from quantization.writing import weight_digest
from qwen_vl.int4 import QuantizedLinear
from qwen_vl.loading import load_model, load_processor, load_tokenizer
from scripts.make_tiny_checkpoint import make_checkpoint
from tests.quantization.tiny import RANK_FILE, write_tiny

CONFIG = GptqConfig(group_size=32, samples=4, dtype="float32")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    torch.set_num_threads(1)
    target = source.with_name("quantized")
    quantize_snapshot(source, target, CONFIG)
    return target


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _copy(folder: Path, target: Path, **config: Any) -> Path:
    """Copy a snapshot with a changed config.json and a manifest that fits."""
    shutil.copytree(folder, target)
    told = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(told))
    write_manifest(target, Manifest(files=scan(target)))
    return target


def test_the_written_snapshot_runs_as_the_quantized_model_in_memory(
    source: Path, quantized: Path
) -> None:
    calibration = calibration_set(CONFIG, load_tokenizer(source), image_size=56)
    memory = load_model(source, dtype="float32")
    quantize_model(memory, calibration.inputs, CONFIG, lambda name, result: None)

    loaded = load_model(quantized, dtype="float32")

    packed = [one for one in loaded.modules() if isinstance(one, QuantizedLinear)]
    assert len(packed) == 14
    for sample in calibration.inputs:
        torch.testing.assert_close(
            logits(loaded, sample), logits(memory, sample), rtol=1e-4, atol=1e-4
        )


def test_tensors_that_are_not_quantized_keep_their_bytes(source: Path, quantized: Path) -> None:
    with open_checkpoint(source) as before, open_checkpoint(quantized) as after:
        kept = [name for name in before.names() if name in after.names()]
        gone = {name.removesuffix(".weight") for name in before.names()} - {
            name.removesuffix(".weight") for name in kept
        }

        assert all(before.read(name).digest() == after.read(name).digest() for name in kept)
        assert gone == {
            name.removesuffix(".qweight") for name in after.names() if "qweight" in name
        }
        assert len(gone) == 14
        assert set(
            after.read("model.language_model.layers.0.mlp.up_proj.qzeros").values().flat
        ) == {0x77777777}
        assert "model.language_model.layers.1.self_attn.q_proj.bias" in kept


def test_a_second_run_writes_the_same_bytes(source: Path, quantized: Path, tmp_path: Path) -> None:
    quantize_snapshot(source, tmp_path / "again", CONFIG)

    assert _bytes(tmp_path / "again") == _bytes(quantized)


def test_both_layouts_of_the_source_give_the_same_weights(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, samples=2)
    make_checkpoint(tmp_path / "original", seed=1, rank_file=RANK_FILE)
    write_manifest(tmp_path / "original", Manifest(files=scan(tmp_path / "original")))
    to_transformers(tmp_path / "original", tmp_path / "native", ToTransformersOptions("native"))

    one = quantize_snapshot(tmp_path / "original", tmp_path / "a", config)
    two = quantize_snapshot(tmp_path / "native", tmp_path / "b", config)

    for name in ("model.safetensors", "config.json", "tokenizer_config.json"):
        assert one.manifest.entry(name) == two.manifest.entry(name)
    assert one.manifest.content_digest == two.manifest.content_digest
    assert load_processor(tmp_path / "a").tokenizer.n_ranks == 256


def test_the_layout_of_2023_has_its_names_and_zero_biases(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "original", seed=1, rank_file=RANK_FILE)
    write_manifest(tmp_path / "original", Manifest(files=scan(tmp_path / "original")))
    config = dataclasses.replace(CONFIG, samples=2, layout="original")

    quantize_snapshot(tmp_path / "original", tmp_path / "out", config)

    told = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert set(told) == {
        "bits", "group_size", "damp_percent", "desc_act", "static_groups", "sym",
        "true_sequential", "model_name_or_path", "model_file_base_name",
    }  # fmt: skip
    with open_checkpoint(tmp_path / "out") as held:
        for part in ("attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"):
            bias = held.read(f"transformer.h.0.{part}.bias")
            assert bias.dtype == "F16"
            assert not bias.values().any()
        assert held.read("transformer.h.0.attn.c_attn.qweight").dtype == "I32"
        assert held.read("transformer.h.0.attn.c_attn.bias").values().any()
    packed = load_model(tmp_path / "out", dtype="float32").get_submodule(
        "model.language_model.layers.0.mlp.up_proj"
    )
    assert isinstance(packed, QuantizedLinear)


def test_provenance_says_what_was_done_and_with_what(source: Path, quantized: Path) -> None:
    manifest = verify_snapshot(quantized)
    step = manifest.lineage[-1]

    assert step.step == "gptq"
    assert step.parent == read_manifest(source).content_digest
    assert (step.options["bits"], step.options["group_size"], step.options["seed"]) == (4, 32, 0)
    assert step.facts["calibration"]["samples"] == 4
    assert len(step.facts["calibration"]["digest"]) == 64
    with open_checkpoint(quantized) as checkpoint:
        assert manifest.tensors is not None
        assert set(manifest.tensors) == set(checkpoint.names())
        assert all(
            checkpoint.read(name).digest() == digest for name, digest in manifest.tensors.items()
        )


def test_the_record_compares_every_linear_with_rounding(quantized: Path) -> None:
    (record,) = read_records(quantized, candidate=read_manifest(quantized).content_digest)

    linear_errors = [m for m in record.measurements if "relative output error" in m.name]
    assert record.verdict == "pass"
    assert len(linear_errors) == 14
    assert not any(m.primary for m in record.measurements)
    assert all(0 < float(m.value or 0) < 0.05 for m in linear_errors)


def test_configs_tell_readers_how_to_read(quantized: Path) -> None:
    config = json.loads((quantized / "config.json").read_text())
    alone = json.loads((quantized / "quantize_config.json").read_text())

    told = config["quantization_config"]
    assert told == alone
    assert {
        key: told[key] for key in ("quant_method", "bits", "group_size", "sym", "desc_act")
    } == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
    }
    assert set(told["dynamic"]) == {"-:.*vision_tower.*", "-:.*multi_modal_projector.*"}
    assert config["vision_config"]["image_size"] == 56


def test_companions_come_along_and_a_notice_of_change_is_there(
    source: Path, quantized: Path
) -> None:
    for name in ("qwen.tiktoken", "generation_config.json", "LICENSE"):
        assert (quantized / name).read_bytes() == (source / name).read_bytes()
    notice = "quantized to 4 bits by GPTQ"
    assert notice in (quantized / "CHANGES.md").read_text()
    with open_checkpoint(quantized) as checkpoint:
        assert notice in checkpoint.metadata["notice_of_change"]


def test_no_file_knows_where_it_was_made(quantized: Path) -> None:
    place = str(quantized.parent).encode()

    assert not [name for name, data in _bytes(quantized).items() if place in data]


def test_a_finished_result_is_not_computed_again(source: Path, quantized: Path) -> None:
    before = (quantized / "model.safetensors").stat().st_mtime_ns

    result = quantize_snapshot(source, quantized, CONFIG)

    assert not result.fresh
    assert (quantized / "model.safetensors").stat().st_mtime_ns == before


def test_another_result_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    rtn = dataclasses.replace(CONFIG, method="rtn", samples=1)
    target = write_tiny(tmp_path / "target", seed=3)

    with pytest.raises(TargetExistsError):
        quantize_snapshot(source, target, rtn)
    quantize_snapshot(source, target, dataclasses.replace(rtn, replace=True))

    assert read_manifest(target).lineage[-1].step == "rtn"


def test_the_baseline_is_plain_rounding(source: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, method="rtn", samples=1, bits=8)
    quantize_snapshot(source, tmp_path / "rtn", config)

    loaded = load_model(tmp_path / "rtn", dtype="float32")

    for name, linear in linears(decoder_layers(load_model(source, dtype="float32"))).items():
        packed = loaded.get_submodule(name)
        assert isinstance(packed, QuantizedLinear)
        expected = round_linear(linear.weight, config).weight()
        assert torch.equal(packed.dequantize(torch.float32), expected)


class _Interrupter(NoProgress):
    """Interrupts as soon as the first layer is done."""

    @contextmanager
    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> Iterator[Task]:
        with super().task(label, total, unit=unit) as task:
            yield task if label != "quantize" else _Interrupting()


class _Interrupting:
    def advance(self, amount: int = 1) -> None:
        raise KeyboardInterrupt

    def note(self, text: str, **fields: object) -> None: ...


def test_an_interrupted_run_is_gone_on_with_and_ends_in_the_same_bytes(
    source: Path, quantized: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "q"

    with pytest.raises(KeyboardInterrupt):
        quantize_snapshot(source, target, CONFIG, progress=_Interrupter())
    (left,) = (tmp_path / "out").iterdir()
    kept = [path.name for path in (left / "quantized.partial").glob("layer-*")]
    quantize_snapshot(source, target, CONFIG)

    assert left.name == ".q.partial"
    assert kept == ["layer-00001.safetensors"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["q"]
    assert _bytes(target) == _bytes(quantized)


def test_another_request_does_not_go_on_with_what_was_left(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "q"
    with pytest.raises(KeyboardInterrupt):
        quantize_snapshot(source, target, CONFIG, progress=_Interrupter())

    other = dataclasses.replace(CONFIG, bits=8, samples=2)
    quantize_snapshot(source, target, other)

    assert json.loads((target / "quantize_config.json").read_text())["bits"] == 8


def test_a_changed_byte_on_disk_is_found(quantized: Path, tmp_path: Path) -> None:
    shutil.copytree(quantized, tmp_path / "copy")
    tensors = read_manifest(quantized).tensors
    assert tensors is not None
    name = "model.language_model.layers.0.mlp.up_proj"
    weights = load_model(quantized, dtype="float32").get_submodule(name)
    assert isinstance(weights, QuantizedLinear)
    digest = weight_digest(weights.dequantize(torch.float32))
    with open_checkpoint(tmp_path / "copy") as checkpoint:
        written = NativeTensors(checkpoint, None)
        check_tensors(checkpoint, tensors)
        assert check_linears(written, {name: digest}, CONFIG)["modelferry reference"] < 1e-4

        with pytest.raises(WrittenModelError, match="other weights"):
            check_linears(written, {name: digest[::-1]}, CONFIG)
    with (tmp_path / "copy" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with (
        open_checkpoint(tmp_path / "copy") as checkpoint,
        pytest.raises(WrittenModelError, match="reads back differently"),
    ):
        check_tensors(checkpoint, tensors)


def _refused() -> Iterator[tuple[str, type[ToolkitError], str, dict[str, Any]]]:
    yield "quantized", AlreadyQuantizedError, "quantized already", {}
    yield "plain folder", NotASnapshotError, "no snapshot", {}
    yield "llama", UnsupportedModelError, "transformers cannot build .llama.", {}
    yield "no ranks", UnsupportedModelError, "no rank file", {}
    yield "damaged", DigestMismatchError, "sha256", {}
    yield "tiny", GroupSizeError, "no multiple of 128", {"group_size": 128}
    yield "tiny", GroupSizeError, "no multiple of 24", {"group_size": 24}
    yield "tiny", CalibrationError, "No such file", {"calibration": "gone.jsonl"}


def _folder(kind: str, source: Path, quantized: Path, tmp_path: Path) -> Path:
    match kind:
        case "quantized":
            return quantized
        case "plain folder":
            (tmp_path / "plain").mkdir()
            return tmp_path / "plain"
        case "llama":
            return _copy(source, tmp_path / "llama", model_type="llama")
        case "no ranks":
            shutil.copytree(source, tmp_path / "bare")
            (tmp_path / "bare" / "qwen.tiktoken").unlink()
            write_manifest(tmp_path / "bare", Manifest(files=scan(tmp_path / "bare")))
            return tmp_path / "bare"
        case "damaged":
            shutil.copytree(source, tmp_path / "damaged")
            (tmp_path / "damaged" / "LICENSE").write_text("another")
            return tmp_path / "damaged"
    return source


@pytest.mark.parametrize(("kind", "error", "message", "changed"), list(_refused()))
def test_bad_input_is_refused_before_anything_is_written(
    kind: str,
    error: type[ToolkitError],
    message: str,
    changed: dict[str, Any],
    source: Path,
    quantized: Path,
    tmp_path: Path,
) -> None:
    folder = _folder(kind, source, quantized, tmp_path)
    target = tmp_path / "out" / "q"

    with pytest.raises(error, match=message) as caught:
        quantize_snapshot(folder, target, dataclasses.replace(CONFIG, **changed))

    assert caught.value.hint
    assert not target.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"bits": 5},
        {"group_size": 0},
        {"damping": -1.0},
        {"samples": 0},
        {"seed": -1},
        {"method": "awq"},
        {"act_order": "random"},
        {"preset": "perfect"},
        {"modules": ("*.down_proj:bits=5",)},
        {"modules": ("*.down_proj",)},
        {"sweeps": -1},
        {"share": 0.0},
        {"scale_search": "best"},
    ],
)
def test_options_are_checked_wherever_they_come_from(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(CONFIG, **changed)


def test_flags_recipe_and_provenance_are_one_thing() -> None:
    config = dataclasses.replace(CONFIG, bits=8, act_order="none", into="elsewhere")
    parser = argparse.ArgumentParser()
    gptq.add_arguments(parser)

    table = provenance(config) | {"into": "elsewhere"}

    assert from_args(GptqConfig, parser.parse_args(to_argv(config))) == config
    assert from_table(GptqConfig, table) == config
    assert not {"model", "into", "images", "calibration", "replace"} & set(provenance(config))


def test_the_default_target_follows_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_HOME", str(tmp_path / "home"))
    hub = Source("modelscope", "qwen/Qwen-VL-Chat", "master", "c" * 40)
    fetched = write_tiny(tmp_path / "fetched", source=hub)

    assert result_folder(source, None, suffix="Int4") == source.with_name("tiny-Int4")
    stored = result_folder(fetched, None, suffix="GPTQ-Int8")
    assert stored.is_relative_to(tmp_path / "home" / "snapshots" / "local" / "qwen")
    assert "Qwen-VL-Chat-GPTQ-Int8" in stored.parts
    assert result_folder(fetched, str(tmp_path / "x"), suffix="Int4") == tmp_path / "x"


def test_the_command_prints_the_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--group-size", "32", "--samples", "1", "--method", "rtn", "--quiet"]
    argv = [str(source), "--into", str(tmp_path / "q"), *flags]

    first, second = gptq.main([*argv, "--json"]), gptq.main(argv)

    json_line, text_line = capsys.readouterr().out.splitlines()
    assert (first, second) == (0, 0)
    assert json.loads(json_line)["content_digest"] == read_manifest(tmp_path / "q").content_digest
    assert text_line == str(tmp_path / "q")


def test_the_command_fails_in_one_line_with_a_hint(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = gptq.main([str(source), "--into", str(tmp_path / "q"), "--quiet"])

    assert code == 4
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("error: model.language_model.layers.0.self_attn.q_proj has 64 inputs")
    assert "--group-size" in hint


def test_zero_points_and_groups_are_what_the_format_says(quantized: Path) -> None:
    name = "model.language_model.layers.0.mlp.down_proj"
    with open_checkpoint(quantized) as checkpoint:
        g_idx = checkpoint.read(f"{name}.g_idx").values()
        scales = checkpoint.read(f"{name}.scales")

    assert np.array_equal(g_idx, np.arange(128) // 32)
    assert (scales.dtype, scales.shape) == ("F16", (4, 64))
