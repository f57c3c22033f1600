"""Compute the log-probabilities of the training pairs' answers under the base model, once for all runs.

    python scripts/compute_reference_logps.py --train results/data/train.jsonl --model results/base/model \
        --settings '{"bf16": "auto", "load_in_4bit": false, "max_length": 512}' \
        --logps results/base/reference_logps/bf16-auto.jsonl

They are log pi_ref(y|x) in DPO's loss (Rafailov et al. 2023, arXiv 2305.18290, equation 7), in nats, of answers cut to
`max_length` as in training, computed by the same code and in the same precision as the policy's. The file is empty
where that code does not support the model: then the trainer is TRL's, which computes its own.
"""

import argparse
import json
import time
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import read_jsonl, write_jsonl

SECONDS_BETWEEN_LINES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="training set that build_dataset wrote")
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--settings", type=json.loads, required=True, help="bf16, load_in_4bit and max_length, as JSON")
    parser.add_argument("--logps", type=Path, required=True, help="JSON Lines file to write: one line a pair")
    arguments = parser.parse_args()
    settings = arguments.settings | {"trainer": "shared_prompt"}

    from dpo.policy import load_frozen, products_dtype
    from dpo.shared_prompt import SharedPromptModel, answer_logps, why_not

    model = load_frozen(arguments.model, settings)
    if reason := why_not(model.config):
        print(f"no reference log-probabilities: {reason}")
        write_jsonl(arguments.logps, [])
        return
    tokenizer = chat.load_tokenizer(arguments.model)
    pairs = read_jsonl(arguments.train)
    rows = [chat.pair_ids(tokenizer, pair, settings["max_length"]) for pair in pairs]
    started = printed = time.monotonic()
    found = []
    for logps in answer_logps(SharedPromptModel(model, products_dtype(settings), adapter=False), rows):
        found.append(logps)
        if time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            left = (printed - started) / len(found) * (len(rows) - len(found))
            print(f"pair {len(found)}/{len(rows)}: {left / 60:.1f} minutes left", flush=True)
    write_jsonl(arguments.logps, ({"id": pair["id"]} | logps for pair, logps in zip(pairs, found, strict=True)))
    print(f"reference log-probabilities of {len(pairs)} pairs in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    cli.run(main)
