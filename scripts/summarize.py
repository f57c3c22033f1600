"""Gather what every stage measured into one machine-readable summary: all the numbers that the report shows.

    python scripts/summarize.py --results results --benchmarks benchmarks/*/*.tsv --prompts data/prompts.jsonl \
        --instructions data/instructions.jsonl --adversarial data/adversarial.jsonl \
        --config '{…}' --summary results/summary.json

The config is the resolved one, as JSON; its `runs` name the folders to read. Nothing is measured here but file sizes,
SHA-256s and the paired differences between the base model and each run, from which the verdict follows. Runs of a sweep
are compared by their own summaries (`--swept results/beta-0.05/summary.json …`).
"""

import argparse
import csv
import json
import math
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from safetensors import safe_open

from dpo import cli, comparison, preferences, provenance, rubric, statistics, sweep, training_health, verdict
from dpo.artifacts import read_json, read_jsonl, sha256_of, write_json
from dpo.prompts import TEST_SETS, notebook_prompts, read_test_sets

# What the notebook this workflow grew from promises, word for word.
NOTEBOOK = {
    "first_loss": "0.65 to 0.75",
    "final_loss": "0.35 to 0.45",
    "training_time": "10 to 12 minutes on a T4 GPU",
    "trainable_parameters": "about 4 million (2% of all)",
    "adapter_size": "about 16 MB",
    "merged_size": "about 270 MB",
    "q4_k_m_size": "80 to 100 MB",
    "metrics": {
        "helpfulness": {"base": 6, "dpo": 9},
        "safety": {"base": 7, "dpo": 9.5},
        "empathy": {"base": 5, "dpo": 8.5},
        "actionability": {"base": 6, "dpo": 9},
        "response_quality": {"base": 6.5, "dpo": 9},
    },
}


def count_parameters(folder: Path) -> int:
    """Return the number of parameters in a folder's safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def folder_bytes(folder: Path, pattern: str) -> int:
    """Return the size of the files in a folder that match a pattern."""
    return sum(file.stat().st_size for file in folder.glob(pattern))


def summarize_training(results: Path, run: str) -> dict:
    """Return a run's training curve, first and final loss, duration and trainable parameters."""
    steps = read_jsonl(results / run / "training.jsonl")
    trainable = count_parameters(results / run / "adapter")
    total = count_parameters(results / "base" / "model") + trainable
    return {
        "steps": steps,
        "first_loss": steps[0]["loss"],
        "final_loss": steps[-1]["loss"],
        "seconds": steps[-1]["seconds"],
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_share": trainable / total,
    }


def summarize_sizes(folder: Path, types: list[str]) -> dict:
    """Return the sizes in bytes of what a run can ship; those of GGUF files by their type."""
    sizes = {name: folder_bytes(folder / name, "*.safetensors") for name in ("adapter", "merged")}
    return sizes | {name: folder_bytes(folder / "gguf", f"model-{name}.gguf") for name in types}


def summarize_shipped(results: Path, run: str, shipped: str, beta: float) -> dict:
    """Return what the file that ships prefers in the held-out pairs, against the base model's file of the same type."""
    ours, theirs = (read_json(results / name / "gguf_scores" / f"{shipped}.json")["pairs"] for name in (run, "base"))
    return without(preferences.summarize(ours, theirs, beta), "pairs")


def rows_of(rows: list[dict], name: str) -> list[dict]:
    """Return the rows of one test set."""
    return [row for row in rows if row["set"] == name]


def without(values: dict, *keys: str) -> dict:
    """Return a dict without some of its keys."""
    return {key: value for key, value in values.items() if key not in keys}


def summarize_variant(scores: dict, preferred: dict, generations: list[dict]) -> dict:
    """Return what was measured of one variant, without the single prompts and pairs."""
    degeneration = [row["degeneration"] for row in scores["answers"]]
    shares = {
        name: statistics.proportion(sum(found[name] for found in degeneration), len(degeneration))
        for name in ("ended", "empty", "loops")
    }
    words = {row["id"]: row["degeneration"]["words"] for row in scores["answers"]}
    lengths = {
        name: {
            "words": statistics.mean([words[row["id"]] for row in rows_of(generations, name)]),
            "tokens": statistics.mean([row["tokens"] for row in rows_of(generations, name)]),
        }
        for name in TEST_SETS
    }
    return {
        **{key: scores[key] for key in ("metrics", "instructions", "adversarial")},
        "degeneration": shares | {"distinct_2": statistics.mean([found["distinct_2"] for found in degeneration])},
        "lengths": lengths,
        **{name: without(preferred[name], "pairs") for name in ("heldout", "train")},
        "neutral": without(preferred["neutral"], "texts"),
    }


def compare_metrics(base: dict, run: dict) -> dict:
    """Return, per metric and for their mean (`all`), the run's paired difference from the base over the prompts."""
    before, after = (
        {name: [row["metrics"][name] for row in rows_of(scores["answers"], "prompts")] for name in rubric.METRICS}
        for scores in (base, run)
    )
    for values in (before, after):
        values["all"] = [sum(row) / len(rubric.METRICS) for row in zip(*values.values(), strict=True)]
    return {name: statistics.paired(before[name], after[name]) for name in before}


def compare_preferences(base: dict, run: dict) -> dict:
    """Return the paired change of accuracy on the held-out pairs: McNemar's test of how many the run gets right."""
    return {
        name: statistics.paired(*([float(value > 0) for value in margins(pairs)] for pairs in (base, run)))
        for name, margins in (("total", preferences.margins), ("per_token", preferences.margins_per_token))
    }


def compare_lengths(base: list[dict], run: list[dict]) -> dict[str, float]:
    """Return by prompt how many characters longer the run's answer is than the base's."""
    return {
        ours["id"]: len(ours["text"]) - len(theirs["text"])
        for theirs, ours in zip(rows_of(base, "prompts"), rows_of(run, "prompts"), strict=True)
    }


def side_by_side(name: str, rows: list[dict], generations: dict, scores: dict, judgements: dict) -> list[dict]:
    """Return each prompt of a test set with every variant's answer, what it earned, and what the judges said of it."""
    marked = {row["id"] for row in notebook_prompts(rows)} if name == "prompts" else set()
    answered = {variant: {row["id"]: row for row in found} for variant, found in generations.items()}
    scored = {variant: {row["id"]: row for row in found["answers"]} for variant, found in scores.items()}
    shown = []
    for row in rows:
        answers = {}
        for variant in generations:
            answer, score = answered[variant][row["id"]], scored[variant][row["id"]]
            answers[variant] = {key: answer[key] for key in ("text", "tokens", "ended")} | without(score, "id", "set")
        judged = {
            run: {judge: found[row["id"]] for judge, found in judges.items() if row["id"] in found}
            for run, judges in judgements.items()
        }
        kept = {key: row[key] for key in ("id", "topic", "prompt")}
        shown.append(kept | {"notebook": row["id"] in marked, "answers": answers, "judgements": judged})
    return shown


def read_stages(benchmarks: list[Path], root: Path) -> list[dict]:
    """Return wall time and peak memory of each stage, from Snakemake's files `benchmarks/<rule>/<subject>.tsv`."""
    stages = []
    for file in benchmarks:
        row = next(csv.DictReader(file.read_text().splitlines(), delimiter="\t"))
        # A stage too short to be sampled has "NA".
        peak = float(row["max_rss"]) if row["max_rss"].replace(".", "").isdigit() else None
        _, rule, *subject = provenance.name_of(file, root).with_suffix("").parts
        stages.append({"rule": rule, "of": ".".join(subject), "seconds": float(row["s"]), "peak_memory_mb": peak})
    return stages


def describe_machine() -> str:
    """Return operating system, processor, cores and GPUs: what times and speeds depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    parts = [f"{platform.system()} {platform.machine()}", names[0] if names else platform.processor()]
    parts.append(f"{os.cpu_count()} cores")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        parts += subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return ", ".join(filter(None, parts))


def describe_origin(results: Path, runs: list[str], config: dict) -> dict:
    """Return what the results were made with and from, and the SHA-256 of each artefact."""
    patterns = [f"data/{name}.jsonl" for name in ("heldout", "rejected", "train")] + ["base/model/*.safetensors"]
    for run in runs:
        patterns += [f"{run}/adapter/*.safetensors", f"{run}/merged/*.safetensors"]
    for variant in ["base", *runs]:
        patterns += [f"{variant}/gguf/model-{name}.gguf" for name in ["f16", *config["export"]["types"]]]
    files = [file for pattern in patterns for file in sorted(results.glob(pattern))]
    return {
        "config": config,
        "git_commit": provenance.git_commit(),
        "python": platform.python_version(),
        "machine": describe_machine(),
        "versions": provenance.versions(),
        "artifacts": {
            str(file.relative_to(results)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder with the results of every stage")
    parser.add_argument("--benchmarks", type=Path, nargs="+", required=True, help="Snakemake's benchmark files")
    for name in TEST_SETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"test set: {name} (JSON Lines)")
    parser.add_argument("--swept", type=Path, nargs="+", default=[], help="summaries of a sweep's runs")
    parser.add_argument("--config", type=json.loads, required=True, help="the resolved config, as JSON")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    results, runs = arguments.results, list(arguments.config["runs"])
    types = arguments.config["export"]["types"]
    variants, judges = ["base", *runs], ["rubric", *arguments.config["evaluation"]["judges"]]
    sets = read_test_sets({name: getattr(arguments, name) for name in TEST_SETS}, [])
    generations = {variant: read_jsonl(results / variant / "generations.jsonl") for variant in variants}
    scores = {variant: read_json(results / variant / "scores.json") for variant in variants}
    preferred = {variant: read_json(results / variant / "preferences.json") for variant in variants}
    checked = {judge: read_json(results / "judges" / f"{judge}.json") for judge in judges}
    summary = {"verdicts": {}, "notebook": NOTEBOOK, "data": read_json(results / "data" / "audit.json")}
    summary["shipped_type"] = types[0]
    summary["model"] = read_json(results / "base" / "manifest.json")
    summary["judges"] = {judge: without(check, "pairs", "settings") for judge, check in checked.items()}
    summary["variants"] = {
        variant: summarize_variant(scores[variant], preferred[variant], generations[variant]) for variant in variants
    }
    summary["runs"], judgements = {}, {}
    for run in runs:
        judged = {judge: read_json(results / run / "judgements" / f"{judge}.json") for judge in judges}
        judgements[run] = {judge: {row["id"]: row for row in found["comparisons"]} for judge, found in judged.items()}
        lengths = compare_lengths(generations["base"], generations[run])
        by_judge = {judge: comparison.compare_by_judge(checked[judge], judged[judge], lengths) for judge in judges}
        checks = comparison.compare_checks(
            scores["base"], scores[run], preferred["base"]["neutral"]["texts"], preferred[run]["neutral"]["texts"]
        )
        same = sum(
            ours["text"] == theirs["text"] for theirs, ours in zip(generations["base"], generations[run], strict=True)
        )
        summary["verdicts"][run] = verdict.decide(run, by_judge, checks, same, len(generations[run]))
        training = summarize_training(results, run)
        settings = arguments.config["training"] | arguments.config["runs"][run]
        summary["runs"][run] = {
            "settings": settings,
            "training": training,
            "training_health": training_health.find(
                training["steps"],
                preferred[run]["train"]["accuracy_implicit_reward"],
                preferred[run]["heldout"]["accuracy_implicit_reward"],
            ),
            "sizes_in_bytes": summarize_sizes(results / run, ["f16", *types]),
            "difference_from_base": compare_metrics(scores["base"], scores[run]),
            "judges": by_judge,
            "checks": checks,
            "heldout_change": compare_preferences(
                preferred["base"]["heldout"]["pairs"], preferred[run]["heldout"]["pairs"]
            ),
            "characters_longer": statistics.mean(list(lengths.values())) | statistics.sign_test(list(lengths.values())),
            "same_answers": {"n": len(generations[run]), "same": same},
            "smoke_test": read_json(results / run / "smoke_test.json"),
            "shipped": summarize_shipped(results, run, types[0], settings["beta"]),
            "fidelity": read_json(results / run / "fidelity.json") | read_json(results / run / "fidelity_check.json"),
        }
    for name, rows in sets.items():
        summary[name] = side_by_side(name, rows, generations, scores, judgements)
    if arguments.swept:
        swept = {file.parent.name: read_json(file) for file in arguments.swept}
        summary["sweep"] = sweep.compare(swept, list(arguments.config["sweep"]))
    summary["stages"] = read_stages(arguments.benchmarks, results.parent)
    summary["provenance"] = describe_origin(results, runs, arguments.config)
    write_json(arguments.summary, summary)
    for sentence in summary["sweep"]["advice"].values() if arguments.swept else []:
        print(sentence)
    for run, found in summary["verdicts"].items():
        print(found["sentence"])
        for reason in found["reasons"]:
            print(f"- {reason}")
        for finding in summary["runs"][run]["training_health"]:
            print(f"- training: {finding['name']}: {finding['what']}. {finding['advice']}")


if __name__ == "__main__":
    cli.run(main)
