"""Texts of data files: what may stand in one, and when two count as the same."""

import re
import unicodedata

# C0 and C1 control characters but for tab, line feed and carriage return, and halves of surrogate pairs.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def normalize(text: str) -> str:
    """Return the text as compared: case, runs of white space, and punctuation at both ends do not count."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).strip(" .,;:!?…\"'“”‘’")


def find_control(text: str) -> str | None:
    """Return the first control character or lone surrogate of a text as its code point, U+0000."""
    match = CONTROL.search(text)
    return f"U+{ord(match[0]):04X}" if match else None
