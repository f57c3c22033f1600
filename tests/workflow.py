"""The real workflow in a temporary folder: a copy of the project, a small model, a few rows of data."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]
PARTS = ("Snakefile", "config.yaml", "data", "envs", "profiles", "report", "rules", "schemas", "scripts")
ROWS = {
    "preferences.jsonl": 4,
    "heldout.jsonl": 4,
    "prompts.jsonl": 4,
    "instructions.jsonl": 3,
    "adversarial.jsonl": 3,
    "neutral.jsonl": 2,
}


def copy_project(folder: Path, model: Path) -> None:
    """Copy the project into `folder`, cut down to a few rows and steps of a small model."""
    for part in PARTS:
        if (PROJECT / part).is_dir():
            shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / part, folder / part)
    for name, rows in ROWS.items():
        lines = (folder / "data" / name).read_text().splitlines(keepends=True)
        (folder / "data" / name).write_text("".join(lines[:rows]))
    edit_config(folder, "model", path=str(model), preset=None)
    edit_config(folder, "training", max_steps=4, warmup_steps=1, logging_steps=2, save_steps=2)
    edit_config(folder, "training", gradient_accumulation_steps=1)
    edit_config(folder, "generation", max_new_tokens={"prompts": 24, "instructions": 20, "adversarial": 20})
    edit_config(folder, "export", max_new_tokens=24)


def edit_config(folder: Path, section: str, **values) -> None:
    """Set keys of one section of config.yaml; None removes a key."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section] = {key: value for key, value in (config[section] | values).items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def edit_rows(path: Path, edit) -> None:
    """Rewrite a JSON Lines file with `edit(rows)`, which changes the list in place."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def snakemake(folder: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run the real Snakemake in a folder; standard error and output come together in `stdout`."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *options]
    return subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def jobs(output: str) -> set[str]:
    """Return the jobs in Snakemake's output, as `rule` or `rule(wildcard)`, without the target rule."""
    found = set()
    for block in re.split(r"\n *(?=(?:local)?rule )", output)[1:]:
        name = re.match(r"(?:local)?rule (\w+):", block)[1]
        wildcards = re.search(r"\n +wildcards: (.+)", block)
        values = ", ".join(pair.split("=")[1] for pair in wildcards[1].split(", ")) if wildcards else ""
        found.add(f"{name}({values})" if values else name)
    return found - {"all"}


def planned(folder: Path) -> set[str]:
    """Return the jobs that a plain `snakemake` would run now."""
    result = snakemake(folder, "--dry-run")
    assert result.returncode == 0, result.stdout
    return jobs(result.stdout)
