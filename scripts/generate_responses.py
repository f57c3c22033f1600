"""Answer every test prompt with the base model, or with the base model and an adapter.

    python scripts/generate_responses.py --model results/base/model --adapter results/dpo/adapter \
        --prompts data/prompts.jsonl --settings '{"max_new_tokens": 256, "batch_size": 12, "seed": 42}' \
        --generations results/dpo/generations.jsonl

Decoding is greedy. Each row of the output has the prompt's id, topic and text, the answer (`text`), its length in
`tokens`, whether the model `ended` it itself, and `seconds`: the wall time of its batch, shared evenly.
"""

import argparse
import json
import time
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import write_jsonl
from dpo.cli import UserError
from dpo.prompts import read_prompts


def generate(model, tokenizer, prompts: list[str], max_new_tokens: int) -> list[dict]:
    """Answer a batch of prompts greedily; return text, tokens (end token not counted), ended and seconds of each."""
    import torch

    started = time.monotonic()
    rendered = [chat.prompt_ids(tokenizer, chat.conversation(prompt)) for prompt in prompts]
    inputs = tokenizer.pad({"input_ids": rendered}, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        outputs = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    seconds = (time.monotonic() - started) / len(prompts)
    answers = []
    for output in outputs[:, inputs["input_ids"].shape[1] :].tolist():
        ended = tokenizer.eos_token_id in output
        ids = output[: output.index(tokenizer.eos_token_id)] if ended else output
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append({"text": text, "tokens": len(ids), "ended": ended, "seconds": round(seconds, 3)})
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter to put on it")
    parser.add_argument("--prompts", type=Path, required=True, help="test prompts (JSON Lines)")
    parser.add_argument("--settings", type=json.loads, required=True, help="max_new_tokens, batch_size, seed; as JSON")
    parser.add_argument("--generations", type=Path, required=True, help="JSON Lines file to write")
    arguments = parser.parse_args()
    settings = arguments.settings

    problems = []
    prompts = read_prompts(arguments.prompts, problems)
    if problems:
        raise UserError("\n  ".join(["the test prompts have faults:", *problems]))

    from transformers import set_seed

    from dpo.models import batches, load_model

    set_seed(settings["seed"])
    tokenizer = chat.load_tokenizer(arguments.model)
    model = load_model(arguments.model, arguments.adapter)
    rows = []
    started = time.monotonic()
    for batch in batches(prompts, settings["batch_size"]):
        answers = generate(model, tokenizer, [row["prompt"] for row in batch], settings["max_new_tokens"])
        rows += [
            {key: row[key] for key in ("id", "topic", "prompt")} | answer
            for row, answer in zip(batch, answers, strict=True)
        ]
        left = (time.monotonic() - started) / len(rows) * (len(prompts) - len(rows))
        print(f"{len(rows)} of {len(prompts)} prompts answered, {left:.0f} seconds left", flush=True)
    write_jsonl(arguments.generations, rows)


if __name__ == "__main__":
    cli.run(main)
