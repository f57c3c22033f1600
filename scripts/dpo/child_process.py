"""Processes that end with the one that started them, and running a function in one: native code may crash there."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dpo.cli import UserError

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends; on Linux.

    Else what a killed run left behind would go on writing beside the next one.

    Args:
        parent: its process id, where this process has been running for a while; it may have ended already.
    """
    if LIBC is None:
        return
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def run(crashed: str, function: Callable, *arguments):
    """Run a module's function in a new process and return what it returns.

    Raises:
        UserError: the process ended without an answer, as it does when native code aborts; the text is `crashed`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=die_with_parent) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(crashed) from None
