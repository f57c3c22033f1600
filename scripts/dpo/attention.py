"""Attention within pairs that share their prompt: both answers see the prompt, neither sees the other.

All pairs of a micro-batch lie in one row of tokens, and nothing is computed between pairs. A rejected
answer's positions go on from its prompt's, as those of the chosen one do (arXiv 2410.20305). In the row a pair lies as

    chosen answer backwards | prompt | rejected answer

so that whatever tokens of it may see lies in one piece: from the answer's first token back to the prompt's.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from dpo.workspace import Workspace

ROWS = 128  # tokens whose attention is computed at once: with more, more is spent on keys that they may not see

# An adapter changes values by less than a 16-bit number's last digit, and what the frozen layer gave has no more
# digits: rounded, the change would be gone. Times an irrational number both fall between digits, and on average it
# survives.
OFF_GRID = 2**0.5


class Span(NamedTuple):
    """Where a pair lies in the row of tokens."""

    start: int
    chosen: int  # tokens of the chosen answer
    prompt: int
    rejected: int

    @property
    def stop(self) -> int:
        return self.start + self.chosen + self.prompt + self.rejected


class Block(NamedTuple):
    """Neighbouring tokens of a prompt or an answer, the keys that they may see, and among these the tokens' own."""

    rows: slice
    keys: slice
    own: slice  # counted from the first key
    backwards: bool


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
        hidden = torch.full((ROWS, ROWS), -torch.inf, device=cosines.device)
        # Of tokens in order, and backwards; (rows, 1, keys).
        self.future = {False: hidden.triu(1)[:, None], True: hidden.tril(-1)[:, None]}

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return views of queries, (T, key heads, group, size), keys and values, (T, key heads, 1, size)."""
        queries = self.key_heads * self.group * self.size
        keys, values = queries + self.key_heads * self.size, queries + 2 * self.key_heads * self.size
        shape = self.length, self.key_heads, -1, self.size
        return tuple(part.view(shape) for part in (qkv[:, :queries], qkv[:, queries:keys], qkv[:, keys:values]))

    def forward(self, qkv: torch.Tensor, workspace: Workspace) -> tuple[torch.Tensor, tuple]:
        """Attend.

        Args:
            qkv: queries, keys and values side by side, (T, (heads + 2 key heads) * size), float32.
            workspace: for what is returned.

        Returns:
            `off_grid` times the mean values, (T, heads * size), in `dtype`; and what `backward` needs.
        """
        q, k, v = self.split(qkv)
        q, k = rotate(q, *self.query_rotation), rotate(k, *self.key_rotation)
        v = workspace.copy(by_head(v)[:, :, 0] * self.off_grid, self.dtype)
        q, k = by_head(q), by_head(k)[:, :, 0]
        mean = torch.empty(q.shape, dtype=self.dtype, device=qkv.device)
        weights = []
        for rows, keys, own, backwards in self.blocks:
            scores = torch.bmm(self.rows_of(q, rows), k[:, keys].transpose(1, 2))
            count = rows.stop - rows.start
            future = self.future[backwards][:count, :, :count]
            scores.view(self.key_heads, count, self.group, -1)[..., own].add_(future)
            weights.append(workspace.copy(scores.softmax(-1), self.dtype))
            torch.bmm(weights[-1], v[:, keys], out=self.rows_of(mean, rows))
        kept = workspace.copy(q, self.dtype), workspace.copy(k, self.dtype), v, weights
        return workspace.copy(by_head(mean)).view(self.length, -1), kept

    def backward(self, dmean: torch.Tensor, saved: tuple, dqkv: torch.Tensor) -> None:
        """Put the gradient of qkv into dqkv, (T, at least its width), from that of the mean values.

        With weights P = softmax(S), S = Q K^T, and mean values O = P V: dV = P^T dO, dP = dO V^T,
        dS = P * (dP - sum(P * dP)), dQ = dS K, dK = dS^T Q.

        Args:
            dmean: gradient of the mean values, (T, heads * size), in `dtype`.
            saved: what `forward` gave.
            dqkv: in any type.
        """
        q, k, v, weights = saved
        dmean = by_head(dmean.view(self.length, self.key_heads, self.group, self.size)).contiguous()
        dq = torch.empty(q.shape, device=q.device)
        dk, dv = torch.zeros(2, *k.shape, device=k.device)
        for (rows, keys, _, _), p in zip(self.blocks, weights, strict=True):
            do = self.rows_of(dmean, rows)
            dv[:, keys] += torch.bmm(p.transpose(1, 2), do)
            dp = torch.bmm(do, v[:, keys].transpose(1, 2))
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, self.dtype)  # times `off_grid`, as V is
            self.rows_of(dq, rows).copy_(torch.bmm(ds, k[:, keys]))
            dk[:, keys] += torch.bmm(ds.transpose(1, 2), self.rows_of(q, rows))
        to_q, to_k, to_v = self.split(dqkv)
        for to, gradient, rotation in ((to_q, dq, self.query_rotation), (to_k, dk[:, :, None], self.key_rotation)):
            cosines, sines = (part / self.off_grid for part in rotation)
            to.copy_(rotate(gradient.transpose(0, 1), cosines, -sines))
        to_v.copy_(dv[:, :, None].transpose(0, 1))

    def rows_of(self, queries: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return a view of rows, those of a key head together, (key heads, rows * group, size)."""
        return queries[:, rows].view(self.key_heads, -1, self.size)


def cut(spans: list[Span]) -> Iterator[Block]:
    """Cut prompt and answers of each pair into blocks of about equal length."""
    for span in spans:
        prompt = span.start + span.chosen
        rejected = prompt + span.prompt
        for start, stop in pieces(span.start, prompt):
            yield Block(slice(start, stop), slice(start, rejected), slice(0, stop - start), True)
        for begin, end in ((prompt, rejected), (rejected, span.stop)):
            for start, stop in pieces(begin, end):
                yield Block(slice(start, stop), slice(prompt, stop), slice(start - prompt, stop - prompt), False)


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces of at most ROWS."""
    count = -(-(stop - start) // ROWS)
    yield from pairwise(start + (stop - start) * number // max(count, 1) for number in range(count + 1))


def by_head(x: torch.Tensor) -> torch.Tensor:
    """Return x, (T, heads, group, size), as (heads, T, group, size), where the rows of a head lie together."""
    return x.transpose(0, 1)


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return x, (T, heads, group, size), with each pair (x[i], x[i + size / 2]) rotated; in memory heads come first."""
    first, second = x.chunk(2, -1)
    half = first.shape[-1]
    rotated = torch.empty(x.transpose(0, 1).shape, dtype=x.dtype, device=x.device).transpose(0, 1)
    torch.mul(first, cosines, out=rotated[..., :half]).addcmul_(second, sines, value=-1)
    torch.mul(second, cosines, out=rotated[..., half:]).addcmul_(first, sines)
    return rotated
