"""Repetition, loops and empty answers."""

import pytest

from dpo import degeneration


@pytest.mark.parametrize(("text", "share"), [("a b c d", 1.0), ("a b c a b c a b c", 3 / 7), ("a b", 1.0), ("", 1.0)])
def test_distinct(text, share):
    assert degeneration.distinct(text.split(), 3) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("I am sorry. I am sorry. I am sorry.", True),
        ("I am sorry.\n\nI am  Sorry.\nI am sorry. And so on", True),
        ("I am sorry. I am sorry. But no.", False),
        ("Ha ha ha ha!", False),
        ("- apples\n- pears\n- plums", False),
        ("The end. " + "x" * 300, True),
        ("", False),
    ],
)
def test_a_loop_is_the_same_three_times_in_a_row(text, loops):
    assert degeneration.loops(text) == loops


def test_an_answer_without_a_word_is_empty():
    assert degeneration.measure(" …\n", ended=True) == {
        "ended": True, "empty": True, "loops": False, "distinct_2": 1.0, "words": 0,
    }  # fmt: skip
