"""Preference data for tests, and the real programs of the data stages run on it in this process."""

import json
import random
import string
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import audit_dataset
import build_dataset
from dpo.artifacts import read_json, read_jsonl
from dpo.audit import REASONS
from workflow import PROJECT

LIMITS = {
    "max_length": 512,
    "max_prompt_length": 256,
    "min_score_difference": 0.0,
    "min_score_ratio": 2.0,
    "near_duplicate": 0.8,
}
TOLERANT = {"max_length_auc": 1.0, "tolerance": {"other": 1.0}}


@dataclass
class Built:
    """What `build_dataset` made of its sources."""

    folder: Path
    pairs: list[dict]
    rejected: list[dict]
    audit: dict

    @property
    def texts(self) -> list[tuple]:
        """The pairs as (prompt, chosen, rejected); a prompt of more than one turn as (role, text), (role, text), …"""
        return [(_said(pair["prompt"]), _said(pair["chosen"]), _said(pair["rejected"])) for pair in self.pairs]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """(line, reason) of each rejected row, by line."""
        return sorted((row["line"], row["reason"]) for row in self.rejected)


def _said(turns: list[dict]) -> str | tuple:
    if [turn["role"] for turn in turns] in (["user"], ["assistant"]):
        return turns[0]["content"]
    return tuple((turn["role"], turn["content"]) for turn in turns)


def write_rows(path: Path, rows: list) -> Path:
    """Write rows as JSON Lines; a row that is text already is a line as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def sentence(rng: random.Random, words: int) -> str:
    """Return words of random letters: two such sentences have next to nothing in common."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9))) for _ in range(words))


def make_pairs(number: int, seed: int = 0, answer: int = 8) -> list[dict]:
    """Return pairs that are all sound and unlike each other, with answers of so many words."""
    rng = random.Random(seed)
    return [
        {"prompt": sentence(rng, 8), "chosen": sentence(rng, answer), "rejected": sentence(rng, answer)}
        for _ in range(number)
    ]


def build(
    folder: Path, model: Path, *sources: Path | dict, name: str = "train", trained: Path | None = None, **settings
) -> Built:
    """Run `build_dataset` on sources and check that every row is accounted for; what it writes goes into `folder`.

    Args:
        folder: where to write, under the set's `name`.
        model: folder with the tokenizer.
        sources: files, or sources as config.yaml has them.
        name: of the set.
        trained: training set whose prompts may not come again.
        settings: what differs from `LIMITS`; `split` for one side of a split.
    """
    given = [source if isinstance(source, dict) else {"path": str(source)} for source in sources]
    outputs = {
        "--dataset": folder / f"{name}.jsonl",
        "--rejected": folder / f"{name}.rejected.jsonl",
        "--prompts": folder / f"{name}.prompts.npy",
        "--audit": folder / f"{name}.audit.json",
    }
    options = {"--model": model, "--settings": json.dumps(LIMITS | settings | {"sources": given}), **outputs}
    run(build_dataset, options | ({"--trained": trained} if trained else {}))
    dataset, rejected, _, audit = outputs.values()
    built = Built(folder, read_jsonl(dataset), read_jsonl(rejected), read_json(audit))
    assert_accounted(built)
    return built


def assert_accounted(built: Built) -> None:
    """Every row is a pair or is rejected, and the audit's counts are those of the two files."""
    audit = built.audit
    assert (audit["pairs"], audit["rejected"]) == (len(built.pairs), len(built.rejected))
    assert audit["rows"] == audit["pairs"] + audit["rejected"]
    assert audit["rejected_for"] == dict.fromkeys(REASONS, 0) | Counter(row["reason"] for row in built.rejected)


def audit(folder: Path, model: Path, prompts: Path, **settings) -> dict:
    """Run `audit_dataset` on the sets that `build` wrote into `folder`, and return what it wrote."""
    options = {"--data": folder, "--prompts": prompts, "--model": model}
    options |= {f"--{name}": PROJECT / f"data/{name}.jsonl" for name in ("instructions", "adversarial")}
    options |= {"--settings": json.dumps(LIMITS | TOLERANT | settings)}
    run(audit_dataset, options | {"--audit": folder / "audit.json", "--rejected": folder / "rejected.jsonl"})
    return read_json(folder / "audit.json")


def run(program, options: dict) -> None:
    """Run a program's `main` in this process, with its options on the command line."""
    arguments = [str(text) for option in options.items() for text in option]
    with patch.object(sys, "argv", [f"{program.__name__}.py", *arguments]):
        program.main()
