"""How an answer falls apart: repetition, loops, nothing said, no end.

Distinct-n is the share of distinct word n-grams (Li et al. 2016, arXiv 1510.03055); loops and answers without an end
are the degeneration that Holtzman et al. 2020 (arXiv 1904.09751) found in greedy decoding.
"""

import re

# The same 8 to 200 characters three times in a row; "ha ha ha ha" is none.
LOOP = re.compile(r"(.{8,200}?)\1\1", flags=re.DOTALL)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[\w'’-]+", text.casefold())


def distinct(words: list[str], n: int) -> float:
    """Return the share of distinct n-grams among all of them, 1.0 where there is none."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def loops(text: str) -> bool:
    """Tell whether a piece of text stands three times in a row."""
    return bool(LOOP.search(" ".join([*text.casefold().split(), ""])))


def measure(text: str, ended: bool) -> dict:
    """Return of an answer whether it `ended` by itself, is `empty` or `loops`, its `distinct_2`, and its `words`."""
    words = words_of(text)
    return {
        "ended": ended,
        "empty": not words,
        "loops": loops(text),
        "distinct_2": distinct(words, 2),
        "words": len(words),
    }
