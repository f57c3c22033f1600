"""Several processes make what one makes, and end together: with one message, and nothing half done or still running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo import division, processes
from dpo.cli import UserError
from preference_data import build
from workflow import PROJECT

PAIRS = 25  # steps of 8, 8, 8 and 1: the last of an epoch leaves one of two processes without a pair
SETTINGS = yaml.safe_load((PROJECT / "config.yaml").read_text())["training"] | {
    "bf16": False,
    "max_length": 512,
    "max_steps": 8,
    "logging_steps": 1,
    "save_steps": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
}
KINDS = {
    "sigmoid": {},
    "a sum": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "max_steps": 4},
    "trl": {"trainer": "trl", "max_steps": 3},
}


@pytest.fixture(scope="module")
def data(small_model, tmp_path_factory):
    """Training pairs and their reference log-probabilities, in one folder."""
    folder = tmp_path_factory.mktemp("data")
    files = [PROJECT / "data" / name for name in ("preferences.jsonl", "heldout.jsonl")]
    rows = build(folder / "built", small_model, *files).pairs[:PAIRS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # TRL's own trainer fills the last step of an epoch up where processes have no equal parts of it.
    (folder / "even.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    command = [sys.executable, PROJECT / "scripts/compute_reference_logps.py", "--train", folder / "train.jsonl"]
    settings = {key: SETTINGS[key] for key in ("bf16", "load_in_4bit", "max_length")}
    command += ["--model", small_model, "--settings", json.dumps(settings), "--logps", folder / "logps.jsonl"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder


def command_of(folder, model, data, program=PROJECT / "scripts/train_dpo.py", **settings):
    """How to train into `folder`."""
    settings = SETTINGS | settings
    ours = settings["trainer"] == "shared_prompt"
    command = [sys.executable, program, "--train", data / ("train.jsonl" if ours else "even.jsonl"), "--model", model]
    command += ["--settings", json.dumps(settings), "--checkpoints", folder / "checkpoints"]
    command += ["--adapter", folder / "adapter", "--log", folder / "training.jsonl"]
    return list(map(str, command + (["--reference", data / "logps.jsonl"] if ours else [])))


@pytest.fixture(scope="module")
def trained(small_model, data, tmp_path_factory):
    """A function that trains one of `KINDS` in so many processes, once, and returns the folder."""
    folders = {}

    def train(kind, count):
        if (kind, count) not in folders:
            folder = folders[kind, count] = tmp_path_factory.mktemp("trained")
            command = command_of(folder, small_model, data, processes=count, **KINDS[kind])
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            (folder / "output").write_text(result.stdout)
        return folders[kind, count]

    return train


def log_of(folder):
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def adapter_of(folder, part=""):
    """All weights of an adapter, one after the other, or those that have `part` in their name."""
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors) if part in name])


def assert_same(folder, expected):
    """Two trainings logged the same, and made the same adapter, but for rounding."""
    ours, theirs = log_of(folder), log_of(expected)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs] == list(range(1, len(ours) + 1))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        for key in ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), (key, mine["step"])
    assert len({entry["loss"] for entry in ours}) > 1
    # Measured by how far training moved the second factors, which were zero. Not weight by weight: where a gradient is
    # no more than rounding, Adam makes as large a step of it as of any other.
    difference = adapter_of(folder) - adapter_of(expected)
    assert difference.norm() < 1e-3 * adapter_of(expected, "lora_B").norm()


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_what_one_makes_and_one_of_them_writes(kind, trained):
    folder, expected = trained(kind, 2), trained(kind, 1)
    assert_same(folder, expected)
    assert {file.name for file in folder.iterdir()} == {"adapter", "training.jsonl", "output"}
    assert {file.name for file in (folder / "adapter").iterdir()} == {
        file.name for file in (expected / "adapter").iterdir()
    }
    assert log_of(folder)[-1].keys() == log_of(expected)[-1].keys()
    steps = [line.partition("/")[0] for line in (folder / "output").read_text().splitlines() if "loss" in line]
    assert steps == [f"step {entry['step']}" for entry in log_of(folder)]


def test_a_model_that_fsdp_divides_comes_to_the_same_adapter_as_a_whole(small_model, data, trained, tmp_path):
    program = PROJECT / "tests/fsdp_on_cpu.py"
    command = command_of(tmp_path, small_model, data, program, processes=2, fsdp=True, **KINDS["trl"])
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "the model is divided" in result.stdout
    assert_same(tmp_path, trained("trl", 1))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), tmp_path / "adapter")
    assert "final_loss" not in log_of(tmp_path)[-1]


def launched_by(process):
    """The processes that another one launched, by their numbers."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = dict(item.split("=", 1) for item in (folder / "environ").read_text().split("\0") if "=" in item)
            if variables.get(processes.LAUNCHER) == str(process.pid):
                found[int(variables["RANK"])] = int(folder.name)
    return found


def start(command, folder, step):
    """Start a training of two processes; return it and their ids, once it has a checkpoint of a step."""
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    deadline = time.monotonic() + 300
    while not (folder / f"checkpoints/checkpoint-{step}/sha256.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.01)
    ids = launched_by(process)
    assert sorted(ids) == [0, 1]
    return process, ids


def end_of(process, folder):
    """The exit status and all output of a training, of which no process may be left."""
    status = process.wait(timeout=60)
    deadline = time.monotonic() + 10
    while launched_by(process):
        assert time.monotonic() < deadline, "a process outlived its launcher"
        time.sleep(0.05)
    assert not (folder / "adapter").exists()
    assert not (folder / "training.jsonl").exists()
    return status, (folder / "output").read_text()


def test_a_killed_process_ends_the_training_and_the_same_command_goes_on(small_model, data, trained, tmp_path):
    """As it does where a time limit or the kernel ends the one that launched them, and as one process alone would."""
    command = command_of(tmp_path, small_model, data, processes=2)
    process, ids = start(command, tmp_path, 2)
    os.kill(ids[1], signal.SIGKILL)
    status, output = end_of(process, tmp_path)
    assert status == 1
    assert "error: process 2 of 2 was killed (SIGKILL); if nobody did it, the system was out of memory" in output
    assert "lower training.processes, or lower training.per_device_train_batch_size" in output
    assert output.count("error:") == 1
    assert "Traceback" not in output and "torch" not in output
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "checkpoints", alone / "checkpoints")

    process, _ = start(command, tmp_path, 4)
    process.terminate()
    status, output = end_of(process, tmp_path)
    assert status == -signal.SIGTERM
    assert "resuming after step 2" in output and "Traceback" not in output and "error:" not in output

    process, _ = start(command, tmp_path, 6)
    process.kill()
    end_of(process, tmp_path)

    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "resuming after step 6" in result.stdout
    assert_same(tmp_path, trained("sigmoid", 2))
    assert not (tmp_path / "checkpoints").exists()

    result = subprocess.run(command_of(alone, small_model, data), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "resuming after step 2" in result.stdout
    assert_same(alone, trained("sigmoid", 2))


def test_an_error_of_all_processes_is_shown_once(small_model, data, tmp_path):
    command = command_of(tmp_path, small_model, data, processes=2, learning_rate=1e30)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1
    assert "training.learning_rate" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()


SAID = {"text": "the disk is full", "explained": True}
ENDS = {
    "killed, others ended after it": ({0: -15, 1: -9}, {}, UserError, "process 2 of 2 was killed"),
    "killed, another had lost it": ({0: 1, 1: -9}, {0: SAID}, UserError, "process 2 of 2 was killed"),
    "crashed": ({0: -11, 1: -15}, {}, UserError, r"process 1 of 2 crashed \(SIGSEGV\)"),
    "out of memory": (
        {0: -15, 1: 137},
        {1: {"text": "bad_alloc", "explained": True}},
        MemoryError,
        "2 of 2: bad_alloc",
    ),
    "out of memory before it could say so": ({0: 137}, {}, MemoryError, "process 1 of 2: while it started"),
    "explained": ({0: -15, 1: 1}, {1: SAID}, UserError, "^the disk is full$"),
    "without a word": ({0: 3, 1: -15}, {}, UserError, "process 1 of 2 ended with exit status 3"),
}


@pytest.mark.parametrize(("failures", "told", "kind", "message"), ENDS.values(), ids=ENDS)
def test_what_is_said_of_ends_is_said_of_the_first_cause(failures, told, kind, message):
    with pytest.raises(kind, match=message):
        processes.explain(failures, told, 2)


def test_more_processes_than_gpus_are_refused_and_fsdp_without_any():
    processes.check_gpus(2, 2, True)
    processes.check_gpus(0, 2, False)
    with pytest.raises(UserError, match=r"training\.processes is 4, one a GPU, but GPUs are 2; set it to 2 or fewer"):
        processes.check_gpus(2, 4, False)
    with pytest.raises(UserError, match=r"training\.fsdp needs GPUs"):
        processes.check_gpus(0, 2, True)


REFUSED = {
    "unsloth": ({"trainer": "unsloth", "processes": 2}, "processes 2 is not for trainer unsloth"),
    "batches that trl cannot share": (
        {"trainer": "trl", "processes": 3},
        "make gradient_accumulation_steps a multiple",
    ),
    "a loss that trl serves": ({"loss_type": "aot", "processes": 3}, "make gradient_accumulation_steps a multiple"),
    "fsdp without trl": ({"fsdp": True, "processes": 2}, "fsdp is for trainer trl alone: shared_prompt reads whole"),
    "fsdp in one process": ({"trainer": "trl", "fsdp": True}, "fsdp divides the model among processes, and there is 1"),
    "fsdp in four bits": (
        {"trainer": "trl", "fsdp": True, "processes": 2, "load_in_4bit": True},
        "fsdp cannot divide weights that are held in 4 bits",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_divided_is_refused(settings, message):
    assert message in division.fault(SETTINGS | settings)


def test_what_can_be_divided_is_not():
    assert division.fault(SETTINGS) is None
    assert division.fault(SETTINGS | {"processes": 3}) is None
    assert division.fault(SETTINGS | {"trainer": "trl", "processes": 4, "fsdp": True}) is None
