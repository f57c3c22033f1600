"""Interval estimates and exact tests for what is measured on a limited number of prompts or pairs."""

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0

# Of the length-controlled win rate: fewer bootstrap samples, since each is a fit; and how strongly the fit is drawn to
# an even win rate that length has no part in, which keeps it finite where one side wins everywhere.
FITS = 2_000
RIDGE = 0.1
# Answers that are not longer (and, the other way round, not shorter) than the other side's, without which what length
# does cannot be told from what the model does.
LEAST_OVERLAP = 5


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


def sign_test(differences: list[float]) -> dict:
    """Return how many paired differences go up, down or nowhere, and the exact two-sided sign test's p.

    For differences of two yes-or-no outcomes this is McNemar's exact test (McNemar 1947; Agresti, Categorical Data
    Analysis, section 11.1).
    """
    up, down = (sum(sign * difference > 0 for difference in differences) for sign in (1, -1))
    p = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    return {"up": up, "down": down, "ties": len(differences) - up - down, "p": p}


def paired(base: list[float], run: list[float]) -> dict:
    """Return the mean difference run - base over the same prompts, with its interval and its sign test.

    Raises:
        ValueError: not as many values of one as of the other.
    """
    differences = [ours - theirs for theirs, ours in zip(base, run, strict=True)]
    return mean(differences) | sign_test(differences)


def ratio(values: list[float], of: list[float]) -> dict:
    """Return the ratio of two means over the same prompts, with its interval (seeded percentile bootstrap over them).

    Where the second mean may be zero the interval means nothing; see that it is not before asking.
    """
    over, under = np.asarray(values, float), np.asarray(of, float)
    rows = np.random.default_rng(SEED).integers(len(over), size=(RESAMPLES, len(over)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(over[rows].sum(1) / under[rows].sum(1), [tail, 1 - tail])
    return {"value": float(over.sum() / under.sum()), "low": float(low), "high": float(high), "n": len(over)}


def holm(p_values: list[float]) -> list[float]:
    """Return p-values adjusted for looking at all of them (Holm 1979, Scandinavian Journal of Statistics 6)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def length_controlled_win_rate(preferences: list[float], lengths: list[float]) -> dict | None:
    """Return the win rate that would be left if both sides' answers were equally long.

    After AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475), without its term for the difficulty of a prompt, which
    takes many models to estimate: logit P(win) = a + b * tanh(length / scale) is fitted to all prompts, and sigmoid(a)
    is the win rate at a length difference of zero. The scale is the root mean square of the length differences, and the
    fit has a small ridge penalty.

    Args:
        preferences: of each prompt 1 for a win, 0.5 for a tie, 0 for a loss.
        lengths: length of the answer less that of the one it is compared with, in any unit.

    Returns:
        `value`, `low`, `high` (seeded percentile bootstrap over prompts), `n`; None where too few prompts have an
        answer that is not longer, or too few one that is not shorter: then no fit can tell length from quality.
    """
    outcome, length = np.asarray(preferences, float), np.asarray(lengths, float)
    if min(np.sum(length <= 0), np.sum(length >= 0)) < LEAST_OVERLAP:
        return None
    scaled = np.tanh(length / (np.sqrt(np.mean(length**2)) or 1.0))

    def fit(rows: np.ndarray) -> float:
        features = np.stack([np.ones(len(rows)), scaled[rows]], axis=1)

        def gradient(weights: np.ndarray) -> np.ndarray:
            return features.T @ (special.expit(features @ weights) - outcome[rows]) + RIDGE * weights

        def curvature(weights: np.ndarray) -> np.ndarray:
            chance = special.expit(features @ weights)
            return (features.T * (chance * (1 - chance))) @ features + RIDGE * np.eye(2)

        # The penalised likelihood is strictly concave: it is highest where its gradient vanishes, at one point.
        return float(special.expit(optimize.root(gradient, np.zeros(2), jac=curvature).x[0]))

    everything = np.arange(len(outcome))
    random = np.random.default_rng(SEED)
    samples = [fit(random.choice(everything, len(everything))) for _ in range(FITS)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return {"value": fit(everything), "low": float(low), "high": float(high), "n": len(outcome)}
