"""Accuracies, margins and calibration of pairs whose log-probabilities are known."""

import math

import pytest

from dpo import preferences


def pair(chosen, rejected, chosen_tokens=10, rejected_tokens=10):
    return {
        "id": "a", "chosen_logps": chosen, "rejected_logps": rejected,
        "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens,
    }  # fmt: skip


def test_totals_favour_the_shorter_answer_and_means_do_not():
    summary = preferences.summarize([pair(-100.0, -60.0, 100, 20), pair(-100.0, -60.0, 100, 20)], None, None)
    assert summary["accuracy_total"]["value"] == 0
    assert summary["accuracy_per_token"]["value"] == 1
    assert summary["margin_total"]["value"] == -40
    assert summary["margin_per_token"]["value"] == pytest.approx(2.0)


def test_the_implicit_reward_is_relative_to_the_reference():
    rows, reference = [pair(-90.0, -65.0)], [pair(-100.0, -60.0)]
    summary = preferences.summarize(rows, reference, 0.1)
    assert summary["reward_margin"]["value"] == pytest.approx(1.5)
    assert summary["accuracy_implicit_reward"]["value"] == 1
    assert preferences.summarize(reference, reference, 0.1)["accuracy_implicit_reward"]["value"] == 0


def test_calibration_of_a_model_that_is_as_right_as_it_is_sure():
    sure = math.log(3)  # sigmoid is 0.75
    found = preferences.calibration([sure, sure, sure, -sure])
    assert found["confidence"] == pytest.approx(0.75)
    assert found["expected_error"] == pytest.approx(0.0)
    assert [part["n"] for part in found["bins"]] == [4]


def test_calibration_of_a_model_that_is_sure_and_wrong():
    found = preferences.calibration([-10.0, -1000.0])
    assert found["accuracy"] == 0
    assert found["expected_error"] == pytest.approx(1.0, abs=1e-3)


def test_pairs_are_chosen_evenly():
    assert preferences.choose_pairs(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert preferences.choose_pairs([1, 2], 5) == [1, 2]
