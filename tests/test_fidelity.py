"""What is left of the training at each rung, and which files must not ship, on figures that can be checked by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dpo import divergence, fidelity, statistics
from workflow import PROJECT

LIMITS = {"merged_kept": 0.97, "merged_kl": 1e-4, "quantized_kept": 0.9}
RANDOM = np.random.default_rng(0)
ADVANCES = RANDOM.normal(5, 2, size=40)  # nats by which training puts the better answer ahead, pair by pair


def rows(margins):
    """Rows of pairs whose chosen answer is so many nats ahead of the rejected one."""
    return [
        {"id": str(number), "chosen_logps": -50.0, "rejected_logps": -50.0 - float(margin)}
        for number, margin in enumerate(margins)
    ]


def rung(name, above, share, noise=0.0, kl=None):
    """A rung that keeps a share of what training taught, and whose base model is off by the same noise."""
    off = RANDOM.normal(0, noise, size=40) if noise else np.zeros(40)
    return {
        "name": name,
        "above": above,
        "pairs": rows(share * ADVANCES + off),
        "base_pairs": rows(off),
        "neutral": {"perplexity": {"value": 60.0, "error": 4.0, "tokens": 1000}, "kl": kl and {"mean": kl}},
        "token_ids": {"prompts": 20, "equal": 20, "first_other": None},
        "file": {"bits_per_weight": 6.17},
    }


def ladder(merged=0.99, quantized=0.95, kl=1e-5):
    rungs = [
        rung("adapter", None, 1.0),
        rung("merged", "adapter", merged, kl=kl),
        rung("f16", "merged", merged, kl=1e-6),
        rung("q4_k_m", "f16", quantized, noise=8.0, kl=0.02),
    ]
    return fidelity.build_ladder(rungs, rows(np.zeros(40)), beta=0.1)


def failed(found):
    return [(gate["rung"], gate["what"]) for gate in found if gate["met"] is False]


def test_margins_are_in_units_of_the_reward_and_shares_are_of_the_adapters():
    found = {row["name"]: row for row in ladder()}
    assert found["adapter"]["margin"]["value"] == pytest.approx(0.1 * ADVANCES.mean())
    assert found["adapter"]["kept"]["value"] == 1
    assert found["adapter"]["step"] is None
    assert found["merged"]["kept"]["value"] == pytest.approx(0.99)
    assert found["merged"]["step"]["value"] == pytest.approx(-0.01 * 0.1 * ADVANCES.mean())
    assert found["merged"]["step_kept"]["value"] == pytest.approx(-0.01)
    assert found["f16"]["step"]["value"] == pytest.approx(0)
    assert "pairs" not in found["merged"]


def test_noise_that_the_base_has_too_does_not_count_unless_measured_from_float32():
    row = ladder(quantized=0.95)[-1]
    assert row["kept"]["value"] == pytest.approx(0.95)
    width = {key: row[key]["high"] - row[key]["low"] for key in ("kept", "kept_from_float32")}
    assert width["kept"] < 0.01 < 0.5 < width["kept_from_float32"]


def test_the_gates_pass_what_keeps_enough():
    gates = fidelity.check_gates(ladder(), LIMITS, ["q4_k_m"])
    assert len(gates) == 3 + 4
    assert all(gate["met"] for gate in gates)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"merged": 0.96}, ("merged", "share of the adapter's margin kept")),
        ({"quantized": 0.89}, ("q4_k_m", "share of the adapter's margin kept")),
        ({"kl": 2e-4}, ("merged", "mean KL divergence from the adapter in float32")),
    ],
)
def test_a_gate_names_the_rung_that_lost_too_much(change, expected):
    assert failed(fidelity.check_gates(ladder(**change), LIMITS, ["q4_k_m"])) == [expected]


def test_one_prompt_with_other_token_ids_fails():
    rungs = ladder()
    rungs[2]["token_ids"]["equal"] = 19
    assert [name for name, _ in failed(fidelity.check_gates(rungs, LIMITS, ["q4_k_m"]))] == ["f16"]


def test_a_training_that_taught_nothing_has_no_shares_and_fails_no_margin_gate():
    rungs = [rung("adapter", None, 0.0, noise=1.0), rung("merged", "adapter", 0.0, kl=1e-5)]
    rungs[0]["pairs"] = rows(ADVANCES - ADVANCES.mean())
    found = fidelity.build_ladder(rungs, rows(np.zeros(40)), beta=0.1)
    assert found[0]["kept"] is None
    assert found[1]["step_kept"] is None
    gates = fidelity.check_gates(found, LIMITS, [])
    assert [gate["met"] for gate in gates] == [None, True, True, True]


def check(tmp_path, rungs):
    """Run check_fidelity.py on a ladder."""
    (tmp_path / "fidelity.json").write_text(json.dumps({"rungs": rungs}))
    command = [sys.executable, str(PROJECT / "scripts/check_fidelity.py"), "--fidelity", tmp_path / "fidelity.json"]
    command += ["--types", "q4_k_m", "--settings", json.dumps(LIMITS), "--check", tmp_path / "check.json"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_a_failed_gate_stops_with_rung_figure_limit_and_cause(tmp_path):
    result = check(tmp_path, ladder(quantized=0.85))
    assert result.returncode == 1
    assert "q4_k_m: share of the adapter's margin kept is 0.85, the limit is 0.9; likely cause: " in result.stderr
    assert "6.17 bits a weight" in result.stderr and "export.types" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "check.json").exists()


def test_gates_that_pass_are_written_down(tmp_path):
    result = check(tmp_path, ladder())
    assert result.returncode == 0, result.stderr
    assert {gate["met"] for gate in json.loads((tmp_path / "check.json").read_text())["gates"]} == {True}


def test_divergence_is_that_of_the_textbook():
    this, other = (torch.tensor([p, [0.25, 0.25, 0.5]]).log() for p in ([0.7, 0.2, 0.1], [0.5, 0.4, 0.1]))
    found = divergence.score_text([0, 1, 2], this, other)
    assert found.nll == pytest.approx([-np.log(0.2), -np.log(0.5)], abs=1e-6)
    assert found.kl == pytest.approx([0.5 * np.log(0.5 / 0.7) + 0.4 * np.log(2), 0.0], abs=1e-6)
    assert found.same_top == [True, True]
    assert divergence.score_text([0, 1], this[:1], other[:1].flip(-1)).same_top == [False]


def test_perplexity_and_its_error_are_those_of_llama_perplexity():
    nlls = [3.0, 5.0, 4.0, 4.5]
    found = divergence.perplexity(nlls)
    count, mean = len(nlls), np.mean(nlls)
    assert found["value"] == pytest.approx(np.exp(mean))
    assert found["error"] == pytest.approx(np.exp(mean) * np.sqrt((np.mean(np.square(nlls)) - mean**2) / (count - 1)))


def test_the_ratio_of_two_means_has_an_interval_that_covers_it():
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        taught = random.normal(5, 2, size=40)
        found = statistics.ratio(list(0.9 * taught + random.normal(0, 1, size=40)), list(taught))
        covered += found["low"] <= 0.9 <= found["high"]
    assert 88 <= covered <= 100
