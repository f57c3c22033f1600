"""Results in a bucket: the real workflow with the real S3 plugin, which speaks to a server on this machine."""

import io
import json
import logging
import os
import shutil
import subprocess
from hashlib import sha256

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from dpo import provenance
from dpo.artifacts import sha256_of
from test_workflow import after_training
from workflow import PROJECT, copy_project, edit_config, edit_rows, jobs, snakemake

BUCKET, PREFIX = "bucket", "some/prefix"
TRAINING = "results/manifests/train_dpo/dpo.json"
SHIPPED = "results/dpo/gguf/model-q4_k_m.gguf"
# Each with one thread, on which the last bits of a training depend.
TWO_AT_ONCE = ["--cores", "2", "--max-threads", "1"]
KEYS = {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "testing", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "testing"}


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store(f"http://{host}:{port}").create()
    yield f"http://{host}:{port}"
    server.stop()


def store(server):
    """The bucket, as boto3 has it."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.resource("s3", endpoint_url=server, region_name="us-east-1", **keys).Bucket(BUCKET)


def objects(server, prefix=PREFIX):
    """The bytes of all objects in the bucket, by key below the prefix."""
    return {
        found.key.removeprefix(f"{prefix}/"): found.Object().get()["Body"].read()
        for found in store(server).objects.filter(Prefix=f"{prefix}/")
    }


def with_bucket(server, folder, *options, prefix=PREFIX, **env):
    """Run the real Snakemake in a folder, with results in the bucket."""
    storage = ["--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{BUCKET}/{prefix}"]
    storage += ["--storage-s3-endpoint-url", server]
    return snakemake(folder, *options, *storage, env=os.environ | KEYS | env)


def planned(server, folder, *options):
    """The jobs that Snakemake would run in a folder, with results in the bucket."""
    result = with_bucket(server, folder, "--dry-run", *options)
    assert result.returncode == 0, result.stdout
    return jobs(result.stdout)


def make_checkout(folder):
    """Make a folder a Git checkout of all that is in it: what jobs elsewhere are sent."""
    shutil.copy(PROJECT / ".gitignore", folder)
    who = ["-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "The project"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


@pytest.fixture(scope="module")
def checkout(small_model, tmp_path_factory):
    """A checkout of the small project. Read only."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    copy_project(folder, small_model)
    make_checkout(folder)
    return folder


@pytest.fixture(scope="module")
def finished(server, checkout, tmp_path_factory):
    """A clone in which the whole workflow has run with results in the bucket. Read only."""
    folder = clone(checkout, tmp_path_factory.mktemp("finished") / "project")
    result = with_bucket(server, folder, *TWO_AT_ONCE)
    assert result.returncode == 0, result.stdout
    assert {"train_dpo(dpo)", "render_report", "record_provenance"} <= jobs(result.stdout)
    return folder


def clone(checkout, folder):
    """A fresh clone, in which nothing has run."""
    subprocess.run(["git", "clone", "-q", checkout, folder], check=True)
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished folder to change."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


@pytest.fixture
def fresh(finished, checkout, tmp_path):
    """A clone that knows nothing of what is in the bucket; the bucket is full."""
    return clone(checkout, tmp_path / "fresh")


def test_the_bucket_holds_the_results_and_the_folder_none(server, finished):
    found = objects(server)
    statement = json.loads(found["results/provenance.json"])
    subjects = provenance.digests_in(statement["subject"])
    manifests = provenance.digests_in(statement["predicate"]["runDetails"]["byproducts"])
    results = {name for name in found if name.startswith("results/") and not name.endswith(".snakemake_timestamp")}
    assert results == {
        *subjects,
        *manifests,
        "results/provenance.json",
        "results/manifests/record_provenance/all.json",
    }
    for name, digest in (subjects | manifests).items():
        assert sha256(found[name]).hexdigest() == digest, name
    logs = {name.removeprefix("logs/").removesuffix(".log") for name in found if name.startswith("logs/")}
    assert logs == {name.removeprefix("results/manifests/").removesuffix(".json") for name in manifests} | {
        "record_provenance/all"
    }
    assert not [name for name in results if b".snakemake/storage" in found[name]], "a job's local copy is named"
    assert b"step 4/4: loss" in found["logs/train_dpo/dpo.log"]
    assert not [file for file in finished.glob("results/**/*") if file.is_file()]


def test_a_local_run_makes_the_same_bytes(server, finished, checkout, tmp_path):
    folder = clone(checkout, tmp_path / "local")
    result = snakemake(folder, *TWO_AT_ONCE, "--", SHIPPED)
    assert result.returncode == 0, result.stdout
    found = objects(server)
    made = {str(file.relative_to(folder)) for file in folder.glob("results/**/*") if file.is_file()}
    made -= {name for name in made if name.endswith(".snakemake_timestamp")}
    assert {SHIPPED, "results/dpo/adapter/adapter_model.safetensors"} <= made
    timed = {"results/dpo/training.jsonl", TRAINING}  # each step's seconds are in it
    for name in sorted(made - timed):
        assert sha256_of(folder / name) == sha256(found[name]).hexdigest(), name
    ours, theirs = (
        json.loads(text)["predicate"]["buildDefinition"] for text in ((folder / TRAINING).read_bytes(), found[TRAINING])
    )
    assert ours == theirs


def test_a_second_run_executes_nothing(server, project):
    result = with_bucket(server, project)
    assert result.returncode == 0, result.stdout
    assert jobs(result.stdout) == set()
    assert "Nothing to be done" in result.stdout


def test_only_what_a_change_touches_runs_again(server, project):
    edit_config(project, "training", beta=0.2)
    assert planned(server, project) == after_training("dpo")
    edit_config(project, "training", beta=0.1)
    with open(project / "report/template.html", "a") as file:
        file.write("<!-- changed -->\n")
    assert planned(server, project) == {"render_report", "record_provenance"}


def test_a_fresh_clone_takes_what_was_made_from_its_own_files(server, fresh):
    result = with_bucket(server, fresh)
    assert result.returncode == 0, result.stdout
    assert "Nothing to be done" in result.stdout


def change_a_setting(folder):
    edit_config(folder, "training", beta=0.2)


def change_data(folder):
    edit_rows(folder / "data/prompts.jsonl", lambda rows: rows[0].update(prompt="How do I say no to a friend?"))


def change_code(folder):
    with open(folder / "scripts/dpo/rubric.py", "a") as file:
        file.write("# changed\n")


@pytest.mark.parametrize("change", [change_a_setting, change_data, change_code])
def test_a_fresh_clone_makes_all_anew_where_anything_differs(server, fresh, change):
    """It cannot tell what a change touches, as nobody told it what was made with which settings."""
    change(fresh)
    assert {"fetch_model", "build_dataset(train)"} | after_training("dpo") <= planned(server, fresh)


def test_snakemake_accepts_the_profile_for_kubernetes(server, fresh):
    """All that can be tried without a cluster: its keys are options, and the executor and the storage are there."""
    profile = fresh / "profiles/kubernetes/config.yaml"
    assert {"executor", "container-image", "default-storage-prefix"} <= yaml.safe_load(profile.read_text()).keys()
    assert planned(server, fresh, "--profile", "profiles/kubernetes") == set()


# Jobs that share no file with Snakemake: each has an empty folder, into which Snakemake brings the code and, from the
# bucket, what the job reads.


@pytest.fixture(scope="module")
def elsewhere(server, checkout, tmp_path_factory):
    """A clone from which such jobs trained a model and had it answer, in a part of the bucket of its own."""
    folder = clone(checkout, tmp_path_factory.mktemp("elsewhere") / "project")
    result = run_elsewhere(server, folder)
    assert result.returncode == 0, result.stdout
    # The model is a folder of this machine, so that is where it is read.
    made = {path.name.rpartition("-")[0] for path in folder.with_name("jobs").iterdir() if path.is_dir()}
    assert made == {"build_dataset", "compute_reference_logps", "train_dpo", "generate_responses"}
    assert {job.partition("(")[0] for job in jobs(result.stdout)} == made | {"fetch_model"}
    return folder


def run_elsewhere(server, folder):
    """Run the workflow up to the answers, with jobs that share no file with this Snakemake."""
    env = {"PYTHONPATH": str(PROJECT / "tests/executors"), "ELSEWHERE": str(folder.with_name("jobs"))}
    options = ["--executor", "elsewhere", "--jobs", "1", "results/dpo/generations.jsonl"]
    return with_bucket(server, folder, *options, prefix="elsewhere", **env)


def test_jobs_elsewhere_make_the_same_and_nothing_here(server, finished, elsewhere):
    found, before = objects(server, "elsewhere"), objects(server)
    assert found.keys() - {name for name in found if name.startswith("snakemake-workflow-sources")} <= before.keys()
    for name in ("results/dpo/adapter/adapter_model.safetensors", "results/dpo/generations.jsonl"):
        assert found[name] == before[name]
    assert not [file for file in elsewhere.glob("results/**/*") if file.is_file()]
    assert "Nothing to be done" in run_elsewhere(server, elsewhere).stdout


def test_an_object_that_was_changed_is_refused(server, elsewhere):
    key = "elsewhere/results/data/train.jsonl"
    store(server).Object(key).upload_fileobj(
        io.BytesIO(objects(server, "elsewhere")["results/data/train.jsonl"] + b"\n")
    )
    result = with_bucket(server, elsewhere, "results/dpo/adapter", prefix="elsewhere")
    assert result.returncode != 0
    assert "results/data/train.jsonl is not what build_dataset wrote" in result.stdout
    assert "delete results/data/train.jsonl in the bucket" in result.stdout
