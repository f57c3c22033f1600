"""Test prompts as people write them: JSON Lines, read strictly.

A test prompt is `{"id", "topic", "prompt", "expects", "forbids"}`, optionally with `"notebook": true` for the prompts
that the original notebook shows; `expects` and `forbids` are lists of `{"name", "any"}`, `any` being phrases in the
sense of `rubric.py`. Every problem in a file is collected, so that one reading shows all of them.
"""

from pathlib import Path

from dpo.json_lines import BOM, MalformedLine, parse_line
from dpo.texts import find_control, normalize

FIELDS = ("id", "topic", "prompt")
CHECK_FIELDS = ("expects", "forbids")


def read_lines(path: Path, problems: list[str]) -> list[dict]:
    """Read a JSON Lines file of objects; add a line to `problems` for each row that is none.

    Each object gets the key `where` ("file:line"), so that later checks can say where a row stands.
    """
    rows = []
    with open(path, encoding="latin-1", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                rows.append(parse_line(line.removeprefix(BOM)) | {"where": where})
            except MalformedLine as error:
                problems.append(f"{where}: {error}")
    return rows


def read_prompts(path: Path, problems: list[str]) -> list[dict]:
    """Read test prompts; return the sound ones and add a line to `problems` for each fault found."""
    rows = read_lines(path, problems)
    if not rows and not problems:
        problems.append(f"{path}: no prompts; at least one is needed")
    prompts = [row for row in rows if has_text(row, FIELDS, problems) and has_checks(row, problems)]
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
        elif control := find_control(row[field]):
            problems.append(f"{row['where']}: {field} holds the control character {control}; remove it")
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
