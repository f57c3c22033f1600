"""Talking to a GGUF file through llama-cpp-python, with nothing but what the file itself holds."""

import os
import time
from pathlib import Path

CONTEXT = 2048


def open_gguf(gguf: Path):
    """Load a GGUF file for chat; return (llama, formatter), the formatter rendering the file's own chat template."""
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    llama = Llama(str(gguf), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
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
