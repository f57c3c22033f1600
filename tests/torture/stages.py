"""Stages of a finished workflow: each is run again under a fault, judged, and run once more without the fault."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dpo.artifacts import sha256_of
from torture.outcome import RECOVERED, REFUSED, SILENT, WARNED

SECONDS = 900  # more is a hang


class Stage(NamedTuple):
    """A job: what its manifest is called, and what it writes."""

    job: str
    outputs: tuple[str, ...]

    @property
    def manifest(self) -> str:
        return f"results/manifests/{self.job}.json"


STAGES = {
    "fetch_model": Stage("fetch_model/base", ("results/base/model", "results/base/manifest.json")),
    "build_dataset": Stage(
        "build_dataset/train",
        tuple(f"results/data/train.{what}" for what in ("jsonl", "rejected.jsonl", "prompts.npy", "audit.json")),
    ),
    "compute_reference_logps": Stage(
        "compute_reference_logps/bf16-auto", ("results/base/reference_logps/bf16-auto.jsonl",)
    ),
    "train_dpo": Stage("train_dpo/dpo", ("results/dpo/adapter", "results/dpo/training.jsonl")),
    "merge_adapter": Stage("merge_adapter/dpo", ("results/dpo/merged",)),
    "convert_to_gguf": Stage("convert_to_gguf/dpo", ("results/dpo/gguf/model-f16.gguf",)),
    "quantize_gguf": Stage("quantize_gguf/dpo/q4_k_m", ("results/dpo/gguf/model-q4_k_m.gguf",)),
    "generate_responses": Stage("generate_responses/dpo", ("results/dpo/generations.jsonl",)),
    "score_responses": Stage("score_responses/dpo", ("results/dpo/scores.json",)),
    "check_fidelity": Stage("check_fidelity/dpo", ("results/dpo/fidelity_check.json",)),
    "summarize": Stage("summarize/all", ("results/summary.json",)),
    "render_report": Stage("render_report/all", ("results/report.html",)),
    "render_model_card": Stage("render_model_card/dpo", ("results/dpo/README.md",)),
    "record_provenance": Stage("record_provenance/all", ("results/provenance.json", "results/sbom.cdx.json")),
}
Run = Callable[..., subprocess.CompletedProcess]


def execute(command: list, folder: Path, **options) -> subprocess.CompletedProcess:
    """Run a command in a folder; what it says comes together in `stdout`."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"} | options
    return subprocess.run(list(map(str, command)), cwd=folder, timeout=SECONDS, **options)


def workflow_command(stage: Stage) -> list[str]:
    """Return the command that makes a stage's outputs, as a user would type it."""
    return [sys.executable, "-m", "snakemake", "--cores", "1", stage.outputs[0]]


def job_command(folder: Path, stage: Stage) -> list[str]:
    """Return the command that a stage's rule runs, through run_stage.py but without Snakemake."""
    remove(folder, stage)
    shown = execute([*workflow_command(stage), "--dry-run", "--printshellcmds"], folder).stdout
    rule = stage.job.partition("/")[0]
    text = shown[shown.index(f"exec python scripts/run_stage.py --rule {rule} ") :]
    lines = text.splitlines()
    last = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    command = "\n".join(lines[: last + 1]).replace("python scripts/", f"{shlex.quote(sys.executable)} scripts/")
    return ["bash", "-c", command]


def remove(folder: Path, stage: Stage) -> None:
    """Remove what a stage wrote, so that it has to run again."""
    for name in (*stage.outputs, stage.manifest):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def digests(folder: Path, stage: Stage) -> dict[str, str]:
    """Return the SHA-256 of each file that a stage wrote; of a training's log without the seconds that it took."""
    found = {}
    for name in stage.outputs:
        path = folder / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.name == "training.jsonl":
                lines = [json.loads(line) for line in file.read_text().splitlines()]
                found[name] = repr([{key: line[key] for key in line if key != "seconds"} for line in lines])
            elif file.exists() and file.name != ".snakemake_timestamp":
                found[str(file.relative_to(folder))] = sha256_of(file)
    return found


def vouched_for(folder: Path, stage: Stage) -> bool:
    """Tell whether the stage's manifest names just the files that are there, as they are."""
    named = {
        one["name"]: one["digest"]["sha256"] for one in json.loads((folder / stage.manifest).read_text())["subject"]
    }
    return all(sha256_of(folder / name) == digest for name, digest in named.items()) and named.keys() == {
        *digests(folder, stage)
    }


def left_behind(folder: Path) -> list[str]:
    """Return what was half written and lies there still, but for a checkpoint's: the next training looks it through."""
    found = [path.relative_to(folder) for path in (folder / "results").rglob(".*.partial")]
    return [str(path) for path in found if "checkpoints" not in path.parts]


def judge(
    result: subprocess.CompletedProcess, folder: Path, stage: Stage, expected: dict, *causes: str
) -> tuple[str, str]:
    """Tell what came of a stage that ran under a fault.

    Args:
        result: of the command.
        folder: the project, as the command saw it.
        stage: what it was to make.
        expected: its `digests` in an undisturbed run.
        causes: a refusal must name one of them.
    """
    said = result.stdout
    if result.returncode == 0:
        if digests(folder, stage) != expected or not vouched_for(folder, stage):
            return SILENT, f"finished, with other files: {differing(folder, stage, expected)}"
        return (WARNED if "warning: " in said else RECOVERED), ""
    if left := [name for name in (*stage.outputs, stage.manifest) if os.path.lexists(folder / name)]:
        return SILENT, f"failed, but left {left}: {said[-700:]}"
    if left := left_behind(folder):
        return SILENT, f"half written files stay: {left}"
    messages = list(dict.fromkeys(line for line in said.splitlines() if line.startswith("error: ")))
    if not messages:
        return SILENT, f"status {result.returncode} without a message: {said[-1500:]}"
    if "Traceback (most recent call last)" in said:
        return SILENT, f"a traceback: {said[-1500:]}"
    if not any(cause in message for cause in causes for message in messages):
        return SILENT, f"the message names no cause: {messages}"
    return REFUSED, " | ".join(messages)


def differing(folder: Path, stage: Stage, expected: dict) -> list[str]:
    """Return the names of files that are not what they are in an undisturbed run."""
    found = digests(folder, stage)
    return [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]


def lifted(result: subprocess.CompletedProcess, folder: Path, stage: Stage, expected: dict) -> str:
    """Return what is wrong with the same command's second run, once the fault is gone; "" where all is well."""
    if result.returncode:
        return f"the same command fails afterwards: {result.stdout[-700:]}"
    if other := differing(folder, stage, expected):
        return f"the same command makes other files afterwards: {other}"
    return "" if vouched_for(folder, stage) else "the manifest does not fit the files afterwards"
