"""Too little memory, too little time, and trainings that go wrong or nowhere.

Each generator takes a finished project and a scratch folder, and yields what came of each fault.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torture.outcome import RECOVERED, REFUSED, SILENT, WARNED, Tried
from torture.project import copy
from torture.stages import (
    STAGES,
    digests,
    execute,
    job_command,
    judge,
    lifted,
    remove,
    workflow_command,
)
from workflow import edit_config

MEMORY = ("memory",)
LEAST = 64 << 20  # bytes; with less Python itself does not start, and says so in its own words
SHARES = (0.5, 0.95, 0.05, 0.8, 0.9, 0.98, 0.65, 0.35, 0.2, 0.1)
NEEDY = ("train_dpo", "convert_to_gguf", "quantize_gguf", "merge_adapter", "generate_responses")
TRAINING = STAGES["train_dpo"]
ADAPTER = "results/dpo/adapter/adapter_model.safetensors"
LONG = {"max_steps": 30, "save_steps": 3, "logging_steps": 3}  # long enough to be stopped in the middle
FINISHED = subprocess.CompletedProcess([], 0, "")
LEAST_COSINE = 0.9999  # of two adapters that differ by the order of additions


def below(process: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [process]
    for number in found:
        with suppress(OSError):
            for children in Path(f"/proc/{number}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found


def most_addresses(command: list, folder: Path) -> int:
    """Run a command to its end; return the most bytes of addresses that one of its processes had."""
    most, quiet = 0, {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, **quiet)
    while process.poll() is None:
        for number in below(process.pid):
            with suppress(OSError):
                status = Path(f"/proc/{number}/status").read_text()
                most = max(most, *(1024 * int(peak) for peak in re.findall(r"VmPeak:\s+(\d+)", status)), 0)
        time.sleep(0.05)
    assert process.returncode == 0, command
    return most


def memory_limit(prepared: Path, scratch: Path, name: str) -> Iterator[Tried]:
    """Run a stage with less memory than it takes, down to a twentieth of it."""
    stage, folder = STAGES[name], copy(prepared, scratch / name)
    expected, command = digests(folder, stage), job_command(folder, stage)
    most = most_addresses(command, folder)
    usual = (folder / ADAPTER).read_bytes()
    for share in SHARES:
        limit = max(int(most * share), LEAST)
        remove(folder, stage)
        limited = execute(
            command, folder, preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        )
        if stage is TRAINING and limited.returncode == 0 and "warning: memory ran out with" in limited.stdout:
            outcome, detail = judge_retried(folder, usual)
        else:
            outcome, detail = judge(limited, folder, stage, expected, *MEMORY)
        if limited.returncode and (wrong := lifted(execute(command, folder), folder, stage, expected)):
            outcome, detail = SILENT, wrong
        yield Tried("limit on memory", name, outcome, f"{limit / 2**20:.0f} of {most / 2**20:.0f} MiB: {detail}")
    shutil.rmtree(folder)


def judge_retried(folder: Path, usual: bytes) -> tuple[str, str]:
    """Judge a training that went on with fewer pairs at once: its log says so, and the adapter is the usual one."""
    from safetensors.torch import load
    from torch import cat
    from torch.nn.functional import cosine_similarity

    last = json.loads((folder / "results/dpo/training.jsonl").read_text().splitlines()[-1])
    found, expected = load((folder / ADAPTER).read_bytes()), load(usual)
    flat = [cat([weights[name].flatten() for name in sorted(expected)]) for weights in (found, expected)]
    cosine = cosine_similarity(*flat, dim=0).item()
    right = last.get("pairs_at_once", 0) >= 1 and cosine > LEAST_COSINE
    return WARNED if right else SILENT, f"pairs_at_once {last.get('pairs_at_once')}, cosine {cosine:.6f}"


def useless_training(prepared: Path, scratch: Path) -> Iterator[Tried]:
    """Train with settings that end in no numbers, or in nothing learnt; then with those of before."""
    for fault, settings, cause in (
        ("learning rate far too high", {"learning_rate": 1e30}, "training went wrong"),
        ("the same, and no step logged", {"learning_rate": 1e30, "logging_steps": 1000}, "training went wrong"),
        ("one step, to warm up", {"max_steps": 1, "warmup_steps": 5}, "training changed nothing"),
        ("learning rate of zero: no job starts", {"learning_rate": 0}, "training.learning_rate"),
        ("learning rate below zero: no job starts", {"learning_rate": -1.0e-5}, "training.learning_rate"),
        ("learning rate of no number: no job starts", {"learning_rate": float("nan")}, "training.learning_rate"),
        ("beta without end: no job starts", {"beta": float("inf")}, "training.beta"),
    ):
        folder = copy(prepared, scratch / "useless")
        expected, usual = digests(folder, TRAINING), (folder / "config.yaml").read_text()
        remove(folder, TRAINING)
        edit_config(folder, "training", **settings)
        result = execute(workflow_command(TRAINING), folder)
        if "no job" in fault:  # Snakemake says it, before any program runs
            line = next((line.strip() for line in result.stdout.splitlines() if cause in line), "")
            outcome, detail = (REFUSED, line) if line and result.returncode else (SILENT, result.stdout[-700:])
        else:
            outcome, detail = judge(result, folder, TRAINING, expected, cause)
            if result.returncode == 0:
                outcome, detail = SILENT, "finished"
        (folder / "config.yaml").write_text(usual)
        if wrong := lifted(execute(workflow_command(TRAINING), folder), folder, TRAINING, expected):
            outcome, detail = SILENT, wrong
        yield Tried(fault, "train_dpo", outcome, detail)
    shutil.rmtree(folder)


def long_training(prepared: Path, folder: Path) -> dict[str, str]:
    """Make a project whose training takes a while; return what it comes to undisturbed."""
    copy(prepared, folder)
    edit_config(folder, "training", **LONG)
    result = execute(workflow_command(TRAINING), folder)
    assert result.returncode == 0, result.stdout
    expected = digests(folder, TRAINING)
    remove(folder, TRAINING)
    return expected


def program_of(process: subprocess.Popen, name: str) -> int | None:
    """Return the process id of a program below a process; of a script's own process, not of one that waits for it."""
    for number in below(process.pid):
        with suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
            if f"scripts/{name}.py".encode() in words[1:2]:
                return number
    return None


def after_checkpoint(folder: Path, command: list, step: int, stop) -> subprocess.CompletedProcess:
    """Start a command, call `stop` with its process once a checkpoint is there, and wait for its end."""
    with open(folder / "said", "w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, start_new_session=True)
        saved = folder / f"results/dpo/checkpoints/checkpoint-{step}/sha256.json"  # written last
        while not saved.exists() and process.poll() is None:
            time.sleep(0.02)
        stop(process)
        process.wait(timeout=300)
        while below_session(process.pid):
            time.sleep(0.05)
        said.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, said.read())


def below_session(group: int) -> bool:
    """Tell whether a process of a group is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stopped(prepared: Path, scratch: Path, steps=(3, 12, 24)) -> Iterator[Tried]:
    """Stop a training as a time limit does, and as the kernel does that has no memory left; then go on."""

    def send(number, name):
        def stop(process):
            if (found := process.pid if name == "snakemake" else program_of(process, name)) is not None:
                os.kill(found, number)

        return stop

    folder = scratch / "stopped"
    expected = long_training(prepared, folder)
    command = workflow_command(TRAINING)
    for fault, stop, cause in (
        ("SIGTERM to Snakemake", send(signal.SIGTERM, "snakemake"), ""),
        ("SIGTERM to the job", send(signal.SIGTERM, "run_stage"), "--set-resources train_dpo:runtime="),
        ("SIGTERM to the program", send(signal.SIGTERM, "train_dpo"), "--set-resources train_dpo:runtime="),
        ("SIGKILL to the program", send(signal.SIGKILL, "train_dpo"), "training.per_device_train_batch_size"),
        ("SIGKILL to the job", send(signal.SIGKILL, "run_stage"), ""),
    ):
        for step in steps:
            result = after_checkpoint(folder, command, step, stop)
            outcome, detail = judge(result, folder, TRAINING, expected, cause)
            if (folder / TRAINING.manifest).exists() and not lifted(FINISHED, folder, TRAINING, expected):
                outcome, detail = RECOVERED, "Snakemake waited for the training's end"
            elif not cause and "without a message" in detail:
                outcome, detail = REFUSED, f"Snakemake's words: {result.stdout.strip().splitlines()[-1]}"
            again = execute(command, folder)
            if wrong := lifted(again, folder, TRAINING, expected):
                outcome, detail = SILENT, wrong
            elif outcome == REFUSED and "resuming after step" not in again.stdout:
                outcome, detail = SILENT, "began anew, where a checkpoint was"
            remove(folder, TRAINING)
            yield Tried(fault, "train_dpo", outcome, f"after step {step}: {detail}")
    shutil.rmtree(folder)


def time_limit(prepared: Path, scratch: Path, seconds=(2, 6, 10, 14, 18, 22)) -> Iterator[Tried]:
    """Run the workflow up to the adapter through `timeout -s TERM`, then the same command without."""
    folder = scratch / "time"
    expected = long_training(prepared, folder)
    command = workflow_command(TRAINING)
    for limit in seconds:
        result = execute(["timeout", "--signal", "TERM", limit, *command], folder)
        if result.returncode in (124, 143) and not (folder / TRAINING.manifest).exists():
            outcome, detail = REFUSED, result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
            if "Traceback (most recent call last)" in result.stdout:
                outcome, detail = SILENT, result.stdout[-1500:]
        else:
            outcome, detail = RECOVERED, f"done before: {result.returncode}"
        if wrong := lifted(execute(command, folder), folder, TRAINING, expected):
            outcome, detail = SILENT, wrong
        remove(folder, TRAINING)
        yield Tried("time limit (timeout -s TERM)", "train_dpo", outcome, f"{limit} s: {detail}")
    shutil.rmtree(folder)
