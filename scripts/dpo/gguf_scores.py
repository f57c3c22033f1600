"""What a GGUF file says through llama.cpp: log-probabilities, divergence, token ids, speed. For a child process."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dpo import chat, divergence, gguf_chat
from dpo.inference import tune
from dpo.models import load_model, text_logprobs

SPEED_PROMPT = chat.conversation("Explain in a few sentences why the sky is blue.")
WARM_UP, TIMED = 8, 64  # tokens
LEAST_CONTEXT = 256  # tokens, enough for the above


def score(
    gguf: Path, above: Path, sequences: list[tuple[list[int], list[int]]], texts: list[list[int]], prompts: list[list]
) -> dict:
    """Score a GGUF file.

    Args:
        gguf: the file.
        above: what it was made from, to measure the divergence from it: a GGUF file, or a Hugging Face folder.
        sequences: (prompt token ids, completion token ids); none may be empty.
        texts: token ids of neutral texts.
        prompts: conversations to tokenise.

    Returns:
        `logps`: (sum over t of log p(completion[t] | prompt, completion[:t]) in nats, length in tokens) of each
        sequence; `neutral`: `divergence.summarize` of the texts; `ids` of each prompt, rendered with the file's own
        chat template; `tokens_per_second` of greedy decoding, one answer at a time.
    """
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences] + list(map(len, texts))
    context = max(*lengths, LEAST_CONTEXT)
    llama, formatter = open_for_logits(gguf, context)
    scored = [
        divergence.score_text(ids, logprobs, other)
        for ids, logprobs, other in zip(
            texts, gguf_logprobs(llama, texts), logprobs_above(above, context, texts), strict=True
        )
    ]
    return {
        "neutral": divergence.summarize(scored),
        "logps": completion_logps(llama, sequences),
        "ids": [gguf_chat.prompt_ids(llama, formatter, prompt) for prompt in prompts],
        "tokens_per_second": decoding_speed(llama, gguf_chat.prompt_ids(llama, formatter, SPEED_PROMPT)),
    }


def open_for_logits(gguf: Path, context: int):
    """Load a GGUF file so that the logits at all positions are kept; return (llama, formatter)."""
    return gguf_chat.open_gguf(gguf, context, n_batch=context, logits_all=True)


def logprobs_above(above: Path, context: int, texts: list[list[int]]) -> Iterator[torch.Tensor]:
    """Yield of each text the log-probabilities by what a GGUF file was made from, (len(text) - 1, vocabulary)."""
    if above.is_dir():
        return text_logprobs(tune(load_model(above)), texts)
    llama, _ = open_for_logits(above, context)
    return gguf_logprobs(llama, texts)


def gguf_logprobs(llama, texts: Iterable[list[int]]) -> Iterator[torch.Tensor]:
    """Yield of each text, given in token ids, the log-probabilities by a GGUF file, (len(text) - 1, vocabulary)."""
    for ids in texts:
        llama.reset()
        llama.eval(ids)
        yield torch.from_numpy(llama.scores[: len(ids) - 1]).log_softmax(-1)


def completion_logps(llama, sequences: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """Return the log-probability of each completion after its prompt, in nats, and its length in tokens.

    What a sequence has in common with the one before it, as two answers to one prompt do, is read only once.
    """
    logps, read = [], []
    for prompt, completion in sequences:
        # The last token before the completion is read again where all of it is known: its logits are needed.
        same = next((at for at, (a, b) in enumerate(zip(read, prompt)) if a != b), min(len(read), len(prompt)))  # noqa: B905
        llama.n_tokens = min(same, len(prompt) - 1)  # `eval` forgets what lies beyond
        read = prompt + completion
        llama.eval(read[llama.n_tokens :])
        # The token at position t is predicted by the logits at t - 1.
        predicting = torch.from_numpy(llama.scores[len(prompt) - 1 : len(read) - 1])
        lost = torch.nn.functional.cross_entropy(predicting, torch.tensor(completion), reduction="none")
        logps.append((-lost.double().sum().item(), len(completion)))
    return logps


def decoding_speed(llama, prompt: list[int]) -> float:
    """Return how many tokens a second the likeliest answer to a prompt is decoded at, end tokens ignored."""
    llama.reset()
    llama.eval(prompt)
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            started = time.monotonic()
        llama.eval([int(llama.scores[llama.n_tokens - 1].argmax())])
    return TIMED / (time.monotonic() - started)
