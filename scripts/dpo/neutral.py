"""Neutral texts, on which models are compared as they predict plain prose, without a chat template."""

from pathlib import Path

from dpo.cli import UserError
from dpo.prompts import read_neutral

MOST_TOKENS = 20_000  # distributions over the vocabulary may be held for all of them: 200 kB a token


def encode_texts(tokenizer, path: Path) -> dict[str, list[int]]:
    """Return the token ids of each text in a file, by its id.

    Raises:
        UserError: the texts have faults, or more than `MOST_TOKENS` tokens together.
    """
    texts = {row["id"]: tokenizer.encode(row["text"], add_special_tokens=False) for row in read_neutral(path)}
    if (tokens := sum(map(len, texts.values()))) > MOST_TOKENS:
        raise UserError(f"{path} has {tokens:,} tokens; at most {MOST_TOKENS:,} can be measured")
    return texts
