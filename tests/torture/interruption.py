"""Stopping a program at its n-th operation on files: see interrupter/sitecustomize.py."""

from pathlib import Path

KINDS = ("open", "write", "flush", "rename", "remove", "mkdir")


def interrupt(program: str, kinds=KINDS, at: int = 0, how: str = "KILL", count: Path | None = None) -> dict[str, str]:
    """Return the environment that does it.

    Args:
        program: name of a script, without `.py`.
        kinds: the operations that count.
        at: which of them is the one; 0 for none.
        how: KILL, or the name of an error that it fails with.
        count: file to which the number of operations is written at the end.
    """
    told = {"PROGRAM": f"scripts/{program}.py", "KINDS": " ".join(kinds), "AT": str(at), "HOW": how}
    told |= {"COUNT": str(count)} if count else {}
    return {f"INTERRUPT_{key}": value for key, value in told.items()} | {
        "PYTHONPATH": str(Path(__file__).parent / "interrupter")
    }
