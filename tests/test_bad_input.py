"""A user's mistakes: one clear message that says what, where and what to do; nothing half-written."""

import shutil

import pytest
import yaml

from workflow import copy_project, edit_config, edit_rows, snakemake


@pytest.fixture(scope="module")
def fetched(small_model, tmp_path_factory):
    """A copy of the project in which only the base model is there. Read only."""
    folder = tmp_path_factory.mktemp("fetched") / "project"
    copy_project(folder, small_model)
    result = snakemake(folder, "results/base/model")
    assert result.returncode == 0, result.stdout
    return folder


@pytest.fixture
def project(fetched, tmp_path):
    """A copy of the folder with the base model, to put mistakes into."""
    return shutil.copytree(fetched, tmp_path / "project", symlinks=True)


CONFIG_MISTAKES = {
    "unknown key": ({"training": {"betta": 0.1}}, "training: unknown key betta; allowed are r, lora_alpha"),
    "number read as text": ({"training": {"learning_rate": "5e-5"}}, "training.learning_rate: '5e-5' is text"),
    "beta 0": ({"training": {"beta": 0}}, "training.beta: 0 is less than or equal to the minimum of 0"),
    "r 0": ({"training": {"r": 0}}, "training.r: 0 is less than the minimum of 1"),
    "unknown module": ({"training": {"target_modules": ["qproj"]}}, "'qproj' is not one of ['q_proj',"),
    "text for a switch": ({"training": {"load_in_4bit": "no"}}, "training.load_in_4bit: 'no' is not of type 'boolean'"),
    "unknown preset": ({"model": {"preset": "smollm3"}}, "model.preset: 'smollm3' is not one of ['smollm2-135m',"),
    "repo without revision": ({"model": {"repo": "a/b"}}, "model: 'revision' is a dependency of 'repo'"),
    "no model": ({"model": {}}, "model: {} should be non-empty"),
    "run called base": ({"runs": {"base": {}}}, "runs: 'base' should not be valid under"),
    "run with a slash": ({"runs": {"a/b": {}}}, "runs: 'a/b' does not match"),
    "unknown key of a run": ({"runs": {"dpo": {"bета": 0.1}}}, "runs.dpo: unknown key bета"),
    "no runs": ({"runs": {}}, "runs: {} should be non-empty"),
    "unknown section": ({"trainning": {}}, "top level: unknown key trainning"),
}


@pytest.mark.parametrize(("values", "message"), CONFIG_MISTAKES.values(), ids=CONFIG_MISTAKES)
def test_a_config_mistake_names_the_key_before_any_job_starts(tmp_path, values, message):
    copy_project(tmp_path, tmp_path / "model")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for section, keys in values.items():
        keep = config.get(section, {}) if section == "training" else {}
        config[section] = keep | keys
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    result = snakemake(tmp_path)
    assert result.returncode == 1
    assert message in result.stdout
    assert not (tmp_path / "results").exists()


def test_a_data_mistake_is_shown_on_the_console_and_stops_before_training(project):
    path = project / "data/preferences.jsonl"
    path.write_text(path.read_text() + '{"id": "x", "topic": "t", "prompt": "Why?"}\n')
    result = snakemake(project)
    assert result.returncode == 1
    assert "data/preferences.jsonl:5: chosen is missing" in result.stdout
    assert "Traceback" not in result.stdout
    assert not (project / "results/data/audit.json").exists()
    assert not (project / "results/dpo").exists()


def test_overlap_between_training_and_test_prompts_is_refused(project):
    prompt = "What is it that I should never train on?"
    edit_rows(project / "data/preferences.jsonl", lambda rows: rows[0].update(prompt=prompt))
    edit_rows(project / "data/prompts.jsonl", lambda rows: rows[3].update(prompt=f"  {prompt.upper()} "))
    result = snakemake(project, "results/data/audit.json")
    assert "data/prompts.jsonl:4: the same prompt as data/preferences.jsonl:1" in result.stdout


def test_a_prompt_beyond_the_limit_names_the_setting(project):
    edit_config(project, "data", max_prompt_length=60)
    edit_rows(project / "data/heldout.jsonl", lambda rows: rows[1].update(prompt="Why is that so? " * 20))
    result = snakemake(project, "results/data/audit.json")
    assert "data/heldout.jsonl:2: the prompt is" in result.stdout
    assert "over max_prompt_length = 60" in result.stdout
