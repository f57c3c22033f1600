"""Download one pinned revision of a hub dataset, for build_dataset to read.

    python scripts/fetch_dataset.py --settings '{"repo": "stanfordnlp/SHP", "revision": "…"}' \
        --folder results/data/sources/stanfordnlp--SHP@…

Only data files come, and the README that says which of them belong to which split; never a script.
"""

import argparse
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from dpo import cli, hub
from dpo.artifacts import staged_folder
from dpo.cli import UserError

DATA_FILES = ["*.jsonl", "*.json", "*.csv", "*.parquet", "*.gz", "*.zst", "*.xz", "*.bz2"]


def check_card(card: Path, name: str) -> None:
    """Raise `UserError` where a dataset's card says that rows lie elsewhere than in its repository.

    `datasets` follows it: to any file of this machine, whose content would be trained on and published, and to the net.
    """
    from huggingface_hub.repocard import metadata_load

    try:
        configs = (metadata_load(card) or {}).get("configs")
    except Exception as error:  # it is a stranger's YAML
        raise UserError(f"{name}: the head of README.md is no YAML: {' '.join(str(error).split())[:300]}") from None
    for text in texts_in(configs):
        if hub.lies_outside(text):
            raise UserError(f"{name}: README.md says that rows are in {text!r}, outside the repository; take another")


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value of lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings", type=json.loads, required=True, help="repo, revision and perhaps data_dir, as JSON"
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    repo, revision = arguments.settings["repo"], arguments.settings["revision"]
    within = arguments.settings.get("data_dir", "")

    def is_wanted(file: str) -> bool:
        in_folder = not within or file.startswith(f"{within.strip('/')}/")
        return file == "README.md" or (in_folder and any(fnmatch(file, pattern) for pattern in DATA_FILES))

    with staged_folder(arguments.folder) as folder:
        commit = hub.download("dataset", repo, revision, folder, is_wanted, ", or use a local file")
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != "README.md"]
        if not files:
            raise UserError(
                f"{repo} at {revision} has no data file{f' in {within}' if within else ''}; for a dataset made by a "
                "script take the commit of its branch refs/convert/parquet as revision"
            )
        if (folder / "README.md").exists():
            check_card(folder / "README.md", f"{repo} at {revision}")
        size = sum(file.stat().st_size for file in files)
    print(f"{repo} at {commit}: {len(files)} files, {size / 1e6:,.1f} MB")


if __name__ == "__main__":
    cli.run(main)
