"""The checks of instructions, by hand, and that the shipped instructions can be followed and ignored."""

import json
from collections import Counter

import pytest

from dpo.instructions import CHECKS, verify, words
from dpo.texts import find_control, normalize
from workflow import PROJECT

ROWS = [json.loads(line) for line in (PROJECT / "data/instructions.jsonl").read_text(encoding="utf-8").splitlines()]
ANSWERS = json.loads((PROJECT / "tests/instruction_answers.json").read_text(encoding="utf-8"))
BY_ID = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])

RAMBLE = """Sure, I would be happy to talk about that! There are many things to keep in mind, and it depends on what
you want, where you are and how much time you have. Some people like one thing, others like another, and both are fine.
It is always worth trying a few different ways before you decide, since each of them has its own good and bad sides.
In the end, it is up to you, and you will surely find something that suits you well."""

# checks, an answer that meets them, an answer that does not
CASES = [
    ({"min_words": 3}, "Well-known, 2 words", "Two - words !"),
    ({"min_words": 2}, "  it's\nenough ", "enough"),
    ({"max_words": 3}, "One, two … three!", "one two three four"),
    ({"max_words": 1}, "- yes", "yes or"),
    ({"sentences": 1}, "It costs 3.50 at example.org today.", "It costs 3.50. That is cheap."),
    ({"sentences": 2}, 'He said "Stop!" She (almost) did?!', "He stopped, and she did too."),
    ({"sentences": 2}, "It works.\nReally (I tried.)  ", "It works.\nReally. I tried"),
    ({"sentences": 2}, "Hello! Nice to see you! 😊", "Hello, nice to see you! 😊"),
    ({"paragraphs": 2}, "One.\n \t\n\n\nTwo.\nStill two.", "One.\nTwo."),
    ({"paragraphs": 1}, "\n\nOne.\nStill one.\n\n", "One.\n\nTwo."),
    ({"bullets": 2}, "Bring:\n\n- a hat\n  * a bag", "Bring:\n\n- a hat\n1. a bag"),
    ({"bullets": 2}, "• one\n• two-fold - surely", "-one\n- two"),
    ({"bullets": 1}, "**Bold** words:\n- one\n---", "**Bold** words:\n---"),
    ({"numbered": 3}, "Do this:\n1. a\n2. b\n3. c", "Do this:\n1. a\n3. b\n2. c"),
    ({"numbered": 2}, "1) a\n\n   2) b", "1. a 2. b"),
    ({"numbered": 2}, "1. In 2020.\n2. It cost 3. euros", "1. a\n1. b"),
    ({"include": ["cat", "dog"]}, "DOGGED? No, dog. Cat!", "A doghouse and a cat"),
    ({"include": ["Blue Moon", "don't"]}, "A blue-moon day: don’t miss it", "A blue, moon day: don't miss it"),
    ({"exclude": ["sun", "in the rain"]}, "Sunny, in the raincoat", "Singing in\nthe rain"),
    ({"exclude": ["Paris"]}, "A comparison", "I love paris."),
    ({"repeat": {"go": 3}}, "Go go, GO!", "Go, going, goes, go"),
    ({"repeat": {"No": 1, "so so": 2}}, "So so, so-so, no", "no, so so so"),
    ({"starts_with": "Dear [name],"}, "\n Dear [name], hello", "dear [name], hello"),
    ({"starts_with": "The sky"}, "The skyline", "Sure! The sky"),
    ({"ends_with": "The end."}, "It was over. The end.\n", "It was over. The end"),
    ({"ends_with": "?"}, "Why?", "Why? Because."),
    ({"case": "lower"}, "all of it, 2 times: é", "all of It"),
    ({"case": "lower"}, "x1", "123!"),
    ({"case": "upper"}, "MOO! 3 COWS", "MOo! 3 COWS"),
    ({"case": "upper"}, "É", "1. 2. 3."),
    ({"without": [","]}, "no commas; none", "one, comma"),
    ({"without": ["e", "E"]}, "A cup is for drinking", "It is Easy"),
    ({"one_of": ["yes"]}, ' "YES." ', "yes, it is"),
    ({"one_of": ["8", "eight"]}, "Eight!", "18"),
    ({"one_of": ["New  York"]}, "new\nyork", "York"),
    ({"json": ["a", "b"]}, '{"b": [1, {"c": 2}], "a": null}', '{"a": 1}'),
    ({"json": ["a"]}, '```json\n{"a": 1}\n```', 'Sure:\n```json\n{"a": 1}\n```'),
    ({"json": ["a"]}, '```\n\n{\n"a": "```"}\n\n```', '```\n{"a": 1}\n```\n```\n{"a": 1}\n```'),
    ({"json": ["a"]}, ' {"a": 1}\n', "{'a': 1}"),
    ({"json": ["a"]}, '{"a": "b"}', '["a"]'),
    ({"json": ["a"]}, '{"a": {}}', "[" * 100_000),
    ({"wrapped": ['"', '"']}, '"Go," he said, "now"', '"Go"!'),
    ({"wrapped": ['"', '"']}, ' "x" ', '"'),
    ({"wrapped": ["<<", ">>"]}, "<<a\nb>>", "<< >>"),
    ({"placeholders": 2}, "Dear [first name], see [place](x)", "Dear [first\nname], see [[]] (place) [place]"),
    ({"placeholders": 1}, "[ name ]", "- [ ] name, [], [...]"),
    ({"sections": {"***": 2}}, "one\n***\ntwo\n***", "***\none\n***"),
    ({"sections": {";": 3}}, "a; b; c", "a; b, c"),
    ({"sections": {";": 2, "---": 1}}, "a; b", "a; --- b"),
]  # fmt: skip


def follows(checks, text):
    """Whether an answer meets every check."""
    results = verify(checks, text)
    assert len(results) == len(checks)
    return all(result["passed"] for result in results)


@pytest.mark.parametrize(("checks", "passing", "failing"), CASES)
def test_a_check_tells_answers_apart(checks, passing, failing):
    assert (follows(checks, passing), follows(checks, failing)) == (True, False)


def test_the_cases_try_every_kind_twice():
    tried = Counter(kind for checks, _, _ in CASES for kind in checks)
    assert {kind for kind in CHECKS if tried[kind] < 2} == set()


@pytest.mark.parametrize("empty", ["", " \n\t "])
def test_an_empty_answer_passes_nothing(empty):
    easy = {"max_words": 9, "sentences": 0, "paragraphs": 0, "bullets": 0, "numbered": 0, "include": [], "without": []}
    for checks in [easy, {"exclude": ["x"], "starts_with": "", "ends_with": ""}, *(row["checks"] for row in ROWS)]:
        assert not any(result["passed"] for result in verify(checks, empty))


def test_each_check_is_named_and_judged_by_itself():
    assert verify({"max_words": 2, "without": ["é"], "ends_with": "!"}, "Oh yes!") == [
        {"name": "max words: 2", "passed": True},
        {"name": 'without: ["é"]', "passed": True},
        {"name": 'ends with: "!"', "passed": True},
    ]
    assert [check["passed"] for check in verify({"max_words": 2, "ends_with": "!"}, "Oh yes")] == [True, False]


def test_an_unknown_kind_is_refused():
    with pytest.raises(KeyError):
        verify({"haiku": 1}, "text")


@BY_ID
def test_a_row_is_sound(row):
    assert list(row) == ["id", "topic", "prompt", "checks"]
    assert row["id"].startswith(row["topic"] + "-")
    assert row["prompt"].strip() == row["prompt"] != ""
    assert find_control(row["prompt"]) is None
    assert row["checks"]
    assert set(row["checks"]) <= set(CHECKS)
    assert row["checks"].get("min_words", 0) <= 40


@BY_ID
def test_a_prompt_says_the_texts_that_are_checked(row):
    kinds = ("include", "exclude", "repeat", "starts_with", "ends_with", "json", "wrapped", "sections")
    for value in (row["checks"][kind] for kind in kinds if kind in row["checks"]):
        for text in [value] if isinstance(value, str) else value:
            assert text in row["prompt"]


def test_the_rows_are_many_and_different():
    assert len(ROWS) >= 40
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({normalize(row["prompt"]) for row in ROWS}) == len(ROWS)


def test_the_rows_use_every_kind_twice():
    used = Counter(kind for row in ROWS for kind in row["checks"])
    assert {kind for kind in CHECKS if used[kind] < 2} == set()


def test_no_instruction_is_a_prompt_of_the_other_data():
    prompts = {normalize(row["prompt"]) for row in ROWS}
    for name in ("prompts", "preferences", "heldout"):
        lines = (PROJECT / f"data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert prompts.isdisjoint(normalize(json.loads(line)["prompt"]) for line in lines)


def test_every_row_has_answers():
    assert set(ANSWERS) == {row["id"] for row in ROWS}


@BY_ID
def test_an_instruction_can_be_followed_and_ignored(row):
    answers = ANSWERS[row["id"]]
    assert (follows(row["checks"], answers["follows"]), follows(row["checks"], answers["ignores"])) == (True, False)
    assert len(words(answers["follows"])) <= 65  # answers are cut at 96 tokens


@BY_ID
def test_rambling_follows_no_instruction(row):
    assert not follows(row["checks"], RAMBLE)
