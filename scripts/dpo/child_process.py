"""Processes that end with the one that started them, and running a function in one: native code may crash there."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from dpo.cli import UserError

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends; on Linux.

    Else what a killed run left behind would go on writing beside the next one.

    Args:
        parent: process id of the one that started it; it may have ended already.
    """
    if LIBC is None:
        return
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def ends_with_this() -> Callable[[], None]:
    """Return a `preexec_fn` for `subprocess`: the program that it starts ends with this process."""
    return partial(die_with_parent, os.getpid())


def end_with_pool() -> None:
    """Have a process of a pool end with the one that made the pool. To be called by its initializer.

    The pool's own process may have ended while this one was still importing what it needs, and may not be its parent.
    """
    die_with_parent(os.getppid())
    if not multiprocessing.parent_process().is_alive():
        os.kill(os.getpid(), signal.SIGKILL)


def run(crashed: str, function: Callable, *arguments):
    """Run a module's function in a new process and return what it returns.

    Raises:
        UserError: the process ended without an answer, as it does when native code aborts; the text is `crashed`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_pool) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(crashed) from None
