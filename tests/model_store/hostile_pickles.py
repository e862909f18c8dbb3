"""Torch files whose pickle attacks, or lies about its tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from model_store.errors import CheckpointError
from tests.model_store.hostile import (
    FLOATS,
    Hostile,
    number,
    numbers,
    program,
    state_dict,
    storage,
    tensor,
    tensor_file,
    text,
    torch_zip,
)


def _calls(module: str, name: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + text("true") + b"tR."


def _lists(folder: Path) -> Path:
    return program(b"\x80\x02" + (b"]" + text("")) * 510_000 + b".")(folder)


def _memo_bomb(folder: Path) -> Path:
    entries = b"".join(b"r" + struct.pack("<I", n) for n in range(510_000))
    return program(b"\x80\x02}" + entries + b".")(folder)


def _odd_storage(count: bytes) -> bytes:
    named = b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    return b"(" + text("storage") + named + count + b"tQ"


def _untyped(size: int) -> bytes:
    named = b"ctorch.storage\nUntypedStorage\n" + text("0") + text("cpu")
    return b"(" + text("storage") + named + number(size) + b"tQ"


def _version3(held: bytes, dtype: str, shape: tuple[int, ...] = (4,)) -> Callable[[Path], Path]:
    made = b"ctorch._utils\n_rebuild_tensor_v3\n(" + held + number(0) + numbers(shape)
    made += numbers((1,)) + b"\x89}c" + dtype.encode() + b"tR"
    data = FLOATS[:15] if len(shape) and shape[0] == 3 else FLOATS
    return lambda folder: torch_zip(folder / "pytorch_model.bin", state_dict(w=made), data=data)


PICKLES = (
    Hostile("os.system", program(_calls("os", "system")), "os.system"),
    Hostile("builtins.eval", program(_calls("builtins", "eval")), "builtins.eval"),
    Hostile("import_module", program(_calls("importlib", "import_module")), "importlib"),
    Hostile(
        "a global by STACK_GLOBAL",
        program(b"\x80\x04" + text("os") + text("system") + b"\x93."),
        "os.system",
    ),
    Hostile("an extension code", program(b"\x80\x02\x82\x01."), "EXT1"),
    Hostile("INST", program(b"\x80\x02(ios\nsystem\n."), "INST"),
    Hostile("OBJ", program(b"\x80\x02(]o."), "OBJ"),
    Hostile("NEWOBJ", program(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    Hostile("a length of a terabyte", program(b"\x80\x04\x8e" + b"\0" * 5 + b"\x01\0\0"), "broken"),
    Hostile("a memo that was never stored", program(b"\x80\x02j\xff\xff\xff\x7f."), "recalls"),
    Hostile("an empty stack", program(b"\x80\x02R."), "empty stack"),
    Hostile("an unopened mark", program(b"\x80\x02t."), "mark"),
    Hostile("deep nesting", program(b"\x80\x02" + b"(" * 2000 + b"."), "deeply"),
    Hostile("SETITEM on a list", program(b"\x80\x02]" + text("a") + b"Ns."), "no dict"),
    Hostile("BUILD with a tuple", program(b"\x80\x02}(Nt" + b"b."), "BUILD"),
    Hostile("no STOP", program(b"\x80\x02}"), "broken"),
    Hostile("values left over", program(b"\x80\x02}}."), "leaves values"),
    Hostile("a tuple as a key", program(b"\x80\x02}(NtNs."), "key of type tuple"),
    Hostile(
        "a memo index of 2^31",
        program(b"\x80\x02}r\x00\x00\x00\x80."),
        "as number 2147483648",
    ),
    Hostile("half a million memo entries", _memo_bomb, "as number 500001"),
    Hostile("half a million empty lists", _lists, "500000 objects"),
    Hostile("a program of single bytes", program(b"\x80\x02" + b"N" * 10**5 + b"."), "steps"),
    Hostile("an extension code of four bytes", program(b"\x80\x02\x84\1\0\0\0."), "EXT4"),
    Hostile("LONG4 of a terabyte", program(b"\x80\x02\x8b\xff\xff\xff\x7f"), "broken"),
    Hostile("BUILD on a tensor", program(state_dict(w=tensor() + b"}b")), "BUILD"),
    Hostile("SETITEMS on a tuple", program(b"\x80\x02)(" + text("a") + b"Nu."), "no dict"),
    Hostile("APPEND to a dict", program(b"\x80\x02}Na."), "no list"),
    Hostile(
        "a key that is a number",
        program(b"\x80\x02}(K\x01" + tensor() + b"u."),
        "no plain text",
    ),
    Hostile(
        "a number among the tensors",
        program(b"\x80\x02}(" + text("w") + tensor() + text("epoch") + b"K\x03u."),
        "'epoch' is no tensor",
        CheckpointError,
    ),
    Hostile(
        "an optimizer's state",
        program(b"\x80\x02}(" + text("state") + b"}" + text("param_groups") + b"]u."),
        "no state dict",
        CheckpointError,
    ),
    Hostile("a list", program(b"\x80\x02]."), "holds a list", CheckpointError),
    Hostile(
        "a state dict 150 deep",
        program(b"\x80\x02" + (b"}(" + text("model")) * 150 + b"}" + b"u" * 150 + b"."),
        "deeply",
    ),
    Hostile("a name that climbs", program(state_dict(**{"../../x": tensor()})), "path out"),
    Hostile("a name of a megabyte", program(state_dict(**{"x" * 10**6: tensor()})), "characters"),
    Hostile(
        "a name twice",
        program(b"\x80\x02}(" + (text("a") + tensor()) * 2 + b"u."),
        "occurs twice",
    ),
    Hostile("a control character", program(state_dict(**{"a\x1b[2J": tensor()})), "plain text"),
)


TENSORS = (
    Hostile("an offset beyond the storage", tensor_file(offset=1), "reaches beyond"),
    Hostile(
        "strides beyond the storage", tensor_file(shape=(2, 2), strides=(3, 1)), "reaches beyond"
    ),
    Hostile("a negative offset", tensor_file(offset=-1), "negative"),
    Hostile("a negative stride", tensor_file(strides=(-1,)), "negative"),
    Hostile("a negative size", tensor_file(shape=(-4,)), "negative"),
    Hostile("a size beyond 63 bits", tensor_file(shape=(2**64,)), "strange"),
    Hostile("strides for another shape", tensor_file(strides=(2, 1)), "disagree"),
    Hostile("a bomb of stride 0", tensor_file(shape=(2**40,), strides=(0,)), "repeats its storage"),
    Hostile(
        "an overlapping bomb", tensor_file(shape=(4, 2**40), strides=(1, 0)), "repeats its storage"
    ),
    Hostile("a storage that is too small", tensor_file(held=storage(elements=5)), "16 bytes"),
    Hostile(
        "a storage that is too large",
        tensor_file(held=storage(elements=3), shape=(3,)),
        "16 bytes",
    ),
    Hostile("a storage that is missing", tensor_file(held=storage(key="7")), "not in the archive"),
    Hostile(
        "a storage outside the folder", tensor_file(held=storage(key="../0")), "not in the archive"
    ),
    Hostile("a storage of no known type", tensor_file(held=storage(kind="QInt8Storage")), "QInt8"),
    Hostile(
        "a storage of complex32",
        tensor_file(held=storage(kind="ComplexHalfStorage")),
        "ComplexHalf",
    ),
    Hostile(
        "an untyped storage in a typed tensor", tensor_file(held=_untyped(16)), "does not write"
    ),
    Hostile(
        "a dtype that splits an element",
        _version3(_untyped(15), "torch\nuint32\n", shape=(3,)),
        "whole elements",
    ),
    Hostile("a dtype that is a program", _version3(_untyped(16), "os\nsystem\n"), "os.system"),
    Hostile(
        "a tensor on meta",
        tensor_file(held=storage().replace(text("cpu"), text("meta"))),
        "meta",
        CheckpointError,
    ),
    Hostile(
        "a tensor without storage",
        tensor_file(call="torch._utils\n_rebuild_meta_tensor_no_storage\n"),
        "meta_tensor",
    ),
    Hostile("a quantized tensor", tensor_file(call="torch._utils\n_rebuild_qtensor\n"), "qtensor"),
    Hostile("a subclass", tensor_file(call="torch._tensor\n_rebuild_from_type_v2\n"), "type_v2"),
    Hostile(
        "a tensor of 65 dimensions", tensor_file(shape=(1,) * 65, strides=(1,) * 65), "disagree"
    ),
    Hostile("a count below zero", tensor_file(held=storage(elements=-4)), "not described"),
    Hostile("a count that is text", tensor_file(held=_odd_storage(text("4"))), "not described"),
    Hostile("a count that is true", tensor_file(held=_odd_storage(b"\x88")), "not described"),
    Hostile("a persistent id that is a number", tensor_file(held=b"K\x01Q"), "not described"),
    Hostile(
        "a persistent id of six parts", tensor_file(held=_odd_storage(b"K\x04N")), "not described"
    ),
    Hostile("a persistent id of one part", tensor_file(held=text("0") + b"Q"), "not described"),
    Hostile(
        "another rebuilder", tensor_file(call="torch._utils\n_rebuild_sparse_tensor\n"), "sparse"
    ),
    Hostile("a tensor of no storage", tensor_file(held=b"N"), "a call of torch"),
)
