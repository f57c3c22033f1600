"""Put the audits of all sets together, look for leaks into the test prompts, and stop where too much is wrong.

    python scripts/audit_dataset.py --data results/data --prompts data/prompts.jsonl \
        --instructions data/instructions.jsonl --adversarial data/adversarial.jsonl --model results/base/model \
        --settings '{"max_prompt_length": 256, "near_duplicate": 0.8, "max_length_auc": 1.0,
        "tolerance": {"other": 0, "low_confidence": 1, "truncated": 1}}' \
        --audit results/data/audit.json --rejected results/data/rejected.jsonl

`--data` is the folder with what `build_dataset` wrote. A share of rows above its tolerance stops the workflow before
time goes into training, with the worst examples; so does any fault in the test prompts.
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import read_json, staged_file, write_json
from dpo.audit import describe_heldout_bias, describe_training_bias
from dpo.cli import UserError
from dpo.pairs import find_leaks, prompt_text
from dpo.prompts import TEST_SETS, read_test_sets
from dpo.tokenisation import Tokenisation

SETS = ("train", "heldout")
SHOWN_PROBLEMS = 20


def find_intolerable(counts: dict, name: str, settings: dict) -> list[str]:
    """Return a line for each share of a set's rows that is above its tolerance, followed by its worst examples."""
    tolerance, problems = settings["tolerance"], []
    shares = {reason: count / counts["rows"] for reason, count in counts["rejected_for"].items()}
    shares["truncated"] = counts["truncated"]["pairs"] / counts["pairs"]
    for reason, share in shares.items():
        allowed = tolerance.get(reason, tolerance["other"])
        if share > allowed:
            worst = "".join(
                f"\n    {entry['source']}:{entry['line']}: {entry['detail']}"
                for entry in counts["worst"].get(reason, [])
            )
            number, of, what = counts["rejected_for"].get(reason), counts["rows"], "rows"
            if reason == "truncated":
                number, of, what = counts["truncated"]["pairs"], counts["pairs"], "pairs"
            problems.append(
                f"{name}: {number:,} of {of:,} {what} {reason} ({share:.2%}), more than "
                f"data.tolerance.{reason if reason in tolerance else 'other'} = {allowed:g} allows{worst}"
            )
    auc = counts["length_bias"]["auc"]
    if name == "train" and max(auc, 1 - auc) > settings["max_length_auc"]:
        other = "shorter" if auc > 0.5 else "longer"
        problems.append(
            f"{name}: length alone tells chosen from rejected with an AUC of {auc:.2f}, beyond data.max_length_auc = "
            f"{settings['max_length_auc']:g}; add pairs whose better answer is the {other} one"
        )
    return problems


def check_prompts(prompts: list[dict], tokenisation: Tokenisation, limit: int, problems: list[str]) -> None:
    """Add a line to `problems` for each test prompt that is too long, or that the tokenizer would not take as text."""
    for row in prompts:
        length = tokenisation.prompt_length(row["prompt"])
        if length > limit:
            problems.append(
                f"{row['where']}: the prompt is {length} tokens in the chat template, over max_prompt_length = {limit}"
                "; shorten it, or raise data.max_prompt_length in config.yaml"
            )
        if token := tokenisation.find_special(row["prompt"]):
            problems.append(f"{row['where']}: the prompt holds {token}, which the tokenizer takes for a control token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets that build_dataset wrote")
    for name in TEST_SETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"test set: {name} (JSON Lines)")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder whose tokenizer counts")
    parser.add_argument("--settings", type=json.loads, required=True, help="limits and tolerances, as JSON")
    parser.add_argument("--audit", type=Path, required=True, help="JSON file of counts to write")
    parser.add_argument("--rejected", type=Path, required=True, help="JSON Lines file of all rejected rows to write")
    arguments = parser.parse_args()
    settings = arguments.settings

    counts = {name: read_json(arguments.data / f"{name}.audit.json") for name in SETS}
    problems = [problem for name in SETS for problem in find_intolerable(counts[name], name, settings)]
    sets = read_test_sets({name: getattr(arguments, name) for name in TEST_SETS}, problems)
    prompts = [row for rows in sets.values() for row in rows]
    tokenisation = Tokenisation(chat.load_tokenizer(arguments.model), settings)
    check_prompts(prompts, tokenisation, settings["max_prompt_length"], problems)
    texts = [prompt_text(chat.conversation(row["prompt"])) for row in prompts]
    for name in SETS:
        found = find_leaks(texts, arguments.data / f"{name}.jsonl", settings["near_duplicate"])
        problems += [
            f"{prompts[place]['where']}: the prompt is {alike:.0%} that of the {name} pair {known}; "
            "what is tested must be new"
            for place, (known, alike) in sorted(found.items())
        ]
    if problems:
        hidden = f"\n  … and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise UserError(
            "the data has faults:\n  "
            + "\n  ".join(problems[:SHOWN_PROBLEMS])
            + hidden
            + "\nmend the rows, or raise the "
            f"tolerance in config.yaml; every rejected row is in {arguments.data}/*.rejected.jsonl"
        )

    with staged_file(arguments.rejected) as partial, open(partial, "wb") as rejected:
        for name in SETS:
            with open(arguments.data / f"{name}.rejected.jsonl", "rb") as part:
                shutil.copyfileobj(part, rejected)
    topics = Counter(row["topic"] for row in prompts)
    bias = {name: counts[name]["length_bias"] for name in SETS}
    bias["train"]["sentence"] = describe_training_bias(bias["train"]["auc"], bias["train"]["chosen_longer"])
    bias["heldout"]["sentence"] = describe_heldout_bias(
        bias["heldout"]["auc"], bias["heldout"]["chosen_longer"], bias["heldout"]["equal"]
    )
    counts["prompts"] = {
        "prompts": len(prompts),
        "sets": {name: len(rows) for name, rows in sets.items()},
        "topics": dict(sorted(topics.items())),
    }
    rows = sum(counts[name]["rows"] for name in SETS)
    rejected_rows = sum(counts[name]["rejected"] for name in SETS)
    counts["accounting"] = {
        "rows": rows, **{name: counts[name]["pairs"] for name in SETS}, "rejected": rejected_rows,
    }  # fmt: skip
    if rows != sum(counts[name]["pairs"] for name in SETS) + rejected_rows:
        raise AssertionError(f"a row is lost: {counts['accounting']}")
    write_json(arguments.audit, counts)
    print(
        f"{rows:,} rows = {counts['train']['pairs']:,} training pairs + {counts['heldout']['pairs']:,} held-out pairs "
        f"+ {rejected_rows:,} rejected; {len(prompts)} test prompts"
    )
    for name in SETS:
        print(f"{name}: {bias[name]['sentence']}")
        for reason, count in counts[name]["rejected_for"].items():
            if count:
                print(f"{name}: {count:,} rows rejected: {reason}")
        if truncated := counts[name]["truncated"]["pairs"]:
            print(f"warning: {truncated:,} {name} pairs are longer than max_length; what they lose is their end")


if __name__ == "__main__":
    cli.run(main)
