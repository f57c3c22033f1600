"""Manifests are checked, not only written: nothing that was changed, swapped or damaged is read."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo import provenance
from dpo.artifacts import sha256_of
from dpo.cli import UserError
from workflow import PROJECT, copy_project, snakemake

RUN_STAGE = PROJECT / "scripts/run_stage.py"
MANIFEST = "results/manifests/score_responses/one.json"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with results of one job, a file and a folder, and the manifest of them; the one that tests run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"id": "a"}\n')
    program = """
from pathlib import Path
Path("results/model").mkdir(parents=True)
Path("results/model/weights").write_bytes(bytes(range(256)))
Path("results/model/config.json").write_text("{}")
Path("results/list.jsonl").write_text("{}")
"""
    result = run_stage(program, inputs=["data/rows.jsonl"], outputs=["results/model", "results/list.jsonl"])
    assert result.returncode == 0, result.stderr
    return tmp_path


def start_stage(program, inputs, outputs, env=None):
    """Start a program through run_stage.py, as a rule does."""
    command = [
        sys.executable,
        RUN_STAGE,
        "--rule",
        "score_responses",
        "--inputs",
        *inputs,
        "--outputs",
        *outputs,
        MANIFEST,
    ]
    command += ["--", sys.executable, "-c", program]
    environment = os.environ | (env or {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run_stage(program, inputs=("data/rows.jsonl",), outputs=("results/list.jsonl",)):
    """Run a program through run_stage.py to its end."""
    process = start_stage(program, inputs, outputs)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def edit(path, change):
    """Change a file's bytes and leave its times as they were."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def check(*inputs):
    return provenance.check([*map(Path, inputs)])


def test_a_manifest_is_an_in_toto_statement_of_what_was_made_from_what(folder):
    statement = json.loads((folder / MANIFEST).read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    names = ["results/list.jsonl", "results/model/config.json", "results/model/weights"]
    assert statement["subject"] == [{"name": name, "digest": {"sha256": sha256_of(folder / name)}} for name in names]
    definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    read = provenance.digests_in(definition["resolvedDependencies"])
    code = {os.path.relpath(PROJECT / "scripts" / name) for name in ("score_responses.py", "dpo/rubric.py")}
    assert code <= set(read) and read.pop("data/rows.jsonl") == sha256_of(folder / "data/rows.jsonl")
    assert {Path(name).suffix for name in read} == {".py"} and all(sha256_of(name) == read[name] for name in read)
    assert definition["externalParameters"]["rule"] == "score_responses"
    assert definition["externalParameters"]["command"][:2] == [sys.executable, "-c"]
    assert {"python", "torch", "trl", "llama-cpp-python"} <= set(details["builder"]["version"])


def test_the_checkout_is_a_dependency(monkeypatch):
    monkeypatch.chdir(PROJECT)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    [git] = provenance.git_dependency()
    assert git["digest"] == {"gitCommit": head}


def test_the_same_job_leaves_the_same_manifest(folder):
    before = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    statement = json.loads(before)
    program = statement["predicate"]["buildDefinition"]["externalParameters"]["command"][2]
    for made in ("results/model", "results/list.jsonl"):
        shutil.rmtree(folder / made) if (folder / made).is_dir() else (folder / made).unlink()
    assert run_stage(program, outputs=["results/model", "results/list.jsonl"]).returncode == 0
    assert (folder / MANIFEST).read_bytes() == before


def test_what_was_written_passes_and_files_of_the_user_are_only_noted(folder):
    (folder / "results/model/.snakemake_timestamp").touch()
    found = check("data/rows.jsonl", "results/model", "results/list.jsonl", MANIFEST)
    assert list(found) == [
        "data/rows.jsonl",
        "results/model/config.json",
        "results/model/weights",
        "results/list.jsonl",
    ]
    (folder / "data/rows.jsonl").write_text("changed")
    assert check("data/rows.jsonl", MANIFEST) == {"data/rows.jsonl": sha256_of(folder / "data/rows.jsonl")}


def flip_a_bit(folder):
    def flip(content):
        content[77] ^= 1

    edit(folder / "results/model/weights", flip)


def truncate(folder):
    edit(folder / "results/model/weights", lambda content: content.__delitem__(slice(255, None)))


def swap_for_an_older_one(folder):
    def become_older(content):
        content[:] = b"last week's weights"

    edit(folder / "results/model/weights", become_older)


def lose_a_file(folder):
    (folder / "results/model/weights").unlink()


def plant_a_file(folder):
    (folder / "results/model/adapter_config.json").write_text("{}")


CHANGES = {
    flip_a_bit: "weights is not what score_responses wrote: it was changed, swapped or damaged since",
    truncate: "weights is not what score_responses wrote",
    swap_for_an_older_one: "weights is not what score_responses wrote",
    lose_a_file: "weights, which score_responses wrote, is missing",
    plant_a_file: "adapter_config.json was not written by score_responses, but put there by something else",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_what_was_written_is_refused_before_the_program_starts(folder, change):
    change(folder)
    with pytest.raises(UserError, match=CHANGES[change]):
        check("results/model", MANIFEST)
    started = folder / "started"
    result = run_stage(f"open({str(started)!r}, 'w')", inputs=["results/model", MANIFEST])
    assert result.returncode == 1
    assert CHANGES[change] in result.stderr and "delete results/model and run again" in result.stderr
    assert "Traceback" not in result.stderr
    assert not started.exists()
    check("results/list.jsonl", MANIFEST)  # the job's other artefact is as it was


def test_an_artefact_without_manifest_is_refused(folder):
    with pytest.raises(UserError, match=r"no manifest says what wrote results/model; delete results/model"):
        check("results/model")


def test_an_input_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match=r"^data/none\.jsonl does not exist$"):
        check("data/none.jsonl")


def test_any_other_byte_in_a_manifest_is_found_out(folder):
    """Every single bit, and every length."""
    path = folder / MANIFEST
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in random.Random(place).sample(range(8), 2):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(UserError, match=r"one\.json is damaged"):
                provenance.read_manifest(Path(MANIFEST))
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match=r"one\.json is damaged"):
            provenance.read_manifest(Path(MANIFEST))


# Programs that end badly


def test_a_failed_program_keeps_its_exit_status_and_leaves_no_manifest(folder):
    (folder / MANIFEST).unlink()
    result = run_stage("import sys; sys.exit(3)")
    assert result.returncode == 3
    assert not (folder / MANIFEST).exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "score_responses was killed; if nobody did it, the system was out of memory: in config.yaml"),
        (signal.SIGTERM, "score_responses was stopped (SIGTERM), as a time limit does: give more time"),
        (
            signal.SIGSEGV,
            "score_responses crashed (SIGSEGV), as native code does on a damaged input or for want of memory",
        ),
    ],
)
def test_a_program_that_a_signal_ends_gets_a_message(folder, number, said):
    result = run_stage(f"import os; os.kill(os.getpid(), {int(number)})")
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_time_limits_signal_ends_the_program_too(folder):
    process = start_stage("print('started', flush=True); import time; time.sleep(60)", ["data/rows.jsonl"], ["x"])
    assert process.stdout.readline() == "started\n"
    process.terminate()
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "--set-resources score_responses:runtime=MINUTES" in stderr


def test_out_of_memory_names_the_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "from dpo import cli; cli.run(lambda: bytearray(1 << 60))"
    command = [sys.executable, RUN_STAGE, "--rule", "train_dpo", "--inputs", RUN_STAGE, "--outputs", MANIFEST]
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "scripts")}
    result = subprocess.run(
        [*command, "--", sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1
    assert "error: memory ran out (MemoryError)" in result.stderr
    assert "train_dpo ran out of memory: in config.yaml lower training.per_device_train_batch_size" in result.stderr


def test_when_snakemake_is_killed_the_program_dies(folder):
    program = """
import os, time
open("pid", "w").write(str(os.getpid()))
time.sleep(60)
"""
    starter = f"""
import os, subprocess, sys, time
os.environ["SNAKEMAKE_PID"] = str(os.getpid())
subprocess.Popen([sys.executable, {str(RUN_STAGE)!r}, "--rule", "score_responses", "--inputs", "data/rows.jsonl",
    "--outputs", "x", "results/manifests/x.json", "--", sys.executable, "-c", {program!r}])
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", starter])
    deadline = time.monotonic() + 30
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    left = int((folder / "pid").read_text())
    process.kill()
    process.wait()
    while alive(left):
        assert time.monotonic() < deadline, "the program outlived Snakemake"
        time.sleep(0.05)


def alive(process):
    """Tell whether a process runs, rather than waits to be forgotten."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_limit_on_memory_in_which_nothing_can_be_loaded_is_named(folder):
    command = [
        sys.executable,
        RUN_STAGE,
        "--rule",
        "score_responses",
        "--inputs",
        "data/rows.jsonl",
        "--outputs",
        MANIFEST,
    ]
    limits = 200 << 20, 200 << 20
    result = subprocess.run(
        [*command, "--", "true"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert result.returncode == 1
    assert (
        "error: score_responses may have 200 MiB of memory (ulimit -v), in which nothing can be loaded" in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_a_job_whose_snakemake_is_gone_does_nothing(folder):
    process = start_stage(
        "open('ran', 'w')", ["data/rows.jsonl"], ["ran"], env={"SNAKEMAKE_PID": str(os.getppid() + 100000)}
    )
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "ran").exists()


# In the workflow


@pytest.fixture(scope="module")
def fetched(small_model, tmp_path_factory):
    """A project with its model and its training set made."""
    folder = tmp_path_factory.mktemp("fetched") / "project"
    copy_project(folder, small_model)
    result = snakemake(folder, "results/data/train.jsonl")
    assert result.returncode == 0, result.stdout
    return folder


def test_snakemake_refuses_a_flipped_bit_with_an_unchanged_time_and_mends_it_when_told(fetched, tmp_path):
    project = shutil.copytree(fetched, tmp_path / "project", symlinks=True)
    weights = project / "results/base/model/model.safetensors"
    before = sha256_of(weights)

    def flip(content):
        content[-1000] ^= 4

    edit(weights, flip)
    result = snakemake(project, "results/base/reference_logps/bf16-auto.jsonl")
    assert result.returncode != 0
    assert "model.safetensors is not what fetch_model wrote: it was changed, swapped or damaged since" in result.stdout
    assert not (project / "results/base/reference_logps/bf16-auto.jsonl").exists()
    shutil.rmtree(project / "results/base/model")
    result = snakemake(project, "results/base/reference_logps/bf16-auto.jsonl")
    assert result.returncode == 0, result.stdout
    assert sha256_of(weights) == before
