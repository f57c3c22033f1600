"""Answer every test prompt with the base model, or with the base model and an adapter.

    python scripts/generate_responses.py --model results/base/model --adapter results/dpo/adapter \
        --prompts data/prompts.jsonl --instructions data/instructions.jsonl --adversarial data/adversarial.jsonl \
        --settings '{"max_new_tokens": {"prompts": 192, "instructions": 48, "adversarial": 48}, "batch_size": 48}' \
        --generations results/dpo/generations.jsonl

Decoding is greedy. Each row of the output has the prompt's id, `set`, topic and text, the answer (`text`), its length
in `tokens`, and whether the model `ended` it itself.
"""

import argparse
import json
import time
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import write_jsonl
from dpo.cli import UserError
from dpo.prompts import TEST_SETS, read_test_sets


def answer_rows(model, tokenizer, rows: list[dict], max_new_tokens: int) -> list[dict]:
    """Answer a batch of test prompts; return a row of the output for each, the end token neither shown nor counted."""
    from dpo.generation import answer

    prompts = [chat.prompt_ids(tokenizer, chat.conversation(row["prompt"])) for row in rows]
    end = tokenizer.eos_token_id
    answered = []
    for row, ids in zip(rows, answer(model, prompts, max_new_tokens, end), strict=True):
        ended = ids[-1] == end
        ids = ids[:-1] if ended else ids
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        kept = {key: row[key] for key in ("id", "set", "topic", "prompt")}
        answered.append(kept | {"text": text, "tokens": len(ids), "ended": ended})
    return answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to put on it")
    for name in TEST_SETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"test set: {name} (JSON Lines)")
    parser.add_argument("--settings", type=json.loads, required=True, help="max_new_tokens, batch_size; as JSON")
    parser.add_argument("--generations", type=Path, required=True, help="JSON Lines file to write")
    arguments = parser.parse_args()
    settings = arguments.settings

    problems = []
    sets = read_test_sets({name: getattr(arguments, name) for name in TEST_SETS}, problems)
    if problems:
        raise UserError("\n  ".join(["the test prompts have faults:", *problems]))

    from dpo.inference import tune
    from dpo.models import batches, load_model

    tokenizer = chat.load_tokenizer(arguments.model)
    model = tune(load_model(arguments.model, arguments.adapter))
    total = sum(map(len, sets.values()))
    answered = []
    started = time.monotonic()
    for name, rows in sets.items():
        # Prompts of like length beside each other, so that little is padded.
        rows = sorted(({"set": name} | row for row in rows), key=lambda row: len(row["prompt"]))
        for batch in batches(rows, settings["batch_size"]):
            answered += answer_rows(model, tokenizer, batch, settings["max_new_tokens"][name])
            left = (time.monotonic() - started) / len(answered) * (total - len(answered))
            print(f"{len(answered)} of {total} prompts answered, about {left:.0f} seconds left", flush=True)
    place = {row["id"]: number for number, row in enumerate(row for rows in sets.values() for row in rows)}
    write_jsonl(arguments.generations, sorted(answered, key=lambda row: place[row["id"]]))


if __name__ == "__main__":
    cli.run(main)
