# Going on after a Snakemake that was killed, so that nothing is lost and nothing runs twice; no rules here.

import errno
import fcntl
import shlex
import shutil
import subprocess
import time

from dpo import provenance
from dpo.code_files import code_files

SECONDS_BETWEEN_LOOKS = 5
WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # as some file systems of clusters answer


def hold_folder():
    """Clear the locks that a killed run left behind, so that the same command just goes on.

    Every Snakemake that a person started in this folder shares a file lock, which the kernel drops however its process
    ends. Whoever can have it alone knows that no other is alive, and that locks found now are stale. Jobs share another
    one: those of a killed Snakemake die with it, and are waited for; what a cluster runs lives on, and is waited for
    too. Returns the file, to be kept open; None for a file system without locks, where nothing is cleared.
    """
    try:
        Path(".snakemake/locks").mkdir(parents=True, exist_ok=True)
        file, jobs = open(".snakemake/alive", "w"), open(".snakemake/jobs", "w")
    except OSError as error:
        raise WorkflowError(f"{error.filename}: {error.strerror}; Snakemake must be able to write in this folder")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not workflow.output_settings.dryrun:
            wait_for_cluster()
        with jobs:
            fcntl.flock(jobs, fcntl.LOCK_EX)
        for lock in Path(".snakemake/locks").iterdir():
            lock.unlink()
        fcntl.flock(file, fcntl.LOCK_SH)
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        return None
    return file


def unfinished_jobs():
    """Slurm's numbers of the jobs that a Snakemake submitted and may not have seen the end of.

    The mark of an unfinished file has its job's number until the job begins, which writes the mark anew without it; by
    then it has a log that is named by the number, and is deleted when the job is done.
    """
    marks = [json.loads(file.read_text()) for file in Path(".snakemake/incomplete").rglob("*") if file.is_file()]
    logs = Path(".snakemake/slurm_logs").rglob("*.log") if marks else ()
    return {mark["external_jobid"] for mark in marks if mark.get("external_jobid")} | {log.stem for log in logs}


def slurm_jobs():
    """This folder's jobs in Slurm, their number → state."""
    listed = subprocess.run(["squeue", "--noheader", "--format=%A|%T|%k|%Z"], capture_output=True, text=True)
    if listed.returncode and (unfinished := unfinished_jobs()):
        raise WorkflowError(
            f"squeue: {listed.stderr.strip()}\nA Snakemake was killed here while jobs were in Slurm "
            f"({', '.join(sorted(unfinished))}). Run again when Slurm answers; if they are gone for good, delete "
            ".snakemake/incomplete"
        )
    rows = [line.split("|") for line in listed.stdout.splitlines()]
    # The executor's comment says what a job is for: others may have been started from this folder, too.
    return {
        number: state for number, state, what, at in rows if at == os.getcwd() and what.startswith(("rule_", "group_"))
    }


def wait_for_cluster():
    """Wait until Slurm has no more jobs of a killed Snakemake; those that have not begun are taken back."""
    # The executor makes this folder before it submits anything.
    if not Path(".snakemake/slurm_logs").exists() or not shutil.which("squeue"):
        return
    told = False
    while found := slurm_jobs():
        waiting = [number for number, state in found.items() if state == "PENDING"]
        if waiting:
            print(f"taken back, as they had not begun: Slurm's jobs {', '.join(waiting)}", file=sys.stderr)
            subprocess.run(["scancel", *waiting], check=True)
        elif not told:
            print(
                f"a Snakemake was killed here, and its jobs still run: waiting for Slurm's {', '.join(found)}. What they "
                "make is kept; scancel them to begin them anew",
                file=sys.stderr,
            )
            told = True
        time.sleep(SECONDS_BETWEEN_LOOKS if told else 1)


def is_what_is_asked_for(job):
    """Whether a job's manifest says that it was made by the very command that would be run now, with this code."""
    manifest = Path(job.output.manifest)
    root = provenance.root_of(manifest)
    asked = provenance.read_manifest(manifest)["predicate"]["buildDefinition"]
    words = shlex.split(job.shellcmd.replace("\\\n", " "))
    if root.parts:
        words = [word.replace(f"{root}/", "") for word in words]
    command = asked["externalParameters"]["command"]
    made_from = provenance.digests_in(asked["resolvedDependencies"])
    code = {os.path.relpath(file): provenance.sha256_of(file) for file in code_files(job.rule.name)}
    return words[words.index("--") + 1 :][: len(command)] == command and code.items() <= made_from.items()


def adopt_results():
    """Note in Snakemake's records what was made while no Snakemake was there to note it, as the manifests tell it.

    Snakemake compares settings with its own records only: without one, what was made with others would pass for current.
    """
    for job in workflow.dag.jobs:
        if not job.output or workflow.dag.needrun(job) or workflow.persistence.has_metadata(job):
            continue
        if not Path(job.output.manifest).exists():
            continue
        if not is_what_is_asked_for(job):
            raise WorkflowError(
                f"{job.output.manifest}: Snakemake has no record of what this job made, and it was made with other "
                "settings or code than now. Delete this file and run again, which makes it anew"
            )
        workflow.async_run(workflow.persistence.finished(job))


# Jobs on a cluster run a Snakemake of their own, which neither begins nor goes on.
if workflow.is_main_process:
    FOLDER_HELD = hold_folder()
