"""A file of answers that cost time or money, so that a program that was stopped need not ask again."""

import json
import os
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
        line = json.dumps({"key": key} | answer, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
            self.answers[key] = answer


def _read(path: Path) -> dict[str, dict]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))  # killed while writing; the next line must not be glued to the torn one
    answers = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            answer = json.loads(line)
            answers[answer.pop("key")] = answer
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{path}:{number} is no line of this journal; delete the line and run again") from None
    return answers
