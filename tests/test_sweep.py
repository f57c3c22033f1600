"""Sweeps: how runs are named and refused, how they are compared, and what that takes in the real Snakemake."""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml

import slurm_cluster
from dpo import sweep, sweep_charts
from dpo.artifacts import read_json
from workflow import PROJECT, copy_project, edit_config, jobs, planned, snakemake

SWEPT_JOBS = {
    "train_dpo({0})", "generate_responses({0})", "score_responses({0})", "score_preferences({0})", "merge_adapter({0})",
    "convert_to_gguf({0})", "quantize_gguf({0}, q4_k_m)", "score_gguf({0}, f16)", "score_gguf({0}, q4_k_m)",
    "measure_fidelity({0})", "summarize_run({0})",
}  # fmt: skip
TOGETHER = {"summarize", "render_report", "render_model_card(beta-0.1)", "record_provenance"}


def of(run):
    """The jobs of one swept run."""
    return {job.format(run) for job in SWEPT_JOBS}


def measured(value, **others):
    """Measures of a run, all of them one value but for `others`; time without an interval, as it is."""
    values = dict.fromkeys(sweep.MEASURES, value) | others
    found = {name: {"value": one, "low": one - 1, "high": one + 1} for name, one in values.items() if one is not None}
    found["training_seconds"] = {"value": values["training_seconds"]}
    return found


def make_runs(measures):
    """Runs named after beta and seed, from (beta, seed) → measures."""
    return {
        f"beta-{beta}-seed-{seed}": {"settings": {"beta": beta, "seed": seed, "r": 16}, "measures": found}
        for (beta, seed), found in measures.items()
    }


# Three seeds each, whose spread is 0.1 around the value.
def seeded(values, **others):
    return make_runs(
        {
            (beta, seed): measured(value + noise, **{key: by[beta] + noise for key, by in others.items()})
            for beta, value in values.items()
            for seed, noise in ((1, -0.1), (2, 0.0), (3, 0.1))
        }
    )


def test_groups_are_the_runs_that_differ_in_their_seed_alone_with_student_s_interval():
    groups = sweep.group_runs(seeded({0.1: 1.0, 0.5: 2.0}), ["beta", "seed"])
    assert [group["settings"] for group in groups] == [{"beta": 0.1}, {"beta": 0.5}]
    assert groups[0]["runs"] == ["beta-0.1-seed-1", "beta-0.1-seed-2", "beta-0.1-seed-3"]
    # The pooled deviation is 0.1 with 4 degrees of freedom, and t(0.975, 4) = 2.776 (any table).
    half = 2.776 * 0.1 / 3**0.5
    assert groups[1]["measures"]["kl"] == {
        "value": pytest.approx(2.0),
        "low": pytest.approx(2.0 - half, abs=1e-4),
        "high": pytest.approx(2.0 + half, abs=1e-4),
        "n": 3,
    }


def test_seeds_that_agree_have_no_spread_and_a_chart_with_readable_ticks():
    groups = sweep.group_runs(
        make_runs({(beta, seed): measured(0.8) for beta in (0.1, 0.5) for seed in (1, 2, 3)}), ["beta", "seed"]
    )
    assert groups[0]["measures"]["accuracy"] == {"value": 0.8, "low": 0.8, "high": 0.8, "n": 3}
    ticks = re.findall(r">([-\d.]+)</text>", sweep_charts.measure_chart(groups, "beta", "accuracy", "Accuracy"))
    assert all(len(tick) <= 5 for tick in ticks), ticks


def test_without_seeds_a_group_has_its_run_s_own_interval_and_time_none():
    [group] = sweep.group_runs(make_runs({(0.1, 1): measured(5.0)}), ["beta"])
    assert group["measures"]["kl"] == {"value": 5.0, "low": 4.0, "high": 6.0, "n": 1}
    assert group["measures"]["training_seconds"] == {"value": 5.0, "n": 1}
    assert sweep.pooled([group], "kl") is None


def test_what_a_run_lacks_its_group_lacks():
    runs = make_runs({(0.1, 1): measured(1.0), (0.1, 2): measured(1.0, kept=None)})
    [group] = sweep.group_runs(runs, ["beta", "seed"])
    assert "kept" not in group["measures"] and "kl" in group["measures"]


def test_a_difference_is_clear_beyond_what_seeds_explain():
    # t(1 - 0.025 / 2, 4) = 3.495; times 0.1 * sqrt(2 / 3): 0.2854.
    for gap, expected in ((0.28, 0), (0.29, 1), (-0.29, -1), (-0.28, 0)):
        one, other = groups = sweep.group_runs(seeded({0.1: 1.0, 0.5: 1.0 - gap}), ["beta", "seed"])
        assert sweep.difference(groups, one, other, "kl", comparisons=2) == expected


def test_the_frontier_is_what_no_other_beats():
    points = [(0.1, 1.0), (0.2, 3.0), (0.3, 2.0), (0.4, 4.0), (0.4, 3.5)]
    groups = [{"measures": {"kl": {"value": kl}, "margin": {"value": margin}}} for kl, margin in points]
    assert sweep.frontier(groups) == [0, 1, 3]


@pytest.mark.parametrize(
    ("kl", "accuracy", "verdict"),
    [
        ({0.01: 1, 0.1: 5, 0.5: 9}, {0.01: 5, 0.1: 5, 0.5: 5}, "holds for"),
        ({0.01: 9, 0.1: 5, 0.5: 1}, {0.01: 5, 0.1: 5, 0.5: 5}, "holds in part"),
        ({0.01: 9, 0.1: 5, 0.5: 1}, {0.01: 9, 0.1: 5, 0.5: 5}, "does not hold"),
        ({0.01: 5, 0.1: 5, 0.5: 5}, {0.01: 5, 0.1: 5, 0.5: 9}, "does not hold"),
    ],
)
def test_the_notebook_s_advice_is_held_against_the_runs(kl, accuracy, verdict):
    runs = seeded(dict.fromkeys(kl, 0.0), kl=kl, accuracy=accuracy)
    [sentence] = sweep.compare(runs, ["beta", "seed"])["advice"].values()
    assert verdict in sentence
    if kl[0.01] == 9:
        assert "with 0.5, which it calls extreme, the model moved less than with 0.1" in sentence


def test_advice_is_not_judged_from_one_seed_a_value_nor_without_its_own_value():
    one_seed = make_runs({(beta, 1): measured(beta) for beta in (0.01, 0.1, 0.5)})
    [sentence] = sweep.compare(one_seed, ["beta"])["advice"].values()
    assert "cannot be told from one seed" in sentence
    assert sweep.compare(seeded({0.01: 1.0, 0.5: 2.0}), ["beta", "seed"])["advice"] == {}


def test_advice_is_given_for_each_combination_of_the_other_settings():
    runs = seeded({0.1: 1.0, 0.5: 2.0})
    wide = {
        f"r-{r}-{name}": run | {"settings": run["settings"] | {"r": r}} for r in (8, 16) for name, run in runs.items()
    }
    assert list(sweep.compare(wide, ["r", "beta", "seed"])["advice"]) == ["r 8", "r 16"]


def test_charts_show_every_group_and_escape_what_they_show():
    runs = make_runs({(beta, 1): measured(1.0) for beta in ("<b>", 0.1)})
    groups = sweep.compare(runs, ["beta"])["groups"]
    chart = sweep_charts.measure_chart(groups, "beta", "kl", "KL")
    assert chart.count("<circle") == 2 and chart.count('class="whisker"') == 2
    assert "<b>" not in chart and "&lt;b&gt;" in chart
    assert sweep_charts.measure_chart(groups[1:], "beta", "training_seconds", "Time").count("whisker") == 0
    assert sweep_charts.frontier_chart(groups[1:]).count("<circle") == 1


def with_sweep(folder, **swept):
    """Put a sweep into a copied project's config."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"sweep": swept}, sort_keys=False))


@pytest.fixture
def fresh(tmp_path, small_model):
    """A project in which nothing has run."""
    copy_project(tmp_path / "project", small_model)
    return tmp_path / "project"


def test_a_sweep_trains_every_combination_and_ships_the_runs_alone(fresh):
    with_sweep(fresh, beta=[0.05, 0.5], load_in_4bit=[False], seed=[1, 2])
    found = planned(fresh)
    names = [f"beta-{beta}-load_in_4bit-false-seed-{seed}" for beta in (0.05, 0.5) for seed in (1, 2)]
    assert {job for job in found if job.startswith("train_dpo")} == {f"train_dpo({run})" for run in ["dpo", *names]}
    assert set().union(*map(of, names)) <= found
    shipping = ("judge_responses", "smoke_test_gguf", "check_fidelity", "render_model_card")
    assert not [job for job in found if job.startswith(shipping) and "(dpo" not in job]
    assert len([job for job in found if job.startswith("compute_reference_logps")]) == 1


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ({"betta": [0.1]}, "unknown key betta"),
        ({"beta": []}, "sweep.beta"),
        ({"beta": 0.1}, "sweep.beta"),
        ({"beta": [0.1, -1]}, "sweep.beta.1: -1 is less than or equal to the minimum of 0"),
        ({"beta": [0.1, 0.1]}, "sweep.beta"),
        ({"beta": ["5e-2"]}, "sweep.beta.0: '5e-2' is text"),
        ({"label_smoothing": [0.1]}, "run label_smoothing-0.1: loss_type sigmoid takes no label_smoothing"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(fresh, swept, message):
    with_sweep(fresh, **swept)
    result = snakemake(fresh, "--dry-run")
    assert result.returncode != 0 and message in result.stdout, result.stdout
    assert "Traceback" not in result.stdout


def test_a_run_that_config_does_not_have_is_named(fresh):
    result = snakemake(fresh, "--dry-run", "results/typo/adapter")
    assert result.returncode != 0 and "no run is called typo; config.yaml has dpo" in result.stdout


def test_a_swept_run_ships_where_it_also_stands_under_runs(fresh):
    with_sweep(fresh, beta=[0.05, 0.5])
    edit_config(fresh, "runs", **{"beta-0.5": {"beta": 0.5}})
    found = planned(fresh)
    assert {"render_model_card(beta-0.5)", "smoke_test_gguf(beta-0.5)", "summarize_run(beta-0.5)"} <= found
    assert "smoke_test_gguf(beta-0.05)" not in found
    edit_config(fresh, "runs", **{"beta-0.5": {"beta": 0.4}})
    result = snakemake(fresh, "--dry-run")
    assert (
        result.returncode != 0
        and "runs.beta-0.5: the sweep has a run of this name with other settings" in result.stdout
    )


def sweep_two_values(folder):
    """Put a sweep of two runs into a copied project's config; one of them ships."""
    edit_config(folder, "runs", dpo=None, **{"beta-0.1": {"beta": 0.1}})
    with_sweep(folder, beta=[0.1, 0.5])


def check_two_values(folder):
    """Assert that the sweep of `sweep_two_values` is compared, grows by what is new, and loses nothing."""
    summary = read_json(folder / "results/summary.json")
    assert list(summary["runs"]) == list(summary["verdicts"]) == ["beta-0.1"]
    assert list(summary["sweep"]["runs"]) == ["beta-0.1", "beta-0.5"]
    assert [group["settings"] for group in summary["sweep"]["groups"]] == [{"beta": 0.1}, {"beta": 0.5}]
    # So few pairs and steps that no margin can be told from zero: there may be nothing to keep.
    for group in summary["sweep"]["groups"]:
        assert group["measures"].keys() >= sweep.MEASURES.keys() - {"kept"}
    preferred = read_json(folder / "results/beta-0.5/preferences.json")["heldout"]
    margin = summary["sweep"]["runs"]["beta-0.5"]["measures"]["margin"]["value"]
    assert margin == pytest.approx(preferred["reward_margin"]["value"] / 0.5)
    page = unescape((folder / "results/report.html").read_text())
    verdict, advice = summary["verdicts"]["beta-0.1"]["sentence"].split(":")[0], summary["sweep"]["advice"][""]
    assert [part in page for part in (verdict, advice, 'id="sweep"')] == [True, True, True]
    subjects = json.loads((folder / "results/provenance.json").read_text())["subject"]
    assert "results/beta-0.5/merged/model.safetensors" in {subject["name"] for subject in subjects}
    assert planned(folder) == set()

    grown = shutil.copytree(folder, folder.parent / "grown", symlinks=True)
    with_sweep(grown, beta=[0.1, 0.5, 0.2])
    assert planned(grown) == of("beta-0.2") | TOGETHER

    with_sweep(folder, beta=[0.5])
    result = snakemake(folder)
    assert result.returncode == 0, result.stdout
    assert jobs(result.stdout) == TOGETHER
    assert (folder / "results/beta-0.1/summary.json").exists()
    assert list(read_json(folder / "results/summary.json")["sweep"]["runs"]) == ["beta-0.5"]


@pytest.mark.skipif(slurm_cluster.missing() is None, reason="test_slurm.py checks the same sweep, run on Slurm")
def test_a_sweep_runs_to_its_end(fresh):
    sweep_two_values(fresh)
    result = snakemake(fresh, "--quiet", "rules")
    assert result.returncode == 0, result.stdout
    check_two_values(fresh)


def test_the_example_is_a_sweep_of_beta_over_seeds():
    example = yaml.safe_load(Path(PROJECT, "config/sweep-beta.yaml").read_text())
    assert len(example["sweep"]["beta"]) == 5 and len(example["sweep"]["seed"]) == 3
    command = re.search(r"snakemake .+", Path(PROJECT, "config/sweep-beta.yaml").read_text())[0]
    assert command in Path(PROJECT, "docs/sweeps.md").read_text()
