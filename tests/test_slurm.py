"""A real Slurm of one node, started here: a whole sweep, a job that fails once, cancelled jobs, Snakemake killed."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

import slurm_cluster
from dpo.artifacts import sha256_of
from test_sweep import check_two_values, sweep_two_values
from workflow import copy_project, edit_config, jobs, snakemake

pytestmark = pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing()))

# No accounting here, so squeue instead of sacct; and the first look at a job when a short one can have ended.
SLURM = ("--profile", "profiles/slurm", "--slurm-status-command", "squeue")
SLURM += ("--slurm-init-seconds-before-status-checks", "10", "--latency-wait", "15")
ADAPTER = "results/dpo/adapter"
PATIENCE = 600  # seconds; more is a hang, also on a slow machine that runs other tests beside

# Put at the top of a program, it fails the first time that it runs.
FAIL_ONCE = """import pathlib, sys
if not pathlib.Path("failed").exists():
    pathlib.Path("failed").touch()
    sys.exit("error: fails the first time")
"""


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.slurm_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def prepared(small_model, tmp_path_factory):
    """A folder with everything done up to a training that takes long enough to be disturbed."""
    folder = tmp_path_factory.mktemp("prepared") / "project"
    copy_project(folder, small_model)
    edit_config(folder, "resources", threads=1)
    edit_config(folder, "training", max_steps=150, save_steps=5, logging_steps=5)
    result = snakemake(folder, "results/data/train.jsonl", "results/base/reference_logps/bf16-auto.jsonl")
    assert result.returncode == 0, result.stdout
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The SHA-256 of the adapter that a training makes that nothing disturbs."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    result = snakemake(folder, ADAPTER)
    assert result.returncode == 0, result.stdout
    return sha256_of(folder / ADAPTER / "adapter_model.safetensors")


@pytest.fixture
def project(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "project", symlinks=True)


def start(folder, cluster, *options):
    """Start Snakemake with its jobs in Slurm, in a process group of its own; what it prints goes to `folder/output`."""
    with open(folder / "output", "a") as output:
        command = [sys.executable, "-m", "snakemake", *SLURM, *options]
        return subprocess.Popen(
            command, cwd=folder, env=cluster.environment, stdout=output, stderr=output, start_new_session=True
        )


def run(folder, cluster, *options):
    """Run Snakemake with its jobs in Slurm; return its exit status and what all so far have printed."""
    status = start(folder, cluster, *options).wait(timeout=4 * PATIENCE)
    return status, (folder / "output").read_text()


def wait_for(path, folder):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.1)


def wait_for_output(folder, text):
    deadline = time.monotonic() + PATIENCE
    while text not in (folder / "output").read_text():
        assert time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.1)


def job_of(cluster, since, what):
    """The jobs of a rule since there were so many."""
    return [job for job in cluster.jobs()[since:] if job["what"].startswith(what)]


def test_a_sweep_runs_to_its_end_and_a_job_that_failed_gets_more(cluster, small_model, tmp_path):
    folder = tmp_path / "project"
    copy_project(folder, small_model)
    edit_config(folder, "resources", threads=1)
    sweep_two_values(folder)
    program = folder / "scripts/summarize_run.py"
    program.write_text(FAIL_ONCE + program.read_text())
    since = len(cluster.jobs())

    status, output = run(folder, cluster)
    found = cluster.jobs()[since:]
    print("\n".join(" ".join(job.values()) for job in found))
    assert status == 0, output
    assert Counter(job["state"] for job in found) == {"COMPLETED": len(found) - 1, "FAILED": 1}

    [failed] = [job for job in found if job["state"] == "FAILED"]
    again = [job for job in found if job["what"] == failed["what"]]
    assert [job["state"] for job in again] == ["FAILED", "COMPLETED"]
    memory, minutes = ([float(re.match(r"[\d.]+", job[key])[0]) for job in again] for key in ("memory", "limit"))
    assert memory[1] == 2 * memory[0] and minutes[1] == 2 * minutes[0]

    # Merging (not of the base model), converting and quantising are one job a run, and the reports are one.
    groups = [job["what"] for job in found if re.search("merge|convert|quantize|summarize$|provenance", job["what"])]
    assert sorted(groups) == [
        "rule_export_convert_to_gguf_merge_adapter_quantize_gguf",
        "rule_export_convert_to_gguf_merge_adapter_quantize_gguf",
        "rule_export_convert_to_gguf_quantize_gguf",
        "rule_record_provenance",
        "rule_report_render_model_card_render_report_summarize",
    ]
    assert snakemake(folder).stdout.count("Nothing to be done") == 1
    check_two_values(folder)


def test_a_cancelled_job_ends_the_run_and_the_same_command_goes_on(cluster, project, undisturbed):
    since = len(cluster.jobs())
    process = start(project, cluster, "--retries", "0", ADAPTER)
    wait_for(project / "results/dpo/checkpoints/checkpoint-10/sha256.json", project)
    [job] = job_of(cluster, since, "rule_train_dpo")
    cluster.ask("scancel", job["id"])
    assert process.wait(timeout=PATIENCE) != 0
    assert not (project / ADAPTER).exists() and not (project / "results/dpo/training.jsonl").exists()

    status, output = run(project, cluster, ADAPTER)
    assert status == 0, output
    assert "resuming after step" in (project / "logs/train_dpo/dpo.log").read_text()
    assert sha256_of(project / ADAPTER / "adapter_model.safetensors") == undisturbed
    assert [job["state"] for job in cluster.jobs()[since:]] == ["CANCELLED", "COMPLETED"]


def test_jobs_of_a_killed_snakemake_go_on_and_are_neither_lost_nor_repeated(cluster, project, undisturbed):
    since = len(cluster.jobs())
    process = start(project, cluster, ADAPTER)
    wait_for(project / "results/dpo/checkpoints/checkpoint-5/sha256.json", project)
    process.send_signal(signal.SIGKILL)
    process.wait()

    status, output = run(project, cluster, "results/dpo/merged")
    assert status == 0, output
    assert "a Snakemake was killed here, and its jobs still run: waiting for Slurm's" in output
    assert len(job_of(cluster, since, "rule_train_dpo")) == 1
    assert "resuming" not in (project / "logs/train_dpo/dpo.log").read_text()
    assert sha256_of(project / ADAPTER / "adapter_model.safetensors") == undisturbed
    # What was made without a Snakemake is noted all the same: other settings would make it anew, and no others.
    assert jobs(snakemake(project, "--dry-run", "results/dpo/merged").stdout) == set()
    edit_config(project, "training", beta=0.3)
    assert jobs(snakemake(project, "--dry-run", "results/dpo/merged").stdout) == {
        "train_dpo(dpo)",
        "merge_adapter(dpo)",
    }


def test_jobs_that_had_not_begun_when_snakemake_was_killed_are_taken_back(cluster, project):
    since = len(cluster.jobs())
    node = ("update", "nodename=localhost", "reason=test")
    cluster.ask("scontrol", *node, "state=drain")
    try:
        process = start(project, cluster, "results/base/scores.json")
        wait_for_output(project, "has been submitted with SLURM jobid")
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Without this cluster's settings, its squeue finds no Slurm.
        result = snakemake(project, "results/base/scores.json")
        assert result.returncode == 1 and "Run again when Slurm answers" in result.stdout
        process = start(project, cluster, "results/base/scores.json")
        wait_for_output(project, "taken back, as they had not begun: Slurm's jobs")
    finally:
        cluster.ask("scontrol", *node, "state=resume")
    assert process.wait(timeout=PATIENCE) == 0, (project / "output").read_text()
    found = [(job["state"], job["what"]) for job in cluster.jobs()[since:]]
    assert found == [
        ("CANCELLED", "rule_generate_responses_wildcards_base"),
        ("COMPLETED", "rule_generate_responses_wildcards_base"),
        ("COMPLETED", "rule_score_responses_wildcards_base"),
    ]
