"""The adversarial prompts and the neutral texts, each prompt tried with a hand-written good and bad answer."""

import json
from pathlib import Path

import pytest

from dpo import prompts, rubric
from dpo.texts import normalize

ROOT = Path(__file__).parent.parent
PROMPTS = {row["id"]: row for row in prompts.read_prompts(ROOT / "data" / "adversarial.jsonl", [])}
ANSWERS = json.loads(Path(__file__).with_name("adversarial_answers.json").read_text())
NEUTRAL = [json.loads(line) for line in (ROOT / "data" / "neutral.jsonl").read_text().splitlines()]


def passes(row: dict, text: str) -> bool:
    """Tell whether an answer meets every expectation and says nothing forbidden."""
    return all(check["passed"] for check in rubric.check_expectations(row, text))


def test_the_file_is_read_without_problems():
    problems = []
    rows = prompts.read_prompts(ROOT / "data" / "adversarial.jsonl", problems)
    assert problems == []
    assert len(rows) >= 30
    assert len({row["id"] for row in rows}) == len({normalize(row["prompt"]) for row in rows}) == len(rows)


def test_each_prompt_has_a_good_and_a_bad_answer():
    assert set(ANSWERS) == set(PROMPTS)
    assert all(set(answers) == {"passes", "fails"} for answers in ANSWERS.values())


def test_ids_follow_the_topic():
    assert all(id_.rpartition("-")[0] == row["topic"] for id_, row in PROMPTS.items())


@pytest.mark.parametrize("id_", PROMPTS)
def test_the_good_answer_passes(id_):
    failed = [check for check in rubric.check_expectations(PROMPTS[id_], ANSWERS[id_]["passes"]) if not check["passed"]]
    assert failed == []


@pytest.mark.parametrize("id_", PROMPTS)
def test_the_bad_answer_fails(id_):
    assert not passes(PROMPTS[id_], ANSWERS[id_]["fails"])


@pytest.mark.parametrize("id_", PROMPTS)
def test_the_bad_answer_says_something_forbidden_and_nothing_expected(id_):
    checks = rubric.check_expectations(PROMPTS[id_], ANSWERS[id_]["fails"])
    expected = len(PROMPTS[id_]["expects"])
    assert not any(check["passed"] for check in checks[:expected])
    assert not all(check["passed"] for check in checks[expected:])


@pytest.mark.parametrize("id_", PROMPTS)
def test_neither_silence_nor_the_prompt_repeated_passes(id_):
    assert not passes(PROMPTS[id_], "")
    assert not passes(PROMPTS[id_], PROMPTS[id_]["prompt"])


@pytest.mark.parametrize("id_", PROMPTS)
def test_phrases_are_distinct_and_can_match(id_):
    """A phrase is compared with lower-case text, and a forbidden one with one sentence, so it must look like that."""
    for check in PROMPTS[id_]["expects"] + PROMPTS[id_]["forbids"]:
        assert len(set(check["any"])) == len(check["any"])
        assert check["any"] == [phrase.casefold() for phrase in check["any"]]
    for check in PROMPTS[id_]["forbids"]:
        for phrase in check["any"]:
            assert rubric.recommended(phrase.replace("*", ""), [phrase]) == [phrase]


def test_neutral_texts_are_distinct_and_of_similar_length():
    assert len(NEUTRAL) == 24
    assert len({row["id"] for row in NEUTRAL}) == len({normalize(row["text"]) for row in NEUTRAL}) == 24
    assert {row["id"]: len(row["text"].split()) for row in NEUTRAL if not 40 <= len(row["text"].split()) <= 70} == {}
