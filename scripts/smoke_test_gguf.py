"""Load the GGUF that ships, as its users will, and refuse it unless it is what was trained and it answers.

    python scripts/smoke_test_gguf.py --gguf results/dpo/gguf/model-q4_k_m.gguf --f16 results/dpo/gguf/model-f16.gguf \
        --merged results/dpo/merged --prompts data/prompts.jsonl \
        --settings '{"type": "q4_k_m", "max_new_tokens": 1024}' \
        --modelfile results/dpo/gguf/Modelfile --report results/dpo/smoke_test.json

The file is loaded in a child process, so that a crash in native code is reported too. Checked are: metadata and tensor
count; and that the answers to the notebook's prompts are readable text without control tokens, at least one of them
ended by the model itself. What the file prefers, and its token ids, are measured by `score_gguf.py`.
"""

import argparse
import json
import struct
from pathlib import Path

from dpo import chat, cli, rubric
from dpo.artifacts import read_json, sha256_of, staged_file, write_json
from dpo.cli import UserError
from dpo.gguf_chat import inspect_and_answer, run_in_child
from dpo.modelfile import write_modelfile
from dpo.prompts import notebook_prompts, read_prompts
from dpo.quantization import TYPES


def tensor_count(gguf: Path) -> int:
    """Return the number of tensors in a GGUF's header: magic, version (uint32), tensor count (uint64).

    Raises:
        UserError: the file is not a GGUF.
    """
    with open(gguf, "rb") as file:
        header = file.read(16)
    if len(header) < 16 or header[:4] != b"GGUF":
        raise UserError(f"{gguf} is not a GGUF file; delete it and run again")
    return struct.unpack("<4sIQ", header)[2]


def wrong_metadata(
    metadata: dict[str, str], file_type: int, config: dict, chat_template: str, eos_token_id: int
) -> list[str]:
    """Return a sentence for each metadata value that does not fit the merged model."""
    architecture = metadata.get("general.architecture", "")
    expected = {
        "general.architecture": config["model_type"],
        "general.file_type": str(file_type),
        f"{architecture}.block_count": str(config["num_hidden_layers"]),
        f"{architecture}.embedding_length": str(config["hidden_size"]),
        f"{architecture}.context_length": str(config["max_position_embeddings"]),
        "tokenizer.ggml.eos_token_id": str(eos_token_id),
        "tokenizer.chat_template": chat_template,
    }
    return [
        f"metadata {key} is {metadata.get(key)!r}, not {value!r}"
        for key, value in expected.items()
        if metadata.get(key) != value
    ]


def unreadable(text: str, special_tokens: list[str]) -> str | None:
    """Return what is wrong with an answer as text, or None: empty, a control token in it, or hardly any letters."""
    if not text:
        return "is empty"
    if leaked := [token for token in special_tokens if token in text]:
        return f"contains the control token {leaked[0]}"
    readable = sum(character.isalnum() or character.isspace() or character in ".,;:!?'\"()*-`" for character in text)
    if readable < 0.8 * len(text):
        return f"is hardly readable text: {text[:60]!r}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="quantised GGUF to test")
    parser.add_argument("--f16", type=Path, required=True, help="GGUF that it was quantised from")
    parser.add_argument("--merged", type=Path, required=True, help="merged model, a Hugging Face folder")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--settings", type=json.loads, required=True, help="type and max_new_tokens, as JSON")
    parser.add_argument("--modelfile", type=Path, required=True, help="Ollama Modelfile to write")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    prompts = read_prompts(arguments.prompts, [])
    questions = notebook_prompts(prompts)
    texts = [row["prompt"] for row in prompts]
    tokenizer = chat.load_tokenizer(arguments.merged)
    asked = [row["prompt"] for row in questions]
    found = run_in_child(inspect_and_answer, arguments.gguf, asked, arguments.settings["max_new_tokens"])

    faults = wrong_metadata(
        found["metadata"],
        TYPES[arguments.settings["type"]],
        read_json(arguments.merged / "config.json"),
        tokenizer.chat_template,
        tokenizer.eos_token_id,
    )
    tensors = tensor_count(arguments.gguf)
    if tensors != tensor_count(arguments.f16):
        faults.append(f"{tensors} tensors, but {tensor_count(arguments.f16)} in {arguments.f16.name}")
    for question, answer in zip(questions, found["answers"], strict=True):
        if fault := unreadable(answer["text"], tokenizer.all_special_tokens):
            faults.append(f"the answer to {question['id']} {fault}")
    if not any(answer["ended"] for answer in found["answers"]):
        faults.append("no answer reached an end token; raise export.max_new_tokens, or train for fewer steps")
    if faults:
        raise UserError("\n  ".join([f"{arguments.gguf} must not ship:", *faults]))

    answers = [
        {"id": question["id"], "prompt": question["prompt"]}
        | answer
        | {"expectations": rubric.check_expectations(question, answer["text"])}
        for question, answer in zip(questions, found["answers"], strict=True)
    ]
    seconds, tokens = (sum(answer[key] for answer in answers) for key in ("seconds", "tokens"))
    report = {
        "bytes": arguments.gguf.stat().st_size,
        "sha256": sha256_of(arguments.gguf),
        "tensors": tensors,
        "load_seconds": found["load_seconds"],
        "tokens_per_second": tokens / seconds,
        "answers": answers,
    }
    with staged_file(arguments.modelfile) as partial:
        partial.write_text(write_modelfile(tokenizer, arguments.gguf.name, texts), encoding="utf-8")
    write_json(arguments.report, report)
    print(f"{arguments.gguf.name} answers {len(answers)} prompts at {tokens / seconds:.0f} tokens a second")


if __name__ == "__main__":
    cli.run(main)
