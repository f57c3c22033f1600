"""Time how long Snakemake takes to plan a sweep of many runs, beside the default config with its one run.

    python bench/planning.py --runs 100 1000

Nothing is run. The difference a run is what each more costs in planning.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory


def seconds_to_plan(folder: Path, runs: int) -> float:
    """Return the wall time of a dry run with so many swept runs, which differ in their seed."""
    config = folder / "sweep.yaml"
    config.write_text(json.dumps({"sweep": {"seed": list(range(runs))} if runs else {}}))
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--configfile", str(config)]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000], help="how many runs to sweep")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        alone = seconds_to_plan(Path(temporary), 0)
        print(f"dry run of the default config: {alone:.1f} s")
        for runs in arguments.runs:
            seconds = seconds_to_plan(Path(temporary), runs)
            each = 1000 * (seconds - alone) / runs
            print(f"with {runs:,} swept runs: {seconds:.1f} s, {seconds / alone:.1f} times that, {each:.0f} ms a run")


if __name__ == "__main__":
    main()
