"""Prompts and answers as the model's chat template writes them, in text and in token ids."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders by now; no name is looked up on a hub


def load_tokenizer(model: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a Hugging Face folder; padding goes left, as batched generation needs it."""
    from transformers import AutoTokenizer  # takes seconds, so not for --help

    return AutoTokenizer.from_pretrained(model, padding_side="left")


def conversation(prompt: str) -> list[dict[str, str]]:
    """Return a prompt as TRL's conversational format: one user turn."""
    return [{"role": "user", "content": prompt}]


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]]) -> list[int]:
    """Return the token ids of a prompt, up to and including the header that opens the assistant's turn."""
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def completion_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: list[dict[str, str]], completion: list[dict[str, str]]
) -> list[int]:
    """Return the token ids of a completion as `trl.DPOTrainer` trains on them: what follows the prompt's ids.

    Raises:
        ValueError: the prompt's ids are not a prefix of the whole conversation's, so there is no clean boundary.
    """
    before = prompt_ids(tokenizer, prompt)
    whole = tokenizer.apply_chat_template(prompt + completion, return_dict=False)
    if whole[: len(before)] != before:
        raise ValueError("the chat template renders the prompt differently when an answer follows")
    return whole[len(before) :]


def pair_ids(tokenizer: "PreTrainedTokenizerBase", pair: dict, max_length: int) -> dict[str, list[int]]:
    """Return a pair's `prompt_ids`, `chosen_ids` and `rejected_ids`; prompt and answer have at most `max_length`."""
    prompt = prompt_ids(tokenizer, pair["prompt"])
    answers = {
        f"{side}_ids": completion_ids(tokenizer, pair["prompt"], pair[side])[: max_length - len(prompt)]
        for side in ("chosen", "rejected")
    }
    return {"prompt_ids": prompt} | answers
