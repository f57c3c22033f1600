"""The verdict on constructed cases whose truth is known."""

import numpy as np
import pytest

from dpo import comparison, statistics, verdict

PROMPTS = 40


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """Hundreds of simulated runs in seconds; the intervals get a little coarser."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    monkeypatch.setattr(statistics, "FITS", 500)


BELIEVED = {"believed": True, "accuracy": statistics.proportion(32, 40)}
AT_CHANCE = {"believed": False, "accuracy": statistics.proportion(21, 40)}
STEADY = {"unit": "share", "value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "goal": False, "tolerance": 0.0}


def judged(preferences, lengths, check=BELIEVED):
    """A judge's comparison of as many prompts as there are preferences."""
    rows = [{"id": str(number), "preference": float(value)} for number, value in enumerate(preferences)]
    by_id = {str(number): float(length) for number, length in enumerate(lengths)}
    return comparison.compare_by_judge(check, {"comparisons": rows}, by_id)


def checks(random, worse=0.0, better=0.0):
    """Yes-or-no checks of a base and a run that passes another share of them, and noise for the others."""
    base = random.random(48) < 0.5
    run = np.where(base, random.random(48) >= worse, random.random(48) < better)
    found = {"instructions followed": comparison.describe(base.astype(float), run.astype(float), goal=True)}
    for number in range(6):
        noise = random.normal(0, 0.1, (2, 119))
        found[f"check {number}"] = comparison.describe(noise[0], noise[1])
    return found


def decide(judge, found, same=0):
    return verdict.decide("run", {"judge": judge}, found, same, 100)


def fair_lengths(random, longer=0.0):
    return random.normal(longer, 80, PROMPTS)


def test_a_model_that_wins_at_any_length_is_better():
    random = np.random.default_rng(0)
    result = decide(judged(random.random(PROMPTS) < 0.9, fair_lengths(random)), checks(random, 0.1, 0.1))
    assert result["outcome"] == "better"
    assert result["sentence"] == "run is better than the base model."


def test_a_model_that_loses_is_worse():
    random = np.random.default_rng(0)
    result = decide(judged(random.random(PROMPTS) < 0.1, fair_lengths(random)), checks(random, 0.1, 0.1))
    assert result["outcome"] == "worse"


def test_a_model_that_forgets_to_follow_instructions_is_worse_and_the_drop_is_named():
    random = np.random.default_rng(0)
    even = judged(random.random(PROMPTS) < 0.5, fair_lengths(random))
    result = decide(even, checks(random, worse=0.9))
    assert result["outcome"] == "worse"
    assert result["sentence"].endswith("what fell beyond its interval: instructions followed.")


def test_a_model_that_learns_to_follow_instructions_is_better_even_without_a_judge():
    random = np.random.default_rng(0)
    assert decide(AT_CHANCE, checks(random, better=0.9))["outcome"] == "better"


def test_wins_that_cost_instructions_are_inconclusive():
    random = np.random.default_rng(0)
    result = decide(judged(random.random(PROMPTS) < 0.9, fair_lengths(random)), checks(random, worse=0.9))
    assert result["outcome"] == "inconclusive"
    assert "both ways" in result["sentence"]


def test_without_a_judge_that_can_be_believed_it_is_inconclusive():
    result = decide(AT_CHANCE, {"steady": STEADY})
    assert result["outcome"] == "inconclusive"
    assert "no judge" in result["sentence"]
    assert "no better than chance" in result["reasons"][0]


def test_a_judge_at_chance_decides_nothing():
    random = np.random.default_rng(0)
    wins = judged(np.ones(PROMPTS), fair_lengths(random), AT_CHANCE)
    assert decide(wins, {"steady": STEADY})["outcome"] == "inconclusive"


def test_the_same_answers_are_no_difference_whoever_judges():
    result = decide(AT_CHANCE, {"steady": STEADY}, same=100)
    assert result["outcome"] == "no measurable difference"
    assert result["reasons"] == ["all 100 answers are the same to the letter"]


def test_two_identical_models_show_no_difference_95_times_in_100():
    outcomes = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        preferences = random.choice([0, 0.5, 1], PROMPTS, p=[0.4, 0.2, 0.4])
        judge = judged(preferences, fair_lengths(random))
        outcomes.append(decide(judge, checks(random, worse=0.2, better=0.2))["outcome"])
    assert outcomes.count("no measurable difference") >= 95


def test_a_model_that_only_answers_longer_is_not_called_better():
    """The judge likes length and nothing else; most answers are longer, and most are preferred for it."""
    outcomes, raw = [], 0
    for seed in range(50):
        random = np.random.default_rng(seed)
        lengths = fair_lengths(random, longer=100)
        judge = judged(random.random(PROMPTS) < 1 / (1 + np.exp(-lengths / 40)), lengths)
        raw += judge["win_rate"]["low"] > 0.5
        outcomes.append(decide(judge, {"steady": STEADY})["outcome"])
    assert raw >= 45  # without control for length it would win
    assert outcomes.count("better") <= 2


def test_wins_of_a_model_whose_every_answer_is_longer_are_inconclusive():
    judge = judged(np.ones(PROMPTS), np.full(PROMPTS, 200.0))
    result = decide(judge, {"steady": STEADY})
    assert result["outcome"] == "inconclusive"
    assert "length" in result["sentence"]


def test_a_fall_within_its_tolerance_is_none():
    before = np.linspace(-4.2, -3.8, 24)
    slight, strong = (comparison.describe(before, before - fall, tolerance=0.05) for fall in (0.02, 0.2))
    even = judged(np.tile([0, 1], PROMPTS // 2), np.tile([-50, 50, 50, -50], PROMPTS // 4))
    assert decide(even, {"text": slight})["outcome"] == "no measurable difference"
    assert decide(even, {"text": slight})["drops"] == []
    assert decide(even, {"text": strong})["outcome"] == "worse"


@pytest.mark.parametrize("down", [3, 30])
def test_a_drop_beyond_its_interval_is_named_even_where_it_decides_nothing(down):
    before = np.zeros(100)
    after = before - (np.arange(100) < down)
    even = judged(np.tile([0, 1], PROMPTS // 2), np.tile([-50, 50, 50, -50], PROMPTS // 4))
    result = decide(even, {"ends": comparison.describe(before, after)})
    assert result["drops"] == ["ends"]
    assert result["outcome"] == ("worse" if down == 30 else "no measurable difference")
