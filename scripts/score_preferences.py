"""Score what a variant prefers in held-out and training pairs, and how far it has moved from the base on neutral text.

    python scripts/score_preferences.py --model results/base/model --adapter results/dpo/adapter \
        --train results/data/train.jsonl --heldout results/data/heldout.jsonl --neutral data/neutral.jsonl \
        --reference results/base/preferences.json --settings '{"beta": 0.1, "max_pairs": 500}' \
        --preferences results/dpo/preferences.json

Without `--adapter` and `--reference` the base model itself is scored. Of a set with more pairs than `max_pairs`, so
many are taken, evenly spread. Neutral texts, without a chat template, give the perplexity and for a run the mean
Kullback-Leibler divergence KL(base || run) of the next token, in nats.
"""

import argparse
import json
import math
from pathlib import Path

from dpo import chat, cli, preferences, statistics
from dpo.artifacts import read_json, read_jsonl, write_json
from dpo.neutral import encode_texts

SETS = ("heldout", "train")


def measure_text(scores) -> dict:
    """Return a text's number of predicted tokens, their mean negative log-likelihood, and for a run the mean KL."""
    row = {"tokens": len(scores.nll), "nll": sum(scores.nll) / len(scores.nll)}
    return row | {"kl": sum(scores.kl) / len(scores.kl)} if scores.kl else row


def summarize_neutral(rows: list[dict]) -> dict:
    """Return perplexity over all tokens, and mean KL with an interval over the texts."""
    tokens = sum(row["tokens"] for row in rows)
    summary = {"perplexity": math.exp(sum(row["nll"] * row["tokens"] for row in rows) / tokens), "tokens": tokens}
    if "kl" in rows[0]:
        summary["kl"] = statistics.mean([row["kl"] for row in rows])
    return summary | {"texts": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to put on it")
    parser.add_argument("--train", type=Path, required=True, help="training set that build_dataset wrote")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--neutral", type=Path, required=True, help="neutral texts (JSON Lines)")
    parser.add_argument("--reference", type=Path, help="the base model's preferences.json; for the implicit reward")
    parser.add_argument("--settings", type=json.loads, required=True, help="max_pairs, and beta for a run; as JSON")
    parser.add_argument("--preferences", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    settings = arguments.settings
    tokenizer = chat.load_tokenizer(arguments.model)
    neutral = encode_texts(tokenizer, arguments.neutral)
    texts = list(neutral.values())

    from dpo.divergence import score_text
    from dpo.inference import tune
    from dpo.models import add_adapter, completion_logps, load_model, text_logprobs

    model = load_model(arguments.model)
    base_logprobs = [None] * len(texts)
    if arguments.adapter:
        base_logprobs = list(text_logprobs(model, texts))
        model = add_adapter(model, arguments.adapter)
    model = tune(model)
    rows = [
        {"id": name} | measure_text(score_text(ids, logprobs, base))
        for name, ids, logprobs, base in zip(neutral, texts, text_logprobs(model, texts), base_logprobs, strict=True)
    ]
    result = {"neutral": summarize_neutral(rows)}
    print(f"perplexity on neutral text: {result['neutral']['perplexity']:.2f}", flush=True)

    reference = read_json(arguments.reference) if arguments.reference else None
    chosen = {
        name: preferences.choose_pairs(read_jsonl(getattr(arguments, name)), settings["max_pairs"]) for name in SETS
    }
    sequences = [sequence for pairs in chosen.values() for sequence in preferences.encode_pairs(tokenizer, pairs)]
    logps = completion_logps(model, sequences)
    for name, pairs in chosen.items():
        own, logps = logps[: 2 * len(pairs)], logps[2 * len(pairs) :]
        scored = preferences.pair_rows(pairs, own)
        base = reference[name]["pairs"] if reference else None
        result[name] = preferences.summarize(scored, base, settings.get("beta"))
        print(f"{name} pairs preferred rightly: {result[name]['accuracy_per_token']['value']:.0%} by token")
    write_json(arguments.preferences, result)


if __name__ == "__main__":
    cli.run(main)
