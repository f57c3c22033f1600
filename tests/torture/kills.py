"""Killed at any moment, the same command goes on, and what it makes is what an undisturbed run makes."""

import itertools
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from torture import stages
from torture.interruption import interrupt
from torture.outcome import RECOVERED, SILENT, Tried
from torture.project import SAVED_EVERY, copy, difference, finish, processes_in, said, start
from workflow import jobs

KILLS_A_RUN = 25
LONGEST_WAIT = 10  # seconds until a kill: longer than most jobs take, so that some get done
HANGS_AFTER = 1800  # seconds
ORPHANS_END = 5  # seconds within which everything must have ended with a killed Snakemake


def script_of(folder: Path) -> int | None:
    """Return the process that runs a stage's program, or None between two jobs."""
    for process in processes_in(folder):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and words[1].startswith(b"scripts/") and words[1] != b"scripts/run_stage.py":
            return process
    return None


def kill(folder: Path, process, whom: str, number: int) -> bool:
    """Send a signal; return whether there was somebody to get it."""
    try:
        if whom == "job":
            script = script_of(folder)
            if script is None:
                return False
            os.kill(script, number)
        elif whom == "Snakemake":
            os.kill(process.pid, number)
        else:
            os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_for_all(folder: Path, process) -> str:
    """Wait for Snakemake, then for all that it started; return what is wrong, or nothing."""
    process.wait(timeout=HANGS_AFTER)
    deadline = time.monotonic() + ORPHANS_END
    while left := processes_in(folder):
        if time.monotonic() > deadline:
            for orphan in left:
                os.kill(orphan, signal.SIGKILL)
            return f"{len(left)} processes outlived Snakemake"
        time.sleep(0.05)
    return ""


def last_whole_checkpoint(folder: Path) -> int:
    """Return the step of the last checkpoint that was finished, 0 where there is none."""
    sealed = folder.glob("results/*/checkpoints/checkpoint-*/sha256.json")
    return max((int(path.parent.name.partition("-")[2]) for path in sealed), default=0)


WHOM = [
    ("group", signal.SIGKILL), ("Snakemake", signal.SIGKILL), ("job", signal.SIGKILL), ("group", signal.SIGTERM),
    ("group", signal.SIGINT), ("Snakemake", signal.SIGTERM), ("Snakemake", signal.SIGINT), ("job", signal.SIGTERM),
]  # fmt: skip


def at_random_moments(prepared: Path, expected: dict, folder: Path, seed: int, seconds: float) -> Iterator[Tried]:
    """Kill a run again and again, each time go on with the same command, and compare what comes out in the end.

    Run after run until the time is over, each killed `KILLS_A_RUN` times before it is left in peace.

    Args:
        prepared: project in which nothing has run.
        expected: digests of an undisturbed run.
        folder: where to work; replaced.
        seed: of when.
        seconds: in which to begin another run.
    """
    chance, order = random.Random(seed), itertools.cycle(WHOM)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        copy(prepared, folder)
        chain: list[tuple[str, str]] = []
        started: list[str] = []
        status = None
        while status != 0:
            ready = last_whole_checkpoint(folder)
            process = start(folder)
            killed = ""
            if len(chain) < KILLS_A_RUN:
                whom, number = next(order)
                time.sleep(chance.uniform(0.2, LONGEST_WAIT))
                while process.poll() is None and not killed:
                    if kill(folder, process, whom, number):
                        killed = f"{number.name} of {'the whole ' if whom == 'group' else ''}{whom}"
                    time.sleep(0.01)  # between two jobs there is none to kill
            wrong = wait_for_all(folder, process)
            status, text = process.returncode, said(folder)
            started += jobs(text)
            if killed:
                chain.append((killed, wrong or wrong_with_resuming(text, ready)))
            elif status:
                chain.append(("started again after a kill", text[-300:]))
                break
        repeated = len(started) - len(set(started))
        if other := difference(folder, expected):
            chain[-1] = (chain[-1][0], chain[-1][1] or other)
        elif repeated > len(chain):
            chain[-1] = (chain[-1][0], chain[-1][1] or f"{repeated} jobs repeated after {len(chain)} kills")
        for fault, wrong in chain:
            yield Tried(fault, "whole run", SILENT if wrong else RECOVERED, wrong)


def wrong_with_resuming(text: str, ready: int) -> str:
    """Return what is wrong with how a run went on after a kill, by its output and the last whole checkpoint then."""
    if "Directory cannot be locked" in text:
        return "a stale lock stopped the next run"
    if ready and re.search(r"^step \d+/", text, re.MULTILINE) and f"resuming after step {ready}" not in text:
        return f"did not go on from checkpoint {ready}"
    return ""


STAGES = (
    "fetch_model", "build_dataset", "compute_reference_logps", "train_dpo", "generate_responses", "merge_adapter",
    "convert_to_gguf", "quantize_gguf", "summarize", "record_provenance",
)  # fmt: skip


def again(folder: Path, stage: str, environment: dict[str, str]) -> tuple[int, str]:
    """Run one stage of a finished project again, and nothing else."""
    outputs = stages.STAGES[stage].outputs
    return finish(folder, "--allowed-rules", stage, "--forcerun", stage, "--", *outputs, env=environment)


def spread(number: int) -> list[int]:
    """Return 1 … number in an order in which any first few lie far apart: the golden ratio's multiples."""
    places = sorted(range(number), key=lambda n: (n * 0.6180339887) % 1)
    return [place + 1 for place in sorted(range(number), key=places.__getitem__)]


def at_each_operation(finished: Path, expected: dict, folder: Path, stage: str) -> Iterator[Tried]:
    """Kill a stage's program at each of its operations on files, and go on with the same command.

    Args:
        finished: project in which everything has run.
        expected: its digests.
        folder: where to work; replaced.
        stage: of `STAGES`.
    """
    copy(finished, folder)
    counted = folder / "operations"
    again(folder, stage, interrupt(stage, count=counted))
    for n in spread(int(counted.read_text())):
        status, text = again(folder, stage, interrupt(stage, at=n))
        wrong = "" if status else "the killed program counts as finished"
        ready = last_whole_checkpoint(folder)
        reached = max(map(int, re.findall(r"^step (\d+)/", text, re.MULTILINE)), default=0)
        if (folder / "results/dpo/checkpoints").exists() and ready < reached - 2 * SAVED_EVERY:
            wrong = wrong or f"killed after step {reached}, but the last whole checkpoint is {ready}"
        status, text = finish(folder, "--allowed-rules", stage, "--", *stages.STAGES[stage].outputs)
        if status or (ready and f"resuming after step {ready}" not in text):
            wrong = wrong or (text[-300:] if status else f"did not go on from checkpoint {ready}")
        wrong = wrong or difference(folder, expected)
        yield Tried("SIGKILL at an open, write, flush, rename or removal", stage, SILENT if wrong else RECOVERED, wrong)
