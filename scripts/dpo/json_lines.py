"""One JSON object from one line of a file, read strictly, and a message for people where there is none."""

import json

BOM = "\xef\xbb\xbf"  # a byte-order mark in UTF-8, in the disguise that `parse_line` reads; no part of the first row


class MalformedLine(ValueError):
    """A line that is not one JSON object."""


def parse_line(line: str) -> dict:
    """Return the JSON object on a line.

    Args:
        line: the line's bytes, each as the character of the same number.

    Raises:
        MalformedLine: it is not UTF-8, not JSON, not an object, or an object that names a key twice.
    """
    try:
        value = json.loads(line.encode("latin-1").decode("utf-8"), object_pairs_hook=reject_repeated_keys)
    except UnicodeDecodeError as error:
        raise MalformedLine(f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}" if line.strip() else "an empty line"
        raise MalformedLine(f"not JSON ({what}); write one JSON object a line") from None
    except RecursionError:
        raise MalformedLine("not a row: lists or objects are nested too deeply") from None
    except MalformedLine:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise MalformedLine(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MalformedLine(f"a JSON {type(value).__name__}, not an object; write one JSON object a line")
    return value


def reject_repeated_keys(pairs: list[tuple[str, object]]) -> dict:
    """Make an object of its pairs; `json` itself would keep the last of two equal keys and say nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedLine(f"{twice!r} stands twice in one object")
    return value
