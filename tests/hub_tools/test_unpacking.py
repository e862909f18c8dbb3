import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hub_tools.unpacking import Unpacker

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def twice(data: bytes) -> bytes:
    """Two gzip streams, one after the other."""
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


def source(packed: bytes, piece: int) -> Callable[[int], bytes]:
    left = [packed]

    def arrived(amount: int) -> bytes:
        taken, left[0] = left[0][: min(amount, piece)], left[0][min(amount, piece) :]
        return taken

    return arrived


def unpacked(unpacker: Unpacker, amount: int) -> list[bytes]:
    found = []
    while data := unpacker.read(amount):
        found.append(data)
    return found


@patient
@given(
    data=st.binary(max_size=2_000),
    pack=st.sampled_from([gzip.compress, zlib.compress, raw_deflate, twice]),
    piece=st.integers(1, 700),
    amount=st.integers(1, 700),
)
@example(data=b"", pack=raw_deflate, piece=1, amount=1)
def test_bytes_come_back_however_they_arrive(
    data: bytes, pack: Callable[[bytes], bytes], piece: int, amount: int
) -> None:
    found = unpacked(Unpacker(source(pack(data), piece)), amount)

    assert b"".join(found) == data
    assert all(len(chunk) <= amount for chunk in found)


def test_a_bomb_comes_in_small_pieces() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    unpacker = Unpacker(source(bomb, 1 << 20))

    assert len(unpacker.read(1000)) == 1000


@pytest.mark.parametrize("cut", [1, 9, 500])
def test_what_breaks_off_is_an_error(cut: int) -> None:
    packed = gzip.compress(random.Random(1).randbytes(1000))

    with pytest.raises(zlib.error):
        unpacked(Unpacker(source(packed[:-cut], 100)), 100)


def test_what_is_not_compressed_is_an_error() -> None:
    with pytest.raises(zlib.error):
        unpacked(Unpacker(source(b"\xff" * 500, 100)), 100)
