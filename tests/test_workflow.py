"""The real Snakemake, end to end on a small model: what it makes, and that only what a change touches runs again."""

import json
import os
import shutil
import time
from importlib.metadata import version

import pytest
from huggingface_hub import ModelCard

from dpo import provenance
from dpo.artifacts import sha256_of
from torture.attacks import ATTACKS
from torture.attacks.workflow import ON_WHOLE_WORKFLOW, SHELL_NAME, whole_workflow
from torture.outcome import SILENT
from workflow import edit_config, edit_rows, jobs, planned, snakemake

ANSWER = {"generate_responses({0})", "score_responses({0})"}
PREFER = {"score_preferences({0})"}
JUDGE = {"judge_responses({0}, rubric)"}
SCORE_FILES = {"score_gguf({0}, f16)", "score_gguf({0}, q4_k_m)"}
CONVERT = {"convert_to_gguf({0})", "quantize_gguf({0}, q4_k_m)"} | SCORE_FILES
FIDELITY = {"measure_fidelity({0})", "check_fidelity({0})"}
EXPORT = {"merge_adapter({0})", "smoke_test_gguf({0})"} | CONVERT | FIDELITY
REFERENCE = "compute_reference_logps(bf16-auto)"
REPORT = {"summarize", "render_report", "render_model_card(dpo)", "record_provenance"}
DATA = {"build_dataset(train)", "build_dataset(heldout)", "audit_dataset"}


def of(rules, variant):
    """Fill a variant's name into a set of jobs."""
    return {rule.format(variant) for rule in rules}


def after_training(run):
    """The jobs that follow when a run's adapter changes, training included."""
    return {f"train_dpo({run})"} | of(ANSWER | PREFER | JUDGE | EXPORT, run) | REPORT


@pytest.fixture(scope="module")
def finished(small_model):
    """A folder in which the whole workflow has run, on strangers' texts and names. Read only."""
    result, folder = whole_workflow(small_model)
    assert result.returncode == 0, result.stdout
    assert jobs(result.stdout) == {
        "fetch_model",
        *DATA,
        *of(ANSWER | PREFER | CONVERT, "base"),
        "check_judge(rubric)",
        REFERENCE,
        *after_training("dpo"),
    }
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of the finished folder to change."""
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def change_nothing(project):
    pass


def change_beta(project):
    edit_config(project, "training", beta=0.2)


def change_test_prompt(project):
    edit_rows(project / "data/prompts.jsonl", lambda rows: rows[3].update(prompt="How do I say no to a friend?"))


def change_instruction(project):
    edit_rows(project / "data/instructions.jsonl", lambda rows: rows[0].update(prompt="Describe mist in 15 words."))


def change_neutral_text(project):
    edit_rows(project / "data/neutral.jsonl", lambda rows: rows[0].update(text="The road ends at the old mill."))


def change_training_pair(project):
    edit_rows(project / "data" / SHELL_NAME, lambda rows: rows[0].update(rejected="It is a kind of function."))


def change_heldout_pair(project):
    edit_rows(project / "data/heldout.jsonl", lambda rows: rows[0].update(rejected="It depends on many things."))


def change_template(project):
    with open(project / "report/template.html", "a") as file:
        file.write("<!-- changed -->\n")


def change_shared_module(project):
    with open(project / "scripts/dpo/rubric.py", "a") as file:
        file.write("# changed\n")


def change_tolerance(project):
    edit_config(project, "data", tolerance={"other": 0.5})


def split_off_heldout_pairs(project):
    edit_config(project, "data", heldout=0.5)


def add_judge(project):
    edit_config(project, "evaluation", judges={"mine": {"base_url": "http://localhost:1/v1", "model": "none"}})


def add_run(project):
    edit_config(project, "runs", gentle={"beta": 0.05})


def add_type(project):
    edit_config(project, "export", types=["q4_k_m", "q8_0"])


def train_in_float32(project):
    edit_config(project, "training", bf16=False)


def train_with_trl(project):
    edit_config(project, "training", trainer="trl")


def change_gate(project):
    edit_config(project, "fidelity", merged_kept=0.5)


def turn_imatrix_on(project):
    edit_config(project, "export", imatrix=True)


def touch_files(project):
    later = time.time() + 10
    for file in (f"data/{SHELL_NAME}", "config.yaml", "scripts/train_dpo.py", "scripts/dpo/cli.py"):
        os.utime(project / file, (later, later))


def swap_numbers(project):
    edit_config(project, "training", max_steps=2, save_steps=4)


def delete_result(project):
    (project / "results/dpo/gguf/model-q4_k_m.gguf").unlink()


CHANGES = {
    change_nothing: set(),
    change_beta: after_training("dpo"),
    change_test_prompt: {
        "audit_dataset",
        *of(ANSWER | SCORE_FILES, "base"),
        *of(ANSWER | JUDGE | SCORE_FILES | FIDELITY, "dpo"),
        "smoke_test_gguf(dpo)",
        *REPORT,
    },
    change_instruction: {
        "audit_dataset",
        *of(ANSWER | SCORE_FILES, "base"),
        *of(ANSWER | JUDGE | SCORE_FILES | FIDELITY, "dpo"),
        *REPORT,
    },
    change_neutral_text: {
        *of(PREFER | SCORE_FILES, "base"),
        *of(PREFER | SCORE_FILES | FIDELITY, "dpo"),
        *REPORT,
    },
    # Held-out pairs are compared with the training pairs, so they are looked through and scored again too.
    change_training_pair: DATA
    | {REFERENCE, "check_judge(rubric)"}
    | of(PREFER | SCORE_FILES, "base")
    | after_training("dpo"),
    change_heldout_pair: {
        "audit_dataset",
        "build_dataset(heldout)",
        "check_judge(rubric)",
        *of(PREFER | SCORE_FILES, "base"),
        *of(PREFER | JUDGE | SCORE_FILES | FIDELITY, "dpo"),
        *REPORT,
    },
    change_tolerance: {"audit_dataset", *REPORT},
    split_off_heldout_pairs: DATA
    | {REFERENCE, "check_judge(rubric)"}
    | of(PREFER | SCORE_FILES, "base")
    | after_training("dpo"),
    change_template: {"render_report", "record_provenance"},
    change_shared_module: {
        "score_responses(base)",
        "score_responses(dpo)",
        "check_judge(rubric)",
        "judge_responses(dpo, rubric)",
        "smoke_test_gguf(dpo)",
        *REPORT,
    },
    add_judge: {"check_judge(mine)", "judge_responses(dpo, mine)", *REPORT},
    train_in_float32: {"compute_reference_logps(bf16-false)"} | after_training("dpo"),
    train_with_trl: after_training("dpo"),
    add_run: after_training("gentle") | {"render_model_card(gentle)"},
    add_type: {
        *of({"quantize_gguf({0}, q8_0)", "score_gguf({0}, q8_0)"}, "base"),
        *of({"quantize_gguf({0}, q8_0)", "score_gguf({0}, q8_0)"} | FIDELITY, "dpo"),
        *REPORT,
    },
    change_gate: {"check_fidelity(dpo)", *REPORT},
    turn_imatrix_on: {
        *of({"compute_imatrix({0})", "quantize_gguf({0}, q4_k_m)", "score_gguf({0}, q4_k_m)"}, "base"),
        *of({"compute_imatrix({0})", "quantize_gguf({0}, q4_k_m)", "score_gguf({0}, q4_k_m)"} | FIDELITY, "dpo"),
        "smoke_test_gguf(dpo)",
        *REPORT,
    },
    touch_files: set(),
    swap_numbers: after_training("dpo"),
    delete_result: {
        *of({"quantize_gguf({0}, q4_k_m)", "score_gguf({0}, q4_k_m)", "smoke_test_gguf({0})"} | FIDELITY, "dpo"),
        *REPORT,
    },
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_only_what_a_change_touches_runs_again(project, change, expected):
    change(project)
    assert planned(project) == expected


def test_a_second_run_executes_nothing(project):
    result = snakemake(project)
    assert result.returncode == 0
    assert jobs(result.stdout) == set()
    assert "Nothing to be done" in result.stdout


def jobs_by_name(project):
    """The jobs of the whole workflow as `rule/subject`: so are their logs called."""
    logs = project / "logs"
    return {str(log.relative_to(logs).with_suffix("")) for log in logs.rglob("*.log")}


def test_provenance_vouches_for_every_result_and_names_every_source(finished):
    results = finished / "results"
    made = {str(file.relative_to(finished)) for file in results.rglob("*") if file.is_file()}
    made -= {name for name in made if name.startswith("results/manifests/") or name.endswith(".snakemake_timestamp")}
    statement = json.loads((results / "provenance.json").read_text())
    subjects = provenance.digests_in(statement["subject"])
    assert set(subjects) == made - {"results/provenance.json"}
    assert all(sha256_of(finished / name) == digest for name, digest in subjects.items())
    definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    sources = provenance.digests_in(definition["resolvedDependencies"])
    assert {f"data/{SHELL_NAME}", "scripts/train_dpo.py", "envs/llama-cpp-python.sha256"} <= set(sources)
    assert not any(name.startswith("results/") for name in sources)
    assert definition["externalParameters"]["config"]["training"]["beta"] == 0.1
    manifests = provenance.digests_in(details["byproducts"])
    assert set(manifests) == {
        f"results/manifests/{job}.json" for job in jobs_by_name(finished) - {"record_provenance/all"}
    }


def test_the_bill_of_materials_lists_what_is_installed_and_no_place_on_this_machine(finished):
    text = (finished / "results/sbom.cdx.json").read_text()
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    listed = {component["name"]: component["version"] for component in bill["components"]}
    assert {name: listed[name] for name in ("torch", "trl", "snakemake")} == {
        name: version(name) for name in ("torch", "trl", "snakemake")
    }
    assert "file:" not in text


def test_results_are_the_files_of_the_contract(finished):
    results = finished / "results"
    found = {str(file.relative_to(results)) for file in results.rglob("*") if file.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    model = {"model.safetensors", "config.json", "generation_config.json", ".snakemake_timestamp"} | tokenizer
    adapter = {"adapter_model.safetensors", "adapter_config.json", ".snakemake_timestamp"} | tokenizer
    assert found == {
        *(f"data/{name}" for name in ("audit.json", "rejected.jsonl")),
        *(
            f"data/{name}.{what}"
            for name in ("train", "heldout")
            for what in ("jsonl", "rejected.jsonl", "prompts.npy", "audit.json")
        ),
        *(f"base/{name}" for name in ("manifest.json", "generations.jsonl", "scores.json", "preferences.json")),
        "base/reference_logps/bf16-auto.jsonl",
        "judges/rubric.json",
        "dpo/judgements/rubric.json",
        *(f"base/model/{name}" for name in model),
        *(f"dpo/{name}" for name in ("training.jsonl", "generations.jsonl", "scores.json", "preferences.json")),
        *(f"dpo/{name}" for name in ("smoke_test.json", "fidelity.json", "fidelity_check.json", "README.md")),
        *(f"dpo/adapter/{name}" for name in adapter),
        *(f"dpo/merged/{name}" for name in model),
        "dpo/gguf/Modelfile",
        *(f"{variant}/gguf/model-{type}.gguf" for variant in ("base", "dpo") for type in ("f16", "q4_k_m")),
        *(f"{variant}/gguf_scores/{type}.json" for variant in ("base", "dpo") for type in ("f16", "q4_k_m")),
        "summary.json",
        "report.html",
        "provenance.json",
        "sbom.cdx.json",
        *(f"manifests/{job}.json" for job in jobs_by_name(finished)),
    }


def test_the_ladder_goes_from_the_adapter_to_the_file_and_agrees_with_itself(finished):
    fidelity = json.loads((finished / "results/dpo/fidelity.json").read_text())
    rungs = {rung["name"]: rung for rung in fidelity["rungs"]}
    assert list(rungs) == ["adapter", "trainer", "merged", "f16", "q4_k_m"]
    assert fidelity["pairs"] == 4
    preferences = json.loads((finished / "results/dpo/preferences.json").read_text())
    assert rungs["adapter"]["margin"]["value"] == pytest.approx(preferences["heldout"]["reward_margin"]["value"])
    assert rungs["adapter"]["neutral"]["perplexity"]["value"] == pytest.approx(preferences["neutral"]["perplexity"])
    assert rungs["trainer"]["margin"]["value"] == pytest.approx(rungs["adapter"]["margin"]["value"], abs=2e-3)
    for name, limit in (("trainer", 1e-4), ("merged", 1e-4), ("f16", 1e-4)):
        assert 0 <= rungs[name]["neutral"]["kl"]["mean"] < limit, name
    for rung in rungs.values():
        assert rung["token_ids"] == {"prompts": 14, "equal": 14, "first_other": None}


def test_the_model_card_is_valid_and_says_what_was_measured(finished):
    card = ModelCard.load(finished / "results/dpo/README.md")
    summary = json.loads((finished / "results/summary.json").read_text())
    assert card.data.pipeline_tag == "text-generation"
    assert {"dpo", "gguf"} <= set(card.data.tags)
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["Perplexity"] == pytest.approx(summary["variants"]["dpo"]["neutral"]["perplexity"], abs=1e-4)
    assert summary["verdicts"]["dpo"]["sentence"] in card.text
    assert summary["runs"]["dpo"]["smoke_test"]["sha256"] in card.text
    assert "{{" not in card.text and "{%" not in card.text


def test_nothing_is_written_outside_the_folders_of_a_run(finished):
    copied = {"Snakefile", "config.yaml", "data", "envs", "profiles", "report", "rules", "schemas", "scripts"}
    assert {path.name for path in finished.iterdir()} == copied | {"results", "logs", "benchmarks", ".snakemake"}


@pytest.mark.parametrize("fault", ON_WHOLE_WORKFLOW)
def test_an_attack_on_the_whole_workflow_does_no_harm(fault, finished, small_model, tmp_path):
    tried = ATTACKS[fault](tmp_path, small_model)
    assert tried.outcome != SILENT, tried.detail


def test_snakemake_makes_its_own_report_too(project):
    result = snakemake(project, "--report", "report.zip")
    assert result.returncode == 0, result.stdout
    assert (project / "report.zip").stat().st_size > 0
