"""Score a variant's answers with the rubric, and its preferences on the held-out pairs.

    python scripts/score_responses.py --model results/base/model --adapter results/dpo/adapter \
        --prompts data/prompts.jsonl --generations results/dpo/generations.jsonl --heldout results/data/heldout.jsonl \
        --reference results/base/scores.json --settings '{"beta": 0.1}' --scores results/dpo/scores.json

Without `--adapter` and `--reference` the base model itself is scored. `heldout.accuracy_per_token` is the share of
pairs whose chosen answer has the higher mean log-probability a token; `heldout.accuracy_implicit_reward`, for runs
only, the share with a positive margin of DPO's implicit reward beta * (log pi(y|x) - log pi_ref(y|x)) (Rafailov et al.
2023, arXiv 2305.18290, section 5.2), and `heldout.reward_margin` that margin's mean.
"""

import argparse
import json
from pathlib import Path

from dpo import chat, cli, rubric, statistics
from dpo.artifacts import read_json, read_jsonl, write_json
from dpo.prompts import read_prompts


def score_answers(prompts: list[dict], generations: list[dict]) -> list[dict]:
    """Return each prompt's rubric scores, in the order of the prompts."""
    answers = {row["id"]: row for row in generations}
    return [
        {"id": prompt["id"]} | rubric.score(prompt, answers[prompt["id"]]["text"], answers[prompt["id"]]["ended"])
        for prompt in prompts
    ]


def score_pairs(model, tokenizer, pairs: list[dict]) -> list[dict]:
    """Return each pair's summed log-probabilities and lengths in tokens, for the chosen and the rejected answer."""
    from dpo.models import completion_logps

    sequences = [
        (chat.prompt_ids(tokenizer, pair["prompt"]), chat.completion_ids(tokenizer, pair["prompt"], pair[side]))
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    logps = completion_logps(model, sequences)
    return [
        {
            "id": pair["id"],
            "chosen_logps": chosen.total,
            "chosen_tokens": chosen.tokens,
            "rejected_logps": rejected.total,
            "rejected_tokens": rejected.tokens,
        }
        for pair, chosen, rejected in zip(pairs, logps[::2], logps[1::2], strict=True)
    ]


def reward_margin(pair: dict, reference: dict, beta: float) -> float:
    """Return DPO's implicit reward of the chosen answer less that of the rejected one (nats times beta)."""
    chosen = pair["chosen_logps"] - reference["chosen_logps"]
    rejected = pair["rejected_logps"] - reference["rejected_logps"]
    return beta * (chosen - rejected)


def summarize_pairs(pairs: list[dict], reference: list[dict] | None, beta: float | None) -> dict:
    """Return held-out preference accuracy with 95% intervals; with a reference also by implicit reward."""
    per_token = [
        pair["chosen_logps"] / pair["chosen_tokens"] > pair["rejected_logps"] / pair["rejected_tokens"]
        for pair in pairs
    ]
    summary = {"accuracy_per_token": statistics.proportion(sum(per_token), len(pairs))}
    if reference:
        margins = [reward_margin(pair, base, beta) for pair, base in zip(pairs, reference, strict=True)]
        summary["accuracy_implicit_reward"] = statistics.proportion(sum(m > 0 for m in margins), len(pairs))
        summary["reward_margin"] = statistics.mean(margins)
    return summary | {"pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to put on it")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--generations", type=Path, required=True, help="this variant's answers to them")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--reference", type=Path, help="the base model's scores.json; for a run's implicit reward")
    parser.add_argument("--settings", type=json.loads, required=True, help="beta for a run, {} for the base; as JSON")
    parser.add_argument("--scores", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    from dpo.models import load_model

    prompts = read_prompts(arguments.prompts, [])
    answers = score_answers(prompts, read_jsonl(arguments.generations))
    tokenizer = chat.load_tokenizer(arguments.model)
    pairs = score_pairs(load_model(arguments.model, arguments.adapter), tokenizer, read_jsonl(arguments.heldout))
    reference = read_json(arguments.reference)["heldout"]["pairs"] if arguments.reference else None
    heldout = summarize_pairs(pairs, reference, arguments.settings.get("beta"))
    metrics = {name: statistics.mean([answer["metrics"][name] for answer in answers]) for name in rubric.METRICS}
    write_json(arguments.scores, {"metrics": metrics, "heldout": heldout, "answers": answers})
    print(", ".join(f"{name} {metrics[name]['value']:.1f}" for name in rubric.METRICS))
    print(f"held-out pairs preferred rightly: {heldout['accuracy_per_token']['value']:.0%} by log-probability a token")


if __name__ == "__main__":
    cli.run(main)
