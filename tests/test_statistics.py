"""Intervals against published values and against what they must cover."""

import numpy as np
import pytest

from dpo import statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(successes, trials, low, high):
    found = statistics.proportion(successes, trials)
    assert found["value"] == successes / trials
    assert found["low"] == pytest.approx(low, abs=5e-5)
    assert found["high"] == pytest.approx(high, abs=5e-5)


def test_bootstrap_covers_the_mean_at_about_the_stated_rate(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator = np.random.default_rng(1)
    samples = generator.exponential(2.0, size=(200, 40))
    intervals = [statistics.mean(list(sample)) for sample in samples]
    covered = sum(found["low"] <= 2.0 <= found["high"] for found in intervals)
    assert 0.88 <= covered / len(samples) <= 0.98


def test_bootstrap_gives_the_same_interval_every_time():
    values = [0.1, 0.5, -0.3, 0.9, 0.2]
    assert statistics.mean(values) == statistics.mean(values)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_no_spread_is_an_interval_of_no_width(values):
    assert statistics.mean(values) == {"value": 2.0, "low": 2.0, "high": 2.0, "n": len(values)}


def test_the_sign_test_is_mcnemars_exact_test():
    """8 of 10 discordant pairs one way: 2 * (C(10,8) + C(10,9) + C(10,10)) / 2^10."""
    found = statistics.sign_test([1] * 8 + [-1] * 2 + [0] * 30)
    assert found == {"up": 8, "down": 2, "ties": 30, "p": pytest.approx(2 * (45 + 10 + 1) / 1024)}
    assert statistics.sign_test([0, 0]) == {"up": 0, "down": 0, "ties": 2, "p": 1.0}


def test_paired_differences_need_pairs():
    assert statistics.paired([1, 2], [2, 4])["value"] == 1.5
    with pytest.raises(ValueError, match=r"shorter|longer"):
        statistics.paired([1, 2], [1])


def test_holm_adjusts_as_in_his_example():
    """Holm 1979 multiplies the smallest p by their number, the next by one less, and never lets them fall."""
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def length_and_preference(seed, model, length, prompts=200):
    """Preferences of a judge with known effects of the model itself and of length, on the logit scale."""
    random = np.random.default_rng(seed)
    lengths = random.normal(40, 100, prompts)
    scaled = np.tanh(lengths / np.sqrt(np.mean(lengths**2)))
    wins = random.random(prompts) < 1 / (1 + np.exp(-(model + length * scaled)))
    return wins.astype(float).tolist(), lengths.tolist()


def test_the_length_controlled_win_rate_finds_the_models_own_effect():
    found = statistics.length_controlled_win_rate(*length_and_preference(0, model=1.0, length=2.0, prompts=4000))
    assert found["value"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.03)
    assert found["low"] < found["value"] < found["high"]


def test_preference_for_length_alone_is_an_even_win_rate_at_equal_length():
    wins, lengths = length_and_preference(1, model=0.0, length=3.0)
    assert statistics.mean(wins)["low"] > 0.5
    found = statistics.length_controlled_win_rate(wins, lengths)
    assert found["low"] < 0.5 < found["high"]


def test_where_all_answers_are_longer_nothing_is_said_at_equal_length():
    assert statistics.length_controlled_win_rate([1.0] * 40, [5.0] * 36 + [-5.0] * 4) is None
    assert statistics.length_controlled_win_rate([1.0] * 40, [5.0] * 35 + [-5.0] * 5) is not None


def test_equal_lengths_leave_the_win_rate_as_it_is():
    found = statistics.length_controlled_win_rate([1.0] * 30 + [0.0] * 10, [0.0] * 40)
    assert found["value"] == pytest.approx(0.75, abs=0.01)
