"""Test prompts as people write them: JSON Lines, read strictly.

There are three sets of them: prompts, whose answers are compared, and two that are checked one by one, instructions
and adversarial prompts. A row is `{"id", "topic", "prompt", "expects", "forbids"}`, optionally with `"notebook": true`
for the prompts that the original notebook shows; `expects` and `forbids` are lists of `{"name", "any"}`, `any` being
phrases in the sense of `rubric.py`. An instruction has `checks` in their place, see `instructions.py`. Every problem in
a file is collected, so that one reading shows all of them.
"""

from pathlib import Path

from dpo.cli import UserError
from dpo.json_lines import BOM, MalformedLine, parse_line
from dpo.json_schema import Draft202012Validator, best_match
from dpo.texts import find_control, normalize

TEST_SETS = ("prompts", "instructions", "adversarial")
FIELDS = ("id", "topic", "prompt")
CHECK_FIELDS = ("expects", "forbids")

NUMBER = {"type": "integer", "minimum": 1}
TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
NUMBERS = {"type": "object", "additionalProperties": NUMBER, "minProperties": 1}
# What `checks` of an instruction may hold: for each kind its value.
CHECKS_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(("min_words", "max_words", "sentences", "paragraphs", "bullets", "numbered"), NUMBER),
        **dict.fromkeys(("include", "exclude", "without", "one_of", "json"), TEXTS),
        **dict.fromkeys(("starts_with", "ends_with"), TEXT),
        **dict.fromkeys(("repeat", "sections"), NUMBERS),
        "case": {"enum": ["lower", "upper"]},
        "wrapped": TEXTS | {"minItems": 2, "maxItems": 2},
        "placeholders": NUMBER,
    },
}


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


def read_instructions(path: Path, problems: list[str]) -> list[dict]:
    """Read instructions; return the sound ones and add a line to `problems` for each fault found."""
    rows = read_lines(path, problems)
    if not rows and not problems:
        problems.append(f"{path}: no prompts; at least one is needed")
    rows = [row for row in rows if has_text(row, FIELDS, problems)]
    for row in rows:
        if fault := find_check_fault(row.get("checks")):
            problems.append(f"{row['where']}: {fault}")
    find_duplicates(rows, problems)
    return rows


def read_neutral(path: Path) -> list[dict]:
    """Read neutral texts, `{"id", "text"}`. Raises `UserError` with all that is wrong with them."""
    problems: list[str] = []
    rows = [row for row in read_lines(path, problems) if has_text(row, ("id", "text"), problems)]
    if not rows and not problems:
        problems.append(f"{path}: no texts; at least one is needed")
    if problems:
        raise UserError("\n  ".join(["the neutral texts have faults:", *problems]))
    return rows


def read_test_sets(files: dict[str, Path], problems: list[str]) -> dict[str, list[dict]]:
    """Read all sets of test prompts, whose ids must differ between sets too.

    Args:
        files: name of a set → its file; the names are those of `TEST_SETS`.
        problems: gets a line for each fault found.
    """
    sets = {
        name: (read_instructions if name == "instructions" else read_prompts)(file, problems)
        for name, file in files.items()
    }
    if not problems:
        find_duplicates([row for rows in sets.values() for row in rows], problems)
    return sets


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


def find_check_fault(checks: object) -> str | None:
    """Return what is wrong with the checks of an instruction, or None."""
    fault = best_match(Draft202012Validator(CHECKS_SCHEMA).iter_errors(checks))
    if not fault:
        return None
    if fault.validator == "additionalProperties":
        unknown = sorted(set(fault.instance) - set(fault.schema["properties"]))
        return f"checks has the unknown kind {', '.join(unknown)}; there are {', '.join(fault.schema['properties'])}"
    return f"{'.'.join(['checks', *map(str, fault.path)])}: {fault.message}"


def find_duplicates(rows: list[dict], problems: list[str]) -> None:
    """Add a line to `problems` for each id or prompt that an earlier row has."""
    for field, key in (("id", str), ("prompt", normalize)):
        seen = {}
        for row in rows:
            first = seen.setdefault(key(row[field]), row["where"])
            if first != row["where"]:
                problems.append(f"{row['where']}: the same {field} as {first}; remove one of them")
