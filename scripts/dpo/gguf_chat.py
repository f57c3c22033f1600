"""Talking to a GGUF file through llama-cpp-python, with nothing but what the file itself holds."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from dpo import child_process
from dpo.chat import conversation
from dpo.cli import UserError

CONTEXT = 2048


def run_in_child(function: Callable, gguf: Path, *arguments):
    """Run a function of a GGUF file in a process of its own; what llama.cpp stumbles on becomes a `UserError`."""
    try:
        return child_process.run(f"llama.cpp crashed on {gguf}", function, gguf, *arguments)
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


def prompt_ids(llama, formatter, prompt: list[dict[str, str]]) -> list[int]:
    """Return the token ids that llama.cpp makes of a conversation rendered with the file's chat template."""
    rendered = formatter(messages=prompt).prompt
    return llama.tokenize(rendered.encode(), add_bos=False, special=True)


def inspect_and_answer(gguf: Path, questions: list[str], max_tokens: int) -> dict:
    """Load a GGUF and answer `questions` greedily.

    Returns:
        `metadata` (str → str), `load_seconds` and `answers` (text, tokens, ended, seconds).
    """
    started = time.monotonic()
    llama, formatter = open_gguf(gguf)
    load_seconds = time.monotonic() - started
    answers = []
    for question in questions:
        started = time.monotonic()
        completion = llama.create_completion(
            prompt_ids(llama, formatter, conversation(question)), max_tokens=max_tokens, temperature=0.0
        )
        answers.append(
            {
                "text": completion["choices"][0]["text"].strip(),
                "tokens": completion["usage"]["completion_tokens"],
                "ended": completion["choices"][0]["finish_reason"] == "stop",
                "seconds": time.monotonic() - started,
            }
        )
    return {"metadata": llama.metadata, "load_seconds": load_seconds, "answers": answers}
