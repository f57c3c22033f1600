# Helpers that the rules share; no rules here.

import gc
import itertools
import json
import math
import os
import re
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir, "scripts")))
from dpo import division, losses
from dpo.code_files import code_digest
from dpo.json_schema import Draft202012Validator

# Scripts run with the Python that runs Snakemake, also where its environment is not activated.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
# A job compares it with its parent's, to end with this process.
os.environ.update(SNAKEMAKE_PID=str(os.getpid()))


# The plan of a sweep is millions of objects that all stay; looking for garbage among them took a tenth of the time.
gc.set_threshold(50_000, 50, 100)


def explain(fault):
    """What is wrong with a config value and what is allowed, from a jsonschema error."""
    if fault.validator == "additionalProperties":
        unknown = sorted(set(fault.instance) - set(fault.schema["properties"]))
        return f"unknown key {', '.join(unknown)}; allowed are {', '.join(fault.schema['properties'])}"
    if fault.validator == "type" and fault.validator_value == "number" and isinstance(fault.instance, str):
        return f"{fault.instance!r} is text; write a number (YAML takes 5e-5 for text, write 5.0e-5)"
    if fault.validator == "oneOf":
        judge = "judges" in fault.path
        return (
            "a judge has either gguf, or base_url with model"
            if judge
            else "a source has either path, or repo with revision"
        )
    return fault.message


def keys_without_number(value, key=""):
    """The keys of all numbers that are NaN or infinite, which no schema can refuse."""
    if isinstance(value, float) and not math.isfinite(value):
        return [key]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [found for name, part in parts for found in keys_without_number(part, f"{key}.{name}".strip("."))]


def name_value(value):
    """A setting's value as a part of a run's name: 0.05, q_proj-v_proj, true."""
    return "-".join(map(name_value, value)) if isinstance(value, list) else str(value).lower()


def expand_sweep(swept):
    """The runs of a sweep, one for each combination of values, named after them: `beta-0.05-seed-42`."""
    runs = {}
    for values in itertools.product(*swept.values()) if swept else []:
        settings = dict(zip(swept, values))
        runs["-".join(f"{key}-{name_value(value)}" for key, value in settings.items())] = settings
    return runs


def check_config():
    """Stop with one line a fault, naming the key and what is allowed, where config does not fit the schema."""
    schema = yaml.safe_load(Path(workflow.basedir, "schemas/config.schema.yaml").read_text())
    # What a run may set to one value, a sweep may set to several.
    schema["properties"]["sweep"]["properties"] = {
        key: {"type": "array", "minItems": 1, "uniqueItems": True, "items": values}
        for key, values in schema["$defs"]["training"]["properties"].items()
    }
    faults = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda fault: list(map(str, fault.path)))
    if faults:
        lines = [f"  {'.'.join(map(str, fault.path)) or 'top level'}: {explain(fault)}" for fault in faults]
        raise WorkflowError("\n".join(["config.yaml is not valid:", *lines]))
    if keys := keys_without_number(config):
        raise WorkflowError(f"config.yaml: {', '.join(keys)}: NaN and infinity are no settings; write a number")
    swept = expand_sweep(config["sweep"])
    for run in config["runs"].keys() & swept.keys():
        if config["training"] | config["runs"][run] != config["training"] | swept[run]:
            raise WorkflowError(
                f"config.yaml: runs.{run}: the sweep has a run of this name with other settings; give it another name, "
                f"or to ship that one the same settings: {json.dumps(swept[run])}"
            )
    for run, changed in (config["runs"] | swept).items():
        settings = config["training"] | changed
        if fault := losses.fault(settings) or division.fault(settings):
            raise WorkflowError(f"config.yaml: run {run}: {fault}")
    return swept


# Runs that are compared but do not ship, by name; one that also stands under `runs:` does.
SWEPT = check_config()

DATA = config["data"]
# A number asks for a share of the training sources, split off by prompt.
SPLIT = isinstance(DATA["heldout"], float)
SETS = ["train", "heldout"]


def sources_of(name):
    """The sources of a set, each as a dict; a source from the hub with the folder that it is downloaded to."""
    given = DATA["train"] if SPLIT else DATA[name]
    sources = [
        {"path": source} if isinstance(source, str) else dict(source)
        for source in (given if isinstance(given, list) else [given])
    ]
    for source in sources:
        if "repo" in source:
            parts = [source[key] for key in ("repo", "revision", "data_dir") if key in source]
            source["folder"] = f"results/data/sources/{re.sub('[^A-Za-z0-9._@-]+', '--', '@'.join(parts))}"
    return sources


HUB_SOURCES = {
    Path(source["folder"]).name: {key: source[key] for key in ("repo", "revision", "data_dir") if key in source}
    for name in SETS
    for source in sources_of(name)
    if "repo" in source
}
RUNS = list(config["runs"])
ALL_SETTINGS = SWEPT | config["runs"]
TRAINED = list(ALL_SETTINGS)
TEST_SETS = ["prompts", "instructions", "adversarial"]
TYPES = config["export"]["types"]
SHIPPED = TYPES[0]
JUDGES = {"rubric": {}} | config["evaluation"]["judges"]


def run_settings(run):
    """The training settings of a run: the `training` section with the run's own keys, or the swept ones, on top."""
    if run not in ALL_SETTINGS:
        raise WorkflowError(f"no run is called {run}; config.yaml has {', '.join(TRAINED)}")
    return config["training"] | ALL_SETTINGS[run]


def precision_of(run):
    """The name of a run's precision, on which its reference log-probabilities depend besides data and base model."""
    settings = run_settings(run)
    return f"bf16-{str(settings['bf16']).lower()}" + (".4bit" if settings["load_in_4bit"] else "")


# Not the names themselves: Snakemake writes a constraint into every path that has the wildcard, and a sweep has thousands.
wildcard_constraints:
    set="train|heldout",
    run="(?!base/)[a-z0-9][a-z0-9._-]*",
    variant="[a-z0-9][a-z0-9._-]*",
    judge="|".join(JUDGES),
    precision="|".join(sorted({re.escape(precision_of(run)) for run in TRAINED})),
    quantized="|".join(TYPES),
    type="|".join(["f16", *TYPES]),


def as_setting(value):
    """One JSON string for a step's settings. Snakemake compares params as an unordered set of values, so that two
    swapped numbers in separate params would go unseen."""
    return json.dumps(value, sort_keys=True)


def training_settings(run):
    """What train_dpo needs to know of a run: its training settings and where answers are cut."""
    return run_settings(run) | {"max_length": config["data"]["max_length"]}


def dataset_settings(name):
    """What build_dataset needs to know of a set."""
    keys = ("min_score_ratio", "min_score_difference", "near_duplicate", "max_length", "max_prompt_length")
    split = {"split": {"share": DATA["heldout"], "seed": DATA["seed"], "side": name}} if SPLIT else {}
    return {key: DATA[key] for key in keys} | {"sources": sources_of(name)} | split


def reference_settings(precision):
    """What compute_reference_logps needs to know of a precision."""
    run = next(run for run in TRAINED if precision_of(run) == precision)
    return {key: training_settings(run)[key] for key in ("bf16", "load_in_4bit", "max_length")}


def needs_reference(run):
    """Whether a run reads reference log-probabilities, shared by all runs of its precision; TRL's trainer computes its
    own, and it alone can train with the losses that compare the pairs of a batch."""
    settings = run_settings(run)
    return settings["trainer"] == "shared_prompt" and not losses.compares_pairs(settings)


def manifests(*jobs):
    """The manifests of the jobs that wrote what a rule reads, as `rule/subject`. They may be older or newer than what
    they vouch for: whether a rule runs again depends on what it reads, not on how that came about."""
    return [ancient(f"results/manifests/{job}.json") for job in jobs]


def base_or(job, variant):
    """The job that made something of a variant: the base model was fetched, a run's was made by a job of its own."""
    return "fetch_model/base" if variant == "base" else f"{job}/{variant}"


def made_before(name):
    """The jobs that wrote what a set is made from, besides the model."""
    jobs = [f"fetch_dataset/{Path(source['folder']).name}" for source in sources_of(name) if "folder" in source]
    return jobs + (["build_dataset/train"] if name == "heldout" else [])


def gguf_maker(variant, type):
    """The job that wrote a variant's GGUF file of a type."""
    return f"convert_to_gguf/{variant}" if type == "f16" else f"quantize_gguf/{variant}/{type}"


def adapter_of(wildcards):
    """The adapter of a variant; none for the base model."""
    return [] if wildcards.variant == "base" else f"results/{wildcards.variant}/adapter"


def model_of(wildcards):
    """The Hugging Face folder of a variant: the base model, or a run's merged model."""
    return "results/base/model" if wildcards.variant == "base" else f"results/{wildcards.variant}/merged"


def made_from(wildcards):
    """What a variant's GGUF file of a type was made from: the model for f16, the f16 file for any other."""
    return model_of(wildcards) if wildcards.type == "f16" else f"results/{wildcards.variant}/gguf/model-f16.gguf"


def gguf_scores(variant):
    """The scores of all GGUF files of a variant, f16 first."""
    return [f"results/{variant}/gguf_scores/{type}.json" for type in ["f16", *TYPES]]


def preference_settings(variant):
    """How preferences of a variant are scored; the base model has no beta, as it has no reward."""
    beta = {} if variant == "base" else {"beta": run_settings(variant)["beta"]}
    return beta | {"max_pairs": config["evaluation"]["max_pairs"]}


# What is asked of every variant, whether it ships or is only compared.
EVALUATING = ["generate_responses", "score_responses", "score_preferences"]


def measured_results(variants):
    """What says how variants answer, what they prefer, and how they are converted."""
    return [
        *expand("results/{variant}/{what}.json", variant=variants, what=["scores", "preferences"]),
        *expand("results/{variant}/generations.jsonl", variant=variants),
        *expand("results/{variant}/gguf/model-{type}.gguf", variant=variants, type=["f16", *TYPES]),
        *expand("results/{variant}/gguf_scores/{type}.json", variant=variants, type=["f16", *TYPES]),
    ]


def trained_results(runs):
    """What training makes, and what is left of it at each rung."""
    return expand("results/{run}/{what}", run=runs, what=["adapter", "training.jsonl", "merged", "fidelity.json"])


def measuring_jobs(variants):
    """The jobs that wrote the `measured_results`."""
    return [
        *expand("{rule}/{variant}", rule=[*EVALUATING, "convert_to_gguf"], variant=variants),
        *expand("compute_imatrix/{variant}", variant=variants if config["export"]["imatrix"] else []),
        *expand("quantize_gguf/{variant}/{type}", variant=variants, type=TYPES),
        *expand("score_gguf/{variant}/{type}", variant=variants, type=["f16", *TYPES]),
    ]


def training_jobs(runs):
    """The jobs that wrote the `trained_results`."""
    return expand("{rule}/{run}", rule=["train_dpo", "merge_adapter", "measure_fidelity"], run=runs)
