"""Accuracies, margins and calibration of pairs whose log-probabilities are known."""

import json
import math
import subprocess
import sys

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpo import preferences
from dpo.artifacts import read_jsonl, write_jsonl
from workflow import PROJECT


def pair(chosen, rejected, chosen_tokens=10, rejected_tokens=10):
    return {
        "id": "a", "chosen_logps": chosen, "rejected_logps": rejected,
        "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens,
    }  # fmt: skip


def test_totals_favour_the_shorter_answer_and_means_do_not():
    summary = preferences.summarize([pair(-100.0, -60.0, 100, 20), pair(-100.0, -60.0, 100, 20)], None, None)
    assert summary["accuracy_total"]["value"] == 0
    assert summary["accuracy_per_token"]["value"] == 1
    assert summary["margin_total"]["value"] == -40
    assert summary["margin_per_token"]["value"] == pytest.approx(2.0)


def test_the_implicit_reward_is_relative_to_the_reference():
    rows, reference = [pair(-90.0, -65.0)], [pair(-100.0, -60.0)]
    summary = preferences.summarize(rows, reference, 0.1)
    assert summary["reward_margin"]["value"] == pytest.approx(1.5)
    assert summary["accuracy_implicit_reward"]["value"] == 1
    assert preferences.summarize(reference, reference, 0.1)["accuracy_implicit_reward"]["value"] == 0


def test_calibration_of_a_model_that_is_as_right_as_it_is_sure():
    sure = math.log(3)  # sigmoid is 0.75
    found = preferences.calibration([sure, sure, sure, -sure])
    assert found["confidence"] == pytest.approx(0.75)
    assert found["expected_error"] == pytest.approx(0.0)
    assert [part["n"] for part in found["bins"]] == [4]


def test_calibration_of_a_model_that_is_sure_and_wrong():
    found = preferences.calibration([-10.0, -1000.0])
    assert found["accuracy"] == 0
    assert found["expected_error"] == pytest.approx(1.0, abs=1e-3)


def test_pairs_are_chosen_evenly():
    assert preferences.choose_pairs(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert preferences.choose_pairs([1, 2], 5) == [1, 2]


def test_the_program_measures_neutral_text_and_pairs_of_a_base_model_and_a_run(small_model, tmp_path):
    """The run's adapter is zero, so that it is the base model: no KL, no reward, the same perplexity."""
    model = AutoModelForCausalLM.from_pretrained(small_model)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    files = {"train": "preferences", "heldout": "heldout"}
    for name, source in files.items():
        rows = read_jsonl(PROJECT / f"data/{source}.jsonl")[:3]
        write_jsonl(tmp_path / f"{name}.jsonl", [conversational(row) for row in rows])
    found = {}
    for variant, extra in {
        "base": [],
        "run": ["--adapter", tmp_path / "adapter", "--reference", tmp_path / "base.json"],
    }.items():
        command = [sys.executable, "scripts/score_preferences.py", "--model", small_model, *extra]
        command += [part for name in files for part in (f"--{name}", tmp_path / f"{name}.jsonl")]
        command += ["--neutral", "data/neutral.jsonl", "--settings", json.dumps({"beta": 0.1, "max_pairs": 2})]
        command += ["--preferences", tmp_path / f"{variant}.json"]
        result = subprocess.run(list(map(str, command)), cwd=PROJECT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found[variant] = json.loads((tmp_path / f"{variant}.json").read_text())
    base, run = found["base"], found["run"]
    assert len(base["neutral"]["texts"]) == 24
    assert run["neutral"]["perplexity"] == pytest.approx(base["neutral"]["perplexity"], rel=1e-5)
    assert run["neutral"]["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert "kl" not in base["neutral"]
    for name in files:
        assert run[name]["accuracy_total"]["n"] == 2
        assert run[name]["reward_margin"]["value"] == pytest.approx(0, abs=1e-3)
        assert "reward_margin" not in base[name]


def conversational(row):
    """A committed pair as build_dataset writes it."""
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"id": row["id"], "prompt": [{"role": "user", "content": row["prompt"]}]} | sides
