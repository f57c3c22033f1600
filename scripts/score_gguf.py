"""Score a GGUF file through llama.cpp: what it prefers, how far it is from what it was made from, how fast it answers.

    python scripts/score_gguf.py --gguf results/dpo/gguf/model-q4_k_m.gguf --above results/dpo/gguf/model-f16.gguf \
        --model results/dpo/merged --heldout results/data/heldout.jsonl --neutral data/neutral.jsonl \
        --prompts data/prompts.jsonl data/instructions.jsonl data/adversarial.jsonl \
        --settings '{"max_pairs": 500}' --scores results/dpo/gguf_scores/q4_k_m.json

An f16 file is compared with the Hugging Face folder that it was converted from, in float32; a quantised one with the
f16 file. Token ids are those of the model's Hugging Face tokenizer, and it is counted for how many prompts llama.cpp
makes the same. The file is loaded in a child process, so that a crash in native code is reported too.
"""

import argparse
import json
from pathlib import Path

from dpo import chat, cli, gguf_chat, gguf_file, preferences, token_ids
from dpo.artifacts import read_jsonl, write_json
from dpo.neutral import encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file to score")
    parser.add_argument("--above", type=Path, required=True, help="what it was made from: a GGUF, or a model folder")
    parser.add_argument("--model", type=Path, required=True, help="model folder it comes from, for its tokenizer")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--neutral", type=Path, required=True, help="neutral texts (JSON Lines)")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="all test prompts (JSON Lines)")
    parser.add_argument("--settings", type=json.loads, required=True, help="max_pairs, as JSON")
    parser.add_argument("--scores", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    gguf_chat.run_in_child(score_file, arguments.gguf, arguments)


def score_file(gguf: Path, arguments: argparse.Namespace) -> None:
    """Score the file and write its scores; what takes seconds to import is imported in this process alone."""
    from dpo.gguf_scores import score

    tokenizer = chat.load_tokenizer(arguments.model)
    pairs = preferences.choose_pairs(read_jsonl(arguments.heldout), arguments.settings["max_pairs"])
    conversations = token_ids.conversations(arguments.prompts, pairs)
    texts = list(encode_texts(tokenizer, arguments.neutral).values())
    file = gguf_file.describe(gguf)
    found = score(gguf, arguments.above, preferences.encode_pairs(tokenizer, pairs), texts, conversations)
    scores = {
        "pairs": preferences.pair_rows(pairs, found["logps"]),
        "neutral": found["neutral"],
        "token_ids": token_ids.compare(tokenizer, conversations, found["ids"]),
        "file": file | {"tokens_per_second": found["tokens_per_second"]},
    }
    write_json(arguments.scores, scores)
    neutral = found["neutral"]
    print(
        f"{gguf.name}: {file['bits_per_weight']:.2f} bits a weight, "
        f"perplexity {neutral['perplexity']['value']:.2f}, mean KL {neutral['kl']['mean']:.2g} nats from "
        f"{arguments.above.name}, {found['tokens_per_second']:.0f} tokens a second"
    )


if __name__ == "__main__":
    cli.run(main)
