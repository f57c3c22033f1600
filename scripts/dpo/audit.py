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


def describe_length_bias(auc: float, longer: float) -> str:
    """Return in a sentence what the lengths do to DPO (Park et al. 2024, arXiv 2403.19159; Singhal et al. 2023, arXiv
    2310.03716)."""
    share = f"The chosen answer is the longer one in {longer:.0%} of the pairs"
    told = f"length alone tells chosen from rejected with an AUC of {auc:.2f}"
    if auc >= 0.7:
        return (
            f"{share}, and {told}: DPO can lower its loss by preferring long answers, whatever they say. Expect longer "
            "answers, and judge a run where length does not decide."
        )
    if auc <= 0.3:
        return (
            f"{share}, and {told}: DPO can lower its loss by preferring short answers, whatever they say. Expect "
            "shorter answers, and judge a run where length does not decide."
        )
    if 0.4 <= auc <= 0.6:
        return f"{share}, and {told}: DPO has to learn something other than length."
    longer_or_shorter = "longer" if auc > 0.5 else "shorter"
    return f"{share}, and {told}: part of what DPO can learn here is to answer {longer_or_shorter}."


def count_lengths(lengths: np.ndarray, max_length: int) -> dict:
    """Return the figures of a set's lengths.

    Args:
        lengths: tokens of prompt, chosen and rejected completion, shape (pairs, 3); at least one pair.
        max_length: where training cuts prompt and completion together.
    """
    prompt, chosen, rejected = lengths.T
    longer, equal = float(np.mean(chosen > rejected)), float(np.mean(chosen == rejected))
    auc = length_auc(chosen, rejected)
    edges = np.histogram_bin_edges(lengths[:, 1:], bins=BINS)
    cut_chosen, cut_rejected = prompt + chosen > max_length, prompt + rejected > max_length
    return {
        "tokens": {
            name: {"min": int(column.min()), "mean": float(column.mean()), "max": int(column.max())}
            for name, column in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
        },
        "histogram": {
            "edges": [round(float(edge), 3) for edge in edges],
            "chosen": np.histogram(chosen, edges)[0].tolist(),
            "rejected": np.histogram(rejected, edges)[0].tolist(),
        },
        "length_bias": {
            "chosen_longer": longer,
            "equal": equal,
            "auc": auc,
            "sentence": describe_length_bias(auc, longer),
        },
        "truncated": {
            "pairs": int(np.sum(cut_chosen | cut_rejected)),
            "chosen_without_end": int(np.sum(cut_chosen)),
            "rejected_without_end": int(np.sum(cut_rejected)),
        },
    }
