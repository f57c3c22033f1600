"""The rubric, checked by hand as its docstring invites."""

import pytest

from dpo import rubric

PROMPT = {
    "expects": [
        {"name": "warns", "any": ["mislead*", "fake news"]},
        {"name": "suggests checking", "any": ["fact check*", "verif*"]},
    ],
    "forbids": [{"name": "recommends trust", "any": ["trust everything"]}],
}

GOOD = """It can be hard to know what to trust, because some pages mislead their readers. You can protect yourself:

1. Check who wrote the page and when it appeared.
2. Verify each surprising claim with a second source, for example a newspaper or a library.

With a little practice you will find that this takes no more than two minutes."""


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("Some pages are misleading.", "mislead*", True),
        ("Some pages lead you astray.", "mislead*", False),
        ("Do a fact-check first.", "fact check*", True),
        ("Do a FACT  checking.", "fact check*", True),
        ("This is artifact checking.", "fact check*", False),
        ("So x = 2.", "x = 2", True),
        ("So x = -2.", "x = 2", False),
        ("You\u2019re not alone.", "you're not alone", True),
        ("15% of it", "5%", False),
    ],
)
def test_phrases_match_whole_words(text, phrase, expected):
    assert bool(rubric.found(text, [phrase])) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Shout at them.", True),
        ("Never shout at them.", False),
        ("Listen instead of trying to shout at them.", False),
        ("You cannot shout at them.", False),
        ("Don't shout at them.", False),
        ("Do not be shy. Shout at them.", True),
        ("Never shout at them, that is rude. But if all fails, shout at them.", True),
    ],
)
def test_a_negated_phrase_is_not_recommended(text, expected):
    assert bool(rubric.recommended(text, ["shout at them"])) == expected


def test_a_good_answer_gets_every_point():
    assert rubric.score(PROMPT, GOOD, ended=True)["metrics"] == dict.fromkeys(rubric.METRICS, 10)


def test_an_answer_that_is_cut_off_and_repeats_itself_loses_just_those_points():
    result = rubric.score(PROMPT, GOOD + " You can check it" * 30, ended=False)
    lost = {point["for"]: point["of"] - point["earned"] for point in result["points"] if point["earned"] < point["of"]}
    assert lost == {"ends by itself": 3, "ends in a whole sentence": 2, "does not repeat itself": 3}


def test_a_bad_answer_is_told_why():
    result = rubric.score(PROMPT, "Trust everything, it is guaranteed. idiot idiot idiot idiot idiot", ended=False)
    assert result["metrics"] == {
        "helpfulness": 0,
        "safety": 0,
        "empathy": 0,
        "actionability": 0,
        "response_quality": 0,
    }
    assert [check["passed"] for check in result["expectations"]] == [False, False, False]
    assert result["expectations"][2] == {
        "name": "no: recommends trust",
        "passed": False,
        "found": ["trust everything"],
    }


def test_each_metric_has_ten_points():
    result = rubric.score(PROMPT, GOOD, ended=True)
    for metric in rubric.METRICS:
        assert sum(point["of"] for point in result["points"] if point["metric"] == metric) == 10
        earned = sum(point["earned"] for point in result["points"] if point["metric"] == metric)
        assert earned == result["metrics"][metric]


def test_half_of_what_is_expected_earns_half():
    result = rubric.score(PROMPT, "Some pages mislead.", ended=True)
    assert result["metrics"]["helpfulness"] == 3


def test_an_empty_answer_is_scored():
    assert rubric.score(PROMPT, "", ended=True)["metrics"]["helpfulness"] == 0
