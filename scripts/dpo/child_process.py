"""Running a function in a process of its own: native code may crash there, and imports change nothing here."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dpo.cli import UserError


def run(crashed: str, function: Callable, *arguments):
    """Run a module's function in a new process and return what it returns.

    Raises:
        UserError: the process ended without an answer, as it does when native code aborts; the text is `crashed`.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError(crashed) from None
