"""Validate the preference pairs and test prompts together, and count what is in them.

    python scripts/audit_dataset.py --preferences data/preferences.jsonl --heldout data/heldout.jsonl \
        --prompts data/prompts.jsonl --model results/base/model \
        --settings '{"max_length": 512, "max_prompt_length": 256}' --audit results/data/audit.json

Any fault stops the run before time goes into training, and names file, line and remedy: rows that are not what they
should be, duplicates, a prompt that is both trained on and tested, a prompt that is too long.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import write_json
from dpo.cli import UserError
from dpo.pairs import as_conversation, find_overlaps, read_pairs, read_prompts

SHOWN_PROBLEMS = 20


def check_prompt_lengths(rows: list[dict], tokenizer, limit: int, problems: list[str]) -> None:
    """Add a line to `problems` for each prompt whose token ids, chat template included, exceed the limit."""
    for row in rows:
        length = len(chat.prompt_ids(tokenizer, chat.conversation(row["prompt"])))
        if length > limit:
            problems.append(
                f"{row['where']}: the prompt is {length} tokens in the chat template, over max_prompt_length = {limit}"
                "; shorten it, or raise data.max_prompt_length in config.yaml"
            )


def audit(pairs: list[dict], tokenizer, max_length: int) -> dict:
    """Count pairs, topics, token lengths, truncated pairs, and how often the chosen answer is the longer one."""
    prompts, chosen, rejected = [], [], []
    for pair in map(as_conversation, pairs):
        prompts.append(len(chat.prompt_ids(tokenizer, pair["prompt"])))
        chosen.append(len(chat.completion_ids(tokenizer, pair["prompt"], pair["chosen"])))
        rejected.append(len(chat.completion_ids(tokenizer, pair["prompt"], pair["rejected"])))
    longest = [prompt + max(sides) for prompt, *sides in zip(prompts, chosen, rejected, strict=True)]
    return {
        "pairs": len(pairs),
        "topics": dict(sorted(Counter(pair["topic"] for pair in pairs).items())),
        "tokens": {
            name: {"min": min(lengths), "mean": sum(lengths) / len(lengths), "max": max(lengths)}
            for name, lengths in (("prompt", prompts), ("chosen", chosen), ("rejected", rejected))
        },
        "chosen_longer": sum(a > b for a, b in zip(chosen, rejected, strict=True)),
        "truncated_at_max_length": sum(length > max_length for length in longest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preferences", type=Path, required=True, help="preference pairs to train on (JSON Lines)")
    parser.add_argument("--heldout", type=Path, required=True, help="preference pairs never trained on (JSON Lines)")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder whose tokenizer counts")
    parser.add_argument("--settings", type=json.loads, required=True, help="max_length and max_prompt_length, as JSON")
    parser.add_argument("--audit", type=Path, required=True, help="JSON file of counts to write")
    arguments = parser.parse_args()
    settings = arguments.settings

    problems = []
    preferences = read_pairs(arguments.preferences, problems, minimum=2)
    heldout = read_pairs(arguments.heldout, problems)
    prompts = read_prompts(arguments.prompts, problems)
    find_overlaps(heldout, preferences, problems)
    find_overlaps(prompts, preferences, problems)
    find_overlaps(prompts, heldout, problems)
    tokenizer = chat.load_tokenizer(arguments.model)
    check_prompt_lengths(preferences + heldout + prompts, tokenizer, settings["max_prompt_length"], problems)
    if problems:
        hidden = f"\n  … and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError("the data has faults:\n  " + "\n  ".join(problems[:SHOWN_PROBLEMS]) + hidden)

    counts = {
        "train": audit(preferences, tokenizer, settings["max_length"]),
        "heldout": audit(heldout, tokenizer, settings["max_length"]),
        "prompts": {"prompts": len(prompts), "topics": dict(sorted(Counter(row["topic"] for row in prompts).items()))},
    }
    write_json(arguments.audit, counts)
    print(f"{len(preferences)} training pairs, {len(heldout)} held-out pairs, {len(prompts)} test prompts")
    for name in ("train", "heldout"):
        if truncated := counts[name]["truncated_at_max_length"]:
            print(f"warning: {truncated} {name} pairs are longer than max_length and lose their end in training")


if __name__ == "__main__":
    cli.run(main)
