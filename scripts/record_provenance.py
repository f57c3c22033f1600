"""Say in two files of standard formats what the results were made from, and with what.

    find results/manifests -name '*.json' | python scripts/record_provenance.py --config '{…}' \
        --provenance results/provenance.json --components results/sbom.cdx.json

Standard input names the manifests of all jobs, a path a line, among other files, which are passed over. The first file
is an in-toto statement with SLSA's provenance predicate, see `dpo/provenance.py`: its subjects are all files that any
job wrote, its dependencies all that no job wrote, its byproducts the jobs' manifests. The second is a CycloneDX bill of
materials of the Python environment.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dpo import cli, provenance
from dpo.artifacts import sha256_of, write_json
from dpo.child_process import ends_with_this
from dpo.cli import UserError


def list_components(path: Path) -> None:
    """Write what is installed beside this Python, as CycloneDX in JSON.

    Without times, so always the same; and without the places on this machine from which something was installed.
    """
    command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable]
    command += ["--output-format", "JSON", "--output-reproducible"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=ends_with_this())
    if result.returncode:
        raise UserError(f"cyclonedx-py cannot list what is installed: {result.stderr.strip().splitlines()[-1]}")
    bill = json.loads(result.stdout)
    for component in bill["components"]:
        references = component.get("externalReferences", [])
        component["externalReferences"] = [place for place in references if not place["url"].startswith("file:")]
    write_json(path, bill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=json.loads, required=True, help="the resolved config, as JSON")
    parser.add_argument("--provenance", type=Path, required=True, help="in-toto statement to write")
    parser.add_argument("--components", type=Path, required=True, help="CycloneDX bill of materials to write")
    arguments = parser.parse_args()
    root = arguments.provenance.parent.parent
    paths = {path: provenance.name_of(path, root) for path in map(Path, sys.stdin.read().splitlines())}
    manifests = {path: name for path, name in paths.items() if name.is_relative_to(provenance.MANIFESTS)}

    list_components(arguments.components)
    written, read = {}, {}
    for manifest in manifests:
        statement = provenance.read_manifest(manifest)
        written |= provenance.digests_in(statement["subject"])
        read |= provenance.digests_in(statement["predicate"]["buildDefinition"]["resolvedDependencies"])
    sources = {name: digest for name, digest in read.items() if name not in written}
    statement = provenance.make_statement(
        written | provenance.digests_of(arguments.components, root),
        {"config": arguments.config},
        [*provenance.git_dependency(), *provenance.as_subjects(sources)],
        byproducts=provenance.as_subjects({str(name): sha256_of(path) for path, name in manifests.items()}),
    )
    provenance.write_manifest(arguments.provenance, statement)
    print(f"{len(written)} files made from {len(sources)} by {len(manifests)} jobs, all as they were written")


if __name__ == "__main__":
    cli.run(main)
