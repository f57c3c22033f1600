"""Stops one program at its n-th operation on files in results/. Python imports this by its name, from PYTHONPATH.

INTERRUPT_PROGRAM  the program, as the rule calls it; all others are left alone
INTERRUPT_KINDS    the operations that count, of open (for writing), write, flush, rename, remove, mkdir
INTERRUPT_AT       n
INTERRUPT_HOW      KILL, or the name of the error that the operation fails with, such as ENOSPC
INTERRUPT_COUNT    file to write the number of operations to, at the program's end
"""

import atexit
import builtins
import errno
import io
import os
import signal
import sys

EVENTS = {"os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "mkdir"}
done = 0


def count(kind: str, path: object) -> None:
    """An operation is about to happen: let it, or not."""
    global done
    if kind not in KINDS or not isinstance(path, (str, bytes, os.PathLike)):
        return
    at = os.path.relpath(os.fsdecode(path))
    if not at.startswith("results/"):
        return
    done += 1
    if done == AT:
        if HOW == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        # The system names a file in opening and renaming it, not in writing.
        number = getattr(errno, HOW)
        raise OSError(number, os.strerror(number), *([] if kind in ("write", "flush") else [at]))


def watch(event: str, arguments: tuple) -> None:
    """Count what Python tells of operations before they happen."""
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        count("open", arguments[0])
    elif event in EVENTS:
        count(EVENTS[event], arguments[0])


class File(io.FileIO):
    """A file whose writes are counted, which Python does not tell of."""

    def write(self, data):
        count("write", self.name)
        return super().write(data)


def open_counted(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    """Open a file as `open` does; one that is only written to with counted writes."""
    if isinstance(file, int) or opener or not set(mode) & set("wax") or "+" in mode:
        return open_plainly(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = io.BufferedWriter(File(file, mode.replace("b", "").replace("t", "")))
    return raw if "b" in mode else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)


def flush_counted(descriptor: int) -> None:
    """Flush as `os.fsync` does."""
    count("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
    flush_plainly(descriptor)


def report() -> None:
    """Write down how many operations there were."""
    with open_plainly(os.environ["INTERRUPT_COUNT"], "w") as file:
        file.write(str(done))


if os.environ.get("INTERRUPT_PROGRAM") in sys.orig_argv[1:2]:
    KINDS, HOW = os.environ["INTERRUPT_KINDS"].split(), os.environ.get("INTERRUPT_HOW", "KILL")
    AT = int(os.environ.get("INTERRUPT_AT", 0))
    open_plainly, flush_plainly = io.open, os.fsync
    builtins.open = io.open = open_counted
    os.fsync = flush_counted
    sys.addaudithook(watch)
    if "INTERRUPT_COUNT" in os.environ:
        atexit.register(report)
