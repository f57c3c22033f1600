"""Write one set of preference pairs as training and scoring read it: TRL's conversational preference format.

    python scripts/build_dataset.py --pairs data/preferences.jsonl --dataset results/data/train.jsonl

Each row has `prompt`, `chosen` and `rejected` as lists of messages, plus the pair's `id` and `topic`.
"""

import argparse
from pathlib import Path

from dpo import cli
from dpo.artifacts import write_jsonl
from dpo.cli import UserError
from dpo.pairs import as_conversation, read_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs (JSON Lines)")
    parser.add_argument("--dataset", type=Path, required=True, help="JSON Lines file to write")
    arguments = parser.parse_args()

    problems = []
    pairs = read_pairs(arguments.pairs, problems)
    if problems:
        raise UserError("\n  ".join(["the data has faults:", *problems]))
    write_jsonl(arguments.dataset, map(as_conversation, pairs))
    print(f"{len(pairs)} pairs from {arguments.pairs}")


if __name__ == "__main__":
    cli.run(main)
