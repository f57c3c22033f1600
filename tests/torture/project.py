"""The workflow on a small model in folders of its own, and what of its results must be the same whatever happened."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo.artifacts import sha256_of
from workflow import copy_project, edit_config

# Times are measured and stand in these; all other results depend on nothing but data, settings and code.
TIMED = {
    "training.jsonl",
    "smoke_test.json",
    "fidelity.json",
    "summary.json",
    "report.html",
    "provenance.json",
    "README.md",
}
TIMED_FOLDERS = {"manifests", "gguf_scores"}
STEPS, SAVED_EVERY = 12, 3


def prepare(folder: Path, model: Path) -> None:
    """Make a project that trains for a dozen steps and saves four checkpoints."""
    copy_project(folder, model)
    edit_config(folder, "training", max_steps=STEPS, save_steps=SAVED_EVERY, logging_steps=1)


def copy(project: Path, folder: Path) -> Path:
    """Copy a project, with what it has made; an older copy is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(project, folder, symlinks=True)


def start(
    folder: Path, *options: str, env: dict[str, str] | None = None, within: Sequence[str] = (), cores: int = 1
) -> subprocess.Popen:
    """Start Snakemake in a folder, as leader of a process group; what it prints goes to `output` there.

    Args:
        folder: the project.
        options: Snakemake's.
        env: more variables.
        within: a command that runs it, such as `unshare -rn`.
        cores: for Snakemake.
    """
    command = [*within, sys.executable, "-m", "snakemake", "--cores", str(cores), *options]
    environment = os.environ | (env or {})
    with open(folder / "output", "w") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(folder: Path, *options: str, **more) -> tuple[int, str]:
    """Run Snakemake to its end; return (exit status, what it printed)."""
    status = start(folder, *options, **more).wait(timeout=1200)
    return status, said(folder)


def said(folder: Path) -> str:
    """Return what Snakemake printed in a folder since it was started last."""
    return (folder / "output").read_text(errors="replace")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every result that holds no time, by its path in results/."""
    results = folder / "results"
    found = {}
    for file in sorted(results.rglob("*")):
        place = file.relative_to(results)
        timed = file.name in TIMED or TIMED_FOLDERS & set(place.parts) or file.name.startswith(".")
        if file.is_file() and not timed:
            found[str(place)] = sha256_of(file)
    return found


def difference(folder: Path, expected: dict[str, str]) -> str:
    """Return which results of a folder are not those of an undisturbed run, as a sentence; empty where all are."""
    found = digests(folder)
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"other than an undisturbed run's: {', '.join(names)}" if names else ""


def processes_in(folder: Path) -> list[int]:
    """Return the processes that still run in a folder, by their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                at = os.readlink(entry / "cwd")
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if at == str(folder) and not dead:
                found.append(int(entry.name))
    return found
