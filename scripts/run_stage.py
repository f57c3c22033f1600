"""Run one job's program, on inputs that are what the jobs before it wrote, and leave a manifest of what it writes.

    python scripts/run_stage.py --rule merge_adapter \
        --inputs results/base/model results/dpo/adapter \
        results/manifests/fetch_model/base.json results/manifests/train_dpo/dpo.json \
        --outputs results/dpo/merged results/manifests/merge_adapter/dpo.json \
        -- python scripts/merge_adapter.py --model results/base/model --adapter results/dpo/adapter \
        --merged results/dpo/merged

Every rule runs its program through this one. What lies in results/ must have a manifest among the inputs and be, byte
for byte, what that says; the last output is the manifest to write. Should Snakemake be killed, the program dies with
it, and a program that dies without a word of its own gets one here.

`--inputs -` takes the paths from standard input, one a line, and hands them on to the program's: of thousands of runs
they are too many for a command line.
"""

import argparse
import fcntl
import os
import resource
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from dpo import cli, provenance
from dpo.artifacts import sha256_of
from dpo.child_process import die_with_parent, ends_with_this
from dpo.cli import UserError
from dpo.code_files import code_files
from dpo.less_memory import LESS_MEMORY, NO_SETTING

# With less, libraries written in C end the process while Python loads them, each in its own words or in none.
LEAST_MEMORY = 256 << 20  # bytes of addresses
# A lock that lives as long as the job: whoever goes on after a killed Snakemake waits for it, see rules/common.smk.
JOBS = Path(".snakemake/jobs")


def run(rule: str, command: list[str], told: str | None) -> None:
    """Run a command to its end.

    Args:
        rule: whose program it is.
        command: its words.
        told: what it reads from standard input; None for this process's own.

    Raises:
        UserError: a signal ended it, or it ran out of memory.
        SystemExit: it failed, and has said why; with its exit status.
    """
    process = subprocess.Popen(command, preexec_fn=ends_with_this(), stdin=None if told is None else subprocess.PIPE)
    # Ctrl-C reaches the program too, which ends by itself; what a time limit sends may reach this process alone.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    if told is not None:
        with suppress(BrokenPipeError), process.stdin:  # whoever does not read it to the end says why
            process.stdin.write(told.encode())
    status = process.wait()
    if status in (-signal.SIGKILL, cli.OUT_OF_MEMORY):
        ended = "was killed; if nobody did it, the system was out of memory" if status < 0 else "ran out of memory"
        raise UserError(f"{rule} {ended}: in config.yaml {LESS_MEMORY.get(rule, NO_SETTING)}")
    if status == -signal.SIGTERM:
        raise UserError(
            f"{rule} was stopped (SIGTERM), as a time limit does: give more time (on a cluster with "
            f"--set-resources {rule}:runtime=MINUTES); the same command goes on from here"
        )
    if status < 0:
        raise UserError(
            f"{rule} crashed ({signal.Signals(-status).name}), as native code does on a damaged input or for want of "
            f"memory; see above. For less memory: in config.yaml {LESS_MEMORY.get(rule, NO_SETTING)}"
        )
    if status:
        raise SystemExit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", required=True, help="name of the rule")
    parser.add_argument(
        "--inputs", nargs="+", default=[], help="all files and folders that are read; - for standard input"
    )
    parser.add_argument("--outputs", type=Path, nargs="+", required=True, help="all that are written, manifest last")
    parser.add_argument("command", nargs="+", help="the program with its arguments, after `--`")
    arguments = parser.parse_args()
    *outputs, manifest = arguments.outputs
    listed = sys.stdin.read() if arguments.inputs == ["-"] else None
    inputs = [Path(name) for name in (arguments.inputs if listed is None else listed.splitlines())]

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        raise UserError(
            f"{arguments.rule} may have {limit >> 20} MiB of memory (ulimit -v), in which nothing can be loaded; raise "
            "that limit"
        )
    if "SNAKEMAKE_PID" in os.environ:
        die_with_parent(int(os.environ["SNAKEMAKE_PID"]))
    with open(JOBS, "w") if JOBS.parent.exists() else nullcontext() as jobs:
        if jobs:
            with suppress(OSError):  # some file systems of clusters have no locks
                fcntl.flock(jobs, fcntl.LOCK_SH)
        root = provenance.root_of(manifest)
        code = {os.path.relpath(file): sha256_of(file) for file in code_files(arguments.rule)}
        read = provenance.check(inputs, root)
        run(arguments.rule, arguments.command, listed)
        written = {name: digest for path in outputs for name, digest in provenance.digests_of(path, root).items()}
        dependencies = [*provenance.git_dependency(), *provenance.as_subjects(code | read)]
        command = [word.replace(f"{root}/", "") for word in arguments.command] if root.parts else arguments.command
        asked = {"rule": arguments.rule, "command": command}
        provenance.write_manifest(manifest, provenance.make_statement(written, asked, dependencies))


if __name__ == "__main__":
    cli.run(main)
