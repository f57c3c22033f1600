"""Whether something else than the base model's tokenizer makes the same token ids of rendered prompts."""

from pathlib import Path

from dpo import chat
from dpo.prompts import read_lines


def conversations(files: list[Path], pairs: list[dict]) -> list[list[dict[str, str]]]:
    """Return every prompt there is as a conversation: those of the test sets' files, then those of the pairs."""
    asked = [chat.conversation(row["prompt"]) for file in files for row in read_lines(file, [])]
    return asked + [pair["prompt"] for pair in pairs]


def compare(tokenizer, prompts: list[list[dict[str, str]]], found: list[list[int]]) -> dict:
    """Count the prompts of which other token ids were found than a tokenizer makes.

    Returns:
        `prompts` and `equal`: how many there are, and how many have the same ids; `first_other`: the last turn of the
        first that has not, or None.
    """
    other = [
        prompt[-1]["content"]
        for prompt, ids in zip(prompts, found, strict=True)
        if ids != chat.prompt_ids(tokenizer, prompt)
    ]
    return {"prompts": len(prompts), "equal": len(prompts) - len(other), "first_other": next(iter(other), None)}
