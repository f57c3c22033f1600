"""Instructions whose following a program can verify, after IFEval (Zhou et al. 2023, arXiv 2311.07911).

A row of data/instructions.jsonl (read by prompts.py) is `{"id", "topic", "prompt", "checks"}`; `checks` maps a kind of
check to its value, and the instruction counts as followed where every check is met: IFEval's strict accuracy by prompt.
The kinds:

- min_words, max_words: number of words, which are runs of characters between white space that hold a letter or digit.
- sentences, paragraphs: exact number; sentences end in `.`, `!` or `?`, paragraphs are set apart by blank lines.
- bullets, numbered: exact number of lines that begin with `-`, `*` or `•`, or that are numbered 1, 2, 3, … in order.
- include, exclude: list of phrases that must all, or must not, stand in the answer (matched as in rubric.py).
- repeat: {phrase: number}, how often a phrase must stand there at least.
- starts_with, ends_with: text, to the letter.
- case: lower or upper; there must be letters, and none of the other case.
- without: list of characters that must not be there, such as [","].
- one_of: list of texts, one of which is the whole answer, but for case, white space and punctuation at its ends.
- json: list of keys; the whole answer, or the code block that it consists of, is a JSON object with just these keys.
- wrapped: [before, after], text that encloses the whole answer.
- placeholders: least number of words or phrases in square brackets.
- sections: {separator: number}, exact number of non-empty parts between separators.
"""

import json
import re
from collections.abc import Callable

from dpo.rubric import pattern
from dpo.texts import normalize


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: a mark ends one where white space or the end follows."""
    parts = re.split(r"(?<=[.!?])[\"'”’)*]*(?:\s+|$)", text)
    return [part for part in parts if words(part)]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, which blank lines set apart."""
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def numbers_of_lines(text: str) -> list[int]:
    """Return the numbers that lines begin with, as in "1." or "2)"."""
    return [int(number) for number in re.findall(r"^\s*(\d{1,3})[.)]\s+\S", text, flags=re.MULTILINE)]


def is_case(text: str, case: str) -> bool:
    """Tell whether a text has letters, all of them of one case."""
    return text.islower() if case == "lower" else text.isupper()


def is_json(text: str, keys: list[str]) -> bool:
    """Tell whether a text, or the one code block that it consists of, is a JSON object with just these keys."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, flags=re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def is_wrapped(text: str, marks: list[str]) -> bool:
    """Tell whether something stands between the marks at the two ends of a text."""
    before, after = marks
    rest = text.removeprefix(before)
    return text.startswith(before) and rest.endswith(after) and bool(rest.removesuffix(after).strip())


def occurrences(text: str, phrase: str) -> int:
    """Return how often a phrase stands in a text."""
    return len(pattern(phrase.casefold()).findall(text.casefold().replace("’", "'")))


# kind → whether an answer, without white space around it, meets the check's value
CHECKS: dict[str, Callable[[str, object], bool]] = {
    "min_words": lambda text, least: len(words(text)) >= least,
    "max_words": lambda text, most: len(words(text)) <= most,
    "sentences": lambda text, number: len(sentences(text)) == number,
    "paragraphs": lambda text, number: len(paragraphs(text)) == number,
    "bullets": lambda text, number: len(re.findall(r"^\s*[-*•]\s+\S", text, flags=re.MULTILINE)) == number,
    "numbered": lambda text, number: numbers_of_lines(text) == list(range(1, number + 1)),
    "include": lambda text, phrases: all(occurrences(text, phrase) for phrase in phrases),
    "exclude": lambda text, phrases: not any(occurrences(text, phrase) for phrase in phrases),
    "repeat": lambda text, least: all(occurrences(text, phrase) >= number for phrase, number in least.items()),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "case": is_case,
    "without": lambda text, characters: not any(character in text for character in characters),
    "one_of": lambda text, allowed: normalize(text) in map(normalize, allowed),
    "json": is_json,
    "wrapped": is_wrapped,
    "placeholders": lambda text, least: len(re.findall(r"\[[^\[\]\n]*\w[^\[\]\n]*\]", text)) >= least,
    "sections": lambda text, wanted: all(
        len([part for part in text.split(separator) if part.strip()]) == number for separator, number in wanted.items()
    ),
}


def verify(checks: dict[str, object], text: str) -> list[dict]:
    """Return for each check of an instruction its `name`, as "kind: value", and whether the answer `passed` it.

    An empty answer passes none.
    """
    text = text.strip()
    return [
        {
            "name": f"{kind.replace('_', ' ')}: {json.dumps(value, ensure_ascii=False)}",
            "passed": bool(text) and bool(CHECKS[kind](text, value)),
        }
        for kind, value in checks.items()
    ]
