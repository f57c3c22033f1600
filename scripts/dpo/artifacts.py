"""Writing artefacts so that each appears whole or not at all, and telling one from another by its SHA-256.

A file is written beside its place under a `.partial` name, flushed to disk, then renamed. A program that dies
half-way leaves at most a `.partial`, which the next attempt overwrites.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it becomes `path`, on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    _remove(partial)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except BaseException as error:
        error.add_note(f"while writing {path}")  # a failed write does not say where it was to go
        _remove(partial)
        raise


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `path` (replacing it), on any error it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            _flush(file)
        _remove(path)
        os.replace(partial, path)
        _flush(path.parent)
    except BaseException as error:
        error.add_note(f"while writing {path}")  # a failed write does not say where it was to go
        _remove(partial)
        raise


def raise_why_unwritten(path: Path, size: int) -> None:
    """Write as many bytes to a file, which raises the reason why a program of others could not, and did not say."""
    with open(path, "wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(bytes(1 << 20))


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, so that at no moment a part of it stands under its name."""
    partial = _partial(path)
    _remove(partial)
    if path.exists():
        os.replace(path, partial)
        _remove(partial)


def read_json(path: Path) -> dict:
    """Read one JSON object that a stage of this workflow wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict]:
    """Read the JSON Lines file that a stage of this workflow wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_json(path: Path, value: dict) -> None:
    """Write one JSON object, indented, as a whole or not at all. NaN and infinities are refused."""
    with staged_file(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, as a whole or not at all. NaN and infinities are refused."""
    with staged_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
