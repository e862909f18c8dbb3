"""How probes come together in batches, and batches come apart over processes."""

from __future__ import annotations

import pytest

from verification.batches import plan_batches
from verification.errors import WorldError
from verification.probes import make_probes, tokenizer_strings
from verification.world import World, join_world


@pytest.mark.parametrize("size", [1, 7, 16])
def test_every_probe_is_in_one_batch_and_boxes_are_asked_of_all_or_none(size: int) -> None:
    probes = make_probes(2, 60)

    batches = plan_batches(probes, size)

    assert sorted(index for batch in batches for index in batch) == list(range(60))
    assert all(1 <= len(batch) <= size for batch in batches)
    for batch in batches:
        assert len({probes[i].target is None for i in batch}) == 1
        assert len({len(probes[i].images) for i in batch}) == 1


def test_batches_do_not_depend_on_how_many_share_the_work() -> None:
    batches = plan_batches(make_probes(2, 60), 8)

    shares = [World(rank, 3).share(batches) for rank in range(3)]

    assert sorted(number for share in shares for number, _ in share) == list(range(len(batches)))
    assert all(batches[number] == batch for share in shares for number, batch in share)


def test_cuda_means_a_device_of_its_own_for_each_process() -> None:
    assert World(5, 8, local_rank=1).device("cuda") == "cuda:1"
    assert World(5, 8, local_rank=1).device("cuda:3") == "cuda:3"
    assert World().device("cpu") == "cpu"


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    world = join_world()

    assert (world.first, world.size) == (True, 1)
    assert world.tell(3) == 3


def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    with pytest.raises(WorldError, match="incomplete"):
        join_world()


def test_both_tokenizers_are_asked_over_two_thousand_different_strings() -> None:
    strings = tokenizer_strings(0)

    assert len(strings) == len(set(strings)) >= 2000
    assert strings == tokenizer_strings(0)
    assert strings[100:] != tokenizer_strings(1)[100:]
    assert any("\u4e00" <= char <= "\u9fff" for text in strings for char in text)
