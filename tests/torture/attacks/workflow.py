"""The whole workflow, in an environment full of secrets, on files with names for a shell."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy

from torture.attacks.canary import ATTACKS, PROJECT, SCRATCH, SECONDS, Pickled, attack, carelessly, outcome, run
from torture.attacks.templates import build, write_rows
from torture.attacks.texts import MARKUP
from torture.outcome import HARMLESS, REFUSED, SILENT
from workflow import copy_project, edit_config, snakemake

SECRETS = {
    name: f"canary-{number}-value-of-{name.lower().replace('_', '-')}"
    for number, name in enumerate(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "ATTACK_KEY")
    )
}
SHELL_NAME = "-rf $(touch fired) `touch fired`; touch fired & 'q' \"d\" \\ * ~ é.jsonl"


@cache
def whole_workflow(model: Path) -> tuple[subprocess.CompletedProcess, Path]:
    """Run the whole workflow on strangers' texts and names, once; return what came of it, and its folder."""
    folder = Path(mkdtemp(prefix="workflow-", dir=SCRATCH)) / "project of $(touch fired)"
    copy = folder.parent / "$(touch fired) model;touch fired"
    shutil.copytree(model, copy)
    copy_project(folder, copy)
    rows = [json.loads(line) for line in (folder / "data" / "preferences.jsonl").read_text().splitlines()]
    rows[0] |= {"id": MARKUP.strip(), "topic": MARKUP.strip(), "chosen": MARKUP + rows[0]["chosen"]}
    rows.append(rows[1] | {"id": "esc", "prompt": "\x1b]0;pwned\x07\x1b[2J Why?"})
    rows.append(rows[1] | {"id": "\x1b[31mred"})
    write_rows(folder / "data" / SHELL_NAME, rows)
    prompts = [json.loads(line) for line in (folder / "data" / "prompts.jsonl").read_text().splitlines()]
    prompts[0] |= {"prompt": MARKUP + prompts[0]["prompt"], "topic": MARKUP.strip()}
    write_rows(folder / "data" / "prompts.jsonl", prompts)
    edit_config(
        folder, "data", train=f"data/{SHELL_NAME}", tolerance={"low_confidence": 1.0, "truncated": 1.0, "other": 1.0}
    )
    return snakemake(folder, env=os.environ | SECRETS), folder


def whole(fault: str, harm: Callable[[subprocess.CompletedProcess, Path], str | None]) -> None:
    """Register an attack that is part of `whole_workflow`; `harm` says what of it was found."""

    @attack(fault, "the whole workflow")
    def part(folder, model):
        result, where = whole_workflow(model)
        if result.returncode or "Traceback" in result.stdout:
            return SILENT, result.stdout[-1500:]
        found = harm(result, where)
        return (SILENT, found) if found else (HARMLESS, "the workflow finished")


def secrets_anywhere(result, where):
    haystacks = {file: file.read_bytes() for file in where.rglob("*") if file.is_file()} | {
        "console": result.stdout.encode()
    }
    for place, content in haystacks.items():
        for name, value in SECRETS.items():
            if value.encode() in content:
                return f"{name} is in {place}"
    return None


def escapes_anywhere(result, where):
    places = [
        *(where / "logs").rglob("*.log"),
        *(where / "results").rglob("*.json*"),
        *(where / "results").glob("*.html"),
    ]
    for name, content in [
        ("the console", result.stdout),
        *((file, file.read_text(errors="replace")) for file in places),
    ]:
        if "\x1b" in content:
            return f"an escape is in {name}"
    return None


def fired_anywhere(result, where):
    return next((f"{file} was made" for file in where.parent.rglob("fired")), None)


whole("secrets in the environment", secrets_anywhere)
whole("terminal escapes in the data", escapes_anywhere)
whole("names for a shell of data file, model folder and project folder", fired_anywhere)


@attack("hashes of prompts in results/ are a pickled object", "build_dataset, through snakemake")
def pickled_hashes(folder, model):
    result, where = whole_workflow(model)
    assert result.returncode == 0, result.stdout[-1500:]
    project, canary = folder / "project", folder / "canary"
    shutil.copytree(where, project, symlinks=True)
    hashes = project / "results" / "data" / "train.prompts.npy"
    numpy.save(hashes, numpy.array([Pickled(canary)], dtype=object), allow_pickle=True)
    carelessly(canary, "import numpy, sys; numpy.load(sys.argv[1], allow_pickle=True)", hashes)
    (project / "results/data/heldout.jsonl").unlink()  # so that it is read again
    again = snakemake(project, "results/data/heldout.jsonl")
    if canary.exists() or "Traceback" in again.stdout:
        return SILENT, again.stdout[-800:]
    line = next((line for line in again.stdout.splitlines() if "error: " in line and hashes.name in line), None)
    return (REFUSED, line) if line else (SILENT, again.stdout[-800:])


@attack("checkpoint of pickles with the right stamp and seal", "train_dpo")
def planted_checkpoint(folder, model):
    import torch
    import yaml

    from dpo.artifacts import sha256_of

    canary, checkpoints = folder / "fired", folder / "checkpoints"
    rows = [
        {"id": f"row-{n}", "prompt": f"What is {n}?", "chosen": f"It is {n}, I think.", "rejected": "Who cares?"}
        for n in range(4)
    ]
    built = build(folder, model, write_rows(folder / "pairs.jsonl", rows))
    assert built.returncode == 0, built.stderr
    settings = yaml.safe_load((PROJECT / "config.yaml").read_text())["training"]
    settings |= {"trainer": "trl", "max_steps": 60, "save_steps": 2, "logging_steps": 2, "max_length": 512}
    files = ["--train", folder / "data" / "train.jsonl", "--model", model, "--settings", json.dumps(settings)]
    files += ["--checkpoints", checkpoints, "--adapter", folder / "adapter", "--log", folder / "training.jsonl"]
    command = [sys.executable, "scripts/train_dpo.py", *map(str, files)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and not list(checkpoints.glob("checkpoint-*/sha256.json")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    planted = sorted(checkpoints.glob("checkpoint-*/sha256.json"))[0].parent
    for other in checkpoints.glob("checkpoint-*"):
        if other != planted:
            shutil.rmtree(other)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (planted / name).exists(), name
        torch.save(Pickled(canary), planted / name)
        carelessly(canary, "import sys, torch; torch.load(sys.argv[1], weights_only=False)", planted / name)
    sealed = {file.name: sha256_of(file) for file in sorted(planted.iterdir()) if file.name != "sha256.json"}
    (planted / "sha256.json").write_text(json.dumps(sealed))
    result = run("train_dpo", *files)
    if result.returncode == 0 and "resuming" in result.stdout:
        return SILENT, "the planted state was taken"
    return outcome(result, folder / "adapter", canary=canary)


# These share one run of the whole workflow, which tests share too.
ON_WHOLE_WORKFLOW = [name for name in ATTACKS if name.startswith(("the whole workflow: ", "build_dataset, through "))]
