"""Let a step die with the run that started it, even when that is killed outright."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def dies_with_parent() -> Callable[[], None] | None:
    """Return what a child calls before its program starts; None where the system has no such thing.

    Call it in the thread that starts the child: the system counts that thread as the parent.
    """
    if sys.platform != "linux":
        return None
    # looked up here: between fork and exec as little as possible may happen
    prctl = ctypes.PyDLL(None).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return bind
