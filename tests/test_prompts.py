"""What is refused in the test prompts, and that the shipped ones are sound."""

import json

import pytest

from dpo.prompts import notebook_prompts, read_prompts
from dpo.texts import find_control, normalize
from workflow import PROJECT

PROMPT = {
    "id": "a",
    "topic": "t",
    "prompt": "Why?",
    "expects": [{"name": "says why", "any": ["because"]}],
    "forbids": [],
}


def line(**changes):
    """One row as a line of JSON; None removes a field."""
    row = {key: value for key, value in (PROMPT | changes).items() if value is not None}
    return json.dumps(row).encode() + b"\n"


SECOND = line(id="b", prompt="How?")
FAULTS = {
    "not JSON": (SECOND + b"{oops\n", ":2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
    "not UTF-8": (SECOND + b'{"id": "\xff"}\n', ":2: not UTF-8 (byte 9)"),
    "empty line": (SECOND + b"\n" + line(), ":2: not JSON (an empty line)"),
    "a list": (SECOND + b"[1]\n", ":2: a JSON list, not an object"),
    "a key twice": (SECOND + b'{"id": "a", "id": "b"}\n', ":2: 'id' stands twice in one object"),
    "missing field": (SECOND + line(topic=None), ":2: topic is missing"),
    "wrong type": (SECOND + line(prompt=["text"]), ":2: prompt is a list; it must be text"),
    "null": (SECOND + b'{"id": null}\n', ":2: id is a NoneType; it must be text"),
    "empty text": (SECOND + line(topic=""), ":2: topic is empty"),
    "white space": (SECOND + line(prompt=" \t\n"), ":2: prompt is empty"),
    "control character": (SECOND + line(prompt="Why\u0000?"), ":2: prompt holds the control character U+0000"),
    "same id": (SECOND + line(id="b"), ":2: the same id as "),
    "same prompt": (SECOND + line(prompt=" how "), ":2: the same prompt as "),
    "empty file": (b"", ": no prompts; at least one is needed"),
}


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_the_prompts_names_file_and_line(tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    problems = []
    read_prompts(file, problems)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}{message}")


def test_every_fault_of_a_file_is_listed(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"{oops\n" + line(prompt="") + line(id=None) + SECOND)
    problems = []
    assert [row["id"] for row in read_prompts(file, problems)] == ["b"]
    assert [problem.removeprefix(str(file)).split(":")[1] for problem in problems] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "checks", [None, "text", [{}], [{"name": "n", "any": []}], [{"name": "n", "any": [1]}], [{"name": 1, "any": ["x"]}]]
)
def test_malformed_expectations_are_refused(tmp_path, checks):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(PROMPT | {"expects": checks}))
    problems = []
    assert read_prompts(file, problems) == []
    assert f"{file}:1: expects must be a list of" in problems[0]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line() + SECOND)
    problems = []
    assert [row["id"] for row in read_prompts(file, problems)] == ["a", "b"]
    assert problems == []


def test_the_first_three_prompts_stand_in_where_none_is_marked():
    assert notebook_prompts([{"id": n} for n in range(5)]) == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert notebook_prompts([{"id": 0}, {"id": 1, "notebook": True}]) == [{"id": 1, "notebook": True}]


def test_the_shipped_prompts_are_sound_and_the_notebooks_come_first():
    problems = []
    prompts = read_prompts(PROJECT / "data/prompts.jsonl", problems)
    assert problems == []
    assert len(prompts) >= 30
    assert [row["prompt"] for row in notebook_prompts(prompts)] == [
        "Should I trust everything I read online?",
        "I'm feeling stressed about work.",
        "How can I win an argument?",
    ]


def test_texts_are_the_same_whatever_their_case_white_space_and_outer_punctuation():
    assert normalize("  What is\n TIME? ") == normalize("“what is time”")
    assert normalize("Straße") == normalize("STRASSE")
    assert normalize("e\u0301te") == normalize("\u00c9te")


def test_texts_that_differ_in_a_letter_or_an_accent_are_not_the_same():
    assert normalize("Is 7 a prime?") != normalize("Is 9 a prime?")
    assert normalize("Größe") != normalize("Grose")


@pytest.mark.parametrize(
    ("text", "found"), [("a\tb\r\nc", None), ("a\x07", "U+0007"), ("\x9f", "U+009F"), ("\ud800", "U+D800")]
)
def test_control_characters_are_found_but_tabs_and_line_ends_are_text(text, found):
    assert find_control(text) == found
