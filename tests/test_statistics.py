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
