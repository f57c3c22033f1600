"""A dataset from the hub arrives at one pinned revision and becomes pairs, or one clear message says why not."""

import json
import subprocess
import sys

import pytest

from dpo.artifacts import read_json, read_jsonl
from hub_server import HubServer, environment
from test_layouts import HH_RLHF, write_compressed
from workflow import PROJECT, copy_project, edit_config, jobs, snakemake

REPO = "someone/hh-rlhf"
REVISION = "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def hub(tmp_path):
    """A hub with a dataset in the layout of Anthropic/hh-rlhf, and with a model of the same name."""
    folder = tmp_path / "served"
    write_compressed(folder / "helpful-base/train.jsonl.gz", HH_RLHF)
    write_compressed(folder / "harmless-base/train.jsonl.gz", HH_RLHF[1:5])
    write_compressed(folder / "harmless-base/test.jsonl.gz", [HH_RLHF[0], HH_RLHF[6]])
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- human-feedback\n---\n# Pairs\n")
    (folder / "harmless-base/pairs.pkl").write_bytes(b"a pickle, which runs code when it is loaded")
    (folder / "hh-rlhf.py").write_text("raise SystemExit('a script of a stranger ran')")
    (tmp_path / "model").mkdir()
    with HubServer() as server:
        server.add(REPO, REVISION, folder, kind="dataset")
        server.add(REPO, "0" * 40, tmp_path / "model")
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    """Run the program; what it writes goes to `tmp_path / "downloaded"`."""

    def run(**settings):
        command = [sys.executable, "scripts/fetch_dataset.py", "--settings", json.dumps(settings)]
        command += ["--folder", str(tmp_path / "downloaded")]
        variables = environment(tmp_path / "huggingface", hub.url)
        return subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=300)

    return run


def assert_refused(result, tmp_path, *phrases):
    """The program ended with one message that holds the phrases, and left nothing behind."""
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    (message,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    for phrase in phrases:
        assert phrase in message
    assert not (tmp_path / "downloaded").exists()


def test_both_sets_come_from_one_download_of_the_hub(hub, small_model, tmp_path):
    folder = tmp_path / "project"
    copy_project(folder, small_model)
    source = {"repo": REPO, "revision": REVISION, "data_dir": "harmless-base"}
    edit_config(folder, "data", train=source, heldout=source | {"split": "test"})

    variables = environment(tmp_path / "huggingface", hub.url)
    result = snakemake(folder, "results/data/heldout.jsonl", env=variables)

    assert result.returncode == 0, result.stdout
    name = f"someone--hh-rlhf@{REVISION}@harmless-base"
    assert jobs(result.stdout) == {
        "fetch_model",
        f"fetch_dataset({name})",
        "build_dataset(train)",
        "build_dataset(heldout)",
    }
    data = folder / "results/data"
    arrived = {str(path.relative_to(data / "sources" / name)) for path in (data / "sources" / name).rglob("*.*")}
    assert arrived == {
        ".snakemake_timestamp",
        "README.md",
        "harmless-base/train.jsonl.gz",
        "harmless-base/test.jsonl.gz",
    }
    assert [pair["id"] for pair in read_jsonl(data / "train.jsonl")] == [
        f"{REPO}@{REVISION[:12]}/harmless-base:1",
        f"{REPO}@{REVISION[:12]}/harmless-base:2",
    ]
    assert len(read_jsonl(data / "train.jsonl")[0]["prompt"]) == 3
    assert [(row["line"], row["reason"]) for row in read_jsonl(data / "train.rejected.jsonl")] == [
        (3, "empty"),
        (4, "malformed"),
    ]
    # One prompt of the test split is in the training set too.
    (leak,) = read_jsonl(data / "heldout.rejected.jsonl")
    (audited,) = read_json(data / "heldout.audit.json")["sources"]
    assert audited == {"source": f"{REPO}@{REVISION[:12]}/harmless-base/test", "rows": 2, "layout": "hh_rlhf"}
    assert (leak["source"], leak["reason"]) == (audited["source"], "leak")


def test_an_unknown_revision_is_named(fetch, tmp_path):
    result = fetch(repo=REPO, revision="f" * 40)
    assert_refused(result, tmp_path, f"the hub has no revision {'f' * 40} of {REPO}", "`revision` of the dataset")


def test_an_unknown_repository_is_named_with_its_config_key(fetch, tmp_path):
    result = fetch(repo="someone/else", revision=REVISION)
    assert_refused(result, tmp_path, "the hub has no dataset someone/else", "`repo` of the dataset", "HF_TOKEN")


def test_a_folder_without_data_is_named(fetch, tmp_path):
    result = fetch(repo=REPO, revision=REVISION, data_dir="harmless")
    assert_refused(result, tmp_path, f"{REPO} at {REVISION} has no data file in harmless", "refs/convert/parquet")
