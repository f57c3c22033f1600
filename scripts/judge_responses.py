"""Compare a run's answers with the base model's, prompt by prompt, by a judge that was checked.

    python scripts/judge_responses.py --settings '{"gguf": "judge.gguf"}' --check results/judges/mine.json \
        --prompts data/prompts.jsonl --base results/base/generations.jsonl --run results/dpo/generations.jsonl \
        --journal results/dpo/judgements/mine.journal.jsonl --judgements results/dpo/judgements/mine.json

The settings are those of a judge under `evaluation.judges` in config.yaml, or `{}` for the rubric (see `dpo/judge.py`).
A comparison's `preference` is 1.0 where the run's answer is better, 0.0 where the base model's is, 0.5 for a tie. A
model that has not passed its check is not asked; the rubric always compares. Interrupted, it goes on from the journal,
where it keeps what a model has answered.
"""

import argparse
import json
from pathlib import Path

from dpo import cli, judge
from dpo.artifacts import read_json, read_jsonl, write_json
from dpo.cli import UserError
from dpo.prompts import read_prompts

WHO = ("gguf", "base_url", "model")


def pairs_to_compare(prompts: list[dict], base: list[dict], run: list[dict]) -> list[dict]:
    """Return each prompt with both answers as `judge.compare` wants it: a the base model's, b the run's."""
    answers = [{row["id"]: {key: row[key] for key in ("text", "ended")} for row in rows} for rows in (base, run)]
    return [
        {
            "id": prompt["id"],
            "prompt": [{"role": "user", "content": prompt["prompt"]}],
            "expects": prompt["expects"],
            "forbids": prompt["forbids"],
            "a": answers[0][prompt["id"]],
            "b": answers[1][prompt["id"]],
        }
        for prompt in prompts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="settings of the judge, as JSON")
    parser.add_argument("--check", type=Path, required=True, help="what check_judge found out about this judge")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--base", type=Path, required=True, help="the base model's answers to them")
    parser.add_argument("--run", type=Path, required=True, help="the run's answers to them")
    parser.add_argument("--journal", type=Path, required=True, help="JSON Lines file that keeps a model's answers")
    parser.add_argument("--judgements", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    settings, check = arguments.settings, read_json(arguments.check)
    if any(settings.get(key) != check["settings"].get(key) for key in WHO):
        raise UserError(f"{arguments.check} is about another judge than the settings; run check_judge with them first")
    rows = []
    if settings and not check["believed"]:
        print(f"the judge did not pass its check on held-out pairs ({arguments.check}), so it is not asked")
    else:
        prompts = read_prompts(arguments.prompts, [])
        pairs = pairs_to_compare(prompts, read_jsonl(arguments.base), read_jsonl(arguments.run))
        rows = judge.compare(settings, pairs, arguments.journal, names=("base", "run"))
        wins, losses = (sum(row["preference"] == preference for row in rows) for preference in (1, 0))
        print(f"{len(rows)} prompts: {wins} won, {losses} lost, {len(rows) - wins - losses} tied")
    judgements = {
        "settings": settings,
        "believed": check["believed"],
        "malformed": judge.malformed(rows),
        "comparisons": rows,
    }
    write_json(arguments.judgements, judgements)


if __name__ == "__main__":
    cli.run(main)
