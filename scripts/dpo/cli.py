"""How every program of the workflow ends: quietly, or with one message that a person can act on."""

import errno
import os
import re
import sys
from collections.abc import Callable

OUT_OF_MEMORY = 137  # exit status, as a shell gives it to what the kernel killed for want of memory

# What code in Rust and C++ says of a failed system call, and of memory that could not be had.
SYSTEM_CALL = re.compile(r"\(os error (\d+)\)")
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written$")  # NumPy's, which does not say why
# The last five: the loader's, a thread's for its stack, OpenBLAS's, Rust's, and oneDNN's for the code that it makes.
NO_MEMORY = re.compile(
    "can't allocate memory|cannot allocate memory|out of memory|std::bad_alloc|unable to allocate|"
    "failed to map segment|can't start new thread|memory allocation still failed|"
    r"memory allocation of \d+ bytes failed|could not create a primitive",
    re.IGNORECASE,
)
MAKE_ROOM = "make room (or raise the limit) where results/ and temporary files lie, and run again"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake that the user can mend. The text says what is wrong, where, and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that no memory, or none on the GPU, was left."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and bool(NO_MEMORY.search(str(error)))


def explain_storage(error: BaseException) -> str | None:
    """Return what a failed read or write means for a person, or None where the error is of another kind."""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, OSError) and SHORT_WRITE.search(str(error)):
        return f"{', '.join(['not all could be written', *notes])}; {MAKE_ROOM}"
    found = SYSTEM_CALL.search(str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if not isinstance(number, int) or not (found or isinstance(error, OSError)):
        return None
    files = [str(file) for file in (getattr(error, name, None) for name in ("filename", "filename2")) if file]
    where = " to ".join(files) + ": " if files else ""
    what = ", ".join([where + os.strerror(number), *notes])
    if number in FULL:
        return f"{what}; {MAKE_ROOM}"
    return f"{what}; see that it can be read and written, and run again"


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return what to tell a person and the exit status; None where only a traceback helps.

    The status is 1 for a `UserError` and for files that cannot be read or written, `OUT_OF_MEMORY` for want of memory.
    """
    if isinstance(error, UserError):
        return str(error), 1
    if is_out_of_memory(error):
        first_line = str(error).strip().partition("\n")[0]
        return f"memory ran out ({first_line or type(error).__name__})", OUT_OF_MEMORY
    explained = explain_storage(error)
    return (explained, 1) if explained else None


def run(main: Callable[[], None]) -> None:
    """Run a program's `main`, and end with one message without a traceback where a person can do something about it."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        print(f"error: {told[0]}", file=sys.stderr)
        sys.exit(told[1])


def end_import(kind: type, error: BaseException, traceback) -> None:
    """End a program in the same way that fails before its `main`, while it imports what it needs."""
    told = explain(error)
    if told is None:
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"error: {told[0]}", file=sys.stderr, flush=True)
    os._exit(told[1])


sys.excepthook = end_import
