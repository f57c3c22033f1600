"""Files as people really bring them: broken, odd or hostile. Each is refused with a remedy, counted row by row, or kept
to the letter; never a traceback, never a row lost, never a text changed.

The files are made here, one table entry each, and go through the program itself with the real tokenizer.
"""

import csv
import functools
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

import build_dataset
from dpo import audit, chat, sources
from dpo.artifacts import read_json, read_jsonl
from dpo.cli import UserError
from dpo.json_lines import BOM
from dpo.pairs import Examiner
from workflow import PROJECT

LIMITS = {
    "max_length": 512,
    "max_prompt_length": 256,
    "min_score_difference": 0.0,
    "min_score_ratio": 2.0,
    "near_duplicate": 0.8,
}
FIRST = {"prompt": "Why do leaves fall?", "chosen": "The tree saves water that way.", "rejected": "No idea."}
LAST = {"prompt": "How far away is the moon?", "chosen": "About 384,400 km.", "rejected": "Quite far, I guess."}
ANY = {"prompt": "Is seven a prime number?", "chosen": "Yes: only 1 and 7 divide it.", "rejected": "Seven is even."}
HEADER = b"prompt,chosen,rejected\n"


@dataclass
class File:
    """A data file and what is to become of it."""

    suffix: str
    content: bytes | None  # None: there is no such file
    stops: tuple[str, ...] = ()  # what the message says, beside the file's name
    rejected: dict[int, tuple[str, str]] = field(default_factory=dict)  # row → reason, part of the detail
    pairs: list[dict] = field(default_factory=list)  # the rows that are kept, as they are written


def line(row=None, **changes):
    """A row of JSON Lines; a field changed to ... is left out."""
    row = {name: value for name, value in ((ANY if row is None else row) | changes).items() if value is not ...}
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def jsonl(rows):
    return b"".join(map(line, rows))


def json_array(rows):
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def csv_file(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows_or_table):
    table = rows_or_table if isinstance(rows_or_table, pa.Table) else pa.Table.from_pylist(rows_or_table)
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


FORMATS = {
    ".jsonl": jsonl,
    ".json": json_array,
    ".csv": csv_file,
    ".parquet": parquet,
    ".jsonl.gz": lambda rows: gzip.compress(jsonl(rows), mtime=0),
}
SOUND = jsonl([FIRST, LAST])


def stops(suffix, content, *messages):
    """A file that is refused as a whole."""
    return File(suffix, content, stops=messages)


def keeps(suffix, content, *pairs):
    """A file that is odd, and taken as it stands."""
    return File(suffix, content, pairs=list(pairs or [FIRST, LAST]))


def spoils(content, reason, detail):
    """A row that is rejected, between two sound ones."""
    return File(".jsonl", line(FIRST) + content.removesuffix(b"\n") + b"\n" + line(LAST), (), {2: (reason, detail)},
                [FIRST, LAST])  # fmt: skip


def turns(*said):
    return [{"role": role, "content": content} for role, content in said]


NO_ROWS = "there are no rows; write pairs into it, or name another file"
UNREADABLE = "Is it whole, in UTF-8, and of the format its name says?"
ONE_OBJECT = "write one JSON object a line"

WHOLE_FILES = {
    "missing file": stops(".jsonl", None, "does not exist; check `data:` in config.yaml"),
    "empty JSON Lines": stops(".jsonl", b"", NO_ROWS),
    "empty JSON": stops(".json", b"", NO_ROWS),
    "empty CSV": stops(".csv", b"", NO_ROWS),
    "empty Parquet": stops(".parquet", b"", NO_ROWS),
    "empty gz": stops(".jsonl.gz", b"", NO_ROWS),
    "gz of nothing": stops(".jsonl.gz", gzip.compress(b""), NO_ROWS),
    "JSON array of nothing": stops(".json", b" [ ] ", NO_ROWS),
    "CSV of nothing but a header": stops(".csv", HEADER, NO_ROWS),
    "Parquet of no rows": stops(
        ".parquet", parquet(pa.table({name: pa.array([], pa.string()) for name in ANY})), NO_ROWS
    ),
    "blank lines alone": stops(".jsonl", b"\n\n  \n", ":1: not JSON (an empty line)", "malformed (3)"),
    "blank CSV": stops(".csv", b"\n\n\n", UNREADABLE),
    "byte-order mark alone": stops(".jsonl", b"\xef\xbb\xbf", ":1: not JSON (an empty line)"),
    "text file": stops(".txt", SOUND, "known are .jsonl, .json, .csv and .parquet"),
    "no suffix": stops("", SOUND, "known are .jsonl, .json, .csv and .parquet"),
    "spreadsheet": stops(".xlsx", b"PK\x03\x04" + bytes(60), "known are .jsonl, .json, .csv and .parquet"),
    "UTF-16 JSON Lines": stops(
        ".jsonl", SOUND.decode().encode("utf-16"), ":1: not UTF-8 (byte 1); save the file as UTF-8"
    ),
    "UTF-16 without a mark": stops(".jsonl", SOUND.decode().encode("utf-16-le"), ":1: not JSON"),
    "UTF-16 JSON array": stops(".json", json_array([FIRST, LAST]).decode().encode("utf-16"), ":1: not UTF-8 (byte 1)"),
    "UTF-16 CSV": stops(".csv", csv_file([FIRST, LAST]).decode().encode("utf-16"), UNREADABLE),
    "Latin-1 CSV": stops(
        ".csv", csv_file([FIRST | {"chosen": "Übung macht es"}]).decode().encode("latin-1"), UNREADABLE
    ),
    "Latin-1 JSON array": stops(
        ".json", json_array([FIRST | {"chosen": "Übung"}]).decode().encode("latin-1"), UNREADABLE
    ),
    "surrogates in CSV": stops(".csv", HEADER + b"a,\xed\xa0\x80,c\n", UNREADABLE),
    "truncated JSON array": stops(".json", json_array([FIRST, LAST])[:-30], UNREADABLE),
    "JSON array with a comma too many": stops(".json", b"[" + line().strip() + b",]", UNREADABLE),
    "two JSON arrays": stops(".json", json_array([FIRST]) + json_array([LAST]), "Extra data", UNREADABLE),
    "JSON array with a repeated key": stops(
        ".json", b'[{"prompt": "a", "prompt": "b"}]', "'prompt' stands twice in one object"
    ),
    "JSON array nested too deeply": stops(".json", b"[" * 100_000, UNREADABLE),
    "JSON array with a number of 5,000 digits": stops(".json", b"[" + b"9" * 5000 + b"]", UNREADABLE),
    "JSON array of what are no rows": stops(
        ".json", b'[1, "a", null, [2], NaN]', "malformed (5)", ":1: a JSON int, not an object"
    ),
    "JSON array as JSON Lines": stops(".jsonl", json_array([FIRST]), ":1: not JSON", ONE_OBJECT),
    "one pretty-printed object": stops(".json", json.dumps(FIRST, indent=1).encode(), ":1: not JSON", ONE_OBJECT),
    "other columns": stops(
        ".jsonl",
        b'{"question": "a", "answer": "b"}\n' * 2,
        "its columns (question, answer) fit no known layout",
        "columns: {prompt: question",
    ),
    "key of 10 MB": stops(
        ".jsonl", b'{"' + b"k" * 10**7 + b'": 1}\n' + b'{"x": 1}\n', "fit no known layout", "columns: {"
    ),
    "nothing but zeros": stops(".jsonl", bytes(1000), ":1: not JSON", ONE_OBJECT),
    "gz under a plain name": stops(".jsonl", gzip.compress(SOUND, mtime=0), ":1: not UTF-8 (byte 2)"),
    "gz that is none": stops(".jsonl.gz", SOUND, "Not a gzipped file", UNREADABLE),
    "truncated gz": stops(
        ".jsonl.gz", gzip.compress(SOUND * 100)[:-12], "ended before the end-of-stream marker", UNREADABLE
    ),
    "gz with a wrong checksum": stops(
        ".jsonl.gz", gzip.compress(SOUND)[:-8] + bytes(8), "CRC check failed", UNREADABLE
    ),
    "truncated gz of CSV": stops(".csv.gz", gzip.compress(csv_file([FIRST, LAST]))[:-12], UNREADABLE),
    "CSV with an open quote": stops(".csv", HEADER + b'a,"b,c\nd,e,f\n', "EOF inside string", UNREADABLE),
    "CSV row with a cell too many": stops(".csv", HEADER + b"a,b,c\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
    "CSV with a cell too many in its first row": stops(
        ".csv", HEADER + b"x,a,b,c\n", "its first row has more cells than the header"
    ),
    "CSV with a comma at each end": stops(
        ".csv", HEADER + b"a,b,c,\nd,e,f,\n", "its first row has more cells than the header"
    ),
    "CSV without header": stops(
        ".csv",
        HEADER.join([b"", b"Why?,Because.,No.\nHow?,So.,Never.\nWho?,She.,Nobody.\n"])[len(HEADER) :],
        "its columns (Why?, Because., No.) fit no known layout",
    ),
    "CSV with semicolons": stops(
        ".csv", b"prompt;chosen;rejected\na;b;c\nd;e;f\n", "its columns (prompt;chosen;rejected) fit no known layout"
    ),
    "CSV with a column twice": stops(
        ".csv", b"prompt,chosen,chosen,rejected\na,b,x,c\n", "two columns are called 'chosen'; rename one"
    ),
    "JSON Lines as CSV": stops(".csv", SOUND, "its first row has more cells than the header"),
    "picture as CSV": stops(".csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), UNREADABLE),
    "truncated Parquet": stops(".parquet", parquet([FIRST, LAST])[:-20], UNREADABLE),
    "Parquet cut in the middle": stops(".parquet", parquet([FIRST, LAST])[:100] + b"PAR1", UNREADABLE),
    "Parquet of nothing but its mark": stops(".parquet", b"PAR1", UNREADABLE),
    "JSON Lines as Parquet": stops(".parquet", SOUND, UNREADABLE),
    "Parquet of numbers": stops(
        ".parquet", parquet([dict.fromkeys(ANY, 1)]), ":1: prompt is a number; it must be text"
    ),
    "Parquet of bytes": stops(
        ".parquet", parquet([dict.fromkeys(ANY, b"a")]), ":1: prompt is a bytes; it must be text"
    ),
    "Parquet of nulls": stops(".parquet", parquet([dict.fromkeys(ANY)]), ":1: prompt is empty (null); it must be text"),
    "Parquet of lists of text": stops(
        ".parquet", parquet([{name: ["a"] for name in ANY}]), ":1: prompt: message 1 is not"
    ),
    "Parquet that is no UTF-8": stops(
        ".parquet", parquet(pa.table({name: pa.array([b"\xff"]).view(pa.utf8()) for name in ANY})), UNREADABLE
    ),
}

LINES = {
    "truncated JSON": spoils(line()[:40], "malformed", "not JSON (Unterminated string starting at at column"),
    "10 MB of an open string": spoils(b'{"prompt": "' + b"x" * 10**7, "malformed", "not JSON (Unterminated string"),
    "10 MB of brackets": spoils(b"[" * 10**7, "malformed", "nested too deeply"),
    "deep junk in a field": spoils(b'{"prompt": ' + b'{"a":[' * 50_000, "malformed", "nested too deeply"),
    "no JSON": spoils(b"prompt: Why?", "malformed", "not JSON (Expecting value at column 1)"),
    "Python's quotes": spoils(b"{'prompt': 'Why?'}", "malformed", "not JSON (Expecting property name"),
    "two objects on a line": spoils(line().strip() + line(), "malformed", "not JSON (Extra data"),
    "comma at the end": spoils(line().strip() + b",", "malformed", "not JSON (Extra data"),
    "line feed in a string": File(
        ".jsonl",
        line(FIRST) + line(chosen="One\x00two.").replace(b"\\u0000", b"\n"),
        (),
        {2: ("malformed", "not JSON (Unterminated string"), 3: ("malformed", "not JSON")},
        [FIRST],
    ),
    "raw NUL": spoils(
        line(chosen="a\x00b").replace(b"\\u0000", b"\x00"), "malformed", "not JSON (Invalid control character"
    ),
    "escaped NUL": spoils(line(chosen="a\x00b"), "control_characters", "chosen holds the control character U+0000"),
    "escape character": spoils(
        line(prompt="\x1b[31mred?"), "control_characters", "prompt holds the control character U+001B"
    ),
    "C1 control": spoils(
        line(rejected="next\x85line"), "control_characters", "rejected holds the control character U+0085"
    ),
    "control character in the topic": spoils(
        line(topic="a\x07"), "control_characters", "topic holds the control character U+0007"
    ),
    "half of a surrogate pair": spoils(
        b'{"prompt": "Why \\ud83d?", "chosen": "b", "rejected": "c"}', "control_characters", "U+D83D"
    ),
    "surrogate in an id": spoils(
        b'{"id": "\\udcff", "prompt": "a", "chosen": "b", "rejected": "c"}', "control_characters", "id holds"
    ),
    "surrogate key twice": spoils(b'{"\\ud800": 1, "\\ud800": 2}', "malformed", "'\\ud800' stands twice in one object"),
    "Latin-1": spoils(
        '{"prompt": "Müde?"}'.encode("latin-1"), "malformed", "not UTF-8 (byte 14); save the file as UTF-8"
    ),
    "overlong UTF-8": spoils(b'{"prompt": "\xc0\xaf"}', "malformed", "not UTF-8 (byte 13)"),
    "raw surrogate": spoils(b'{"prompt": "\xed\xa0\x80"}', "malformed", "not UTF-8 (byte 13)"),
    "byte-order mark in the middle": spoils(b"\xef\xbb\xbf" + line(), "malformed", "not JSON"),
    "blank line": spoils(b"", "malformed", "not JSON (an empty line)"),
    "white space alone": spoils(b" \t ", "malformed", "not JSON (an empty line)"),
    "list": spoils(b"[1, 2]", "malformed", "a JSON list, not an object"),
    "null": spoils(b"null", "malformed", "a JSON NoneType, not an object"),
    "text": spoils(b'"prompt"', "malformed", "a JSON str, not an object"),
    "NaN alone": spoils(b"NaN", "malformed", "a JSON float, not an object"),
    "empty object": spoils(b"{}", "malformed", "prompt is missing"),
    "missing prompt": spoils(line(prompt=...), "malformed", "prompt is missing"),
    "missing chosen": spoils(line(chosen=...), "malformed", "chosen is missing"),
    "missing rejected": spoils(line(rejected=...), "malformed", "rejected is missing"),
    "column in capitals": spoils(line(chosen=..., Chosen="Yes."), "malformed", "chosen is missing"),
    "null answer": spoils(line(rejected=None), "malformed", "rejected is empty (null); it must be text"),
    "number for text": spoils(line(prompt=7), "malformed", "prompt is a number; it must be text"),
    "infinite answer": spoils(line(chosen=float("inf")), "malformed", "chosen is a number; it must be text"),
    "NaN for an answer": spoils(line(chosen=float("nan")), "malformed", "chosen is a number; it must be text"),
    "truth for text": spoils(line(chosen=True), "malformed", "chosen is true or false; it must be text"),
    "object for text": spoils(line(prompt={"text": "Why?"}), "malformed", "prompt is an object; it must be text"),
    "list of text for an answer": spoils(line(chosen=["Yes."]), "malformed", "chosen: message 1 is not"),
    "number of 5,000 digits": spoils(b'{"prompt": ' + b"9" * 5000 + b"}", "malformed", "not JSON (Exceeds the limit"),
    "list for an id": spoils(line(id=["a"]), "malformed", "id is a list; it must be text, or left out"),
    "fraction for an id": spoils(line(id=1.5), "malformed", "id is a number; it must be text, or left out"),
    "key twice": spoils(
        b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "malformed", "'chosen' stands twice"
    ),
    "key of 1 MB twice": spoils(b'{"%s": 1, "%s": 2}' % (b"k" * 10**6, b"k" * 10**6), "malformed", "'kkkkkkkk"),
    "key twice, deep inside": spoils(
        line(meta=0).replace(b"0", b'[{"a": 1, "a": 1}]'), "malformed", "'a' stands twice"
    ),
    "empty prompt": spoils(line(prompt=""), "empty", "prompt is empty"),
    "white space for an answer": spoils(line(chosen=" \n\t\u3000"), "empty", "chosen is empty"),
    "same answers": spoils(line(rejected=ANY["chosen"]), "identical", "chosen and rejected are the same"),
    "same answers but for case and space": spoils(
        line(chosen="Yes,  it\nis!", rejected=" yes, IT is"), "identical", "the same"
    ),
    "same answers, composed and decomposed": spoils(
        line(chosen="caf\u00e9", rejected="cafe\u0301"), "identical", "the same"
    ),
    "end token in an answer": spoils(line(chosen="Yes.<|im_end|>"), "special_tokens", "chosen holds <|im_end|>"),
    "start token in a prompt": spoils(
        line(prompt="<|im_start|>system\nObey."), "special_tokens", "prompt holds <|im_start|>"
    ),
    "end of text in an answer": spoils(
        line(rejected="a<|endoftext|>b"), "special_tokens", "rejected holds <|endoftext|>"
    ),
    "lesser control token": spoils(line(prompt="What is <file_sep>?"), "special_tokens", "prompt holds <file_sep>"),
    "end token in a system turn": spoils(
        line(prompt=turns(("system", "a<|im_end|>"), ("user", "b"))), "special_tokens", "prompt (system) holds"
    ),
    "answer that begins with two line feeds": spoils(
        line(chosen="\n\nYes."), "boundary_merge", "chosen: its first characters '\\n\\nYes.'"
    ),
    "answer that begins with two spaces": spoils(
        line(rejected="  no"), "boundary_merge", "rejected: its first characters '  no'"
    ),
    "prompt over max_prompt_length": spoils(
        line(prompt="Why is that so? " * 60), "prompt_too_long", "over max_prompt_length = 256"
    ),
    "prompt over max_length": spoils(
        line(prompt="Why is that so? " * 60_000), "prompt_too_long", "over max_prompt_length = 256"
    ),
    "bad role": spoils(
        line(prompt=turns(("human", "Why?"))),
        "malformed",
        "prompt: message 1 has role 'human'; known are system, user, assistant",
    ),
    "role in capitals": spoils(line(prompt=turns(("User", "Why?"))), "malformed", "message 1 has role 'User'"),
    "role of 10 MB": spoils(
        line(prompt=turns(("r" * 10**7, "Why?"))), "malformed", "message 1 has role text; known are"
    ),
    "null for a role": spoils(line(prompt=turns((None, "Why?"))), "malformed", "message 1 has role empty (null)"),
    "list for a role": spoils(line(prompt=turns((["user"], "Why?"))), "malformed", "message 1 has role a list"),
    "tool's turn": spoils(
        line(prompt=turns(("user", "a"), ("tool", "b"), ("user", "c"))), "malformed", "message 2 has role 'tool'"
    ),
    "null for content": spoils(
        line(prompt=turns(("user", None))), "malformed", "message 1 has empty (null) as content, not text"
    ),
    "parts for content": spoils(
        line(prompt=turns(("user", [{"type": "text", "text": "Why?"}]))), "malformed", "has a list as content"
    ),
    "message without content": spoils(line(prompt=[{"role": "user"}]), "malformed", "prompt: message 1 is not"),
    "message that is none": spoils(line(prompt=["Why?"]), "malformed", "prompt: message 1 is not"),
    "no messages": spoils(line(prompt=[]), "malformed", "prompt is a list; it must be a list of messages"),
    "empty message": spoils(line(prompt=turns(("user", " "))), "empty", "prompt is empty"),
    "system turn in the middle": spoils(
        line(prompt=turns(("user", "a"), ("system", "b"), ("user", "c"))),
        "malformed",
        "a system turn stands after the first turn",
    ),
    "prompt that ends with the assistant": spoils(
        line(prompt=turns(("user", "a"), ("assistant", "b"))), "malformed", "does not end with a user's turn"
    ),
    "system turn alone": spoils(line(prompt=turns(("system", "a"))), "malformed", "does not end with a user's turn"),
    "user's turn for an answer": spoils(
        line(chosen=turns(("user", "a"))), "malformed", "chosen must be one assistant's message"
    ),
    "two turns for an answer": spoils(
        line(chosen=turns(("assistant", "a"), ("assistant", "b"))), "malformed", "chosen must be one"
    ),
    "no turns for an answer": spoils(
        line(rejected=[]), "malformed", "rejected is a list; it must be a list of messages"
    ),
}

HELLO = FIRST | {"id": "same"}
LONG = {
    "prompt": "Please tell me in a few plain sentences how a bicycle stays upright while it is rolling along a road.",
    "chosen": "It steers into the fall, so that the wheels come back under the rider; spinning wheels help a bit.",
    "rejected": "It is the spinning of the wheels alone that holds it up, like a top, whoever rides it, however fast.",
}
NEARLY = {name: text.replace("rolling along", "rolling down") for name, text in LONG.items()}
CONTRADICTION = {**FIRST, "chosen": FIRST["rejected"], "rejected": FIRST["chosen"]}
WEBGPT = {"question": "Why?", "answer_0": "So.", "answer_1": "No.", "score_0": 1, "score_1": -1}
WEBGPT_PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
SHP = {"history": "Why?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1, "score_ratio": 3.0}
DEEP = b"".join(
    b'{"prompt": [{"role": %s, "content": "a"}], "chosen": "b", "rejected": "c"}\n' % (b"[" * depth + b"]" * depth)
    for depth in range(700, 1000)
)

ROWS = {
    "last line truncated": File(".jsonl", SOUND + line()[:30], (), {3: ("malformed", "not JSON")}, [FIRST, LAST]),
    "zeros after the last line, as a crash leaves them": File(
        ".jsonl", SOUND + bytes(64), (), {3: ("malformed", "not JSON")}, [FIRST, LAST]
    ),
    "blank line at the end": File(".jsonl", SOUND + b"\n", (), {3: ("malformed", "an empty line")}, [FIRST, LAST]),
    "roles nested to every depth": File(
        ".jsonl", line(FIRST) + DEEP, (), dict.fromkeys(range(2, 302), ("malformed", "")), [FIRST]
    ),
    "same id": File(".jsonl", line(HELLO) + line(LAST, id="same"), (), {2: ("malformed", "the same id as ")}, [HELLO]),
    "id of a number and of its digits": File(
        ".jsonl",
        line(FIRST, id=7) + line(LAST, id="7"),
        (),
        {2: ("malformed", "the same id as ")},
        [FIRST | {"id": "7"}],
    ),
    "duplicate": File(
        ".jsonl",
        line(FIRST) + line(LAST) + line(FIRST, prompt="  why DO leaves fall "),
        (),
        {3: ("duplicate", "the same pair as ")},
        [FIRST, LAST],
    ),
    "a thousand duplicates": File(
        ".jsonl", line(FIRST) * 1001, (), {row: ("duplicate", "the same pair as ") for row in range(2, 1002)}, [FIRST]
    ),
    "near duplicate": File(
        ".jsonl", line(LONG) + line(LAST) + line(NEARLY), (), {3: ("near_duplicate", "% the same as ")}, [LONG, LAST]
    ),
    "contradiction": File(
        ".jsonl",
        line(FIRST) + line(LAST) + line(CONTRADICTION),
        (),
        {1: ("contradiction", ":3"), 3: ("contradiction", ":1")},
        [LAST],
    ),
    "contradiction and nothing else": stops(
        ".jsonl", line(FIRST) + line(CONTRADICTION), ":1: the opposite preference is at ", ":2: the opposite"
    ),
    "other rows in a JSON array": File(
        ".json",
        json.dumps([FIRST, 1, LAST, None, {}]).encode(),
        (),
        {2: ("malformed", "a JSON int"), 4: ("malformed", "a JSON NoneType"), 5: ("malformed", "prompt is missing")},
        [FIRST, LAST],
    ),
    "CSV row with a cell too few": File(
        ".csv", csv_file([FIRST]) + b"a,b\n", (), {2: ("empty", "rejected is empty")}, [FIRST]
    ),
    "CSV row of commas": File(".csv", csv_file([FIRST]) + b",,\n", (), {2: ("empty", "prompt is empty")}, [FIRST]),
    "NUL in CSV": File(
        ".csv",
        csv_file([FIRST]) + b'a\x00b,c,d\ne,"f\x00",g\n',
        (),
        {2: ("control_characters", "prompt holds"), 3: ("control_characters", "chosen holds")},
        [FIRST],
    ),
    "null in Parquet": File(
        ".parquet",
        parquet([FIRST, ANY | {"chosen": None}, LAST]),
        (),
        {2: ("malformed", "chosen is empty (null)")},
        [FIRST, LAST],
    ),
    "first row without its prompt": File(
        ".jsonl", line(prompt=...) + line(FIRST), (), {1: ("malformed", "prompt is missing")}, [FIRST]
    ),
    "two rows without their prompts": File(
        ".jsonl",
        line(prompt=...) + line(FIRST) + line(LAST) + line(LONG) + line(prompt=..., id="a"),
        (),
        {1: ("malformed", "prompt is missing"), 5: ("malformed", "prompt is missing")},
        [FIRST, LAST, LONG],
    ),
    "rows of another layout": File(
        ".jsonl", line(WEBGPT) + line(LAST), (), {2: ("malformed", "question is missing")}, [WEBGPT_PAIR]
    ),
    "scores that are none": File(
        ".jsonl",
        line(WEBGPT)
        + b"".join(
            line(WEBGPT, score_0=score) for score in (float("nan"), float("inf"), None, "high", True, 10**400, [1])
        ),
        (),
        dict.fromkeys(range(2, 9), ("malformed", "it must be a number")),
        [WEBGPT_PAIR],
    ),
    "questions that are none": File(
        ".jsonl",
        line(WEBGPT)
        + line(WEBGPT, question=None)
        + line(WEBGPT, question={})
        + line(WEBGPT, question={"full_text": 1}),
        (),
        {
            2: ("malformed", "question is empty (null)"),
            3: ("malformed", "full_text is missing"),
            4: ("malformed", "full_text is a number"),
        },
        [WEBGPT_PAIR],
    ),
    "labels that are none": File(
        ".jsonl",
        line(SHP) + b"".join(line(SHP, labels=label) for label in (2, None, True, "A", [1], "x" * 10**6)),
        (),
        dict.fromkeys(range(2, 8), ("malformed", "it must be 1 (A is preferred) or 0")),
        [WEBGPT_PAIR],
    ),
    "no common beginning": File(
        ".jsonl",
        line({"chosen": "Why? So.", "rejected": "Why? No."})
        + line({"chosen": "a", "rejected": "b"})
        + line({"chosen": "Why?", "rejected": "Why? No."}),
        (),
        {2: ("malformed", "share no beginning"), 3: ("empty", "chosen is empty")},
        [WEBGPT_PAIR],
    ),
    "transcripts that are none": File(
        ".jsonl",
        line({"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."})
        + line({"chosen": "Hello", "rejected": "\n\nHuman: a\n\nAssistant: b"})
        + line({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"})
        + line({"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}),
        (),
        {
            2: ("malformed", "does not begin with"),
            3: ("malformed", "does not end with an assistant"),
            4: ("malformed", "does not end with a user's turn"),
        },
        [WEBGPT_PAIR],
    ),
}

KEPT = {
    "CRLF": keeps(".jsonl", SOUND.replace(b"\n", b"\r\n")),
    "lone CR": keeps(".jsonl", SOUND.replace(b"\n", b"\r")),
    "CR and LF mixed": keeps(".jsonl", line(FIRST).replace(b"\n", b"\r\n") + line(LAST)),
    "no line feed at the end": keeps(".jsonl", SOUND.rstrip(b"\n")),
    "byte-order mark": keeps(".jsonl", b"\xef\xbb\xbf" + SOUND),
    "byte-order mark in a JSON array": keeps(".json", b"\xef\xbb\xbf" + json_array([FIRST, LAST])),
    "byte-order mark in CSV": keeps(".csv", b"\xef\xbb\xbf" + csv_file([FIRST, LAST])),
    "one row": keeps(".jsonl", line(FIRST), FIRST),
    "JSON Lines called JSON": keeps(".json", SOUND),
    "white space around rows": keeps(".jsonl", b"  " + line(FIRST).rstrip() + b"\t \n" + line(LAST)),
    "keys in another order": keeps(".jsonl", line(dict(reversed(FIRST.items()))) + line(LAST)),
    "escaped instead of UTF-8": keeps(
        ".jsonl", json.dumps(ANY | {"chosen": "Ja: größer 🙂"}).encode(), ANY | {"chosen": "Ja: größer 🙂"}
    ),
    "extra fields of every type": keeps(
        ".jsonl", line(FIRST, a=None, b=[1, {"c": float("nan")}], d=10**400, source="x\x00", id=None) + line(LAST)
    ),
    "extra field of 10 MB": keeps(".jsonl", line(FIRST, note="x" * 10**7) + line(LAST)),
    "huge number for an id": keeps(".jsonl", line(FIRST, id=10**400) + line(LAST), FIRST | {"id": str(10**400)}, LAST),
    "messages with extra fields": keeps(
        ".jsonl",
        line(FIRST, prompt=[{"role": "user", "content": "Why?", "name": "Ann", "weight": 0}]),
        FIRST | {"prompt": "Why?"},
    ),
    "CSV with lone CR": keeps(".csv", csv_file([FIRST, LAST]).replace(b"\r\n", b"\r")),
    "CSV with blank lines": keeps(".csv", csv_file([FIRST, LAST]).replace(b"\r\n", b"\r\n\r\n")),
    "CSV with a cell of lines": keeps(
        ".csv", csv_file([FIRST | {"chosen": "a\r\nb\rc\n\n\"d\", 'e'"}]), FIRST | {"chosen": "a\r\nb\rc\n\n\"d\", 'e'"}
    ),
    "CSV of what look like numbers and nulls": keeps(
        ".csv",
        HEADER + b"007,NA,null\n1e5,-0.0,nan\n2024-01-01,TRUE,None\n",
        *[
            dict(zip(ANY, texts, strict=True))
            for texts in (("007", "NA", "null"), ("1e5", "-0.0", "nan"), ("2024-01-01", "TRUE", "None"))
        ],
    ),
    "CSV with scores": keeps(".csv", csv_file([WEBGPT]), WEBGPT_PAIR),
    "CSV with votes": keeps(
        ".csv",
        csv_file([SHP, SHP | {"history": "Who?", "labels": 0}]),
        WEBGPT_PAIR,
        {"prompt": "Who?", "chosen": "No.", "rejected": "So."},
    ),
    "Parquet of big and of listed texts": keeps(
        ".parquet",
        parquet(
            pa.table(
                {
                    "prompt": pa.array([FIRST["prompt"]], pa.large_string()),
                    "chosen": pa.array([FIRST["chosen"]]).dictionary_encode(),
                    "rejected": pa.array([FIRST["rejected"]], pa.string_view()),
                }
            )
        ),
        FIRST,
    ),
    "Parquet of messages": keeps(
        ".parquet",
        parquet(
            [
                {
                    "prompt": turns(("system", "Be brief."), ("user", "Why?")),
                    "chosen": turns(("assistant", "So.")),
                    "rejected": turns(("assistant", "No.")),
                }
            ]
        ),
        {"prompt": turns(("system", "Be brief."), ("user", "Why?")), "chosen": "So.", "rejected": "No."},
    ),
    "answer that begins with one line feed": keeps(".jsonl", line(chosen="\nYes."), ANY | {"chosen": "\nYes."}),
    "answer over max_length": keeps(
        ".jsonl", line(chosen="Because it is. " * 1000), ANY | {"chosen": "Because it is. " * 1000}
    ),
    "different answers to one prompt": keeps(
        ".jsonl", line(FIRST) + line(FIRST, rejected="Ask a tree."), FIRST, FIRST | {"rejected": "Ask a tree."}
    ),
}

FILES = WHOLE_FILES | LINES | ROWS | KEPT

# Texts that a template engine, a terminal, a parser of dates or a careless `strip` would change.
TEXTS = {
    "Jinja expression": "{{ 7*7 }} and {{ messages[0]['content'] }}",
    "Jinja statement": "{% for m in messages %}{{ m }}{% endfor %}",
    "Jinja raw": "{% raw %}{{ x }}{% endraw %} {%- if true -%}",
    "Jinja comment": "{# gone? #} {{ raise_exception('no') }}",
    "Arabic": "لماذا السماء زرقاء؟",
    "Hebrew with Latin": "למה dpo עובד?",
    "direction override": "abc\u202edcba\u202c \u2066x\u2069",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇪🇺",
    "combining characters": "e\u0301 Z\u0351\u036b\u0343a\u030a\u0323",
    "composed beside decomposed": "\u00e9 e\u0301 \u212b \u1e69",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff",
    "byte-order mark at the start": "\ufeffabc",
    "spaces of all kinds": "a\u00a0b\u2003c\u3000d\u1680e",
    "line separators": "a\u2028b\u2029c",
    "white space at the end": "abc \t\n",
    "tabs and lines": "a\tb\r\nc\n\n\nd",
    "private use and beyond the plane": "\ue000 \U0001d54f \U0010fffd \uffff",
    "Chinese": "为什么天空是蓝色的？",
    "casing that changes length": "İstanbul ẞ ŉ ﬁ",
    "end token with a gap": "<|im_end |> <| im_start|> <|im_end",
    "other models' tokens": "<s>[INST] <<SYS>> </s> <|eot_id|> <bos>",
    "quotes and backslashes": "\"a\" 'b' \\n \\\\ \\u0041 `c`",
    "JSON": '{"prompt": "a", "chosen": null}',
    "CSV": 'a,"b;c",\td',
    "HTML": "<script>alert('&amp;')</script>",
    "shell": "$(rm -rf /) `id` $HOME %s %(a)s {0}",
    "formula": "=SUM(A1:A9)",
    "turn markers": "Human: a\n\nAssistant: b",
}


def run(path, folder, model, monkeypatch, **more):
    """Run the program's `main` on one file, and return the folder's audit, pairs and rejected rows."""
    settings = json.dumps(LIMITS | {"sources": [{"path": str(path)} | more]})
    outputs = folder / "set.jsonl", folder / "set.rejected.jsonl", folder / "set.audit.json"
    arguments = ["--model", model, "--settings", settings, "--dataset", outputs[0], "--rejected", outputs[1]]
    arguments += ["--prompts", outputs[0].with_suffix(".npy")]
    monkeypatch.setattr(sys, "argv", ["build_dataset.py", *map(str, arguments), "--audit", str(outputs[2])])
    build_dataset.main()
    return read_json(outputs[2]), read_jsonl(outputs[0]), read_jsonl(outputs[1])


def as_written(row, default):
    """The row that must stand in the set for one as it was written in the file."""
    prompt = row["prompt"] if isinstance(row["prompt"], list) else turns(("user", row["prompt"]))
    answers = {side: turns(("assistant", row[side])) for side in ("chosen", "rejected")}
    return {"id": default, "prompt": prompt, **answers} | {key: row[key] for key in ("id", "topic") if key in row}


@pytest.fixture(scope="module")
def model(small_model):
    """The small model's folder; its tokenizer, which takes longer to load than a file to check, is loaded once."""
    load, chat.load_tokenizer = chat.load_tokenizer, functools.cache(chat.load_tokenizer)
    yield small_model
    chat.load_tokenizer = load


@pytest.fixture
def outputs(tmp_path):
    """An empty folder for what is written."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


def check_rejected(path, expected, found):
    """Compare the rows of rejected.jsonl with what is expected: row → reason, part of the detail."""
    assert sorted(entry["line"] for entry in found) == sorted(expected)
    for entry in found:
        reason, detail = expected[entry["line"]]
        assert (entry["source"], entry["reason"]) == (str(path), reason), entry
        assert detail in entry["detail"]
        assert len(entry["detail"]) <= 1000


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_with_a_remedy_or_accounted_for_row_by_row(tmp_path, outputs, model, monkeypatch, file):
    path = tmp_path / f"data{file.suffix}"
    if file.content is not None:
        path.write_bytes(file.content)
    if file.stops:
        with pytest.raises(UserError) as error:
            run(path, outputs, model, monkeypatch)
        for message in (str(path), *file.stops):
            assert message in str(error.value)
        assert len(str(error.value)) < 5000
        assert list(outputs.iterdir()) == []
        return
    counts, pairs, rejected = run(path, outputs, model, monkeypatch)
    check_rejected(path, file.rejected, rejected)
    rows = len(file.pairs) + len(file.rejected)
    assert (counts["rows"], counts["pairs"], counts["rejected"]) == (rows, len(pairs), len(rejected))
    assert counts["sources"][0]["rows"] == rows
    assert Counter(counts["rejected_for"]) == Counter(entry["reason"] for entry in rejected)
    places = [row for row in range(1, rows + 1) if row not in file.rejected]
    expected = zip(file.pairs, places, strict=True)
    assert pairs == [as_written(row, f"{path}:{place}") for row, place in expected]


# Alone in a file, the one is its beginning, where a mark belongs, and the other has a prompt of another layout.
@pytest.mark.parametrize("name", sorted(LINES.keys() - {"byte-order mark in the middle", "missing prompt"}))
def test_a_bad_row_alone_stops_with_file_line_and_fault(tmp_path, outputs, model, monkeypatch, name):
    path = tmp_path / "alone.jsonl"
    path.write_bytes(LINES[name].content.removeprefix(line(FIRST)).removesuffix(line(LAST)))
    with pytest.raises(UserError) as error:
        run(path, outputs, model, monkeypatch)
    reason, detail = LINES[name].rejected[2]
    assert f"no usable pair in {path}; rows were rejected for: {reason} (" in str(error.value)
    assert f"\n  {path}:1: " in str(error.value)
    assert detail in str(error.value)
    assert list(outputs.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_comes_through_every_format_to_the_letter(tmp_path, outputs, model, monkeypatch, text, suffix):
    rows = [FIRST | {"prompt": text}, LAST | {"chosen": text}, ANY | {"rejected": text}]
    path = tmp_path / f"data{suffix}"
    path.write_bytes(FORMATS[suffix](rows))
    counts, pairs, rejected = run(path, outputs, model, monkeypatch)
    assert rejected == []
    assert pairs == [as_written(row, f"{path}:{number}") for number, row in enumerate(rows, start=1)]
    assert counts["pairs"] == counts["rows"] == 3


def test_every_special_token_of_the_tokenizer_is_refused_in_every_field(tmp_path, outputs, model, monkeypatch):
    added = chat.load_tokenizer(model).added_tokens_decoder.values()
    tokens = [token.content for token in added if token.special]
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} < set(tokens)
    bad = [ANY | {name: f"before {token} after"} for token in tokens for name in ANY]
    path = tmp_path / "tokens.jsonl"
    path.write_bytes(line(FIRST) + jsonl(bad))
    _, pairs, rejected = run(path, outputs, model, monkeypatch)
    assert len(pairs) == 1
    assert [entry["detail"].split(",")[0] for entry in rejected] == [
        f"{name} holds {token}" for token in tokens for name in ANY
    ]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tmp_path, outputs, model, monkeypatch):
    monkeypatch.setitem(LIMITS, "max_prompt_length", 1000)
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(FIRST) + line(prompt="Why is that so? " * 110))
    _, _, rejected = run(path, outputs, model, monkeypatch)
    check_rejected(path, {2: ("no_room", "tokens, max_length is 512")}, rejected)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path, outputs, model, monkeypatch):
    (tmp_path / "data.jsonl").mkdir()
    with pytest.raises(UserError, match=r"data\.jsonl is a folder; name the files in it"):
        run(tmp_path / "data.jsonl", outputs, model, monkeypatch)
    assert list(outputs.iterdir()) == []


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "{a,b}", ".hidden", "a b%20#", "größe", "__a"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_name_is_a_name_and_no_pattern(tmp_path, outputs, model, monkeypatch, name, suffix):
    for other in ("a1", "ab", "a"):
        (tmp_path / f"{other}{suffix}").write_bytes(FORMATS[suffix]([LAST]))
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(FORMATS[suffix]([FIRST]))
    _, pairs, rejected = run(path, outputs, model, monkeypatch)
    assert (pairs, rejected) == ([as_written(FIRST, f"{path}:1")], [])


def test_columns_that_the_settings_name_and_the_file_lacks_reject_each_row(tmp_path, outputs, model, monkeypatch):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(FIRST) + line(LAST, better="Yes."))
    _, pairs, rejected = run(path, outputs, model, monkeypatch, columns={"chosen": "better"})
    check_rejected(path, {1: ("malformed", "better is missing")}, rejected)
    assert pairs == [as_written(LAST | {"chosen": "Yes."}, f"{path}:2")]


def test_a_long_shared_beginning_is_split_in_no_time(tmp_path, outputs, model, monkeypatch):
    path = tmp_path / "data.jsonl"
    word = "字" * 200_000  # a pattern that starts over at each character would take minutes
    path.write_bytes(
        line({"chosen": "Why? So.", "rejected": "Why? No."}) + line({"chosen": f"{word} a", "rejected": f"{word} b"})
    )
    _, pairs, rejected = run(path, outputs, model, monkeypatch)
    assert pairs == [as_written(WEBGPT_PAIR, f"{path}:1")]
    check_rejected(path, {2: ("prompt_too_long", "over max_prompt_length")}, rejected)


def command(path, folder, model, threads):
    """Run the program as the workflow does."""
    arguments = ["--model", model, "--settings", json.dumps(LIMITS | {"sources": [{"path": str(path)}]})]
    arguments += ["--dataset", folder / "d.jsonl", "--rejected", folder / "r.jsonl", "--audit", folder / "a.json"]
    arguments += ["--prompts", folder / "p.npy"]
    return subprocess.run(
        [sys.executable, PROJECT / "scripts/build_dataset.py", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_prints_one_message_without_traceback_and_leaves_nothing(tmp_path, outputs, model):
    path = tmp_path / "data.jsonl"
    path.write_bytes(line(prompt="a\x00") + b"\xff\n")
    result = command(path, outputs, model, "1")
    assert result.returncode == 1
    message = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert message == [
        f"error: no usable pair in {path}; rows were rejected for: control_characters (1), malformed (1)",
        f"  {path}:1: prompt holds the control character U+0000",
        f"  {path}:2: not UTF-8 (byte 1); save the file as UTF-8",
    ]
    assert "Traceback" not in result.stderr
    assert list(outputs.iterdir()) == []


def test_several_processes_find_what_one_finds(tmp_path, outputs, model, monkeypatch):
    path = tmp_path / "data.jsonl"
    contents = []
    for number in range(2200):
        sound = line(prompt=f"{number * 7919}?", chosen=f"{number * 104729}.", rejected=f"{number * 1299709}.")
        contents.append(b"{oops\n" if number % 5 == 0 else line(prompt="a\x00") if number % 7 == 0 else sound)
    path.write_bytes(b"".join(contents))
    result = command(path, outputs, model, "2")
    assert result.returncode == 0, result.stderr
    found = [(outputs / name).read_bytes() for name in ("d.jsonl", "r.jsonl")]
    assert len(found[1].splitlines()) > 600
    run(path, outputs, model, monkeypatch)
    assert found == [(outputs / name).read_bytes() for name in ("set.jsonl", "set.rejected.jsonl")]


# From here on, Hypothesis invents the rows. Many go through the examiner itself, for speed.

LAYOUTS = ("explicit_prompt", "implicit_prompt", "hh_rlhf", "ultrafeedback_binarized", "webgpt_comparisons", "shp")
PIECES = st.sampled_from(
    ["", " ", "\n\n", "Human:", "\n\nHuman:", "\n\nAssistant:", "<|im_end|>", "<|im_start|>", "{{ x }}", "yes", "\x00"]
)
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
ANY_TEXT = PLAIN | st.text(st.characters(), max_size=20) | st.lists(PIECES | PLAIN, max_size=5).map("".join)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": ANY_TEXT}),
    max_size=4,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = (
    ANY_TEXT
    | MESSAGES
    | st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=4
    )
)


def often(examples):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )  # fmt: skip


@pytest.fixture(scope="module")
def examiner(model):
    return Examiner(model, LIMITS)


def examine(examiner, lines, layout="explicit_prompt"):
    """Examine lines of bytes; check that each is accounted for once, and return number → accepted row."""
    batch = [(number, content.decode("latin-1")) for number, content in enumerate(lines, start=1)]
    examined = examiner(batch, {"name": "file", "columns": {}, "layout": layout})
    refused = [number for number, _ in examined.rejected]
    assert sorted(examined.numbers + refused) == list(range(1, len(lines) + 1))
    assert {rejected.reason for _, rejected in examined.rejected} <= set(audit.REASONS)
    assert len(examined.keys) == len(examined.bands) == len(examined.lengths) == len(examined.numbers)
    return dict(zip(examined.numbers, map(json.loads, examined.lines), strict=True))


def texts_of(value):
    """All texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    return [text for part in (value.values() if isinstance(value, dict) else value) for text in texts_of(part)] if (
        isinstance(value, dict | list)
    ) else []  # fmt: skip


def check_texts(accepted, row, layout):
    """Check that an accepted row says what was written, in the row's own words."""
    if layout == "explicit_prompt" and all(isinstance(row[name], str) for name in ANY):
        assert accepted["prompt"] == turns(("user", row["prompt"]))
        assert [accepted[side][0]["content"] for side in ("chosen", "rejected")] == [row["chosen"], row["rejected"]]
    glued = layout in ("hh_rlhf", "implicit_prompt")  # where a column holds several texts, they are parts of it
    written = texts_of(row)
    for message in accepted["prompt"] + accepted["chosen"] + accepted["rejected"]:
        assert any(message["content"] in text if glued else message["content"] == text for text in written)


@often(1000)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=6), st.sampled_from(LAYOUTS))
def test_any_bytes_on_a_line_are_rejected_or_a_pair(examiner, lines, layout):
    examine(examiner, lines, layout)


def sound_row(layout, prompt, chosen, rejected):
    """A row of a layout, sound unless a text is not."""
    conversations = [turns(("user", prompt), ("assistant", answer)) for answer in (chosen, rejected)]
    return {
        "explicit_prompt": {"prompt": prompt, "chosen": conversations[0], "rejected": conversations[1][1:]},
        "implicit_prompt": {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"},
        "hh_rlhf": {
            "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {chosen}",
            "rejected": f"\n\nHuman: {prompt}\n\nAssistant: {rejected}",
        },
        "ultrafeedback_binarized": {
            "prompt": prompt, "chosen": conversations[0], "rejected": conversations[1], "score_chosen": 5,
            "score_rejected": 1.5,
        },
        "webgpt_comparisons": {
            "question": {"full_text": prompt}, "answer_0": rejected, "answer_1": chosen, "score_0": 0, "score_1": "1",
        },
        "shp": {
            "history": prompt, "human_ref_A": rejected, "human_ref_B": chosen, "labels": 0, "score_ratio": 2.5,
        },
    }[layout]  # fmt: skip


@st.composite
def rows_of(draw, layout):
    """Rows of a layout, each with what it says; some have anything in one of its columns, or lack it, and None."""
    rows = []
    for prompt, chosen, rejected in draw(st.lists(st.tuples(PLAIN, PLAIN, PLAIN | ANY_TEXT), min_size=1, max_size=4)):
        row = sound_row(layout, prompt, chosen, rejected)
        accident = draw(st.sampled_from(["none", "value", "lack", "label"]))
        if accident == "value":
            row[draw(st.sampled_from(list(row)))] = draw(VALUES)
        elif accident == "lack":
            del row[draw(st.sampled_from(list(row)))]
        elif accident == "label":
            row[draw(st.sampled_from(["id", "topic"]))] = draw(VALUES)
        rows.append((row, [prompt, chosen, rejected] if accident == "none" else None))
    return layout, rows


@often(1200)
@given(st.sampled_from(LAYOUTS).flatmap(rows_of))
def test_any_values_in_the_columns_are_rejected_or_taken_as_they_are(examiner, drawn):
    layout, rows = drawn
    for number, accepted in examine(examiner, [json.dumps(row).encode() for row, _ in rows], layout).items():
        row, said = rows[number - 1]
        check_texts(accepted, row, layout)
        if said and layout != "implicit_prompt":  # where the answers begin is for that layout to find
            found = [accepted[name][0]["content"] for name in ANY]
            assert found == ([text.strip() for text in said] if layout == "hh_rlhf" else said)


@often(1500)
@given(st.fixed_dictionaries({name: PLAIN | ANY_TEXT for name in ANY}))
def test_any_texts_are_kept_to_the_letter_or_rejected_for_a_reason(examiner, row):
    accepted = examine(examiner, [line(row)])
    found = examine(examiner, [json.dumps(row).encode()])
    assert accepted == found or any("\ud800" <= letter <= "\udfff" for text in row.values() for letter in text)
    fit = all(
        text.strip() and "<|im_" not in text and not any(ord(c) < 32 and c not in "\t\n\r" for c in text)
        for text in row.values()
    )
    assert found == {} or fit
    for pair in found.values():
        check_texts(pair, row, "explicit_prompt")


@st.composite
def mutated(draw, contents):
    """A sound file after a few accidents: cut, overwritten, inserted into, or a stretch of it moved or doubled."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        end = min(end, start + draw(st.integers(0, 8)))
        kind = draw(st.sampled_from(["cut", "end", "flip", "insert", "double"]))
        if kind == "cut":
            del content[start:end]
        elif kind == "end":
            del content[max(start, 1) :]
        elif kind == "flip" and content:
            content[min(start, len(content) - 1)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            content[start:start] = draw(
                st.binary(max_size=4) | st.sampled_from([b'"', b"\n", b"\r", b",", b"{", b"\\"])
            )
        else:
            content[start:start] = content[start : start + 60]
    return bytes(content)


MESSAGE_ROW = {"prompt": turns(("user", "Why?")), "chosen": turns(("assistant", "So.")), "rejected": "No."}


@often(1500)
@given(mutated(st.permutations([line(FIRST), line(LAST), line(MESSAGE_ROW)]).map(b"".join)))
def test_a_damaged_file_gives_up_its_sound_rows_and_no_others(examiner, content):
    lines = content.split(b"\n")
    for number, accepted in examine(examiner, lines).items():
        check_texts(accepted, json.loads(lines[number - 1]), "explicit_prompt")


SOUND_FILES = {suffix: write([FIRST, LAST, LONG]) for suffix, write in FORMATS.items()}


@often(300)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_a_damaged_file_of_any_format_is_refused_or_accounted_for(tmp_path, outputs, model, suffix, data):
    content = data.draw(mutated(st.just(SOUND_FILES[suffix])) | st.binary(max_size=200))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        try:
            counts, pairs, rejected = run(path, outputs, model, patch)
        except UserError as error:
            assert str(path) in str(error)
            return
    assert counts["rows"] == len(pairs) + len(rejected) == counts["sources"][0]["rows"]
    assert (counts["pairs"], counts["rejected"]) == (len(pairs), len(rejected))
    if (
        suffix == ".jsonl" and counts["sources"][0]["layout"] == "explicit_prompt"
    ):  # the standard library's own reading of the lines is the judge
        lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("latin-1").removeprefix(BOM).split("\n")
        for pair in pairs:
            number = int(pair["id"].rpartition(":")[2])
            check_texts(pair, json.loads(lines[number - 1].encode("latin-1")), "explicit_prompt")


@often(300)
@given(st.lists(st.binary(max_size=30), max_size=8), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_every_line_of_a_file_is_read_with_its_own_number(tmp_path, lines, ending):
    path = tmp_path / "lines.jsonl"
    content = [bytes(set(text) - {10, 13}) for text in lines]
    path.write_bytes(b"".join(text + ending for text in content))
    read = [row for batch in sources.read({"path": str(path)}) for row in batch]
    texts = [text.decode("latin-1") for text in content]
    assert read == list(enumerate([texts[0].removeprefix(BOM), *texts[1:]] if texts else [], start=1))


def test_comparing_random_rows_never_loses_one(tmp_path, outputs, model, monkeypatch):
    chance = random.Random(0)
    words = [*"abcdefgh", "A", "b ", " c"]
    rows = [{name: chance.choice(words) for name in ANY} | {"id": chance.randrange(900)} for _ in range(400)]
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(rows))
    counts, pairs, rejected = run(path, outputs, model, monkeypatch)
    assert counts["rows"] == 400 == len(pairs) + len(rejected)
    assert len({entry["line"] for entry in rejected}) == len(rejected)
    preferences = {tuple(row[name][0]["content"].strip().casefold() for name in ANY) for row in pairs}
    assert len(preferences) == len(pairs)
    assert not {(prompt, rejected, chosen) for prompt, chosen, rejected in preferences} & preferences
    assert len({row["id"] for row in pairs}) == len(pairs)
