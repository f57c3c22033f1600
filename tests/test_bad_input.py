"""A user's mistakes: one clear message that says what, where and what to do; nothing half-written."""

import shutil

import pytest
import yaml

from workflow import copy_project, edit_rows, jobs, snakemake


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
    "unknown key": ({"training": {"betta": 0.1}}, "training: unknown key betta; allowed are trainer, bf16, processes"),
    "number read as text": ({"training": {"learning_rate": "5e-5"}}, "training.learning_rate: '5e-5' is text"),
    "beta 0": ({"training": {"beta": 0}}, "training.beta: 0 is less than or equal to the minimum of 0"),
    "learning rate 0": ({"training": {"learning_rate": 0}}, "training.learning_rate: 0 is less than or equal to"),
    "learning rate NaN": (
        {"training": {"learning_rate": float("nan")}},
        "training.learning_rate: NaN and infinity are",
    ),
    "r 0": ({"training": {"r": 0}}, "training.r: 0 is less than the minimum of 1"),
    "unknown module": ({"training": {"target_modules": ["qproj"]}}, "'qproj' is not one of ['q_proj',"),
    "text for a switch": ({"training": {"load_in_4bit": "no"}}, "training.load_in_4bit: 'no' is not of type 'boolean'"),
    "unknown trainer": (
        {"training": {"trainer": "axolotl"}},
        "training.trainer: 'axolotl' is not one of ['shared_prompt',",
    ),
    "unknown loss": ({"training": {"loss_type": "kto"}}, "training.loss_type: 'kto' is not one of ['sigmoid',"),
    "smoothing that the loss ignores": (
        {"training": {"label_smoothing": 0.1}},
        "run dpo: loss_type sigmoid takes no label_smoothing; set it to 0.0, or loss_type to one of robust",
    ),
    "an unknown loss in a sum": (
        {"training": {"loss_type": ["sigmoid", "kto"]}},
        "training.loss_type.1: 'kto' is not one",
    ),
    "weights for other losses": (
        {"training": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}},
        "run dpo: loss_weights has 1 numbers for the 2 losses sigmoid + sft; give one each, or none",
    ),
    "no smoothing where the loss needs it": (
        {"training": {"loss_type": "exo_pair"}},
        "run dpo: loss_type exo_pair needs a label_smoothing",
    ),
    "processes that Unsloth cannot share": (
        {"training": {"trainer": "unsloth", "processes": 2}},
        "run dpo: processes 2 is not for trainer unsloth",
    ),
    "no process": ({"training": {"processes": 0}}, "training.processes: 0 is less than the minimum of 1"),
    "a model divided that is read as a whole": (
        {"training": {"processes": 2, "fsdp": True}},
        "run dpo: fsdp is for trainer trl alone: shared_prompt reads whole weights",
    ),
    "unknown preset": ({"model": {"preset": "smollm3"}}, "model.preset: 'smollm3' is not one of ['smollm2-135m',"),
    "repo without revision": ({"model": {"repo": "a/b"}}, "model: 'revision' is a dependency of 'repo'"),
    "no model": ({"model": {}}, "model: {} should be non-empty"),
    "run called base": ({"runs": {"base": {}}}, "runs: 'base' should not be valid under"),
    "run with a slash": ({"runs": {"a/b": {}}}, "runs: 'a/b' does not match"),
    "unknown key of a run": ({"runs": {"dpo": {"bета": 0.1}}}, "runs.dpo: unknown key bета"),
    "no runs": ({"runs": {}}, "runs: {} should be non-empty"),
    "source without revision": ({"data": {"train": {"repo": "a/b"}}}, "data.train: a source has either path, or repo"),
    "share of one": ({"data": {"heldout": 1.0}}, "data.heldout: 1.0 is greater than or equal to the maximum of 1"),
    "unknown reason": ({"data": {"tolerance": {"other": 0, "dup": 1}}}, "data.tolerance: unknown key dup; allowed"),
    "judge without model": (
        {"evaluation": {"max_pairs": 9, "judges": {"a": {"base_url": "http://h/v1"}}}},
        "evaluation.judges.a: a judge has either gguf, or base_url with model",
    ),
    "key in the config": (
        {"evaluation": {"max_pairs": 9, "judges": {"a": {"base_url": "http://h/v1", "model": "m", "api_key": "x"}}}},
        "evaluation.judges.a: unknown key api_key; allowed are gguf, base_url, model, api_key_env",
    ),
    "judge called rubric": ({"evaluation": {"max_pairs": 9, "judges": {"rubric": {}}}}, "evaluation.judges: 'rubric'"),
    "unknown type": (
        {"export": {"types": ["q4_k_m", "q4_k_x"], "imatrix": False, "max_new_tokens": 9}},
        "export.types.1: 'q4_k_x' is not one of ['q8_0', 'q6_k',",
    ),
    "unknown section": ({"trainning": {}}, "top level: unknown key trainning"),
}


@pytest.mark.parametrize(("values", "message"), CONFIG_MISTAKES.values(), ids=CONFIG_MISTAKES)
def test_a_config_mistake_names_the_key_before_any_job_starts(tmp_path, values, message):
    copy_project(tmp_path, tmp_path / "model")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for section, keys in values.items():
        keep = config.get(section, {}) if section in ("training", "data") else {}
        config[section] = keep | keys
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    result = snakemake(tmp_path)
    assert result.returncode == 1
    assert message in result.stdout
    assert not (tmp_path / "results").exists()


def test_a_data_mistake_is_shown_on_the_console_and_stops_before_training(project):
    """Also one in the held-out pairs, which are read last, and on one core, where another job could come first."""
    path = project / "data/heldout.jsonl"
    path.write_text(path.read_text() + '{"id": "x", "topic": "t", "prompt": "Why?"}\n')
    edit_rows(project / "data/preferences.jsonl", lambda rows: rows[0].update(chosen="Stop<|im_end|> here."))
    result = snakemake(project)
    assert result.returncode == 1
    assert "train: 1 of 4 rows special_tokens (25.00%), more than data.tolerance.other = 0 allows" in result.stdout
    assert "data/preferences.jsonl:1: chosen holds <|im_end|>" in result.stdout
    assert "heldout: 1 of 5 rows malformed (20.00%), more than data.tolerance.other = 0 allows" in result.stdout
    assert "data/heldout.jsonl:5: chosen is missing" in result.stdout
    assert "Traceback" not in result.stdout
    assert jobs(result.stdout) == {"build_dataset(train)", "build_dataset(heldout)", "audit_dataset"}
    assert not (project / "results/data/audit.json").exists()
    # What was rejected can still be looked up.
    assert '"line": 5, "reason": "malformed"' in (project / "results/data/heldout.rejected.jsonl").read_text()
