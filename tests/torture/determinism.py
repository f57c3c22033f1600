"""The same again: cold runs make the same bytes; without a network; and what the number of threads changes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy
from safetensors.numpy import load_file

from torture.outcome import RECOVERED, SILENT, Tried
from torture.project import copy, digests, finish, said, start

ADAPTER = "results/dpo/adapter/adapter_model.safetensors"
TARGET = "results/dpo/gguf/model-q4_k_m.gguf"


def cold_runs(prepared: Path, expected: dict, folder: Path, runs: int) -> Iterator[Tried]:
    """Run from nothing up to the shipped file, several times."""
    for _ in range(runs):
        copy(prepared, folder)
        status, text = finish(folder, "--", TARGET)
        made = digests(folder)
        same = status == 0 and all(expected[name] == digest for name, digest in made.items())
        yield Tried(
            "cold run: adapter and GGUF, byte for byte",
            "up to quantize_gguf",
            RECOVERED if same else SILENT,
            text[-300:],
        )


def other_threads(prepared: Path, finished: Path, folder: Path, threads: int) -> str:
    """Train with other many threads; return a sentence on what that changes."""
    copy(prepared, folder)
    status, text = finish(folder, "--", ADAPTER.rpartition("/")[0], cores=threads)
    if status:
        return text[-300:]
    one, other = (load_file(project / ADAPTER) for project in (finished, folder))
    gap = max(float(numpy.abs(one[name] - other[name]).max()) for name in one)
    size = max(float(numpy.abs(values).max()) for values in one.values())
    return (
        f"Trained with {threads} threads instead of 1, the adapter's weights differ by at most {gap:.2g}; "
        f"the largest is {size:.2g}."
    )


def without_network(prepared: Path, expected: dict, folder: Path) -> Iterator[Tried]:
    """Run from nothing to the report in a network namespace that has no route, not even to itself."""
    unshare = shutil.which("unshare")
    probe = unshare and subprocess.run([unshare, "-rn", "true"], capture_output=True)
    if not unshare or probe.returncode:
        print("skipped: without a network, as no network namespace can be made here")
        return
    copy(prepared, folder)
    process = start(folder, within=[unshare, "-rn"])
    status = process.wait(timeout=1200)
    same = status == 0 and digests(folder) == expected
    yield Tried("no network", "whole run", RECOVERED if same else SILENT, said(folder)[-300:])
