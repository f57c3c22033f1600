"""TRL's output layer in plain PyTorch, for machines without Triton, where TRL's own is missing."""

import torch
from torch.nn import functional
from trl.trainer import utils


class PlainLogProbs:
    """Stands in for TRL's `ChunkedLogProbFunction`, and is called as that is."""

    @staticmethod
    def apply(hidden, weight, bias, labels, temperature, chunk_size, softcap, logit_scale, outputs):
        """Return (log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1) of tokens, each (tokens,) or None.

        Args:
            hidden: last hidden states, (tokens, hidden).
            weight, bias: of the output layer; (vocabulary, hidden), and (vocabulary,) or None.
            labels: the tokens' ids, (tokens,).
            temperature, chunk_size, softcap, logit_scale, outputs: as in TRL; `chunk_size` is of no use here.
        """
        logits = functional.linear(hidden, weight, bias).float() * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_probs = (logits / temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            squares = (2 * log_probs).logsumexp(-1) if "log_sum_sq_probs" in outputs else None
            mean_logits, is_top1 = logits.mean(-1), logits.argmax(-1) == labels
        return log_probs.gather(-1, labels[:, None])[:, 0], entropy, squares, mean_logits, is_top1


def install_plain_head() -> None:
    """Give TRL this output layer where it has none."""
    if getattr(utils, "_ChunkedLogProbFunction", PlainLogProbs) is None:
        utils._ChunkedLogProbFunction = PlainLogProbs
