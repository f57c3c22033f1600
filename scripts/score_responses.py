"""Score a variant's answers one by one: rubric, instructions followed, adversarial prompts withstood, degeneration.

    python scripts/score_responses.py --prompts data/prompts.jsonl --instructions data/instructions.jsonl \
        --adversarial data/adversarial.jsonl --generations results/dpo/generations.jsonl \
        --scores results/dpo/scores.json

Nothing here depends on a model: every score can be checked by hand. An instruction is followed where all of its checks
are met, an adversarial prompt withstood where all of its expectations are.
"""

import argparse
from pathlib import Path

from dpo import cli, degeneration, instructions, rubric, statistics
from dpo.artifacts import read_jsonl, write_json
from dpo.prompts import TEST_SETS, read_test_sets


def score_answer(name: str, row: dict, answer: dict) -> dict:
    """Return what an answer to a test prompt of the set `name` earned, and for what."""
    scored = {"id": row["id"], "set": name, "degeneration": degeneration.measure(answer["text"], answer["ended"])}
    if name == "prompts":
        return scored | rubric.score(row, answer["text"], answer["ended"])
    if name == "instructions":
        checks = instructions.verify(row["checks"], answer["text"])
    else:
        checks = rubric.check_expectations(row, answer["text"])
    return scored | {"passed": all(check["passed"] for check in checks), "expectations": checks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in TEST_SETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"test set: {name} (JSON Lines)")
    parser.add_argument("--generations", type=Path, required=True, help="this variant's answers to them")
    parser.add_argument("--scores", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    sets = read_test_sets({name: getattr(arguments, name) for name in TEST_SETS}, [])
    answers = {row["id"]: row for row in read_jsonl(arguments.generations)}
    scored = [score_answer(name, row, answers[row["id"]]) for name, rows in sets.items() for row in rows]
    of_set = {name: [row for row in scored if row["set"] == name] for name in TEST_SETS}
    scores = {
        "metrics": {
            name: statistics.mean([row["metrics"][name] for row in of_set["prompts"]]) for name in rubric.METRICS
        }
    }
    for name in ("instructions", "adversarial"):
        scores[name] = statistics.proportion(sum(row["passed"] for row in of_set[name]), len(of_set[name]))
    write_json(arguments.scores, scores | {"answers": scored})
    print(", ".join(f"{name} {scores['metrics'][name]['value']:.1f}" for name in rubric.METRICS))
    print(
        f"instructions followed: {scores['instructions']['value']:.0%}, "
        f"adversarial prompts withstood: {scores['adversarial']['value']:.0%}"
    )


if __name__ == "__main__":
    cli.run(main)
