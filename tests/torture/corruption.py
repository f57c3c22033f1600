"""Truncated files and flipped bits, with times as they were: every one is found out before the file is used."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dpo import provenance
from dpo.cli import UserError
from torture.outcome import RECOVERED, REFUSED, SILENT, Tried
from torture.project import copy, digests, finish

# Kinds of artefacts, and where in results/ they lie.
KINDS = {
    "JSONL": ["data/*.jsonl", "*/generations.jsonl", "base/reference_logps/*.jsonl"],
    "tokenizer": ["*/*/tokenizer.json", "*/*/tokenizer_config.json", "*/*/chat_template.jinja"],
    "safetensors": ["*/*/*.safetensors"],
    "GGUF": ["*/gguf/*.gguf"],
    "manifest": ["manifests/**/*.json"],
    "other": ["data/*.npy", "*/*/config.json", "*/*/adapter_config.json", "*/preferences.json", "summary.json"],
}
# Through the real Snakemake: a file that is damaged, and a target whose job reads it.
READERS = {
    "data/train.jsonl": "results/base/reference_logps/bf16-auto.jsonl",
    "base/model/tokenizer.json": "results/data/train.jsonl",
    "base/model/model.safetensors": "results/base/generations.jsonl",
    "base/reference_logps/bf16-auto.jsonl": "results/dpo/training.jsonl",
    "dpo/adapter/adapter_model.safetensors": "results/dpo/merged",
    "dpo/merged/model.safetensors": "results/dpo/gguf/model-f16.gguf",
    "dpo/gguf/model-f16.gguf": "results/dpo/gguf/model-q4_k_m.gguf",
    "dpo/gguf/model-q4_k_m.gguf": "results/dpo/smoke_test.json",
    "dpo/generations.jsonl": "results/dpo/scores.json",
    "manifests/train_dpo/dpo.json": "results/dpo/merged",
}


def damage(file: Path, chance: random.Random) -> Callable[[], None]:
    """Flip one bit of a file or cut off its end, and leave its time as it was; return how to undo it."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        if chance.random() < 0.5:
            place, mask = chance.randrange(size), 1 << chance.randrange(8)
            opened.seek(place)
            kept = opened.read(1)
            new = bytes([kept[0] ^ mask])
        else:
            place = chance.randrange(size)
            opened.seek(place)
            kept, new = opened.read(), b""
        opened.seek(place)
        opened.write(new)
        opened.truncate(size if new else place)
    os.utime(file, ns=times)

    def undo() -> None:
        with open(file, "r+b") as opened:
            opened.seek(place)
            opened.write(kept)
        os.utime(file, ns=times)

    return undo


def manifest_of(name: str, manifests: dict[Path, dict]) -> Path:
    """Return the manifest that vouches for a file."""
    return next(path for path, written in manifests.items() if name in written)


def read_by_a_stage(finished: Path, tries: int, seed: int) -> Iterator[Tried]:
    """Damage a result, and have it checked as a stage does that is about to read it.

    Args:
        finished: project in which everything has run; every damage is undone.
        tries: how many, shared out over the kinds.
        seed: of files and damages.
    """
    chance, here = random.Random(seed), os.getcwd()
    os.chdir(finished)
    try:
        paths = sorted(provenance.MANIFESTS.rglob("*.json"))
        manifests = {path: provenance.digests_in(provenance.read_manifest(path)["subject"]) for path in paths}
        for kind, patterns in KINDS.items():
            files = [file for pattern in patterns for file in sorted(provenance.RESULTS.glob(pattern))]
            files = [file for file in files if file.stat().st_size]
            for _ in range(tries // len(KINDS)):
                file = chance.choice(files)
                read = [file] if kind == "manifest" else [file, manifest_of(str(file), manifests)]
                undo = damage(file, chance)
                try:
                    provenance.check(read)
                    yield Tried("flipped bit or cut end, time kept", kind, SILENT, str(file))
                except UserError:
                    yield Tried("flipped bit or cut end, time kept", kind, REFUSED)
                undo()
                provenance.check(read)  # as it was
    finally:
        os.chdir(here)


def read_by_the_workflow(finished: Path, folder: Path, seed: int) -> Iterator[Tried]:
    """Damage a result, ask Snakemake for what is made of it, then remove it and ask again.

    Args:
        finished: project in which everything has run.
        folder: where to work; replaced.
        seed: of the damages.
    """
    chance, expected = random.Random(seed), digests(finished)
    for name, target in READERS.items():
        copy(finished, folder)
        remove(folder / target)
        damage(folder / "results" / name, chance)
        status, text = finish(folder, "--", target)
        refused = status and f"error: results/{name}" in text and "Traceback" not in text
        left = (folder / target).exists()
        fault = "flipped bit or cut end, through Snakemake"
        yield Tried(fault, name, REFUSED if refused and not left else SILENT, text[-300:])
        file = folder / "results" / name
        artefact = file.parent if file.parent.name in ("model", "adapter", "merged") else file
        remove(artefact)
        status, text = finish(folder, "--", target)
        same = digests(folder) == expected
        yield Tried(
            "the damaged file removed, run again", name, RECOVERED if not status and same else SILENT, text[-300:]
        )


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
