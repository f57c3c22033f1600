"""Interval estimates for what is measured on a limited number of prompts or pairs."""

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0


def proportion(successes: int, trials: int) -> dict:
    """Return a proportion with its 95% Wilson score interval (Wilson 1927, JASA 22).

    Raises:
        ValueError: there are no trials.
    """
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": successes / trials, "low": float(interval.low), "high": float(interval.high), "n": trials}


def mean(values: list[float]) -> dict:
    """Return a mean with its 95% bootstrap interval (bias-corrected and accelerated, Efron 1987; seeded)."""
    average = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return {"value": average, "low": average, "high": average, "n": len(values)}
    interval = stats.bootstrap(
        (np.asarray(values),), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=SEED
    ).confidence_interval
    return {"value": average, "low": float(interval.low), "high": float(interval.high), "n": len(values)}
