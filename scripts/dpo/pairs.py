"""Preference pairs and test prompts as people write them: JSON Lines, read strictly.

A preference pair is `{"id", "topic", "prompt", "chosen", "rejected"}`, all text. A test prompt is
`{"id", "topic", "prompt", "expects", "forbids"}`, optionally with `"notebook": true` for the prompts that the original
notebook shows; `expects` and `forbids` are lists of `{"name", "any"}`, `any` being phrases in the sense of `rubric.py`.
Every problem in a file is collected, so that one reading shows all of them.
"""

import json
import re
from pathlib import Path

PAIR_FIELDS = ("id", "topic", "prompt", "chosen", "rejected")
PROMPT_FIELDS = ("id", "topic", "prompt")
CHECK_FIELDS = ("expects", "forbids")


def normalize(text: str) -> str:
    """Return the text as compared for duplicates: case, punctuation and runs of white space do not count."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def read_lines(path: Path, problems: list[str]) -> list[dict]:
    """Read a JSON Lines file of objects; add a line to `problems` for each row that is none.

    Each object gets the key `where` ("file:line"), so that later checks can say where a row stands.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8")
            continue
        except json.JSONDecodeError as error:
            what = f"{error.msg} at column {error.colno}" if line.strip() else "an empty line"
            problems.append(f"{where}: not JSON ({what}); write one JSON object a line")
            continue
        if isinstance(row, dict):
            rows.append(row | {"where": where})
        else:
            problems.append(f"{where}: a JSON {type(row).__name__}, not an object; write one JSON object a line")
    return rows


def read_pairs(path: Path, problems: list[str], minimum: int = 1) -> list[dict]:
    """Read preference pairs; return the sound ones and add a line to `problems` for each fault found.

    Args:
        path: JSON Lines file.
        problems: list that faults are added to, as "file:line: what is wrong; what to do".
        minimum: fewest rows that the file must hold.
    """
    rows = read_lines(path, problems)
    if len(rows) < minimum and not problems:
        problems.append(f"{path}: {len(rows)} pairs; at least {minimum} are needed")
    pairs = [row for row in rows if has_text(row, PAIR_FIELDS, problems)]
    for row in pairs:
        if normalize(row["chosen"]) == normalize(row["rejected"]):
            problems.append(f"{row['where']}: chosen and rejected are the same; no preference can be learned from it")
    find_duplicates(pairs, problems)
    return pairs


def as_conversation(row: dict) -> dict:
    """Return a pair in TRL's conversational preference format."""
    return {
        "id": row["id"],
        "topic": row["topic"],
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def read_prompts(path: Path, problems: list[str]) -> list[dict]:
    """Read test prompts; return the sound ones and add a line to `problems` for each fault found."""
    rows = read_lines(path, problems)
    if not rows and not problems:
        problems.append(f"{path}: no prompts; at least one is needed")
    prompts = [row for row in rows if has_text(row, PROMPT_FIELDS, problems) and has_checks(row, problems)]
    find_duplicates(prompts, problems)
    return prompts


def notebook_prompts(prompts: list[dict]) -> list[dict]:
    """Return the prompts marked `"notebook": true`, or the first three where none is marked."""
    return [row for row in prompts if row.get("notebook")] or prompts[:3]


def has_text(row: dict, fields: tuple[str, ...], problems: list[str]) -> bool:
    """Tell whether each field is there, is text, and says something; add to `problems` where not."""
    for field in fields:
        if field not in row:
            problems.append(f"{row['where']}: {field} is missing; a row has {', '.join(fields)}")
        elif not isinstance(row[field], str):
            problems.append(f"{row['where']}: {field} is a {type(row[field]).__name__}; it must be text in quotes")
        elif not row[field].strip():
            problems.append(f"{row['where']}: {field} is empty; write it or remove the row")
        else:
            continue
        return False
    return True


def has_checks(row: dict, problems: list[str]) -> bool:
    """Tell whether `expects` and `forbids` are lists of named phrases; add to `problems` where not."""
    for field in CHECK_FIELDS:
        checks = row.get(field)
        if not isinstance(checks, list) or not all(is_check(check) for check in checks):
            problems.append(
                f'{row["where"]}: {field} must be a list of {{"name": text, "any": [phrases]}}, each with a phrase; '
                "the list may be empty"
            )
            return False
    return True


def is_check(check: object) -> bool:
    """Tell whether a value is `{"name": text, "any": [at least one phrase]}`."""
    if not isinstance(check, dict) or not isinstance(check.get("name"), str):
        return False
    phrases = check.get("any")
    return isinstance(phrases, list) and bool(phrases) and all(isinstance(p, str) and p.strip() for p in phrases)


def find_duplicates(rows: list[dict], problems: list[str]) -> None:
    """Add a line to `problems` for each id or prompt that an earlier row of the same file has."""
    for field, key in (("id", str), ("prompt", normalize)):
        seen = {}
        for row in rows:
            first = seen.setdefault(key(row[field]), row["where"])
            if first != row["where"]:
                problems.append(f"{row['where']}: the same {field} as {first}; remove one of them")


def find_overlaps(rows: list[dict], others: list[dict], problems: list[str]) -> None:
    """Add a line to `problems` for each prompt in `rows` that also stands in `others`."""
    known = {normalize(other["prompt"]): other["where"] for other in others}
    for row in rows:
        if first := known.get(normalize(row["prompt"])):
            problems.append(f"{row['where']}: the same prompt as {first}; what is tested must not be trained on")
