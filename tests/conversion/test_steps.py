import json
from pathlib import Path

import pytest

from conversion.errors import (
    IncompleteError,
    MissingFileError,
    NotQwenVLError,
    WrongLayoutError,
)
from conversion.options import ToOriginalOptions, ToSafetensorsOptions, ToTransformersOptions
from conversion.steps import TO_NATIVE_NOTICE, to_original, to_safetensors, to_transformers
from model_store.checkpoint import open_checkpoint
from model_store.errors import (
    CheckpointError,
    DigestMismatchError,
    NotASnapshotError,
    StoreError,
    TargetExistsError,
    ToolkitError,
    UnmappedTensorError,
)
from model_store.files import sha256_file
from model_store.manifest import Manifest, read_manifest, scan, verify_snapshot, write_manifest
from tests.conversion import published

_SMALL = "100KB"


def _native(source: Path, target: Path) -> Path:
    options = ToTransformersOptions(str(source), max_shard_size=_SMALL)
    return to_transformers(source, target, options).folder


def _original(source: Path, target: Path, *, kind: str = "bin") -> Path:
    return to_original(source, target, ToOriginalOptions(str(source), format=kind)).folder


def _tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with open_checkpoint(folder) as checkpoint:
        read = {name: checkpoint.read(name) for name in checkpoint.names()}
        return {name: (t.dtype, t.shape, bytes(t.data)) for name, t in read.items()}


def _json(folder: Path, name: str) -> object:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("int4", [False, True], ids=["bf16", "int4"])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_the_way_there_and_back_gives_every_byte_again(
    tmp_path: Path, kind: str, int4: bool
) -> None:
    source = published.make_snapshot(tmp_path / "source", kind=kind, int4=int4)

    native = _native(source, tmp_path / "native")
    back = _original(native, tmp_path / "back", kind=kind)

    assert _tensors(back) == _tensors(source)
    assert _json(back, "config.json") == _json(source, "config.json")
    assert _json(back, "tokenizer_config.json") == _json(source, "tokenizer_config.json")
    for name in ("generation_config.json", "qwen.tiktoken", "LICENSE", "NOTICE"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    assert (back / "pytorch_model.bin").exists() == (kind == "bin")


def test_a_second_way_there_gives_the_same_safetensors_files(tmp_path: Path) -> None:
    first = _native(published.make_snapshot(tmp_path / "source"), tmp_path / "first")

    second = _native(_original(first, tmp_path / "back"), tmp_path / "second")

    assert read_manifest(second).content == read_manifest(first).content
    assert len(list(first.glob("*.safetensors"))) > 2


def test_the_same_input_and_options_give_the_same_snapshot(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")

    made = [_native(source, tmp_path / name) for name in ("one", "two")]

    manifests = [(folder / "ferry.manifest.json").read_bytes() for folder in made]
    assert manifests[0] == manifests[1]
    assert [verify_snapshot(folder).content_digest for folder in made]


def test_bin_and_safetensors_of_the_same_tensors_become_the_same_weights(tmp_path: Path) -> None:
    sources = [
        published.make_snapshot(tmp_path / kind, kind=kind) for kind in ("bin", "safetensors")
    ]

    made = [_native(source, tmp_path / f"{source.name}-native") for source in sources]

    assert read_manifest(made[0]).content == read_manifest(made[1]).content


def test_the_native_snapshot_says_what_it_was_made_of(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    parent = read_manifest(source)

    native = _native(source, tmp_path / "native")

    manifest = verify_snapshot(native)
    (step,) = manifest.lineage
    assert (step.step, step.parent, step.parent_source) == (
        "to_transformers",
        parent.content_digest,
        published.SOURCE,
    )
    assert step.options == {"max_shard_size": _SMALL}
    assert step.facts["tensors"] == {"in": 61, "out": 81}  # ten tensors hold three each
    found = _tensors(native)
    assert manifest.tensors is not None
    assert manifest.tensors.keys() == found.keys()
    with open_checkpoint(native) as checkpoint:
        name = "model.language_model.layers.1.self_attn.v_proj.weight"
        assert checkpoint.read(name).digest() == manifest.tensors[name]
        assert checkpoint.metadata == {"format": "pt", "notice_of_change": TO_NATIVE_NOTICE}
    changes = (native / "CHANGES.md").read_text(encoding="utf-8")
    assert parent.content_digest in changes
    assert "`modeling_qwen.py` was left out" in changes


def test_remote_code_and_the_old_card_stay_behind(tmp_path: Path) -> None:
    native = _native(published.make_snapshot(tmp_path / "source"), tmp_path / "native")

    names = {path.name for path in native.iterdir() if path.suffix != ".safetensors"}
    assert names == {
        "CHANGES.md", "LICENSE", "NOTICE", "config.json", "ferry.manifest.json",
        "generation_config.json", "model.safetensors.index.json", "preprocessor_config.json",
        "processor_config.json", "qwen.tiktoken", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "auto_map" not in json.loads((native / "tokenizer_config.json").read_text())


def test_work_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    native = _native(source, tmp_path / "native")
    before = {path: path.stat().st_mtime_ns for path in native.iterdir()}

    result = to_transformers(
        source, native, ToTransformersOptions(str(source), max_shard_size=_SMALL)
    )

    assert not result.fresh
    assert {path: path.stat().st_mtime_ns for path in native.iterdir()} == before
    with pytest.raises(TargetExistsError):  # other options are other work
        to_transformers(source, native, ToTransformersOptions(str(source)))
    replaced = to_transformers(source, native, ToTransformersOptions(str(source), replace=True))
    assert replaced.fresh


def test_a_target_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    target = tmp_path / "mine"
    target.mkdir()
    (target / "diary.txt").write_text("dear diary")

    with pytest.raises(TargetExistsError):
        to_transformers(source, target, ToTransformersOptions(str(source), replace=True))

    assert [path.name for path in target.iterdir()] == ["diary.txt"]


def test_names_stay_when_only_the_format_changes(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source", int4=True)

    made = to_safetensors(source, tmp_path / "safe", ToSafetensorsOptions(str(source))).folder

    assert _tensors(made) == _tensors(source)
    assert (made / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sorted(path.name for path in made.glob("*.safetensors")) == ["model.safetensors"]
    assert not list(made.glob("*.bin")) + list(made.glob("*.py")) + list(made.glob("*.bin.*"))
    assert verify_snapshot(made).lineage[-1].step == "to_safetensors"


def test_a_snapshot_without_a_tokenizer_config_gets_none_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    published.write_files(source, published.tensors(), published.config(), kind="bin")
    (source / "tokenizer_config.json").unlink()
    published.make_manifest(source)

    back = _original(_native(source, tmp_path / "native"), tmp_path / "back")

    assert not (back / "tokenizer_config.json").exists()


def test_notices_of_change_add_up(tmp_path: Path) -> None:
    native = _native(published.make_snapshot(tmp_path / "source"), tmp_path / "native")

    back = _original(native, tmp_path / "back")

    text = (back / "CHANGES.md").read_text(encoding="utf-8")
    assert text.index("## to_transformers") < text.index("## to_original")
    assert [step.step for step in read_manifest(back).lineage] == ["to_transformers", "to_original"]


# ---- what must be refused, with nothing left behind


def _refused(
    source: Path, expected: type[ToolkitError], match: str, *, verify: bool = True
) -> None:
    options = ToTransformersOptions(str(source), verify=verify)
    with pytest.raises(expected, match=match):
        to_transformers(source, source.parent / "target", options)
    assert {path.name for path in source.parent.iterdir()} == {source.name}


def _changed(tmp_path: Path, *, drop: str = "", **added: tuple[int, ...]) -> Path:
    """A snapshot with a tensor dropped and others added (dots of their names as `__`)."""
    import torch

    state = published.tensors()
    state.pop(drop, None)
    for name, shape in added.items():
        state[name.replace("__", ".")] = torch.zeros(shape)
    source = tmp_path / "source"
    published.write_files(source, state, published.config(), kind="safetensors")
    published.make_manifest(source)
    return source


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    (source / "ferry.manifest.json").unlink()

    _refused(source, NotASnapshotError, "no ferry.manifest.json")


@pytest.mark.parametrize(
    "values",
    [{"model_type": "llama"}, {"model_type": "qwen"}, {}, {"model_type": ["qwen_vl"]}],
    ids=["llama", "text-only", "nothing", "list"],
)
def test_another_architecture_is_refused(tmp_path: Path, values: dict[str, object]) -> None:
    source = tmp_path / "source"
    published.write_files(source, published.tensors(), values, kind="bin")
    published.make_manifest(source)

    _refused(source, NotQwenVLError, "not a Qwen-VL")


def test_a_config_with_absurd_numbers_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    values = published.config() | {"num_hidden_layers": 10**15}
    published.write_files(source, published.tensors(), values, kind="bin")
    published.make_manifest(source)

    _refused(source, NotQwenVLError, "num_hidden_layers")


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_refused(tmp_path: Path, verify: bool) -> None:
    source = published.make_snapshot(tmp_path / "source", kind="safetensors")
    shard = source / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])

    _refused(source, DigestMismatchError if verify else CheckpointError, shard.name, verify=verify)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_changed_byte_is_refused(tmp_path: Path, kind: str) -> None:
    source = published.make_snapshot(tmp_path / "source", kind=kind)
    shard = next(source.glob(f"*-00002-of-00002.{kind}"))
    data = bytearray(shard.read_bytes())
    data[-2000] ^= 1
    shard.write_bytes(data)

    _refused(source, DigestMismatchError, shard.name)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    (source / "pytorch_model-00002-of-00002.bin").unlink()

    _refused(source, StoreError, "missing")


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    from safetensors.torch import save_file

    save_file(published.tensors(seed=1), source / "model.safetensors")  # would win over the .bin

    _refused(source, NotASnapshotError, "model.safetensors")


def test_a_tensor_that_no_rule_names_is_refused(tmp_path: Path) -> None:
    source = _changed(tmp_path, transformer__h__0__attn__masked_bias=(1,))

    _refused(source, UnmappedTensorError, "masked_bias")


def test_a_tensor_of_a_layer_beyond_the_config_is_refused(tmp_path: Path) -> None:
    _refused(
        _changed(tmp_path, transformer__h__2__ln_1__weight=(64,)),
        IncompleteError,
        r"beyond.*transformer\.h\.2\.ln_1\.weight",
    )


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "transformer.h.1.mlp.w2.weight",
        "transformer.h.0.attn.c_attn.bias",
        "transformer.visual.attn_pool.kv_proj.weight",
        "transformer.visual.transformer.resblocks.1.ln_2.bias",
    ],
)
def test_a_tensor_that_the_config_promises_is_missed(tmp_path: Path, name: str) -> None:
    _refused(_changed(tmp_path, drop=name), IncompleteError, name.replace(".", r"\."))


def test_a_half_quantized_module_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    state = published.tensors(int4=True)
    del state["transformer.h.0.mlp.w1.scales"]
    published.write_files(source, state, published.config(int4=True), kind="bin")
    published.make_manifest(source)

    _refused(source, IncompleteError, r"mlp\.w1\.scales")


def test_a_native_snapshot_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    options = ToTransformersOptions("x")
    source = published.make_snapshot(tmp_path / "source")
    native = to_transformers(source, tmp_path / "native", options).folder
    state = load_file(native / "model.safetensors")
    del state["model.language_model.layers.0.self_attn.k_proj.bias"]
    save_file(state, native / "model.safetensors")
    write_manifest(native, Manifest(files=scan(native)))

    with pytest.raises(CheckpointError, match=r"k_proj\.bias"):
        _original(native, tmp_path / "back")

    assert not (tmp_path / "back").exists()


def test_a_snapshot_without_its_rank_file_is_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    (source / "qwen.tiktoken").unlink()
    published.make_manifest(source)

    _refused(source, MissingFileError, r"qwen\.tiktoken")


def test_a_rank_file_of_another_model_is_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    (source / "qwen.tiktoken").write_bytes(published.rank_file() + b"aGVsbG9v 260\n")
    published.make_manifest(source)

    _refused(source, ToolkitError, "<img>")


def test_the_wrong_direction_is_refused(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    native = _native(source, tmp_path / "native")

    with pytest.raises(WrongLayoutError, match="native"):
        _native(native, tmp_path / "other")
    with pytest.raises(WrongLayoutError, match="original"):
        _original(source, tmp_path / "other")


def test_what_was_written_hashes_to_its_manifest(tmp_path: Path) -> None:
    native = _native(published.make_snapshot(tmp_path / "source"), tmp_path / "native")

    for entry in read_manifest(native).files:
        assert sha256_file(native / entry.path) == entry.sha256
