"""The processes that share one comparison: alone, or as many as torchrun started.

Every process takes each N-th batch and leaves its results in the shared journal; the first one
gathers them, judges and writes. Nothing but "done" and the exit status is sent between them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from verification.errors import WorldError

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # one process may have the slowest batches


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """The items that are this process's, with their places."""
        return [(i, item) for i, item in enumerate(items) if i % self.size == self.rank]

    def device(self, asked: str) -> str:
        """`cuda` means one device per process."""
        return f"cuda:{self.local_rank}" if asked == "cuda" else asked

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def tell(self, status: int) -> int:
        """Return the first process's status in every process."""
        if self.size == 1:
            return status
        import torch.distributed as dist

        said = [status]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def leave(self) -> None:
        """Close what `join_world` opened."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def join_world() -> World:
    """Join the processes that torchrun started; a plain run is a world of one.

    Raises:
        WorldError: torchrun's variables make no sense.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "MASTER_ADDR" not in os.environ:
        return World()
    try:
        world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise WorldError(f"the variables of torchrun are incomplete: {error}") from error
    if world.size > 1:
        import torch.distributed as dist

        # the processes exchange a few bytes only, so gloo serves accelerators as well
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return world
