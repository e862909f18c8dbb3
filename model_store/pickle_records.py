"""Read a torch pickle as data: opcodes from a short list, inert records, nothing is imported.

The program of a state dict needs about thirty opcodes and a dozen globals. Each global here is a
name and stays one; calling it builds one of the records below. Everything else is refused, and the
stack, the memo and the program's length are bounded.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from model_store.errors import CheckpointError, UnsafeCheckpointError
from model_store.tensors import ITEM_SIZE

# a tensor takes about 40 opcodes, 300 bytes, 12 entries of the memo and 8 objects
MAX_PROGRAM = 32_000_000  # bytes
MAX_STEPS = 2_000_000
MAX_OBJECTS = 500_000
_MAX_DIMENSIONS = 64
_MAX_MARKS = 100

STORAGES = {
    "torch BFloat16Storage": "BF16",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch DoubleStorage": "F64",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
# torch has no storage class for these: an untyped storage, and the dtype beside it
_UNTYPED = "torch.storage UntypedStorage"
_DTYPES = {
    "torch float8_e4m3fn": "F8_E4M3",
    "torch float8_e5m2": "F8_E5M2",
    "torch uint16": "U16",
    "torch uint32": "U32",
    "torch uint64": "U64",
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_TENSOR_3 = "torch._utils _rebuild_tensor_v3"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
_GLOBALS = {*STORAGES, *_DTYPES, _UNTYPED, _TENSOR, _TENSOR_3, _PARAMETER, _ORDERED_DICT}


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed name; never the thing that it names."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRecord:
    """One entry `data/<key>` of the archive, holding `elements` of `dtype`."""

    key: str
    dtype: str  # "" when untyped: `elements` are bytes then
    elements: int

    @property
    def nbytes(self) -> int:
        return self.elements * (ITEM_SIZE[self.dtype] if self.dtype else 1)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _Machine:
    """The unpickling stack; a mark is a saved stack, as in the pickle protocol."""

    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    made: int = 0

    def count(self) -> None:
        self.made += 1
        if self.made > MAX_OBJECTS:
            raise UnsafeCheckpointError(f"a pickle of over {MAX_OBJECTS} objects")

    def pop(self) -> Any:
        if not self.stack:
            raise UnsafeCheckpointError("the pickle takes from an empty stack")
        return self.stack.pop()

    def top(self, kind: type[Any], opcode: str) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise UnsafeCheckpointError(f"{opcode} on something that is no {kind.__name__}")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.marks) >= _MAX_MARKS:
            raise UnsafeCheckpointError("the pickle is nested too deeply")
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise UnsafeCheckpointError("the pickle closes a mark that it never opened")
        items, self.stack = self.stack, self.marks.pop()
        return items


def read_records(program: bytes) -> Any:
    """Interpret a pickle and return what it describes: dicts, lists, numbers and records.

    Raises:
        UnsafeCheckpointError: an opcode, global or size outside what a state dict needs.
    """
    if len(program) > MAX_PROGRAM:
        raise UnsafeCheckpointError(f"a pickle of {len(program)} bytes is over the limit")
    machine = _Machine()
    # torch's programs have five bytes and more per opcode; one of single bytes is made to be slow
    most = min(MAX_STEPS, 1000 + len(program) // 2)
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(BytesIO(program))):
            if steps > most:
                raise UnsafeCheckpointError(f"a pickle of over {most} steps")
            if opcode.name == "STOP":
                break
            _step(machine, opcode.name, argument)
    except ValueError as error:  # genops: unknown opcode, truncated argument, no STOP
        raise UnsafeCheckpointError(f"broken pickle: {str(error)[:120]}") from error
    result = machine.pop()
    if machine.stack or machine.marks:
        raise UnsafeCheckpointError("the pickle leaves values on its stack")
    return result


_SKIPPED = {"PROTO", "FRAME"}
_VALUES = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _step(machine: _Machine, opcode: str, argument: Any) -> None:
    push = machine.stack.append
    if opcode in _VALUES:
        push(argument)
    elif opcode in _CONSTANTS:
        push(_CONSTANTS[opcode])
    elif opcode in _TUPLES:
        machine.count()
        push(tuple(reversed([machine.pop() for _ in range(_TUPLES[opcode])])))
    elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        _remember(machine, len(machine.memo) if opcode == "MEMOIZE" else argument)
    elif opcode in ("BINGET", "LONG_BINGET"):
        if argument not in machine.memo:
            raise UnsafeCheckpointError("the pickle recalls what it never stored")
        push(machine.memo[argument])
    elif opcode not in _SKIPPED:
        _build(machine, opcode, argument)


def _remember(machine: _Machine, index: int) -> None:
    if not machine.stack:
        raise UnsafeCheckpointError("the pickle stores from an empty stack")
    if index > MAX_OBJECTS:
        raise UnsafeCheckpointError(f"the pickle stores something as number {index}")
    machine.memo[index] = machine.stack[-1]


def _build(machine: _Machine, opcode: str, argument: Any) -> None:
    machine.count()
    match opcode:
        case "MARK":
            machine.mark()
        case "EMPTY_DICT":
            machine.stack.append({})
        case "EMPTY_LIST":
            machine.stack.append([])
        case "TUPLE":
            items = machine.since_mark()
            machine.stack.append(tuple(items))
        case "APPEND":
            value = machine.pop()
            machine.top(list, opcode).append(value)
        case "APPENDS":
            items = machine.since_mark()
            machine.top(list, opcode).extend(items)
        case "SETITEM":
            value, key = machine.pop(), machine.pop()
            _set_items(machine.top(dict, opcode), [key, value])
        case "SETITEMS":
            items = machine.since_mark()
            _set_items(machine.top(dict, opcode), items)
        case "GLOBAL" | "STACK_GLOBAL" | "BINPERSID" | "REDUCE" | "BUILD":
            _name_or_call(machine, opcode, argument)
        case _:
            raise UnsafeCheckpointError(f"opcode {opcode} has no place in a state dict")


def _name_or_call(machine: _Machine, opcode: str, argument: Any) -> None:
    match opcode:
        case "GLOBAL":
            machine.stack.append(_global(argument))
        case "STACK_GLOBAL":
            name, module = machine.pop(), machine.pop()
            if type(name) is not str or type(module) is not str:
                raise UnsafeCheckpointError("the pickle names a global by something but text")
            machine.stack.append(_global(f"{module} {name}"))
        case "BINPERSID":
            machine.stack.append(_storage(machine.pop()))
        case "REDUCE":
            arguments, called = machine.pop(), machine.pop()
            machine.stack.append(_call(called, arguments))
        case _:
            # a state dict carries its module versions as an attribute: nothing that weights need
            if type(machine.pop()) is not dict:
                raise UnsafeCheckpointError("BUILD with something that is no dict")
            machine.top(dict, opcode)


def _global(name: str) -> Global:
    if name not in _GLOBALS:
        shown = name[:80].replace(" ", ".", 1)
        raise UnsafeCheckpointError(f"the pickle names {shown!r}, which no state dict needs")
    return Global(name)


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise UnsafeCheckpointError("a dict with a key and no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # only these: hashing a crafted tuple can take for ever
        if type(key) not in (str, int):
            raise UnsafeCheckpointError(f"a dict key of type {type(key).__name__}")
        if key in target:
            raise UnsafeCheckpointError(f"key {str(key)[:80]!r} occurs twice")
        target[key] = value


def _storage(identity: Any) -> StorageRecord:
    match identity:
        case ("storage", Global(name=name), str(key), str(location), int(elements)):
            if (
                (name in STORAGES or name == _UNTYPED)
                and type(elements) is int
                and 0 <= elements < 2**63
            ):
                if location == "meta":
                    raise CheckpointError(f"storage {key[:40]!r} is on meta: it has no data")
                return StorageRecord(key, STORAGES.get(name, ""), elements)
    raise UnsafeCheckpointError("a storage that is not described as torch describes one")


def _call(called: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple:
        raise UnsafeCheckpointError("a call with arguments that are no tuple")
    match called, arguments:
        case Global(name="collections OrderedDict"), ():
            return {}
        case Global(name="torch._utils _rebuild_tensor_v2"), (
            StorageRecord() as storage, offset, shape, strides, bool(), dict(), *rest,
        ) if len(rest) <= 1 and storage.dtype:  # fmt: skip
            return _tensor(storage, offset, shape, strides)
        case Global(name="torch._utils _rebuild_tensor_v3"), (
            StorageRecord(dtype="") as storage, offset, shape, strides, bool(), dict(),
            Global(name=dtype), *rest,
        ) if len(rest) <= 1 and dtype in _DTYPES:  # fmt: skip
            return _tensor(_typed(storage, _DTYPES[dtype]), offset, shape, strides)
        case Global(name="torch._utils _rebuild_parameter"), (
            TensorRecord() as tensor,
            bool(),
            dict(),
        ):
            return tensor
    name = called.name.replace(" ", ".") if isinstance(called, Global) else "no global"
    raise UnsafeCheckpointError(f"a call of {name} that torch does not write")


def _typed(storage: StorageRecord, dtype: str) -> StorageRecord:
    elements, rest = divmod(storage.elements, ITEM_SIZE[dtype])
    if rest:
        raise UnsafeCheckpointError("a storage that does not hold whole elements")
    return StorageRecord(storage.key, dtype, elements)


def _tensor(storage: StorageRecord, offset: Any, shape: Any, strides: Any) -> TensorRecord:
    if not (_are_sizes((offset,)) and _are_sizes(shape) and _are_sizes(strides)):
        raise UnsafeCheckpointError("a tensor with a negative or strange offset, shape or stride")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise UnsafeCheckpointError("a tensor whose shape and strides disagree")
    return TensorRecord(storage, offset, shape, strides)


def _are_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(n) is int and 0 <= n < 2**63 for n in value)
