"""How one model predicts texts, and how far its predictions are from those of another model on the same tokens."""

import math
from typing import NamedTuple

import numpy as np
import torch


class TextScores(NamedTuple):
    """What was found at each predicted token of a text; the last two are empty without another model."""

    nll: list[float]  # negative log-likelihood, nats
    kl: list[float]  # KL(other || this) of the next token, nats
    same_top: list[bool]  # whether both find the same token the likeliest


def score_text(ids: list[int], logprobs: torch.Tensor, other: torch.Tensor | None = None) -> TextScores:
    """Score a text.

    Args:
        ids: token ids.
        logprobs: log-probabilities of every token at each position but the last, (len(ids) - 1, vocabulary).
        other: those of another model, from which the divergence is measured.
    """
    following = torch.tensor(ids[1:], device=logprobs.device)[:, None]
    nll = -logprobs.gather(-1, following).double()[:, 0]
    if other is None:
        return TextScores(nll.tolist(), [], [])
    divergences = (other.exp() * (other - logprobs)).double().sum(-1).clamp(min=0)  # below zero only by rounding
    return TextScores(nll.tolist(), divergences.tolist(), (logprobs.argmax(-1) == other.argmax(-1)).tolist())


def perplexity(nlls: list[float]) -> dict:
    """Return exp(mean negative log-likelihood) with its standard error, by the formula of `llama-perplexity`.

    Args:
        nlls: of each predicted token, in nats; at least two.
    """
    value = math.exp(np.mean(nlls))
    return {"value": value, "error": float(value * np.std(nlls, ddof=1) / math.sqrt(len(nlls))), "tokens": len(nlls)}


def summarize(texts: list[TextScores]) -> dict:
    """Return over all predicted tokens of the texts the perplexity and, where there is another model, the divergence.

    Returns:
        `perplexity` as above; `kl`: mean, median and 99th percentile in nats; `same_top`: share of tokens. The last two
        are None without another model.
    """
    nlls, kls, tops = (np.concatenate([getattr(text, name) for text in texts]) for name in TextScores._fields)
    found = {"perplexity": perplexity(nlls), "kl": None, "same_top": None}
    if len(kls):
        median, high = np.quantile(kls, [0.5, 0.99])
        found["kl"] = {"mean": float(kls.mean()), "median": float(median), "p99": float(high)}
        found["same_top"] = float(tops.mean())
    return found
