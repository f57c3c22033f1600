"""What a model prefers in pairs whose better answer is known: accuracy, margins, and how far they can be trusted.

A model prefers the answer that it gives the higher log-probability: in total, or a token, since totals favour the
shorter answer. Against a reference it prefers the one with the higher implicit reward of DPO,
beta * (log pi(y|x) - log pi_ref(y|x)) (Rafailov et al. 2023, arXiv 2305.18290, section 5.2).
"""

import math

from dpo import chat, statistics

CALIBRATION_BINS = 5


def choose_pairs(pairs: list[dict], most: int) -> list[dict]:
    """Return at most `most` pairs, evenly spread over the set."""
    if len(pairs) <= most:
        return pairs
    return [pairs[number * len(pairs) // most] for number in range(most)]


def encode_pairs(tokenizer, pairs: list[dict]) -> list[tuple[list[int], list[int]]]:
    """Return the (prompt ids, completion ids) of each pair's chosen and rejected answer, in turn."""
    return [
        (chat.prompt_ids(tokenizer, pair["prompt"]), chat.completion_ids(tokenizer, pair["prompt"], pair[side]))
        for pair in pairs
        for side in ("chosen", "rejected")
    ]


def pair_rows(pairs: list[dict], logps: list[tuple[float, int]]) -> list[dict]:
    """Return each pair's summed log-probabilities (nats) and lengths in tokens.

    Args:
        pairs: pairs with an `id`.
        logps: (log-probability, tokens) of each pair's chosen and rejected answer, in turn.
    """
    return [
        {
            "id": pair["id"],
            "chosen_logps": chosen[0],
            "chosen_tokens": chosen[1],
            "rejected_logps": rejected[0],
            "rejected_tokens": rejected[1],
        }
        for pair, chosen, rejected in zip(pairs, logps[::2], logps[1::2], strict=True)
    ]


def margins(pairs: list[dict]) -> list[float]:
    """Return how much more probable each pair's chosen answer is than the rejected one, in nats."""
    return [pair["chosen_logps"] - pair["rejected_logps"] for pair in pairs]


def margins_per_token(pairs: list[dict]) -> list[float]:
    """Return the same of the mean log-probabilities, in nats a token."""
    return [
        pair["chosen_logps"] / pair["chosen_tokens"] - pair["rejected_logps"] / pair["rejected_tokens"]
        for pair in pairs
    ]


def reward_margins(pairs: list[dict], reference: list[dict], beta: float) -> list[float]:
    """Return DPO's implicit reward of each pair's chosen answer less that of the rejected one."""
    return [beta * (ours - theirs) for ours, theirs in zip(margins(pairs), margins(reference), strict=True)]


def calibration(rewards: list[float]) -> dict:
    """Return how well sigmoid(reward margin), the chance DPO gives to chosen being the better one, can be trusted.

    The model's confidence in the answer that it prefers is compared with how often that is the chosen one, in bins of
    equal width from 0.5 to 1, and as the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """
    sure = [(1 / (1 + math.exp(-abs(margin))), margin > 0) for margin in rewards]
    bins = []
    for number in range(CALIBRATION_BINS):
        low, high = (0.5 + 0.5 * edge / CALIBRATION_BINS for edge in (number, number + 1))
        inside = [pair for pair in sure if low <= pair[0] < high or (pair[0] == high == 1.0)]
        if inside:
            confidence, right = (sum(values) / len(inside) for values in zip(*inside, strict=True))
            bins.append({"low": low, "high": high, "n": len(inside), "confidence": confidence, "accuracy": right})
    error = sum(part["n"] * abs(part["confidence"] - part["accuracy"]) for part in bins) / len(sure)
    return {
        "confidence": sum(confidence for confidence, _ in sure) / len(sure),
        "accuracy": sum(right for _, right in sure) / len(sure),
        "expected_error": error,
        "bins": bins,
    }


def summarize(pairs: list[dict], reference: list[dict] | None, beta: float | None) -> dict:
    """Return accuracies and margins with 95% intervals; with a reference also by implicit reward, and calibration."""

    def accuracy(values: list[float]) -> dict:
        return statistics.proportion(sum(value > 0 for value in values), len(values))

    total, per_token = margins(pairs), margins_per_token(pairs)
    summary = {
        "accuracy_total": accuracy(total),
        "accuracy_per_token": accuracy(per_token),
        "margin_total": statistics.mean(total),
        "margin_per_token": statistics.mean(per_token),
    }
    if reference:
        rewards = reward_margins(pairs, reference, beta)
        summary["accuracy_implicit_reward"] = accuracy(rewards)
        summary["reward_margin"] = statistics.mean(rewards)
        summary["calibration"] = calibration(rewards)
    return summary | {"pairs": pairs}
