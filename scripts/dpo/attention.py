"""Attention within pairs that share their prompt: both answers see the prompt, neither sees the other.

All pairs of a micro-batch lie in one row of tokens, each as prompt, chosen, rejected; nothing is padded, nothing is
computed between pairs. A rejected answer's positions go on from its prompt's, as those of the chosen one do (arXiv
2410.20305).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

ROWS = 128  # tokens whose attention is computed at once: with more, more is spent on keys that they may not see

# An adapter changes values by less than a 16-bit number's last digit, and what the frozen layer gave has no more
# digits: rounded, the change would be gone. Times an irrational number both fall between digits, and on average it
# survives.
OFF_GRID = 2**0.5


class Span(NamedTuple):
    """Where a pair lies in the row of tokens."""

    start: int
    prompt: int  # tokens of the prompt
    chosen: int
    rejected: int

    @property
    def stop(self) -> int:
        return self.start + self.prompt + self.chosen + self.rejected


class Block(NamedTuple):
    """Neighbouring tokens of one answer, and the keys that they may see: shared ones, and their own up to them."""

    rows: slice
    before: slice
    own: slice


class PairAttention:
    """Rotary embedding and attention of one micro-batch, forward and backward; the same for each layer.

    Scores are computed in float32, since they are exponents; all other products in `dtype`.
    """

    def __init__(
        self,
        spans: list[Span],
        cosines: torch.Tensor,
        sines: torch.Tensor,
        heads: int,
        key_heads: int,
        dtype: torch.dtype,
    ):
        """Prepare for pairs.

        Args:
            spans: the pairs, which fill the row of T tokens.
            cosines, sines: rotary embedding of each token, (T, head size / 2), float32 (Su et al., arXiv 2104.09864).
            heads: query heads.
            key_heads: heads of keys and values, each of which serves as many query heads.
            dtype: type of the products.
        """
        self.length, self.size = len(cosines), 2 * cosines.shape[1]
        self.key_heads, self.group = key_heads, heads // key_heads
        self.dtype = dtype
        self.off_grid = 1.0 if dtype == torch.float32 else OFF_GRID
        self.blocks = list(cut(spans))
        # With the scores' factor, 1 / sqrt(head size), in the queries' rotation. Shapes (T, heads, group, size / 2).
        cosines, sines = cosines[:, None, None], sines[:, None, None]
        self.query_rotation = cosines * self.size**-0.5, sines * self.size**-0.5
        self.key_rotation = cosines, sines
        self.future = torch.full((ROWS, ROWS), -torch.inf, device=cosines.device).triu_(1)

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return views of queries, (T, key heads, group, size), keys and values, (T, key heads, 1, size)."""
        queries = self.key_heads * self.group * self.size
        keys = queries + self.key_heads * self.size
        shape = self.length, self.key_heads, -1, self.size
        return tuple(part.view(shape) for part in (qkv[:, :queries], qkv[:, queries:keys], qkv[:, keys:]))

    def forward(self, qkv: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """Attend.

        Args:
            qkv: queries, keys and values side by side, (T, (heads + 2 key heads) * size), float32.

        Returns:
            `off_grid` times the mean values, (T, heads * size), in `dtype`; and what `backward` needs.
        """
        q, k, v = self.split(qkv)
        q, k = rotate(q, *self.query_rotation), rotate(k, *self.key_rotation)
        v = (v * self.off_grid).to(self.dtype)
        mean = torch.empty(self.length, *q.shape[1:], dtype=self.dtype, device=qkv.device)
        weights = []
        for block in self.blocks:
            scores = torch.bmm(self.rows_of(q, block), self.keys_of(k, block).transpose(1, 2))
            own = block.rows.stop - block.rows.start
            # The last keys are the rows themselves: only there lies a future to hide.
            scores.view(self.key_heads, self.group, own, -1)[..., -own:].add_(self.future[:own, :own])
            weights.append(scores.softmax(-1).to(self.dtype))
            found = torch.bmm(weights[-1], self.keys_of(v, block))
            mean[block.rows] = found.view(self.key_heads, self.group, own, self.size).permute(2, 0, 1, 3)
        return mean.view(self.length, -1), (q.to(self.dtype), k.to(self.dtype), v, weights)

    def backward(self, dmean: torch.Tensor, saved: tuple) -> torch.Tensor:
        """Return the gradient of qkv, float32, from that of the mean values, (T, heads * size), in `dtype`.

        With weights P = softmax(S), S = Q K^T, and mean values O = P V: dV = P^T dO, dP = dO V^T,
        dS = P * (dP - sum(P * dP)), dQ = dS K, dK = dS^T Q.
        """
        q, k, v, weights = saved
        dmean = dmean.view(q.shape)
        dqkv = torch.zeros(self.length, (self.group + 2) * self.key_heads * self.size, device=dmean.device)
        dq, dk, dv = self.split(dqkv)
        for block, p in zip(self.blocks, weights, strict=True):
            do, q_, k_, v_ = (
                self.rows_of(dmean, block),
                self.rows_of(q, block),
                self.keys_of(k, block),
                self.keys_of(v, block),
            )
            self.add(dv, block, torch.bmm(p.transpose(1, 2), do))
            dp = torch.bmm(do, v_.transpose(1, 2)).div_(self.off_grid)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, self.dtype)
            own = block.rows.stop - block.rows.start
            dq[block.rows] = torch.bmm(ds, k_).view(self.key_heads, self.group, own, self.size).permute(2, 0, 1, 3)
            self.add(dk, block, torch.bmm(ds.transpose(1, 2), q_))
        for gradient, (cosines, sines) in ((dq, self.query_rotation), (dk, self.key_rotation)):
            gradient.copy_(rotate(gradient, cosines, -sines))
        return dqkv

    def rows_of(self, queries: torch.Tensor, block: Block) -> torch.Tensor:
        """Return a block's rows, those of a key head together: (key heads, group * rows, size)."""
        return queries[block.rows].permute(1, 2, 0, 3).reshape(self.key_heads, -1, self.size)

    def keys_of(self, keys: torch.Tensor, block: Block) -> torch.Tensor:
        """Return the keys, or values, that a block may see: (key heads, keys, size)."""
        keys = keys[:, :, 0]
        own = keys[block.own]
        if block.before.stop > block.before.start:
            own = torch.cat([keys[block.before], own])
        return own.transpose(0, 1)

    def add(self, gradient: torch.Tensor, block: Block, part: torch.Tensor) -> None:
        """Add what a block says of the gradient of the keys, or values, that it sees."""
        part, gradient = part.transpose(0, 1), gradient[:, :, 0]
        before = block.before.stop - block.before.start
        if before:
            gradient[block.before] += part[:before]
        gradient[block.own] += part[before:]


def cut(spans: list[Span]) -> Iterator[Block]:
    """Cut prompt and chosen answer, and the rejected answer, of each pair into blocks of about equal length."""
    for span in spans:
        rejected = span.start + span.prompt + span.chosen
        for start, stop, shared in ((span.start, rejected, 0), (rejected, span.stop, span.prompt)):
            count = -(-(stop - start) // ROWS)
            edges = [start + (stop - start) * number // count for number in range(count)] + [stop] if count else []
            for first, last in pairwise(edges):
                yield Block(slice(first, last), slice(span.start, span.start + shared), slice(start, last))


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return x, (..., size), with each pair (x[i], x[i + size / 2]) rotated."""
    first, second = x.chunk(2, -1)
    half = first.shape[-1]
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(first, cosines, out=rotated[..., :half]).addcmul_(second, sines, value=-1)
    torch.mul(second, cosines, out=rotated[..., half:]).addcmul_(first, sines)
    return rotated
