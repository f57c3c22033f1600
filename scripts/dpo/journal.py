"""A file of answers that cost time or money, so that a program that was stopped need not ask again."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock

from dpo.cli import UserError


class Journal:
    """Answers under their keys, each appended to a JSON Lines file as soon as it is there. Threads may share it.

    Attributes:
        path: the file; made with its folder when the first answer comes.
        answers: key → answer, those of earlier runs among them.
    """

    def __init__(self, path: Path):
        """Read what is there.

        Raises:
            UserError: a line other than the last is broken, which no kill explains.
        """
        self.path = path
        self.answers = _read(path) if path.exists() else {}
        self._lock = Lock()

    def add(self, key: str, answer: dict) -> None:
        """Keep an answer; when this returns, a kill no longer loses it."""
        entry = {"key": key} | answer
        line = json.dumps(entry | {"sha256": _digest(entry)}, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                error.add_note(f"while writing {self.path}")
                with suppress(OSError):
                    os.truncate(self.path, size)  # another thread's next line must not be glued to a torn one
                raise
            self.answers[key] = answer


def _digest(entry: dict) -> str:
    """Return the SHA-256 of an entry: a damaged one may be sound JSON all the same, and say something else."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _read(path: Path) -> dict[str, dict]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))  # killed while writing; the next line must not be glued to the torn one
    answers = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            answer = json.loads(line)
            if answer.pop("sha256") != _digest(answer):
                raise ValueError("damaged")
            answers[answer.pop("key")] = answer
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{path}:{number} is no line of this journal; delete the line and run again") from None
    return answers
