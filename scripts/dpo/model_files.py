"""The files of a model folder that a stranger made, examined before anything loads them.

Weights are numbers in safetensors files, never a pickle, which runs code when it is loaded. Every file lies in the
folder itself. The settings beside them are plain JSON; what names code to run, or files in other places, is left out.
"""

import json
import math
from fnmatch import fnmatch
from pathlib import Path

from dpo.cli import UserError
from dpo.json_lines import MalformedLine, reject_repeated_keys

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
INDEX = "*.safetensors.index.json"
LARGEST_JSON = 200_000_000  # bytes; the largest tokenizers have 40 million
# Names of Python code and of weights that transformers would fetch or run instead of its own. It asks on the terminal
# before it runs a repository's code, and llama.cpp's converter does not even ask.
LEFT_OUT = {
    "auto_map", "custom_generate", "trust_remote_code", "transformers_weights", "fusion_config",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
}  # fmt: skip
DTYPES = {None, "float64", "float32", "float16", "bfloat16"}


def is_wanted(file: str) -> bool:
    """Tell by its name whether a file belongs to a model; below lie other formats of it (onnx/, original/)."""
    return "/" not in file and any(fnmatch(file, pattern) for pattern in PATTERNS)


def find(folder: Path, name: str) -> list[Path]:
    """Return the files of a model in a local folder.

    Raises:
        UserError: one of them is a link to another place: what lies there would be published with the model.
    """
    real = folder.resolve()
    # The hub's cache has the files of all revisions in one place, to which those of a snapshot are links.
    allowed = [real, real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [real]
    files = [file for file in sorted(folder.glob("*")) if is_wanted(file.name) and file.is_file()]
    for file in files:
        if not any(file.resolve().is_relative_to(place) for place in allowed):
            raise UserError(
                f"{name}: {file.name} is a link to {file.resolve()}, outside the folder; copy the file there"
            )
    return files


def check_weights(folder: Path, name: str) -> None:
    """Raise `UserError` unless the folder holds a config and weights as whole safetensors files, and no adapter."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").exists():
        raise UserError(f"{name} has no config.json; it must be a Hugging Face model folder")
    if adapters := sorted(folder.glob("adapter_*")):
        raise UserError(
            f"{name} has {adapters[0].name}, an adapter that transformers would load with the model, or another model "
            "in its place; merge it into the model, or take the folder of the model alone"
        )
    weights = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    if not weights:
        raise UserError(
            f"{name} has no .safetensors file; save the model with `safe_serialization=True` (pickled weights, such as "
            "pytorch_model.bin, can run code and are never loaded)"
        )
    for file in weights:
        try:
            # Reads the header alone, and compares the file's length with it.
            safe_open(file, framework="np")
        except SafetensorError as error:
            raise UserError(
                f"{name}: {file.name} is no whole safetensors file ({error}); "
                "cut off while copying, or a Git LFS pointer in its place?"
            ) from None
    for index in sorted(folder.glob(INDEX)):
        check_index(index, {file.name for file in weights}, name)


def check_index(index: Path, weights: set[str], name: str) -> None:
    """Raise `UserError` unless every part that an index of weights names is one of the folder's safetensors files."""
    parts = read_json(index, name).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{name}: {index.name} has no weight_map, which says where each weight is")
    for part in parts.values():
        if part not in weights:
            raise UserError(f"{name}: {index.name} names {part!r}, which is no safetensors file of the folder")


def clean(folder: Path, name: str) -> None:
    """Read every JSON file strictly, check what the settings in them ask for, and take out what is in `LEFT_OUT`.

    Raises:
        UserError: a file is not plain JSON, or asks for what this workflow cannot or must not do.
    """
    for file in sorted(folder.glob("*.json")):
        value = read_json(file, name)
        if not file.name.endswith("config.json"):
            continue
        check_settings(value, f"{name}: {file.name}")
        left = without_names_of_code(value)
        if left != value:
            print(f"{name}: {file.name}: left out what names code, or files in other places")
            file.write_text(json.dumps(left, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path, name: str) -> dict:
    """Return the object in a JSON file, read strictly: two readers of a loose one can each understand another thing.

    Raises:
        UserError: it is no object, or too large or too deep, or has a key twice, or a number that is none.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number in JSON")

    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON:,} bytes")
        text = file.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=reject_repeated_keys, parse_constant=refuse)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__}, not an object")
    except RecursionError:
        raise UserError(f"{name}: {file.name} is nested too deeply") from None
    except (MalformedLine, ValueError) as error:
        raise UserError(f"{name}: {file.name} is not sound JSON: {error}") from None
    return value


def check_settings(value: object, where: str) -> None:
    """Raise `UserError` where settings, or settings within them, ask for what cannot be trained, or say nonsense."""
    if isinstance(value, list):
        for item in value:
            check_settings(item, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} holds a number too large to be one")
    if not isinstance(value, dict):
        return
    for key in ("quantization_config", "compression_config"):
        if value.get(key) is not None:
            raise UserError(
                f"{where}: {key}: the weights are quantised; take the model in float16, bfloat16 or float32"
            )
    for key in ("dtype", "torch_dtype"):
        if not isinstance(dtype := value.get(key), str | None) or dtype not in DTYPES:
            raise UserError(f"{where}: {key} is {dtype!r}; known are {', '.join(sorted(filter(None, DTYPES)))}")
    for item in value.values():
        check_settings(item, where)


def without_names_of_code(value: object) -> object:
    """Return settings without what is in `LEFT_OUT`, and without paths: `tokenizer_file` and others like it."""
    if isinstance(value, list):
        return [without_names_of_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_names_of_code(item)
        for key, item in value.items()
        if key not in LEFT_OUT and not key.endswith(("_file", "_files"))
    }
