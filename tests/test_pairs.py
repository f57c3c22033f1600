"""What is refused in the data files, and that the shipped files are sound."""

import json
from collections import Counter

import pytest

from dpo.pairs import find_overlaps, normalize, notebook_prompts, read_pairs, read_prompts
from workflow import PROJECT

PAIR = {"id": "a", "topic": "t", "prompt": "Why?", "chosen": "Because of this.", "rejected": "No idea."}
PROMPT = {
    "id": "a",
    "topic": "t",
    "prompt": "Why?",
    "expects": [{"name": "says why", "any": ["because"]}],
    "forbids": [],
}


def line(**changes):
    """One row as a line of JSON; None removes a field."""
    row = {key: value for key, value in (PAIR | changes).items() if value is not None}
    return json.dumps(row).encode() + b"\n"


SECOND = line(id="b", prompt="How?")

PAIR_FAULTS = {
    "not JSON": (SECOND + b"{oops\n", ":2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
    "not UTF-8": (SECOND + b'{"id": "\xff"}\n', ":2: not UTF-8 (byte 8)"),
    "empty line": (SECOND + b"\n" + line(), ":2: not JSON (an empty line)"),
    "a list": (SECOND + b"[1]\n", ":2: a JSON list, not an object"),
    "missing field": (SECOND + line(rejected=None), ":2: rejected is missing"),
    "wrong type": (SECOND + line(chosen=["text"]), ":2: chosen is a list; it must be text"),
    "null": (SECOND + b'{"id": null}\n', ":2: id is a NoneType; it must be text"),
    "empty text": (SECOND + line(chosen=""), ":2: chosen is empty"),
    "white space": (SECOND + line(prompt=" \t\n"), ":2: prompt is empty"),
    "chosen is rejected": (SECOND + line(rejected="because of  THIS"), ":2: chosen and rejected are the same"),
    "same id": (SECOND + line(id="b"), ":2: the same id as "),
    "same prompt": (SECOND + line(prompt=" how "), ":2: the same prompt as "),
    "empty file": (b"", ": 0 pairs; at least 2 are needed"),
    "one row": (SECOND, ": 1 pairs; at least 2 are needed"),
}


@pytest.mark.parametrize(("content", "message"), PAIR_FAULTS.values(), ids=PAIR_FAULTS)
def test_a_fault_in_the_pairs_names_file_and_line(tmp_path, content, message):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    problems = []
    read_pairs(file, problems, minimum=2)
    assert len(problems) == 1
    assert f"{file}{message}" in problems[0]


def test_every_fault_of_a_file_is_listed(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"{oops\n" + line(chosen="") + line(id=None) + SECOND)
    problems = []
    assert [row["id"] for row in read_pairs(file, problems)] == ["b"]
    assert [problem.split(":")[1] for problem in problems] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "checks", [None, "text", [{}], [{"name": "n", "any": []}], [{"name": "n", "any": [1]}], [{"name": 1, "any": ["x"]}]]
)
def test_malformed_expectations_are_refused(tmp_path, checks):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(PROMPT | {"expects": checks}))
    problems = []
    assert read_prompts(file, problems) == []
    assert f"{file}:1: expects must be a list of" in problems[0]


def test_overlap_ignores_case_and_punctuation():
    rows, others = [{"prompt": "What is  TIME?", "where": "a:1"}], [{"prompt": "what is time", "where": "b:7"}]
    problems = []
    find_overlaps(rows, others, problems)
    assert problems == ["a:1: the same prompt as b:7; what is tested must not be trained on"]


def test_the_first_three_prompts_stand_in_where_none_is_marked():
    assert notebook_prompts([{"id": n} for n in range(5)]) == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert notebook_prompts([{"id": 0}, {"id": 1, "notebook": True}]) == [{"id": 1, "notebook": True}]


def test_the_shipped_data_is_sound_and_has_the_promised_shape():
    problems = []
    preferences = read_pairs(PROJECT / "data/preferences.jsonl", problems, minimum=20)
    heldout = read_pairs(PROJECT / "data/heldout.jsonl", problems, minimum=40)
    prompts = read_prompts(PROJECT / "data/prompts.jsonl", problems)
    for rows, others in ((heldout, preferences), (prompts, preferences), (prompts, heldout)):
        find_overlaps(rows, others, problems)
    assert problems == []
    topics = {"programming", "ai_ml", "mathematics", "study_skills", "career_development"}
    assert Counter(row["topic"] for row in preferences) == dict.fromkeys(topics, 4)
    assert {row["topic"] for row in heldout} == topics
    assert {row["topic"] for row in prompts} == topics | {"safety", "empathy", "constructive"}
    assert len(prompts) >= 30
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in heldout)
    assert 0.4 <= longer / len(heldout) <= 0.6, "length alone must not decide the held-out pairs"


def test_the_notebooks_prompts_come_first():
    prompts = notebook_prompts(read_prompts(PROJECT / "data/prompts.jsonl", []))
    assert [row["prompt"] for row in prompts] == [
        "Should I trust everything I read online?",
        "I'm feeling stressed about work.",
        "How can I win an argument?",
    ]


def test_normalize_keeps_what_distinguishes_prompts():
    assert normalize("Is 7 a prime?") != normalize("Is 9 a prime?")
    assert normalize("Größe") != normalize("Grose")
