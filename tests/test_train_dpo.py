"""Training on a small model: that it trains on what it should, and that it stops where it must."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest
import yaml

from dpo import chat
from dpo.cli import UserError
from dpo.layouts import Pair
from dpo.models import completion_logps, load_model
from dpo.tokenisation import Lengths, Tokenisation
from preference_data import build
from workflow import PROJECT

SCRIPT = PROJECT / "scripts/train_dpo.py"
SETTINGS = yaml.safe_load((PROJECT / "config.yaml").read_text())["training"] | {
    "max_length": 512,
    "max_steps": 3,
    "logging_steps": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
}


@pytest.fixture(scope="module")
def shipped(small_model, tmp_path_factory):
    """The project's training and held-out pairs, as the workflow builds them."""
    files = [PROJECT / "data" / name for name in ("preferences.jsonl", "heldout.jsonl")]
    return build(tmp_path_factory.mktemp("data"), small_model, *files).pairs


@pytest.fixture(scope="module")
def rows(shipped):
    return shipped[:4]


def train(folder, model, rows, **settings):
    """Run the program on rows; return the finished process. Writes into `folder`."""
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(SCRIPT), "--train", str(data), "--model", str(model)]
    command += ["--settings", json.dumps(SETTINGS | settings), "--checkpoints", str(folder / "checkpoints")]
    command += ["--adapter", str(folder / "adapter"), "--log", str(folder / "training.jsonl")]
    return subprocess.run(command, capture_output=True, text=True)


def test_training_learns_and_logs_every_step_in_full(small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, max_steps=12, learning_rate=5e-3)
    assert result.returncode == 0, result.stderr
    log = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(1, 13))
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
    assert log[-1]["rewards/margins"] > 0
    keys = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"}
    assert keys | {"learning_rate", "grad_norm", "seconds"} <= set(log[-1])
    assert "minutes left" in result.stdout


def test_four_bit_training_runs_on_the_cpu(small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, load_in_4bit=True)
    assert result.returncode == 0, result.stderr
    assert "4-bit = True" in result.stdout
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()


def test_a_training_that_turns_non_finite_names_the_setting_and_leaves_no_adapter(small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, learning_rate=1e30)
    assert result.returncode == 1
    assert "training.learning_rate" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()


def test_tokens_and_reference_are_trls_own(small_model, shipped, tmp_path):
    """The log-probabilities that pairs are scored with, and the lengths in the audit, are those that training uses."""
    code = f"""
import json, sys
sys.path.insert(0, {str(PROJECT / "scripts")!r})
import train_dpo
settings = json.loads(sys.argv[1])
policy, tokenizer = train_dpo.load_policy(sys.argv[2], settings)
trainer = train_dpo.make_trainer(policy, tokenizer, json.loads(sys.argv[3]), settings, sys.argv[4])
columns = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]
print(json.dumps(trainer.train_dataset.select_columns(columns).to_list()))
"""
    command = [sys.executable, "-c", code, json.dumps(SETTINGS), str(small_model), json.dumps(shipped), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    prepared = json.loads(result.stdout.splitlines()[-1])
    assert len(prepared) == 60
    tokenizer = chat.load_tokenizer(small_model)
    pairs = [Pair(row["prompt"], *(row[side][0]["content"] for side in ("chosen", "rejected"))) for row in shipped]
    assert Tokenisation(tokenizer, {"max_length": 512, "max_prompt_length": 256}).measure(pairs) == [
        Lengths(*(len(row[ids]) for ids in ("prompt_ids", "chosen_ids", "rejected_ids"))) for row in prepared
    ]
    for side in ("chosen", "rejected"):
        sequences = [
            (chat.prompt_ids(tokenizer, row["prompt"]), chat.completion_ids(tokenizer, row["prompt"], row[side]))
            for row in shipped
        ]
        assert sequences == [(row["prompt_ids"], row[f"{side}_ids"]) for row in prepared]
        logps = [found.total for found in completion_logps(load_model(small_model), sequences)]
        assert logps == pytest.approx([row[f"ref_{side}_logps"] for row in prepared], rel=1e-4)


@pytest.fixture(scope="module")
def program():
    """train_dpo.py as a module; unsloth is imported only by its functions."""
    spec = importlib.util.spec_from_file_location("train_dpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("loss", [math.log(2), math.log(2) + 0.009, math.log(2) - 0.009])
def test_a_first_loss_of_ln_2_passes(program, loss):
    program.check_first_loss(loss)


@pytest.mark.parametrize("loss", [0.6, 0.71, math.nan])
def test_any_other_first_loss_stops(program, loss):
    with pytest.raises(UserError, match="not ln 2"):
        program.check_first_loss(loss)


def test_checkpoints_are_kept_for_the_same_settings_and_cleared_for_others(program, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.1}}) is None
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-40").mkdir()
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.1}}) == str(folder / "checkpoint-40")
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.2}}) is None
    assert "belong to other settings or data" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["stamp.json"]
