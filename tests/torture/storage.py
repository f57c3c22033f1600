"""Storage that is full, small, read-only, elsewhere or shared, and the n-th operation on it that fails.

Each generator takes a finished project and a scratch folder, and yields what came of each fault. Mounts are made in a
namespace of their own, which needs no rights on most Linux systems; where there is none, nothing is tried and that is
said.
"""

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dpo.child_process import ends_with_this
from torture.interruption import interrupt
from torture.outcome import RECOVERED, REFUSED, SILENT, Tried
from torture.project import copy
from torture.stages import (
    STAGES,
    Stage,
    digests,
    execute,
    job_command,
    judge,
    lifted,
    remove,
    workflow_command,
)

FULL = ("No space left on device", "Disk quota exceeded")
TOO_LARGE = ("File too large",)
READ_ONLY = ("Read-only file system",)
FAILURES = (
    ("open", "ENOSPC"), ("write", "ENOSPC"), ("write", "EIO"), ("flush", "EIO"), ("rename", "ENOSPC"),
    ("mkdir", "ENOSPC"),
)  # fmt: skip
PAGE = 4096
AMPLE = 2**31
# Of what a stage leaves; it may need more while it works.
SHARES = (0.5, 0, 0.9, 0.01, 0.99, 1.1, 0.1, 0.001, 0.25, 0.75, 1.0, 2.0)
BIG = ("fetch_model", "train_dpo", "merge_adapter", "convert_to_gguf", "quantize_gguf")
WRITING = (*BIG, "build_dataset", "compute_reference_logps", "generate_responses", "summarize", "record_provenance")
CHEAP = (
    "score_responses", "check_fidelity", "render_report", "render_model_card", "summarize", "record_provenance",
    "build_dataset",
)  # fmt: skip


class Mounts:
    """A mount namespace: what is mounted in it, nobody outside sees."""

    def __enter__(self):
        holder = ["unshare", "--map-root-user", "--mount", "sleep", "infinity"]
        self.holder = subprocess.Popen(holder, preexec_fn=ends_with_this())
        outside = os.readlink("/proc/self/ns/mnt")
        while os.readlink(f"/proc/{self.holder.pid}/ns/mnt") == outside:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.holder.kill()
        self.holder.wait()

    def run(self, command: list, folder: Path, **options) -> subprocess.CompletedProcess:
        """Run a command in a folder as the namespace shows it."""
        enter = ["nsenter", "--target", self.holder.pid, "--user", "--mount", "--preserve-credentials"]
        return execute([*enter, "sh", "-c", 'cd "$0" && exec "$@"', folder, *command], folder, **options)

    def must(self, *command: object) -> None:
        """Run a command that has to succeed."""
        result = self.run(list(command), Path("/"))
        assert result.returncode == 0, f"{command}: {result.stdout}"

    def seen(self, folder: Path) -> Path:
        """Return the path under which this process sees a folder as the namespace shows it."""
        return Path(f"/proc/{self.holder.pid}/root{folder}")

    def small_disk(self, folder: Path) -> None:
        """Put a folder onto a file system of its own, with what is in it."""
        aside = folder.with_name(f"{folder.name} aside")
        folder.rename(aside)
        folder.mkdir()
        self.must("mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "tmpfs", folder)
        self.must("cp", "-a", f"{aside}/.", folder)
        shutil.rmtree(aside)

    def leave_free(self, folder: Path, size: int) -> None:
        """Have a file system of its own hold as many bytes more than it does."""
        status = os.statvfs(self.seen(folder))
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        self.must("mount", "-o", f"remount,size={used + size}", folder)

    def read_only(self, folder: Path) -> None:
        """Make a folder read-only, for root too."""
        self.must("mount", "--bind", folder, folder)
        self.must("mount", "-o", "remount,ro,bind", folder)

    def writable(self, folder: Path) -> None:
        """Undo `read_only`."""
        self.must("umount", folder)


def no_mounts() -> bool:
    """Tell, and print, where mount namespaces cannot be had."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0:
        return False
    print("skipped: this machine has no mount namespaces for this user")
    return True


def size_of(folder: Path, stage: Stage) -> int:
    """Return how many bytes the stage's files take, in whole pages."""
    files = [folder / stage.manifest, *(folder / name for name in digests(folder, stage))]
    return sum(-(-file.stat().st_size // PAGE) * PAGE for file in files)


def full_disk(prepared: Path, scratch: Path, name: str, shares=SHARES, direct: bool = False) -> Iterator[Tried]:
    """Run a stage with results/ on a disk of swept sizes.

    Args:
        prepared: a finished project.
        scratch: an empty folder.
        name: of the stage.
        shares: free space, as shares of what the stage leaves.
        direct: whether to leave out Snakemake, which takes the longest.
    """
    if no_mounts():
        return
    stage, folder = STAGES[name], copy(prepared, scratch / name)
    expected, needed = digests(folder, stage), size_of(folder, stage)
    command = job_command(folder, stage) if direct else workflow_command(stage)
    remove(folder, stage)
    with Mounts() as mounts:
        mounts.small_disk(folder / "results")
        seen = mounts.seen(folder)
        for share in shares:
            free = int(needed * share) // PAGE * PAGE
            mounts.leave_free(folder / "results", free)
            result = mounts.run(command, folder)
            outcome, detail = judge(result, seen, stage, expected, *FULL)
            mounts.leave_free(folder / "results", AMPLE)
            if wrong := lifted(mounts.run(command, folder), seen, stage, expected):
                outcome, detail = SILENT, wrong
            remove(seen, stage)
            yield Tried("disk full", name, outcome, f"{free} bytes free: {detail}")
    shutil.rmtree(folder)


def file_size_limit(prepared: Path, scratch: Path, name: str) -> Iterator[Tried]:
    """Run a stage that may write no file larger than a limit, which is swept below the size of its largest one."""
    stage, folder = STAGES[name], copy(prepared, scratch / name)
    expected = digests(folder, stage)
    largest = max((folder / file).stat().st_size for file in expected)
    command = workflow_command(stage)
    for share in (0.05, 0.5, 0.999, 1.0):
        limit = int(largest * share)
        remove(folder, stage)
        limited = execute(
            command,
            folder,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        outcome, detail = judge(limited, folder, stage, expected, *TOO_LARGE)
        if wrong := lifted(execute(command, folder), folder, stage, expected):
            outcome, detail = SILENT, wrong
        yield Tried("limit on a file's size", name, outcome, f"{limit} bytes: {detail}")
    shutil.rmtree(folder)


def read_only(prepared: Path, scratch: Path, name: str = "score_responses") -> Iterator[Tried]:
    """Run a stage with each of the project's folders read-only, and with all of it."""
    if no_mounts():
        return
    stage, folder = STAGES[name], copy(prepared, scratch / "read only")
    expected, command = digests(folder, stage), workflow_command(stage)
    for place in ("data", "results", "logs", ".snakemake", "."):
        remove(folder, stage)
        with Mounts() as mounts:
            mounts.read_only(folder / place)
            seen = mounts.seen(folder)
            result = mounts.run(command, folder)
            outcome, detail = judge_workflow(result, seen, stage, expected, *READ_ONLY)
            if place == "data" and outcome != RECOVERED:
                outcome = SILENT
            mounts.writable(folder / place)
            if wrong := lifted(mounts.run(command, folder), seen, stage, expected):
                outcome, detail = SILENT, wrong
        yield Tried(f"read-only: {place}", name, outcome, detail)


def judge_workflow(result, folder: Path, stage: Stage, expected: dict, *causes: str) -> tuple[str, str]:
    """Judge a fault that may meet Snakemake itself, whose words count, in a traceback too, if they name the cause."""
    outcome, detail = judge(result, folder, stage, expected, *causes)
    if outcome == SILENT and "without a message" in detail:
        named = [line for line in result.stdout.splitlines() if any(cause in line for cause in causes)]
        if named and "scripts/run_stage.py" not in "".join(named):
            return REFUSED, f"Snakemake's words: {named[-1].strip()}"
    return outcome, detail


def elsewhere(prepared: Path, scratch: Path, name: str = "merge_adapter") -> Iterator[Tried]:
    """Run a stage with results/ on another device, as a symbolic link and as a mount, and a run's folder linked."""
    if no_mounts():
        return
    stage = STAGES[name]
    for fault, place, linked in (
        ("results/ is a link to another device", "results", True),
        ("results/ is a mount", "results", False),
        ("a run's folder is a link to another device", "results/dpo", True),
        ("a run's folder is a mount", "results/dpo", False),
    ):
        folder = copy(prepared, scratch / "elsewhere")
        expected = digests(folder, stage)
        remove(folder, stage)
        disk = scratch / "other device" if linked else folder / place
        if linked:
            shutil.rmtree(disk, ignore_errors=True)
            shutil.move(folder / place, disk)
            (folder / place).symlink_to(disk)
        with Mounts() as mounts:
            mounts.small_disk(disk)
            seen = mounts.seen(folder)
            result = mounts.run(workflow_command(stage), folder)
            if linked:  # an absolute link would lead out of /proc/…/root
                inside = mounts.run([sys.executable, *inspection(folder, stage, expected, place)], folder)
                same = inside.returncode == 0
            else:
                same = not lifted(result, seen, stage, expected)
        right = result.returncode == 0 and same
        yield Tried(fault, name, RECOVERED if right else SILENT, "" if right else result.stdout[-700:])
        shutil.rmtree(folder)


def inspection(folder: Path, stage: Stage, expected: dict, place: str) -> list[str]:
    """Return arguments for Python that make it fail unless the stage's files are there and `place` is still a link."""
    program = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from torture.stages import Stage, digests, vouched_for\n"
        f"stage, folder = Stage{tuple(stage)!r}, Path('.')\n"
        f"sys.exit(not (digests(folder, stage) == {expected!r} and vouched_for(folder, stage)"
        f" and Path({place!r}).is_symlink()))"
    )
    tests = Path(__file__).parents[1]
    return ["-c", program, str(tests), str(tests.with_name("scripts"))]


def two_at_once(prepared: Path, scratch: Path, name: str = "merge_adapter", offsets=(0, 0.3, 1, 2, 4, 6)):
    """Start the same command twice in one folder, the second one later by each offset; then in two folders."""
    stage = STAGES[name]
    for offset in offsets:
        folder = copy(prepared, scratch / "one folder")
        expected = digests(folder, stage)
        remove(folder, stage)
        results = start_both(workflow_command(stage), folder, folder, offset)
        ended = [result.returncode for result in results]
        refused = [result.stdout for result in results if result.returncode]
        outcome, detail = RECOVERED, f"exit statuses {ended}"
        if wrong := lifted(execute(workflow_command(stage), folder), folder, stage, expected):
            outcome, detail = SILENT, wrong
        elif not all("locked" in said and "Traceback" not in said for said in refused):
            outcome, detail = SILENT, refused[0][-900:]
        elif ended.count(0) == 0:
            outcome = REFUSED
        yield Tried("two at once in one folder", name, outcome, f"{offset} s apart: {detail}")
    first, second = copy(prepared, scratch / "first"), copy(prepared, scratch / "second")
    remove(first, stage), remove(second, stage)
    results = start_both(workflow_command(stage), first, second, 0)
    wrong = [lifted(result, place, stage, expected) for result, place in zip(results, (first, second), strict=True)]
    yield Tried("two at once in two folders", name, SILENT if any(wrong) else RECOVERED, "".join(wrong))


def start_both(command: list, first: Path, second: Path, offset: float) -> list[subprocess.CompletedProcess]:
    """Run a command in two folders at once, or twice in the same."""
    started = []
    for folder in (first, second):
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, **output))
        time.sleep(offset if folder is first and len(started) == 1 else 0)
    said = [process.communicate(timeout=900)[0] for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, text)
        for process, text in zip(started, said, strict=True)
    ]


def nth_operation(prepared: Path, scratch: Path, name: str) -> Iterator[Tried]:
    """Have the n-th operation of each kind fail, in the stage's program and in run_stage.py, for n = 1, 2, 3 and on."""
    scratch.mkdir(parents=True, exist_ok=True)
    stage, folder = STAGES[name], copy(prepared, scratch / name)
    expected, command = digests(folder, stage), job_command(folder, stage)
    for program, (kind, code) in itertools.product((name, "run_stage"), FAILURES):
        for number in itertools.count(1):
            remove(folder, stage)
            counted = scratch / "count"
            environment = interrupt(program, [kind], number, code, counted)
            result = execute(command, folder, env=os.environ | environment)
            if int(counted.read_text()) < number:
                break
            outcome, detail = judge_failed(result, folder, stage, expected, os.strerror(getattr(errno, code)))
            if wrong := lifted(execute(command, folder), folder, stage, expected):
                outcome, detail = SILENT, wrong
            fault = f"n-th {kind} fails ({code})" + (" in run_stage" if program == "run_stage" else "")
            yield Tried(fault, name, outcome, f"{number}: {detail}")
    shutil.rmtree(folder)


def judge_failed(result, folder: Path, stage: Stage, expected: dict, cause: str) -> tuple[str, str]:
    """Judge a stage that failed without Snakemake, which removes what was written: nothing of that may be half."""
    if result.returncode:
        half = [name for name, digest in digests(folder, stage).items() if digest != expected[name]]
        if half:
            return SILENT, f"half written: {half}"
        remove(folder, stage)
    return judge(result, folder, stage, expected, cause)
