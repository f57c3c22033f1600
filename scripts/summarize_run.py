"""Gather what was measured of one run of a sweep: what the report compares it by.

    python scripts/summarize_run.py --training results/beta-0.05/training.jsonl \
        --generations results/beta-0.05/generations.jsonl --scores results/beta-0.05/scores.json \
        --preferences results/beta-0.05/preferences.json --fidelity results/beta-0.05/fidelity.json \
        --settings '{"training": {…}, "shipped_type": "q4_k_m"}' --summary results/beta-0.05/summary.json
"""

import argparse
import json
from pathlib import Path

from dpo import cli, statistics
from dpo.artifacts import read_json, read_jsonl, write_json


def divided(interval: dict, by: float) -> dict:
    """Return an interval with its value and ends divided by a positive number."""
    return interval | {key: interval[key] / by for key in ("value", "low", "high")}


def measure(
    training: list[dict], generations: list[dict], scores: dict, preferred: dict, fidelity: dict, settings: dict
) -> dict[str, dict]:
    """Return the measures of `dpo.sweep.MEASURES`, each with its interval over pairs, texts or prompts.

    Time has none: it is measured once. What the file keeps is missing where training taught no margin.
    """
    answers = [row for row in generations if row["set"] == "prompts"]
    shipped = next(rung for rung in fidelity["rungs"] if rung["name"] == settings["shipped_type"])
    measures = {
        "accuracy": preferred["heldout"]["accuracy_implicit_reward"],
        "margin": divided(preferred["heldout"]["reward_margin"], settings["training"]["beta"]),
        "kl": preferred["neutral"]["kl"],
        "answer_tokens": statistics.mean([row["tokens"] for row in answers]),
        "distinct_2": statistics.mean([row["degeneration"]["distinct_2"] for row in scores["answers"]]),
        "training_seconds": {"value": training[-1]["seconds"]},
        "kept": shipped["kept"],
    }
    return {name: found for name, found in measures.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True, help="training log that train_dpo wrote")
    parser.add_argument("--generations", type=Path, required=True, help="answers that generate_responses wrote")
    parser.add_argument("--scores", type=Path, required=True, help="file that score_responses wrote")
    parser.add_argument("--preferences", type=Path, required=True, help="file that score_preferences wrote")
    parser.add_argument("--fidelity", type=Path, required=True, help="file that measure_fidelity wrote")
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="training settings and shipped_type, as JSON"
    )
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    measures = measure(
        read_jsonl(arguments.training),
        read_jsonl(arguments.generations),
        read_json(arguments.scores),
        read_json(arguments.preferences),
        read_json(arguments.fidelity),
        arguments.settings,
    )
    write_json(arguments.summary, {"settings": arguments.settings["training"], "measures": measures})
    print(", ".join(f"{name} {found['value']:.4g}" for name, found in measures.items()))


if __name__ == "__main__":
    cli.run(main)
