"""A causal language model with LoRA as DPO needs it: log-probabilities of pairs whose answers share their prompt.

What is not needed is not computed: the prompt once a pair, logits only where an answer's tokens are predicted, no
padding, no gradient of frozen weights (arXiv 2410.20305 shares the prompt; the rest is bookkeeping).
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import torch

from dpo.attention import PairAttention, Span
from dpo.completion_head import CompletionHead, TokenScores
from dpo.decoder import DecoderLayer, Norm
from dpo.workers import Workers, shared_out
from dpo.workspace import Workspace

MULTIPLE = 16  # of tokens in a row: oneDNN makes code for each length that it meets, and keeps it
TOKENS_AT_ONCE = 2048  # of several pairs, where no gradient is wanted: more is no faster

# Architectures that are what `DecoderLayer` computes, while their attention has no window.
PLAIN = ("llama", "mistral", "qwen2")


class Pair(NamedTuple):
    """Token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pair_of(row: dict) -> Pair:
    """Return the token ids of a row with TRL's columns."""
    return Pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])


def micro_batches(rows: list[dict], most_tokens: int) -> list[list[dict]]:
    """Cut rows into batches of at most so many tokens each, or of one row."""
    batches, tokens = [], 0
    for row in rows:
        length = sum(map(len, pair_of(row)))
        if not batches or tokens + length > most_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(row)
        tokens += length
    return batches


def why_not(config) -> str | None:
    """Return why a model cannot be trained this way, or None where it can."""
    if config.model_type not in PLAIN:
        return f"architecture {config.model_type} is not one of {', '.join(PLAIN)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    return None


def needed_operations(config, pairs: list[Pair]) -> float:
    """Return the floating-point operations that one training step on pairs cannot do without.

    Counted are two for each multiplication, in the forward pass and for the gradient of its input, on real tokens:

        4 N T          N weights of the decoder's linear layers, T tokens with the prompt once a pair
        4 V h C        output layer of V x h weights, C completion tokens
        12 L H d S     L layers with H heads of size d; S (query, key) pairs that causality allows

    (two products of scores and values forward, four backward). LoRA's own products, normalisation, softmax, and
    whatever is computed twice, count as overhead.
    """
    h, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or h // heads
    layer = 2 * h * heads * size + 2 * h * config.num_key_value_heads * size + 3 * h * config.intermediate_size
    operations = 0.0
    for prompt, chosen, rejected in pairs:
        p, c, r = len(prompt), len(chosen), len(rejected)
        seen = (p + c) * (p + c + 1) / 2 + r * p + r * (r + 1) / 2
        operations += 4 * config.num_hidden_layers * layer * (p + c + r)
        operations += 4 * config.vocab_size * h * (c + r)
        operations += 12 * config.num_hidden_layers * heads * size * seen
    return operations


class SharedPromptModel:
    """The same weights as a PEFT model, computed pair by pair; gradients reach the adapter's parameters.

    Called as `trl.DPOTrainer` calls its model, it returns what that reads: then every loss of TRL runs on it.
    """

    def __init__(self, model, dtype: torch.dtype, checkpoint: bool = False, adapter: bool = True):
        """Take over a model.

        Args:
            model: of an architecture in `PLAIN`, with one LoRA adapter or without. Its frozen weights are shared where
                they have the type of the products.
            dtype: of products of matrices; what is between them is float32.
            adapter: with it; or the base model under it, for the reference.
            checkpoint: keep only each layer's input for the backward pass, and compute the layer again there.
        """
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self.dtype, self.checkpoint = dtype, checkpoint
        self.heads, self.key_heads = base.config.num_attention_heads, base.config.num_key_value_heads
        self.embedding, self.rotary = base.model.embed_tokens, base.model.rotary_emb
        self.layers = [DecoderLayer(layer, dtype, adapter) for layer in base.model.layers]
        self.norm = Norm(base.model.norm)
        self.head = CompletionHead(base.get_output_embeddings(), dtype)
        self.projections = [projection for layer in self.layers for projection in layer.projections]
        factors = [part for projection in self.projections for part in projection.factors]
        self.parameters = [parameter for part in factors for parameter in (part.a, part.b)]
        self.workers = Workers(self.device)
        self.workspaces: list[Workspace] = []  # free ones, of all parts

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def __call__(self, input_ids, attention_mask, labels, fused_lm_head=True, use_cache=False) -> SimpleNamespace:
        """Return what the model says of a batch of TRL's, chosen answers first, as its fused head does.

        Args:
            input_ids, attention_mask, labels: (2 n, length) on the CPU; answer i + n is the rejected one of pair i,
                labels are -100 outside of the answers.

        Returns:
            `log_probs`, `entropy`, `mean_logits`, `is_top1`, (2 n, length - 1) on the CPU, where TRL's many metrics
            cost no waiting for a GPU; 0 outside of the answers.
        """
        predicted = labels[:, 1:] != -100
        rows = [row[kept.bool()].tolist() for row, kept in zip(input_ids, attention_mask, strict=True)]
        starts = [len(row) - length for row, length in zip(rows, predicted.sum(1).tolist(), strict=True)]
        n = len(rows) // 2
        pairs = [Pair(rows[i][: starts[i]], rows[i][starts[i] :], rows[i + n][starts[i + n] :]) for i in range(n)]
        # One wait for a GPU, not four.
        found = torch.stack([values.float() for values in self.score(pairs)]).cpu()
        log_probs, entropy, mean_logits, is_top1 = (
            found.new_zeros(predicted.shape).masked_scatter(predicted, values) for values in found
        )
        return SimpleNamespace(log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1.bool())

    def score(self, pairs: list[Pair]) -> tuple[torch.Tensor, ...]:
        """Return what the model says of each answer token.

        Args:
            pairs: no prompt may be empty, nor both answers of a pair.

        Returns:
            Log-probability (nats), entropy (nats), mean logit, and whether no token is more probable; each of shape
            (tokens,), those of all chosen answers before those of all rejected ones. The first has a gradient.
        """
        shares = shared_out([sum(map(len, pair)) for pair in pairs], self.workers.cores)
        parts = [Part(self, [pairs[number] for number in share]) for share in shares]
        self.refresh()
        scores = TokenScoring.apply(self, parts, torch.is_grad_enabled(), *self.parameters)
        order = self.on_device(order_of(pairs, shares))
        return tuple(values[order] for values in scores)

    @torch.no_grad()
    def text_logprobs(self, text: list[int]) -> torch.Tensor:
        """Return the log-probabilities of each next token of a text, (len(text) - 1, vocabulary), float32."""
        x, attention = self.embed(text, list(range(len(text))), [Span(0, 0, len(text), 0)])
        self.refresh()
        workspace = Workspace(self.device)
        for layer in self.layers:
            y = workspace.empty(x.shape, x.dtype)
            mark = workspace.mark()
            layer.forward(x, y, attention, workspace)
            workspace.free(mark)
            x = y
        hidden = torch.empty_like(x[:-1], dtype=self.dtype)
        self.norm.forward(x[:-1], hidden)
        return self.head.logits(hidden, self.on_device(text[1:])).log_softmax(-1, dtype=torch.float32)

    def refresh(self) -> None:
        """Take over the adapter as it is now."""
        for projection in self.projections:
            projection.refresh()

    def by_parameter(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return views of values of all parameters, one after another, in the parameters' shapes."""
        parts = values.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def embed(self, ids: list[int], positions: list[int], spans: list[Span]) -> tuple[torch.Tensor, PairAttention]:
        """Return the first layer's input, (T, hidden), float32, and the attention that all layers share."""
        x = self.embedding(self.on_device(ids)).detach().float()
        rotation = self.rotary(x[None], self.on_device(positions)[None])
        cosines, sines = (part[0].float().chunk(2, -1)[0] for part in rotation)
        return x, PairAttention(spans, cosines, sines, self.heads, self.key_heads, self.dtype)

    def on_device(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values).to(self.device, non_blocking=True)


class Part:
    """Pairs that lie in one row of tokens, on their way through all layers and back."""

    def __init__(self, model: SharedPromptModel, pairs: list[Pair]):
        ids, positions, spans = [], [], []
        after_chosen, after_rejected = [], []
        for prompt, chosen, rejected in pairs:
            spans.append(Span(len(ids), len(chosen), len(prompt), len(rejected)))
            # Either answer's first token is predicted at the prompt's end, each other one at the token before.
            first = len(ids) + len(chosen)
            end = first + len(prompt) - 1
            after_chosen += [end, *range(first - 1, len(ids), -1)][: len(chosen)]
            after_rejected += range(end, end + len(rejected))
            ids += [*reversed(chosen), *prompt, *rejected]
            positions += reversed(range(len(prompt), len(prompt) + len(chosen)))
            positions += range(len(prompt) + len(rejected))
        idle = -len(ids) % MULTIPLE
        if idle:
            spans.append(Span(len(ids), 0, idle, 0))  # a prompt that nobody answers
            ids += ids[:1] * idle
            positions += range(idle)
        following = [token for pair in pairs for token in pair.chosen]
        following += [token for pair in pairs for token in pair.rejected]
        self.model = model
        self.workspace = model.workspaces.pop() if model.workspaces else Workspace(model.device)
        # Before everything else that a pass needs: memory that outlives the pass would leave holes between it.
        self.gradients = torch.empty(sum(map(torch.Tensor.numel, model.parameters)), device=model.device)
        self.predicting, self.following = model.on_device(after_chosen + after_rejected), model.on_device(following)
        self.x, self.attention = model.embed(ids, positions, spans)

    def forward(self, with_gradient: bool) -> TokenScores:
        """Return what the model says of each answer token, chosen answers first; keep what `backward` needs."""
        model, x, self.kept = self.model, self.x, []
        for layer in model.layers:
            y = self.workspace.empty(x.shape, x.dtype)
            mark = self.workspace.mark()
            saved = layer.forward(x, y, self.attention, self.workspace)
            if with_gradient:
                self.kept.append(x if model.checkpoint else saved)
            if model.checkpoint or not with_gradient:
                self.workspace.free(mark)
            x = y
        self.x = x[self.predicting]
        hidden = torch.empty_like(self.x, dtype=model.dtype)
        self.factor = model.norm.forward(self.x, hidden)
        scores = model.head.score(hidden, self.following, with_gradient)
        self.shape, self.gradient = x.shape, scores.gradient
        if not with_gradient:
            self.workspace.free()
            model.workspaces.append(self.workspace)
        return scores

    def backward(self, dlog_probs: torch.Tensor) -> torch.Tensor:
        """Return the gradients of all parameters, one after another, from that of the log-probabilities."""
        model, workspace = self.model, self.workspace
        gradients = dict(zip(model.parameters, model.by_parameter(self.gradients), strict=True))
        dx = model.norm.backward(self.gradient * dlog_probs[:, None], self.x, self.factor)
        dx = dx.new_zeros(self.shape).index_add_(0, self.predicting, dx)
        mark = workspace.mark()
        for layer in reversed(model.layers):
            saved = self.kept.pop()
            if model.checkpoint:
                workspace.free(mark)
                y = workspace.empty(saved.shape, saved.dtype)
                saved = layer.forward(saved, y, self.attention, workspace)
            dx = layer.backward(dx, saved, self.attention, gradients)
        workspace.free()
        model.workspaces.append(workspace)
        return self.gradients


class TokenScoring(torch.autograd.Function):
    """Forward and backward of all parts; of what it returns, log-probabilities alone have a gradient."""

    @staticmethod
    def forward(context, model, parts, with_gradient, *parameters):
        scores = model.workers.map(lambda part: part.forward(with_gradient), parts)
        context.rest = model, parts
        found = tuple(torch.cat(values) for values in list(zip(*scores, strict=True))[:4])
        context.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(context, dlog_probs, *_):
        model, parts = context.rest
        shares = dlog_probs.split([len(part.following) for part in parts])
        found = model.workers.map(lambda number: parts[number].backward(shares[number]), list(range(len(parts))))
        total = found[0]
        for gradients in found[1:]:
            total += gradients
        return None, None, None, *model.by_parameter(total)


def order_of(pairs: list[Pair], shares: list[list[int]]) -> list[int]:
    """Return where each answer token's values are, chosen answers first, when each share's come one after another."""
    starts, tokens = {}, 0
    for share in shares:
        for side in ("chosen", "rejected"):
            for number in share:
                starts[side, number] = tokens
                tokens += len(getattr(pairs[number], side))
    return [
        start + token
        for side in ("chosen", "rejected")
        for start, pair in ((starts[side, number], pair) for number, pair in enumerate(pairs))
        for token in range(len(getattr(pair, side)))
    ]


@torch.no_grad()
def answer_logps(model: SharedPromptModel, rows: list[dict]) -> Iterator[dict[str, float]]:
    """Yield the log-probabilities (nats) of each row's answers, under the names that TRL has for the reference's."""
    for batch in micro_batches(rows, TOKENS_AT_ONCE):
        pairs = [pair_of(row) for row in batch]
        lengths = [len(pair.chosen) for pair in pairs] + [len(pair.rejected) for pair in pairs]
        sums = [part.sum().item() for part in model.score(pairs)[0].double().split(lengths)]
        for chosen, rejected in zip(sums[: len(pairs)], sums[len(pairs) :], strict=True):
            yield {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
