from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import (
    MissingPartError,
    UnequalPartsError,
    UnevenSplitError,
    UnmappedTensorError,
    WeightMapError,
)
from model_store.tensors import RawTensor, from_bits
from model_store.weight_rules import Op, Rule, WeightMap, moved, planned, split_index

_QKV = ("q.{}.w", "k.{}.w", "v.{}.w")


def _numbers(*shape: int) -> RawTensor:
    count = int(np.prod(shape))
    return from_bits("U16", np.arange(count, dtype=np.uint16).reshape(shape))


def _reader(tensors: dict[str, RawTensor]) -> Callable[[str], RawTensor]:
    return tensors.__getitem__


def _one(op: Op) -> WeightMap:
    many = op not in (Op.RENAME, Op.TRANSPOSE)
    return WeightMap((Rule("h.{}.w", _QKV if many else ("n.{}.w",), op),))


def _forward(op: Op, tensor: RawTensor, *, heads: int = 1) -> list[object]:
    tensors = {"h.3.w": tensor}
    plan = _one(op).forward(tensors, heads=heads)
    return [made.bits().tolist() for _, made in moved(plan, _reader(tensors))]


def test_rows_are_split_in_equal_parts_of_dim_0() -> None:
    assert _forward(Op.ROWS, _numbers(6, 2)) == [
        [[0, 1], [2, 3]],
        [[4, 5], [6, 7]],
        [[8, 9], [10, 11]],
    ]


def test_columns_are_split_in_equal_parts_of_dim_1() -> None:
    assert _forward(Op.COLUMNS, _numbers(2, 3)) == [[[0], [3]], [[1], [4]], [[2], [5]]]


def test_heads_are_taken_apart_one_by_one() -> None:
    # rows q0 k0 v0 q1 k1 v1, one row per head
    assert _forward(Op.HEADS, _numbers(6), heads=2) == [[0, 3], [1, 4], [2, 5]]
    # two rows per head
    assert _forward(Op.HEADS, _numbers(12), heads=2) == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
    ]


def test_a_matrix_is_transposed_and_an_index_is_copied() -> None:
    assert _forward(Op.TRANSPOSE, _numbers(2, 3)) == [[[0, 3], [1, 4], [2, 5]]]
    assert _forward(Op.COPY, _numbers(2)) == [[0, 1]] * 3


@given(
    op=st.sampled_from(list(Op)),
    heads=st.integers(1, 4),
    rows=st.integers(0, 3),
    columns=st.integers(0, 3),
    dtype=st.sampled_from(["BF16", "I32", "F16", "I8", "F64"]),
)
def test_every_move_and_its_inverse_give_the_same_bytes(
    op: Op, heads: int, rows: int, columns: int, dtype: str
) -> None:
    width = {"BF16": 2, "I32": 4, "F16": 2, "I8": 1, "F64": 8}[dtype]
    shape = (rows * heads * 3, columns * 3)
    data = np.random.default_rng(7).bytes(shape[0] * shape[1] * width)
    before = {"h.0.w": RawTensor(dtype, shape, memoryview(data))}
    table = _one(op)

    there = dict(moved(table.forward(before, heads=heads), _reader(before)))
    back = dict(moved(table.backward(there, heads=heads), _reader(there)))

    assert {name: (t.dtype, t.shape, bytes(t.data)) for name, t in back.items()} == {
        "h.0.w": (dtype, shape, data)
    }


def test_a_plan_promises_what_its_moves_make() -> None:
    tensors = {"h.0.w": _numbers(6, 3), "h.10.w": _numbers(12, 3), "h.2.w": _numbers(3, 3)}

    plan = _one(Op.ROWS).forward(tensors, heads=1)

    assert [move.sources[0] for move in plan] == ["h.0.w", "h.2.w", "h.10.w"]  # by number
    made = {name: (t.dtype, t.shape) for name, t in moved(plan, _reader(tensors))}
    assert made == {name: (spec.dtype, spec.shape) for name, spec in planned(plan).items()}
    assert made["k.10.w"] == ("U16", (4, 3))


def test_the_order_of_a_plan_does_not_depend_on_the_order_of_the_source() -> None:
    table = WeightMap(
        (Rule("h.{}.b", ("n.{}.b",)), Rule("h.{}.w", _QKV, Op.ROWS), Rule("x", ("y",)))
    )
    names = ["x", "h.1.w", "h.1.b", "h.0.w", "h.0.b"]
    infos = {name: _numbers(3) for name in names}

    plan = table.forward(infos, heads=1)

    assert [move.sources[0] for move in plan] == ["h.0.b", "h.0.w", "h.1.b", "h.1.w", "x"]
    assert plan == table.forward({name: infos[name] for name in sorted(names)}, heads=1)


@pytest.mark.parametrize("name", ["h.w", "h.x.w", "h.00.w", "h.1.2.w", "h.{}.w", "h.-1.w", "h.².w"])
def test_a_name_outside_the_table_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnmappedTensorError) as caught:
        _one(Op.RENAME).forward({name: _numbers(1)}, heads=1)

    assert caught.value.name == name


def test_a_missing_part_is_refused_by_name() -> None:
    with pytest.raises(MissingPartError, match=r"k\.3\.w.*h\.3\.w"):
        _one(Op.ROWS).backward({"q.3.w": _numbers(2), "v.3.w": _numbers(2)}, heads=1)


@pytest.mark.parametrize(
    ("op", "shape", "heads"),
    [
        (Op.ROWS, (4, 3), 1),
        (Op.ROWS, (), 1),
        (Op.COLUMNS, (3, 4), 1),
        (Op.COLUMNS, (3,), 1),
        (Op.HEADS, (6,), 4),
        (Op.HEADS, (6,), 0),
        (Op.HEADS, (6,), -1),
    ],
)
def test_what_does_not_divide_is_refused_by_name(
    op: Op, shape: tuple[int, ...], heads: int
) -> None:
    with pytest.raises(UnevenSplitError, match=r"h\.0\.w"):
        _one(op).forward({"h.0.w": _numbers(*shape)}, heads=heads)


def test_a_part_that_the_heads_do_not_divide_is_refused() -> None:
    parts = {name.format(0): _numbers(3) for name in _QKV}

    with pytest.raises(UnevenSplitError, match=r"q\.0\.w"):
        _one(Op.HEADS).backward(parts, heads=2)


def test_parts_of_different_shape_or_dtype_are_refused() -> None:
    parts = {"q.0.w": _numbers(2), "k.0.w": _numbers(2), "v.0.w": _numbers(4)}
    other = parts | {"v.0.w": from_bits("I16", np.zeros(2, np.int16))}

    for infos in (parts, other):
        with pytest.raises(UnequalPartsError, match=r"q\.0\.w and v\.0\.w"):
            _one(Op.ROWS).backward(infos, heads=1)


def test_copies_that_differ_are_refused_when_they_are_fused() -> None:
    parts = {
        "q.0.w": _numbers(2),
        "k.0.w": _numbers(2),
        "v.0.w": from_bits("U16", np.zeros(2, "u2")),
    }
    plan = _one(Op.COPY).backward(parts, heads=1)

    with pytest.raises(UnequalPartsError, match=r"q\.0\.w and v\.0\.w .* content"):
        list(moved(plan, _reader(parts)))


def test_a_tensor_that_is_not_what_was_planned_is_refused() -> None:
    plan = _one(Op.ROWS).forward({"h.0.w": _numbers(6, 2)}, heads=1)

    with pytest.raises(WeightMapError, match=r"h\.0\.w is not what"):
        list(moved(plan, _reader({"h.0.w": _numbers(9, 2)})))


def test_only_a_matrix_can_be_transposed() -> None:
    with pytest.raises(WeightMapError, match=r"h\.0\.w"):
        _one(Op.TRANSPOSE).forward({"h.0.w": _numbers(2, 2, 2)}, heads=1)


def test_a_table_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(WeightMapError):
        Rule("h.{}.w", ("n.w",))
    with pytest.raises(WeightMapError):
        Rule("w", ("q", "k"), Op.RENAME)
    with pytest.raises(WeightMapError, match="two rules name 'n'"):
        WeightMap((Rule("a", ("n",)), Rule("b", ("n",)))).backward({"n": _numbers(1)}, heads=1)


def test_an_index_is_split_off_only_when_it_survives_the_way_back() -> None:
    assert split_index("a.12.b") == ("a.{}.b", "12")
    assert split_index("a.012.b") == ("a.012.b", "")
    assert split_index("a.b1.c") == ("a.b1.c", "")
