"""Gather what every stage measured into one machine-readable summary: all the numbers that the report shows.

    python scripts/summarize.py --results results --benchmarks benchmarks/*/*.tsv --prompts data/prompts.jsonl \
        --config '{…}' --summary results/summary.json

The config is the resolved one, as JSON; its `runs` name the folders to read. Nothing is measured here but file sizes,
SHA-256s and the paired differences between the base model and each run.
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
from importlib.metadata import version
from pathlib import Path

from safetensors import safe_open

from dpo import cli, rubric, statistics
from dpo.artifacts import read_json, read_jsonl, sha256_of, write_json
from dpo.prompts import notebook_prompts, read_prompts

PACKAGES = (
    "snakemake", "unsloth", "unsloth_zoo", "trl", "transformers", "datasets", "peft", "bitsandbytes", "torch",
    "llama-cpp-python", "gguf",
)  # fmt: skip

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


def summarize_sizes(folder: Path) -> dict:
    """Return the sizes in bytes of what a run can ship."""
    return {
        "adapter": folder_bytes(folder / "adapter", "*.safetensors"),
        "merged": folder_bytes(folder / "merged", "*.safetensors"),
        "f16": folder_bytes(folder / "gguf", "model-f16.gguf"),
        "q4_k_m": folder_bytes(folder / "gguf", "model-q4_k_m.gguf"),
    }


def compare_metrics(base: dict, run: dict) -> dict:
    """Return, per metric and for their mean (`all`), the run's mean difference from the base over the prompts."""
    answers = list(zip(base["answers"], run["answers"], strict=True))
    differences = {
        name: [ours["metrics"][name] - theirs["metrics"][name] for theirs, ours in answers] for name in rubric.METRICS
    }
    differences["all"] = [sum(values) / len(rubric.METRICS) for values in zip(*differences.values(), strict=True)]
    return {name: statistics.mean(values) for name, values in differences.items()}


def side_by_side(prompts: list[dict], variants: list[str], results: Path, scores: dict) -> list[dict]:
    """Return each test prompt with every variant's answer and its scores."""
    shown = {row["id"] for row in notebook_prompts(prompts)}
    rows = [
        {key: prompt[key] for key in ("id", "topic", "prompt")} | {"notebook": prompt["id"] in shown, "answers": {}}
        for prompt in prompts
    ]
    for variant in variants:
        generations = read_jsonl(results / variant / "generations.jsonl")
        for row, answer, score in zip(rows, generations, scores[variant]["answers"], strict=True):
            row["answers"][variant] = {key: answer[key] for key in ("text", "tokens", "ended")} | {
                key: score[key] for key in ("metrics", "points", "expectations")
            }
    return rows


def word_verdict(run: str, differences: dict, heldout: dict, smoke_test: dict) -> dict:
    """Return a run's verdict: `outcome` (better, worse or no clear difference) and a sentence with the figures."""
    change = differences["all"]
    outcome = "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "no clear difference"
    reward = heldout["accuracy_implicit_reward"]
    ranking = (
        "better than chance" if reward["low"] > 0.5 else "worse than chance" if reward["high"] < 0.5 else
        "not distinguishable from chance"
    )  # fmt: skip
    checks = [check["passed"] for answer in smoke_test["answers"] for check in answer["expectations"]]
    opening = {
        "better": f"{run} scores better than the base model",
        "worse": f"{run} scores worse than the base model",
        "no clear difference": f"{run} shows no clear difference from the base model",
    }[outcome]
    sentence = (
        f"{opening} on the rubric over {change['n']} test prompts: {round(change['value'], 2) + 0.0:+.2f} points of 10 "
        f"(95% interval {change['low']:+.2f} to {change['high']:+.2f}). On {reward['n']} held-out pairs its implicit "
        f"reward prefers the better answer in {reward['value']:.0%} ({reward['low']:.0%} to {reward['high']:.0%}), "
        f"{ranking}. "
        f"The q4_k_m file that ships meets {sum(checks)} of {len(checks)} expectations of the notebook's prompts at "
        f"{smoke_test['tokens_per_second']:.0f} tokens a second."
    )
    return {"outcome": outcome, "sentence": sentence}


def read_stages(benchmarks: list[Path]) -> list[dict]:
    """Return wall time and peak memory of each stage, from Snakemake's benchmark files `<rule>/<subject>.tsv`."""
    stages = []
    for file in benchmarks:
        row = next(csv.DictReader(file.read_text().splitlines(), delimiter="\t"))
        # A stage too short to be sampled has "NA".
        peak = float(row["max_rss"]) if row["max_rss"].replace(".", "").isdigit() else None
        stages.append({"rule": file.parent.name, "of": file.stem, "seconds": float(row["s"]), "peak_memory_mb": peak})
    return stages


def git_commit() -> str | None:
    """Return the commit of the working tree, with `+changes` where files differ from it; None outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


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


def provenance(results: Path, runs: list[str], config: dict) -> dict:
    """Return what the results were made with and from, and the SHA-256 of each artefact."""
    patterns = ["data/*.jsonl", "base/model/*.safetensors"]
    for run in runs:
        patterns += [f"{run}/adapter/*.safetensors", f"{run}/merged/*.safetensors", f"{run}/gguf/*.gguf"]
    files = [file for pattern in patterns for file in sorted(results.glob(pattern))]
    return {
        "config": config,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "machine": describe_machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "artifacts": {
            str(file.relative_to(results)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder with the results of every stage")
    parser.add_argument("--benchmarks", type=Path, nargs="+", required=True, help="Snakemake's benchmark files")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--config", type=json.loads, required=True, help="the resolved config, as JSON")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    results, runs = arguments.results, list(arguments.config["runs"])
    variants = ["base", *runs]
    prompts = read_prompts(arguments.prompts, [])
    scores = {variant: read_json(results / variant / "scores.json") for variant in variants}
    summary = {"verdicts": {}, "notebook": NOTEBOOK, "data": read_json(results / "data" / "audit.json")}
    summary["model"] = read_json(results / "base" / "manifest.json")
    summary["variants"] = {
        variant: {
            "metrics": scores[variant]["metrics"],
            "heldout": {key: value for key, value in scores[variant]["heldout"].items() if key != "pairs"},
        }
        for variant in variants
    }
    summary["runs"] = {}
    for run in runs:
        smoke_test = read_json(results / run / "smoke_test.json")
        differences = compare_metrics(scores["base"], scores[run])
        summary["verdicts"][run] = word_verdict(run, differences, scores[run]["heldout"], smoke_test)
        summary["runs"][run] = {
            "settings": arguments.config["training"] | arguments.config["runs"][run],
            "training": summarize_training(results, run),
            "sizes_in_bytes": summarize_sizes(results / run),
            "difference_from_base": differences,
            "smoke_test": smoke_test,
        }
    summary["prompts"] = side_by_side(prompts, variants, results, scores)
    summary["stages"] = read_stages(arguments.benchmarks)
    summary["provenance"] = provenance(results, runs, arguments.config)
    write_json(arguments.summary, summary)
    for verdict in summary["verdicts"].values():
        print(verdict["sentence"])


if __name__ == "__main__":
    cli.run(main)
