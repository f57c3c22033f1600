"""Training on a small model: that it trains on what it should, and that it stops where it must."""

import importlib.util
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dpo import chat, training_health
from dpo import trainer as trainers
from dpo.cli import UserError
from dpo.layouts import Pair
from dpo.models import completion_logps, load_model
from dpo.policy import load_policy
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


def compute_reference(folder, model, rows, **settings):
    """Write rows and their reference log-probabilities into `folder`; return the finished process."""
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {key: (SETTINGS | settings)[key] for key in ("bf16", "load_in_4bit", "max_length")}
    command = [sys.executable, str(SCRIPT.with_name("compute_reference_logps.py")), "--train", folder / "train.jsonl"]
    command += ["--model", model, "--settings", json.dumps(settings), "--logps", folder / "logps.jsonl"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def prepare(folder, model, rows, **settings):
    """Write what training reads into `folder`; return how to start it, as arguments of `subprocess.run`."""
    reference = compute_reference(folder, model, rows, **settings)
    assert reference.returncode == 0, reference.stderr
    command = [sys.executable, SCRIPT, "--train", folder / "train.jsonl", "--model", model]
    command += ["--settings", json.dumps(SETTINGS | settings), "--checkpoints", folder / "checkpoints"]
    command += ["--adapter", folder / "adapter", "--log", folder / "training.jsonl"]
    if (SETTINGS | settings)["trainer"] == "shared_prompt":
        command += ["--reference", folder / "logps.jsonl"]
    return {
        "args": list(map(str, command)), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
    }  # fmt: skip


def train(folder, model, rows, **settings):
    """Run both programs on rows; return the finished training. Writes into `folder`."""
    return subprocess.run(**prepare(folder, model, rows, **settings))


def log_of(folder):
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def adapter_of(folder):
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


@pytest.mark.parametrize("bf16", ["auto", True, False])
def test_training_learns_and_logs_every_step_in_full(bf16, small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, max_steps=12, learning_rate=5e-3, bf16=bf16)
    assert result.returncode == 0, result.stderr
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == list(range(1, 13))
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert log[-1]["loss"] < log[0]["loss"] - 0.05
    assert log[-1]["rewards/margins"] > 0
    keys = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"}
    assert keys | {"learning_rate", "grad_norm", "seconds"} <= set(log[-1])
    assert log[-1]["final_loss"] == pytest.approx(log[-1]["final_loss_float32"], rel=0.02)
    assert log[-1]["final_loss"] < log[0]["loss"]
    assert "minutes left" in result.stdout


def test_all_trainers_make_the_same_adapter(small_model, rows, tmp_path):
    """From the same start, in float32, to a few digits."""
    logs, adapters = {}, {}
    for trainer in ("shared_prompt", "trl", "unsloth"):
        (tmp_path / trainer).mkdir()
        parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
        settings = {"trainer": trainer, "bf16": False, "max_steps": 6, "learning_rate": 1e-3} | parts
        result = train(tmp_path / trainer, small_model, rows, **settings)
        assert result.returncode == 0, result.stderr
        assert "instead of" not in result.stdout
        logs[trainer], adapters[trainer] = log_of(tmp_path / trainer), adapter_of(tmp_path / trainer)
    for trainer in ("trl", "unsloth"):
        for ours, theirs in zip(logs["shared_prompt"], logs[trainer], strict=True):
            for key in ("loss", "rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), (trainer, key, ours["step"])
        assert torch.nn.functional.cosine_similarity(adapters["shared_prompt"], adapters[trainer], dim=0) > 0.9999
    assert {"entropy", "mean_token_accuracy", "logits/chosen"} <= set(logs["trl"][0])
    for key in ("entropy", "mean_token_accuracy", "logits/chosen"):
        assert logs["shared_prompt"][-1][key] == pytest.approx(logs["trl"][-1][key], rel=1e-3)


@pytest.mark.parametrize("trainer", ["shared_prompt", "unsloth"])
def test_four_bit_training_runs_on_the_cpu(trainer, small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, load_in_4bit=True, trainer=trainer)
    assert result.returncode == 0, result.stderr
    if trainer == "unsloth":
        assert "4-bit = True" in result.stdout
    losses = [entry["loss"] for entry in log_of(tmp_path)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert adapter_of(tmp_path).isfinite().all()


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({"hidden_act": "gelu"}, {}, "its activation is gelu, not silu"),
        ({}, {"loss_type": "aot"}, "loss type aot compares the pairs of a batch"),
    ],
)
def test_what_the_shared_layout_cannot_serve_is_trained_by_trl(change, settings, reason, small_model, rows, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    result = train(tmp_path, model, rows, learning_rate=1e-3, **settings)
    assert result.returncode == 0, result.stderr
    assert f"trainer: trl instead of shared_prompt, since {reason}" in result.stdout
    assert ((tmp_path / "logps.jsonl").read_text() == "") == bool(change)
    log = log_of(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"]
    if not change and not torch.cuda.is_available():
        # On a CPU `bf16: auto` is float32 then: PEFT's layers would round the adapter away.
        assert log[-1]["final_loss"] == pytest.approx(log[-1]["final_loss_float32"], rel=1e-5)


def test_a_training_that_turns_non_finite_names_the_setting_and_leaves_no_adapter(small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, learning_rate=1e30)
    assert result.returncode == 1
    assert "training.learning_rate" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()


def test_reference_log_probabilities_of_other_pairs_are_refused(small_model, rows, tmp_path):
    assert compute_reference(tmp_path, small_model, rows[:3]).returncode == 0
    logps = (tmp_path / "logps.jsonl").read_text()
    compute_reference(tmp_path, small_model, rows)
    (tmp_path / "logps.jsonl").write_text(logps)
    command = [sys.executable, SCRIPT, "--train", tmp_path / "train.jsonl", "--model", small_model, "--settings"]
    command += [
        json.dumps(SETTINGS),
        "--reference",
        tmp_path / "logps.jsonl",
        "--checkpoints",
        tmp_path / "checkpoints",
    ]
    command += ["--adapter", tmp_path / "adapter", "--log", tmp_path / "training.jsonl"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 1
    assert "are of other pairs; delete results/base/reference_logps" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("max_length", [512, 100])
def test_tokens_and_reference_are_trls_own(max_length, small_model, shipped, tmp_path):
    """Those that training uses are those of TRL's own trainer, and those that pairs are scored with."""
    settings = SETTINGS | {"trainer": "trl", "bf16": False, "max_length": max_length}
    policy, tokenizer = load_policy(small_model, settings)
    trainer = trainers.make_trl_trainer(policy, tokenizer, shipped, settings, tmp_path / "checkpoints")
    prepared = trainer.train_dataset.to_list()
    assert len(prepared) == 60
    pairs = [Pair(row["prompt"], *(row[side][0]["content"] for side in ("chosen", "rejected"))) for row in shipped]
    assert Tokenisation(tokenizer, {"max_length": 512, "max_prompt_length": 256}).measure(pairs) == [
        Lengths(*(len(row[ids]) for ids in ("prompt_ids", "chosen_ids", "rejected_ids"))) for row in prepared
    ]
    result = compute_reference(tmp_path, small_model, shipped, bf16=False, max_length=max_length)
    assert result.returncode == 0, result.stderr
    reference = [json.loads(line) for line in (tmp_path / "logps.jsonl").read_text().splitlines()]
    assert [line["id"] for line in reference] == [row["id"] for row in shipped]
    for pair, row, logps in zip(shipped, prepared, reference, strict=True):
        ours = chat.pair_ids(tokenizer, pair, max_length)
        padded = trainer.data_collator([row])
        for number, side in enumerate(("chosen", "rejected")):
            cut = padded["input_ids"][number, : padded["attention_mask"][number].sum()].tolist()
            assert cut == ours["prompt_ids"] + ours[f"{side}_ids"]
            assert logps[f"ref_{side}_logps"] == pytest.approx(row[f"ref_{side}_logps"], rel=1e-4)
    if max_length == 512:
        sequences = [(row["prompt_ids"], row["chosen_ids"]) for row in prepared]
        logps = [found.total for found in completion_logps(load_model(small_model), sequences)]
        assert logps == pytest.approx([row["ref_chosen_logps"] for row in prepared], rel=1e-4)


@pytest.fixture(scope="module")
def program():
    """train_dpo.py as a module."""
    spec = importlib.util.spec_from_file_location("train_dpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reward", [0.0, 0.019, -0.019])
def test_first_rewards_of_zero_pass(program, reward):
    program.check_first_rewards({"rewards/chosen": reward, "rewards/rejected": -reward})


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("reward", [0.03, -0.5, math.nan])
def test_any_other_first_rewards_stop(program, reward, side):
    with pytest.raises(UserError, match=f"the {side} answers' mean implicit reward is"):
        program.check_first_rewards({"rewards/chosen": 0.0, "rewards/rejected": 0.0} | {f"rewards/{side}": reward})


def checkpoint(program, folder, step):
    """A checkpoint as a training leaves it."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (path / "training_args.bin").write_bytes(b"a pickle that holds a hub's token")
    program.seal(path)
    return path


def test_checkpoints_are_kept_for_the_same_settings_and_cleared_for_others(program, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.1}}) is None
    for step in (80, 100):
        checkpoint(program, folder, step)
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.1}}) == str(folder / "checkpoint-100")
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.2}}) is None
    assert "belong to other settings or data" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["stamp.json"]


def test_a_damaged_stamp_claims_nothing(program, tmp_path):
    folder = tmp_path / "checkpoints"
    program.claim_checkpoints(folder, {"settings": {"beta": 0.1}})
    checkpoint(program, folder, 20)
    (folder / "stamp.json").write_text('{"settings": ')
    assert program.claim_checkpoints(folder, {"settings": {"beta": 0.1}}) is None
    assert [path.name for path in folder.iterdir()] == ["stamp.json"]


def unfinished(path):
    (path / "sha256.json").unlink()


def flipped_bit(path):
    content = bytearray((path / "adapter_model.safetensors").read_bytes())
    content[100] ^= 1
    (path / "adapter_model.safetensors").write_bytes(content)


def lost_file(path):
    (path / "adapter_model.safetensors").unlink()


def planted_file(path):
    (path / "optimizer.pt").write_bytes(b"a pickle of a stranger")


def cut_seal(path):
    (path / "sha256.json").write_text((path / "sha256.json").read_text()[:20])


@pytest.mark.parametrize("damage", [unfinished, flipped_bit, lost_file, planted_file, cut_seal])
def test_a_checkpoint_that_is_not_whole_is_passed_over_for_the_one_before(damage, program, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    program.claim_checkpoints(folder, {})
    whole = checkpoint(program, folder, 20)
    damage(checkpoint(program, folder, 40))
    assert program.claim_checkpoints(folder, {}) == str(whole)
    assert "checkpoint-40 is not whole: removed" in capsys.readouterr().out
    assert not (folder / "checkpoint-40").exists()
    assert not (whole / "training_args.bin").exists()


def address_space(process):
    """Return the most bytes of addresses that a process had, followed to its end."""
    most = 0
    while process.poll() is None:
        with suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, *(1024 * int(peak) for peak in re.findall(r"VmPeak:\s+(\d+)", status)), 0)
        time.sleep(0.02)
    return most


def test_out_of_memory_it_goes_on_with_half_the_pairs_at_once_and_comes_to_the_same(small_model, shipped, tmp_path):
    """The limit is what the training needs with 32 pairs at once, less a quarter of what it takes while training."""
    rows = shipped[:32]
    many = {"per_device_train_batch_size": 32, "max_steps": 2, "learning_rate": 1e-3}
    (tmp_path / "free").mkdir()
    free = subprocess.Popen(**prepare(tmp_path / "free", small_model, rows, **many))
    most = address_space(free)
    few = subprocess.Popen(**prepare(tmp_path, small_model, rows, **many | {"per_device_train_batch_size": 1}))
    least = address_space(few)
    assert free.returncode == few.returncode == 0
    shutil.rmtree(tmp_path / "adapter")
    limit = most - (most - least) // 3
    command = prepare(tmp_path, small_model, rows, **many)
    limited = subprocess.run(**command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert limited.returncode == 0, limited.stderr
    assert "warning: memory ran out with 32 pairs at once; going on with 16" in limited.stdout
    last = log_of(tmp_path)[-1]
    assert last["pairs_at_once"] in (16, 8, 4, 2, 1)
    assert last["loss"] == pytest.approx(log_of(tmp_path / "free")[-1]["loss"], rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(adapter_of(tmp_path), adapter_of(tmp_path / "free"), dim=0)
    assert cosine > 0.9999
    [finding] = [found for found in training_health.find(log_of(tmp_path)) if found["name"] == "out of memory"]
    assert f"with {last['pairs_at_once']} at once" in finding["what"]


def test_a_training_that_changes_nothing_is_refused(small_model, rows, tmp_path):
    result = train(tmp_path, small_model, rows, max_steps=1, warmup_steps=5)
    assert result.returncode == 1
    assert "training changed nothing: in 1 steps, the first 5 to warm up" in result.stderr
    assert "training.max_steps" in result.stderr
    assert not (tmp_path / "adapter").exists()
