"""What each artefact was made from, in manifests that are checked before anything is read.

A job of the workflow leaves one manifest: an in-toto statement, version 1, whose predicate is SLSA's provenance,
version 1. Its subjects are the SHA-256s of all files that the job wrote; its dependencies those of all that it read.

    _type          in-toto.io/Statement/v1
    subject        [{name: path, digest: {sha256}}]
    predicateType  slsa.dev/provenance/v1
    predicate      buildDefinition: buildType, externalParameters (what was asked for), resolvedDependencies
                   runDetails: builder (id, versions), metadata (invocationId: SHA-256 of all the rest)

A manifest has no time in it: the same job makes the same manifest. Where results are in a bucket, jobs work on local
copies; an artefact is called by its place in `results/` all the same, wherever the `results/` lies that it is in.
"""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from dpo.artifacts import sha256_of, staged_file
from dpo.cli import UserError

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
NAME = "urn:dpo-unsloth-gguf"
# What a workflow's own files are called; what a job reads from here must have been written by another job.
RESULTS, MANIFESTS = Path("results"), Path("results/manifests")
HERE = Path(".")
# No job wrote what is called so, but Snakemake itself: how long each job took.
BENCHMARKS = Path("benchmarks")
# Snakemake marks with it when a folder was made.
NO_ARTEFACT = ".snakemake_timestamp"
PACKAGES = (
    "snakemake", "unsloth", "unsloth_zoo", "trl", "transformers", "datasets", "peft", "bitsandbytes", "torch",
    "llama-cpp-python", "gguf",
)  # fmt: skip


def root_of(manifest: Path) -> Path:
    """Return the folder in which the `results/` of a manifest lies: this one, or that of a bucket's local copies."""
    found = (folder for folder in manifest.parents if folder.parts[-2:] == MANIFESTS.parts)
    return next(found, MANIFESTS).parent.parent


def name_of(path: Path, root: Path) -> Path:
    """Return what a path is called, wherever local copies lie."""
    return path.relative_to(root) if path.is_relative_to(root) else path


def digests_of(path: Path, root: Path = HERE) -> dict[str, str]:
    """Return the SHA-256 of a file, or of every file in a folder, by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {str(name_of(file, root)): sha256_of(file) for file in files if file.name != NO_ARTEFACT}


def is_made(name: Path) -> bool:
    """Tell whether a name is an artefact's: a job wrote it, and a manifest says so."""
    return name.is_relative_to(RESULTS) and not name.is_relative_to(MANIFESTS)


def check(inputs: list[Path], root: Path = HERE) -> dict[str, str]:
    """Compare what a job is about to read with what the jobs wrote that made it.

    Args:
        inputs: paths of all that it reads, the manifests of all artefacts among them.
        root: folder in which the `results/` lies that they are in.

    Returns:
        the SHA-256 of each file by name, manifests left out.

    Raises:
        UserError: an artefact is not what its job wrote, or a manifest is none.
    """
    written, makers = {}, {}
    for path in inputs:
        if name_of(path, root).is_relative_to(MANIFESTS):
            statement = read_manifest(path)
            names = digests_in(statement["subject"])
            written |= names
            makers |= dict.fromkeys(names, statement["predicate"]["buildDefinition"]["externalParameters"]["rule"])
    found = {}
    for path in inputs:
        artefact = name_of(path, root)
        if artefact.is_relative_to(MANIFESTS):
            continue
        if not path.exists():
            raise UserError(f"{path} does not exist{'; run again, which makes it anew' if is_made(artefact) else ''}")
        digests = digests_of(path, root)
        if is_made(artefact):
            ours = {name: digest for name, digest in written.items() if within(name, artefact)}
            check_artefact(artefact, digests, ours, makers, root)
        found |= digests
    return found


def within(name: str, artefact: Path) -> bool:
    """Tell whether a file is an artefact, or lies in it."""
    return Path(name).is_relative_to(artefact)


def check_artefact(
    path: Path, found: dict[str, str], written: dict[str, str], makers: dict[str, str], root: Path
) -> None:
    """Raise `UserError` unless an artefact's files are those that were written, and no others."""
    where = "" if root == HERE else f" in the bucket, and its copy in {root},"
    anew = f"delete {path}{where} and run again, which makes it anew"
    if not written:
        raise UserError(f"no manifest says what wrote {path}; {anew}")
    for name in sorted(found.keys() | written.keys()):
        maker = makers.get(name) or next(iter(makers[other] for other in written))
        if name not in written:
            raise UserError(f"{name} was not written by {maker}, but put there by something else; {anew}")
        if name not in found:
            raise UserError(f"{name}, which {maker} wrote, is missing; {anew}")
        if found[name] != written[name]:
            raise UserError(
                f"{name} is not what {maker} wrote: it was changed, swapped or damaged since (SHA-256 "
                f"{found[name][:12]}…, not {written[name][:12]}…); {anew}"
            )


def as_subjects(digests: dict[str, str]) -> list[dict]:
    """Return SHA-256s by path as in-toto's resource descriptors."""
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())]


def digests_in(subjects: list[dict]) -> dict[str, str]:
    """Return the SHA-256s by path of in-toto's resource descriptors; those of other kinds are left out."""
    return {subject["name"]: subject["digest"]["sha256"] for subject in subjects if "sha256" in subject["digest"]}


def make_statement(subjects: dict[str, str], asked: dict, dependencies: list[dict], **details) -> dict:
    """Return a statement.

    Args:
        subjects: SHA-256 of each file that was made, by path.
        asked: what was to be done, as `externalParameters`.
        dependencies: what it was made from, as resource descriptors.
        details: more of `runDetails`, for example `byproducts`.
    """
    predicate = {
        "buildDefinition": {
            "buildType": f"{NAME}:{'rule' if 'rule' in asked else 'workflow'}",
            "externalParameters": asked,
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": NAME, "version": {"python": platform.python_version()} | versions()},
            **details,
        },
    }
    statement = {
        "_type": STATEMENT, "subject": as_subjects(subjects), "predicateType": PREDICATE, "predicate": predicate,
    }  # fmt: skip
    predicate["runDetails"]["metadata"] = {"invocationId": hashlib.sha256(encode(statement)).hexdigest()}
    return statement


def encode(statement: dict) -> bytes:
    """Return the one form in which a statement is written, so that a file with another byte anywhere is found out."""
    return (json.dumps(statement, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, statement: dict) -> None:
    """Write a statement, whole or not at all."""
    with staged_file(path) as partial:
        partial.write_bytes(encode(statement))


def read_manifest(path: Path) -> dict:
    """Read a statement.

    Raises:
        UserError: it is not, byte for byte, what was written.
    """
    content = path.read_bytes()
    try:
        statement = json.loads(content)
        sound = encode(statement) == content
        named = statement["predicate"]["runDetails"].pop("metadata")["invocationId"]
        sound = sound and hashlib.sha256(encode(statement)).hexdigest() == named
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged: it is not the manifest that was written; delete it and run again")
    return statement


def made_from_here(path: Path, config: dict) -> bool:
    """Tell whether a statement on all results was made with a config, and from files that lie here as they were."""
    asked = read_manifest(path)["predicate"]["buildDefinition"]
    read = {Path(name): digest for name, digest in digests_in(asked["resolvedDependencies"]).items()}
    return asked["externalParameters"]["config"] == config and all(
        name.is_file() and sha256_of(name) == digest
        for name, digest in read.items()
        if not name.is_relative_to(BENCHMARKS)
    )


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide what comes out."""
    return {package: version(package) for package in PACKAGES}


def git_commit() -> str | None:
    """Return the commit of the working tree, with `+changes` where files differ from it; None outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes else "")


def git_dependency() -> list[dict]:
    """Return the checkout as a resource descriptor, or nothing outside one. What differs from it is among the files."""
    commit = git_commit()
    if commit is None:
        return []
    head, _, changes = commit.partition("+")
    return [{"name": "git", "digest": {"gitCommit": head}} | ({"annotations": {"changes": True}} if changes else {})]
