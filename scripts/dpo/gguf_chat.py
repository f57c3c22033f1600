"""Talking to a GGUF file through llama-cpp-python, with nothing but what the file itself holds."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from dpo.cli import UserError

CONTEXT = 2048


def run_in_child(function: Callable, gguf: Path, *arguments):
    """Run one of the functions below in a process of its own; a crash in native code there becomes a `UserError`."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, gguf, *arguments).result()
        except BrokenProcessPool:
            raise UserError(f"llama.cpp crashed on {gguf}") from None
        except ValueError as error:
            raise UserError(f"llama.cpp cannot load {gguf}: {error}") from None


def open_gguf(gguf: Path, context: int = CONTEXT, **options):
    """Load a GGUF file for chat; return (llama, formatter), the formatter rendering the file's own chat template.

    Args:
        gguf: the file.
        context: tokens of a conversation.
        options: further arguments of `llama_cpp.Llama`.
    """
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    llama = Llama(str(gguf), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, **options)
    tokens = {
        role: llama.detokenize([index], special=True).decode()
        for role, index in (("bos_token", llama.token_bos()), ("eos_token", llama.token_eos()))
    }
    return llama, Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], **tokens)


def prompt_ids(llama, formatter, prompt: str) -> list[int]:
    """Return the token ids that llama.cpp makes of a user's prompt rendered with the file's chat template."""
    rendered = formatter(messages=[{"role": "user", "content": prompt}]).prompt
    return llama.tokenize(rendered.encode(), add_bos=False, special=True)


def inspect_and_answer(gguf: Path, prompts: list[str], questions: list[str], max_tokens: int) -> dict:
    """Load a GGUF, tokenise `prompts` and answer `questions` greedily.

    Returns:
        `metadata` (str → str), `load_seconds`, `ids` (of each prompt) and `answers` (text, tokens, ended, seconds).
    """
    started = time.monotonic()
    llama, formatter = open_gguf(gguf)
    load_seconds = time.monotonic() - started
    answers = []
    for question in questions:
        started = time.monotonic()
        completion = llama.create_completion(
            prompt_ids(llama, formatter, question), max_tokens=max_tokens, temperature=0.0
        )
        answers.append(
            {
                "text": completion["choices"][0]["text"].strip(),
                "tokens": completion["usage"]["completion_tokens"],
                "ended": completion["choices"][0]["finish_reason"] == "stop",
                "seconds": time.monotonic() - started,
            }
        )
    ids = [prompt_ids(llama, formatter, prompt) for prompt in prompts]
    return {"metadata": llama.metadata, "load_seconds": load_seconds, "ids": ids, "answers": answers}


def completion_logps(gguf: Path, sequences: list[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """Return the log-probability that a GGUF file gives to each completion after its prompt, and its tokens.

    Args:
        gguf: the file.
        sequences: (prompt token ids, completion token ids); neither may be empty.

    Returns:
        (sum over t of log p(completion[t] | prompt, completion[:t]) in nats, length in tokens) of each.
    """
    import torch

    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    llama, _ = open_gguf(gguf, longest, n_batch=longest, logits_all=True)
    logps = []
    for prompt, completion in sequences:
        llama.reset()
        llama.eval(prompt + completion)
        # The token at position t is predicted by the logits at t - 1.
        predicting = torch.from_numpy(llama.scores[len(prompt) - 1 : len(prompt) + len(completion) - 1])
        lost = torch.nn.functional.cross_entropy(predicting, torch.tensor(completion), reduction="none")
        logps.append((-lost.double().sum().item(), len(completion)))
    return logps
