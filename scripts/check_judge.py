"""Check a judge on held-out pairs, where it is known which answer is better, before it is believed.

    python scripts/check_judge.py --settings '{"gguf": "judge.gguf"}' --pairs results/data/heldout.jsonl \
        --max-pairs 500 --journal results/judges/mine.journal.jsonl --check results/judges/mine.json

The settings are those of a judge under `evaluation.judges` in config.yaml, or `{}` for the rubric (see `dpo/judge.py`).
A judge is believed if it prefers the better answer in more than half of the pairs (ties count half) and a sign test
says that this is no chance (p < 0.05). Two known faults are measured beside it: preferring what is shown first
(`position`), and what is longer (`length`). Interrupted, it goes on from the journal, where it keeps what a model has
answered.
"""

import argparse
import json
from pathlib import Path

from dpo import cli, judge
from dpo.artifacts import read_jsonl, write_json
from dpo.cli import UserError
from dpo.preferences import choose_pairs

SIGNIFICANT = 0.05


def pair_to_compare(row: dict) -> dict:
    """Return a held-out pair as `judge.compare` wants it: a the rejected answer, b the chosen one."""
    rejected, chosen = ({"text": judge.transcript(row[name]), "ended": True} for name in ("rejected", "chosen"))
    return {"id": row["id"], "prompt": row["prompt"], "expects": [], "forbids": [], "a": rejected, "b": chosen}


def mean_or_none(values: list[float]) -> dict | None:
    """Return the mean with its interval, or None where there is nothing to take it of."""
    from dpo import statistics

    return statistics.mean(values) if values else None


def position_bias(rows: list[dict]) -> dict:
    """Return how a model's preferences depend on which answer is shown first.

    Returns:
        `first`: share of the single decisive verdicts for the answer shown first, 0.5 without bias.
        `consistent`: share of the pairs where both ways round give the same verdict. Both None where there is none.
    """
    from dpo import statistics

    verdicts = [verdict for row in rows for verdict in row["asked"]]
    first = [float(verdict["better"] == verdict["first"]) for verdict in verdicts if verdict["better"] in judge.SIDES]
    asked = [tuple(verdict["better"] for verdict in row["asked"]) for row in rows if row["asked"]]
    same = sum(one == other and one is not None for one, other in asked)
    return {"first": mean_or_none(first), "consistent": statistics.proportion(same, len(asked)) if asked else None}


def length_bias(pairs: list[dict], rows: list[dict]) -> dict:
    """Return how preferences depend on which answer has more characters.

    Returns:
        `longer`: how often the longer answer is preferred (ties half).
        `when_longer_is_better`: accuracy on the pairs whose better answer is longer.
        `when_shorter_is_better`: on those whose better answer is shorter. Each is None where there is no such pair.
    """
    by_length = {True: [], False: []}
    for pair, row in zip(pairs, rows, strict=True):
        longer = len(pair["b"]["text"]) - len(pair["a"]["text"])
        if longer:
            by_length[longer > 0].append(row["preference"])
    return {
        "longer": mean_or_none(by_length[True] + [1 - preference for preference in by_length[False]]),
        "when_longer_is_better": mean_or_none(by_length[True]),
        "when_shorter_is_better": mean_or_none(by_length[False]),
    }


def check(settings: dict, pairs: list[dict], rows: list[dict]) -> dict:
    """Return everything that the comparisons of held-out pairs say about a judge."""
    from dpo import statistics

    preferences = [row["preference"] for row in rows]
    accuracy = statistics.mean(preferences)
    sign_test = statistics.sign_test([2 * preference - 1 for preference in preferences])
    return {
        "settings": settings,
        "accuracy": accuracy,
        "sign_test": sign_test,
        "believed": accuracy["value"] > 0.5 and sign_test["p"] < SIGNIFICANT,
        "ties": sign_test["ties"],
        "malformed": judge.malformed(rows),
        "position": position_bias(rows) if settings else None,
        "length": length_bias(pairs, rows),
        "pairs": rows,
    }


def table(found: dict) -> str:
    """Return the check as a table in plain text."""

    def share(value: dict | None) -> str:
        if value is None:
            return "no such pair"
        return f"{value['value']:5.0%}  (95% interval {value['low']:.0%} to {value['high']:.0%}, n = {value['n']})"

    length = found["length"]
    lines = [("prefers the better answer", share(found["accuracy"]))]
    lines.append(("ties", f"{found['ties']}, no usable answer: {found['malformed']}"))
    if found["position"]:
        lines.append(("prefers what is shown first", share(found["position"]["first"])))
        lines.append(("same verdict both ways round", share(found["position"]["consistent"])))
    lines.append(("prefers the longer answer", share(length["longer"])))
    lines.append(("right where longer is better", share(length["when_longer_is_better"])))
    lines.append(("right where shorter is better", share(length["when_shorter_is_better"])))
    lines.append(("believed", f"{'yes' if found['believed'] else 'no'} (sign test p = {found['sign_test']['p']:.2g})"))
    return "\n".join(f"{name:<30}  {value}" for name, value in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="settings of the judge, as JSON")
    parser.add_argument("--pairs", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--journal", type=Path, required=True, help="JSON Lines file that keeps a model's answers")
    parser.add_argument("--max-pairs", type=int, required=True, help="most pairs to ask about, evenly spread")
    parser.add_argument("--check", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    pairs = [pair_to_compare(row) for row in choose_pairs(read_jsonl(arguments.pairs), arguments.max_pairs)]
    if not pairs:
        raise UserError(f"{arguments.pairs} has no pairs, so no judge can be checked; hold some out under `data:`")
    rows = judge.compare(arguments.settings, pairs, arguments.journal, names=("rejected", "chosen"))
    found = check(arguments.settings, pairs, rows)
    write_json(arguments.check, found)
    print(table(found))


if __name__ == "__main__":
    cli.run(main)
