"""Fail everything that can fail, and print one table of what came of it: make torture

    PYTHONPATH=scripts:tests python -m torture --minutes 90 --only kills corruption --table table.md

The real programs, on a small model, in a temporary folder. What can be tried without end (kills, full disks) is tried
for its share of the minutes, and at least once for each stage; the rest has a fixed number of tries, and takes about
half an hour. Exit status 1 where anything went wrong in silence.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

os.environ["OMP_NUM_THREADS"] = "1"

from small_model import make_small_model
from torture import attacks, corruption, determinism, kills, resources, storage
from torture.outcome import SILENT, Tried, table
from torture.project import digests, finish, prepare

SEED = 7
COLD_RUNS, CORRUPTIONS = 5, 4200
FIXED = 30  # minutes
# Shares of the other minutes.
SHARES = {
    "kills": 0.36, "operations": 0.2, "full_disk": 0.1, "nth_operation": 0.1, "file_size_limit": 0.04,
    "read_only": 0.02, "elsewhere": 0.03, "two_at_once": 0.03, "memory_limit": 0.06, "useless_training": 0.02,
    "stopped": 0.03, "time_limit": 0.01,
}  # fmt: skip
PARTS = [*SHARES, "corruption", "attacks", "offline", "determinism"]

Sweep = Callable[..., Iterator[Tried]]


def until(seconds: float, tried: Iterable[Tried]) -> Iterator[Tried]:
    """Yield outcomes until the time is over."""
    end = time.monotonic() + seconds
    for one in tried:
        yield one
        if time.monotonic() > end:
            return


def each(names: Iterable[str], seconds: float, sweep: Sweep) -> Iterator[Tried]:
    """Yield what comes of a sweep over stages, each for an equal share of the time."""
    names = list(names)
    return chain.from_iterable(until(seconds / len(names), sweep(name)) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="about how long it may take, on two cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the matrix")
    parser.add_argument("--table", type=Path, help="file to write the table to as well")
    arguments = parser.parse_args()

    tried, started = [], time.monotonic()
    with TemporaryDirectory(prefix="torture-") as temporary:
        here = Path(temporary).resolve()
        model, prepared, finished, folder = (here / name for name in ("model", "prepared", "finished", "tried"))
        make_small_model(model)
        prepare(prepared, model)
        prepare(finished, model)
        status, text = finish(finished)
        if status:
            sys.exit(f"the undisturbed run failed:\n{text[-2000:]}")
        expected = digests(finished)
        print(f"undisturbed run: {time.monotonic() - started:.0f} s, {len(expected)} files to compare", flush=True)
        seconds = {part: 60 * max(arguments.minutes - FIXED, 1) * share for part, share in SHARES.items()}

        def sweep(module, part: str) -> Sweep:
            return lambda name: getattr(module, part)(finished, here / part, name)

        matrix = {
            "kills": kills.at_random_moments(prepared, expected, folder, SEED, seconds["kills"]),
            "operations": each(
                kills.STAGES,
                seconds["operations"],
                lambda stage: kills.at_each_operation(finished, expected, folder, stage),
            ),
            "full_disk": each(storage.WRITING, seconds["full_disk"], sweep(storage, "full_disk")),
            "nth_operation": each(storage.CHEAP, seconds["nth_operation"], sweep(storage, "nth_operation")),
            "file_size_limit": each(storage.BIG, seconds["file_size_limit"], sweep(storage, "file_size_limit")),
            **{
                part: until(seconds[part], getattr(storage, part)(finished, here / part))
                for part in ("read_only", "elsewhere", "two_at_once")
            },
            "memory_limit": each(resources.NEEDY, seconds["memory_limit"], sweep(resources, "memory_limit")),
            **{
                part: until(seconds[part], getattr(resources, part)(finished, here / part))
                for part in ("useless_training", "stopped", "time_limit")
            },
            "corruption": chain(
                corruption.read_by_a_stage(finished, CORRUPTIONS, SEED),
                corruption.read_by_the_workflow(finished, folder, SEED),
            ),
            "attacks": (attack(Path(mkdtemp(dir=here)), model) for attack in attacks.ATTACKS.values()),
            "offline": determinism.without_network(prepared, expected, folder),
            "determinism": determinism.cold_runs(prepared, expected, folder, COLD_RUNS),
        }
        for part in arguments.only:
            for one in matrix[part]:
                tried.append(one)
                wrong = f" {one.detail}" if one.outcome == SILENT else ""
                print(f"{len(tried)} {one.fault} | {one.stage} | {one.outcome}{wrong}", flush=True)
        threads = determinism.other_threads(prepared, finished, folder, 2) if "determinism" in arguments.only else ""
    minutes = (time.monotonic() - started) / 60
    text = f"{table(tried)}\n\n{len(tried):,} faults in {minutes:.0f} minutes. {threads}".rstrip() + "\n"
    print(f"\n{text}")
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    sys.exit(any(one.outcome == SILENT for one in tried))


if __name__ == "__main__":
    main()
