"""Counting what is in a set of preference pairs, and saying what the counts mean."""

import numpy as np
from scipy import stats

# Why a row is rejected; docs/data.md explains each. The order is that in which a row is checked.
REASONS = (
    "malformed", "low_confidence", "control_characters", "empty", "identical", "special_tokens", "boundary_merge",
    "prompt_too_long", "no_room", "duplicate", "contradiction", "near_duplicate", "leak",
)  # fmt: skip
BINS = 24


def length_auc(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Return how well length alone tells chosen from rejected answers: the area under the ROC curve.

    It is the probability that a chosen answer, drawn at random, is longer than a rejected one, ties counted half
    (Mann and Whitney 1947); 0.5 where length says nothing.

    Args:
        chosen: lengths of the chosen answers, in tokens.
        rejected: lengths of the rejected answers.
    """
    statistic = stats.mannwhitneyu(chosen, rejected, method="asymptotic").statistic
    return float(statistic) / (len(chosen) * len(rejected))


def describe_training_bias(auc: float, longer: float) -> str:
    """Return in a sentence what the lengths of training answers do to DPO (Park et al. 2024, arXiv 2403.19159).

    Args:
        auc: see `length_auc`.
        longer: share of the pairs whose chosen answer is the longer one.
    """
    opening = (
        f"The chosen answer is the longer one in {longer:.0%} of the pairs, and length alone tells chosen from "
        f"rejected with an AUC of {auc:.2f}"
    )
    way = "longer" if auc > 0.5 else "shorter"
    if abs(auc - 0.5) >= 0.2:
        return (
            f"{opening}: DPO can lower its loss by preferring {way} answers, whatever they say. Expect {way} answers, "
            "and judge a run where length does not decide."
        )
    if abs(auc - 0.5) > 0.1:
        return f"{opening}: part of what DPO can learn here is to answer {way}."
    return f"{opening}: DPO has to learn something other than length."


def describe_heldout_bias(auc: float, longer: float, equal: float) -> str:
    """Return in a sentence what the lengths of held-out answers mean for the accuracy measured on them.

    Args:
        auc: see `length_auc`.
        longer: share of the pairs whose chosen answer is the longer one.
        equal: share of the pairs whose answers are equally long.
    """
    way, share = ("longer", longer) if longer >= 1 - longer - equal else ("shorter", 1 - longer - equal)
    return (
        f"The chosen answer is the longer one in {longer:.0%} of the pairs (AUC {auc:.2f}): whoever just prefers the "
        f"{way} answer is right in {share:.0%}."
    )


def count_lengths(lengths: np.ndarray, max_length: int) -> dict:
    """Return the figures of a set's lengths.

    Args:
        lengths: tokens of prompt, chosen and rejected completion, shape (pairs, 3); at least one pair.
        max_length: where training cuts prompt and completion together.
    """
    prompt, chosen, rejected = lengths.T
    longer, equal = float(np.mean(chosen > rejected)), float(np.mean(chosen == rejected))
    # A few endless answers would squeeze all others into one bar.
    answers, most = lengths[:, 1:], np.percentile(lengths[:, 1:], 99)
    open_ended = bool(answers.max() > 2 * most)
    if open_ended:
        answers = np.minimum(answers, np.ceil(most))
    edges = np.histogram_bin_edges(answers, bins=BINS)
    cut_chosen, cut_rejected = prompt + chosen > max_length, prompt + rejected > max_length
    return {
        "tokens": {
            name: {"min": int(column.min()), "mean": float(column.mean()), "max": int(column.max())}
            for name, column in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
        },
        "histogram": {
            "edges": [round(float(edge), 3) for edge in edges],
            "open_ended": open_ended,  # the last bin holds everything beyond it, too
            "chosen": np.histogram(answers[:, 0], edges)[0].tolist(),
            "rejected": np.histogram(answers[:, 1], edges)[0].tolist(),
        },
        "length_bias": {"chosen_longer": longer, "equal": equal, "auc": length_auc(chosen, rejected)},
        "truncated": {
            "pairs": int(np.sum(cut_chosen | cut_rejected)),
            "chosen_without_end": int(np.sum(cut_chosen)),
            "rejected_without_end": int(np.sum(cut_rejected)),
        },
    }
