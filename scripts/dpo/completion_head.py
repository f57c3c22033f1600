"""The output layer, on completion tokens only: their log-probabilities and gradients, never all logits at once.

A 16-bit product would round a logit of 20 to a step of 1/8, and each answer's log-probability with it. So each logit is
computed less that of the token that follows: columns of its negative are part of the product, which is rounded only
then. What is rounded has the size of the token's own log-probability.
"""

from typing import NamedTuple

import torch
from torch import nn

ROWS = 128  # tokens whose logits are held at once
ROWS_IN_CACHE = 16  # of these, a CPU computes probabilities at once
OFFSET_COLUMNS = 3  # 16-bit numbers whose sum is a float32
MULTIPLE = 32  # what the depth of a fast product is a multiple of


class TokenScores(NamedTuple):
    """What the model says of each completion token, all of shape (tokens,) but the last."""

    log_probs: torch.Tensor  # of the token, nats, float32
    entropy: torch.Tensor  # of the distribution that it came from, nats, float32
    mean_logits: torch.Tensor  # over the vocabulary, float32
    is_top1: torch.Tensor  # whether no token is more probable, bool
    gradient: torch.Tensor | None  # of log_probs by the hidden state, (tokens, hidden), in the products' type


class CompletionHead:
    """A frozen output layer without bias, made ready for products in `dtype`."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        self.dtype = dtype
        self.weight = layer.weight.detach().to(dtype)  # (vocabulary, hidden)
        self.mean = self.weight.float().mean(0)
        vocabulary, width = self.weight.shape
        self.offset = slice(width, width + OFFSET_COLUMNS)
        self.depth = -(-self.offset.stop // MULTIPLE) * MULTIPLE
        extended = self.weight.new_zeros(vocabulary, self.depth)
        extended[:, :width] = self.weight
        extended[:, self.offset] = -1
        self.product = frozen_product(extended)
        self.rows = ROWS if layer.weight.is_cuda else ROWS_IN_CACHE

    def score(self, hidden: torch.Tensor, following: torch.Tensor, with_gradient: bool) -> TokenScores:
        """Return what the model says of tokens.

        Args:
            hidden: last hidden state where each is predicted, (tokens, hidden), in the products' type; not empty.
            following: the tokens' ids, (tokens,).
            with_gradient: whether to compute the gradient too.
        """
        chunks = zip(hidden.split(ROWS), following.split(ROWS), strict=True)
        scores = [self._score(*chunk, with_gradient) for chunk in chunks]
        return TokenScores(*(torch.cat(parts) if parts[0] is not None else None for parts in zip(*scores, strict=True)))

    def logits(self, hidden: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return each token's logits less that of the token that follows, (tokens, vocabulary), in `dtype`."""
        extended = hidden.new_zeros(len(hidden), self.depth)
        extended[:, : hidden.shape[1]] = hidden
        left = torch.linalg.vecdot(hidden.float(), self.weight[following].float())
        for column in range(self.offset.start, self.offset.stop):
            extended[:, column] = left
            left = left - extended[:, column].float()
        return self.product(extended)

    def _score(self, hidden: torch.Tensor, following: torch.Tensor, with_gradient: bool) -> TokenScores:
        logits = self.logits(hidden, following)
        found = [
            self._probabilities(*rows) for rows in zip(logits.split(self.rows), following.split(self.rows), strict=True)
        ]
        log_probs, entropy, is_top1 = (torch.cat(values) for values in zip(*found, strict=True))
        gradient = self.weight[following] - logits @ self.weight if with_gradient else None
        return TokenScores(log_probs, entropy, hidden.float() @ self.mean, is_top1, gradient)

    @staticmethod
    def _probabilities(logits: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Turn logits into probabilities in place; return log_probs, entropy and is_top1 of `TokenScores`."""
        exact, following = logits.float(), following[:, None]
        probabilities = exact.softmax(-1)
        most, mine = probabilities.amax(-1), probabilities.gather(-1, following)[:, 0]
        # log sum exp(logits), from its largest term, which cannot underflow.
        normaliser = exact.amax(-1) - most.log()
        entropy = normaliser - torch.linalg.vecdot(probabilities, exact)
        log_probs = exact.gather(-1, following)[:, 0] - normaliser
        logits.copy_(probabilities)
        return log_probs, entropy, mine == most


def frozen_product(weight: torch.Tensor):
    """Return the function x -> x W^T for a weight that never changes, laid out for oneDNN where that is at hand."""
    packable = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if weight.dtype == torch.bfloat16:
        packable = packable and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not packable:
        return lambda x: nn.functional.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
