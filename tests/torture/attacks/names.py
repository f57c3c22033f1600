"""Names in config.yaml: schemas/config.schema.yaml, through Snakemake."""

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from torture.attacks.canary import SCRATCH, attack, carelessly
from torture.outcome import REFUSED, SILENT
from workflow import copy_project, edit_config, snakemake

FIRE = "$(touch fired)"
BAD_NAMES = ["../x", "a/b", FIRE, "a;touch fired", "-rf", "a b", "dpo\n", "{x}", 'a"b', "it's", "é", "", "A"]
TAKEN = ["base", "data", "judges", "manifests", "summary.json", "report.html", "provenance.json", "sbom.cdx.json"]
BAD_FOLDERS = ["../../private", "a/../../../etc", "/etc", "a\n", FIRE]


@cache
def refused_names(model: Path) -> tuple[subprocess.CompletedProcess, Path]:
    """Have Snakemake read a config full of bad names."""
    folder = Path(mkdtemp(prefix="names-", dir=SCRATCH))
    copy_project(folder, model)
    settings = {"base_url": "http://127.0.0.1:9/v1", "model": "x"}
    edit_config(folder, "runs", **{name: {} for name in BAD_NAMES + TAKEN})
    edit_config(folder, "evaluation", judges=dict.fromkeys([*BAD_NAMES, "rubric"], settings))
    hub = {"repo": "some/pairs", "revision": "a"}
    edit_config(folder, "data", train=[hub | {"data_dir": place} for place in BAD_FOLDERS])
    return snakemake(folder, "--dry-run"), folder


def refused_name(what: str, key: str, name: str) -> None:
    @attack(f"{what} is called {name!r}", "config.schema.yaml")
    def named(folder, model):
        result, where = refused_names(model)
        if list(where.rglob("fired")) or "Traceback" in result.stdout or result.returncode == 0:
            return SILENT, result.stdout[-600:]
        line = next((line for line in result.stdout.splitlines() if f"{key}{name!r} " in line), None)
        return (REFUSED, line.strip()[:300]) if line else (SILENT, f"not named: {result.stdout[-2000:]}")


for bad_name in BAD_NAMES + TAKEN:
    refused_name("run", "runs: ", bad_name)
for bad_name in (*BAD_NAMES, "rubric"):
    refused_name("judge", "evaluation.judges: ", bad_name)
for bad_folder in BAD_FOLDERS:
    refused_name("data_dir", "data_dir: ", bad_folder)


@attack("config.yaml makes Python objects", "snakemake")
def python_in_yaml(folder, model):
    import yaml

    canary = folder / "fired"
    copy_project(folder / "project", model)
    config = folder / "project" / "config.yaml"
    config.write_text(config.read_text() + f"\nx: !!python/object/apply:os.system ['touch {canary}']\n")
    carelessly(canary, "import sys, yaml; yaml.load(open(sys.argv[1]), yaml.UnsafeLoader)", config)
    result = snakemake(folder / "project", "--dry-run")
    if canary.exists() or result.returncode == 0 or "Traceback" in result.stdout:
        return SILENT, result.stdout[-600:]
    assert yaml  # real PyYAML is what Snakemake reads with
    return REFUSED, result.stdout.strip().splitlines()[-1][:300]
