"""Measure what is left of the training at every rung of a ladder: from the adapter in float32 down to each GGUF file.

    python scripts/measure_fidelity.py --model results/base/model --adapter results/dpo/adapter \
        --merged results/dpo/merged --heldout results/data/heldout.jsonl --neutral data/neutral.jsonl \
        --prompts data/prompts.jsonl data/instructions.jsonl data/adversarial.jsonl \
        --reference results/base/preferences.json --preferences results/dpo/preferences.json \
        --base-scores results/base/gguf_scores/*.json --scores results/dpo/gguf_scores/*.json \
        --settings '{"beta": 0.1, "max_pairs": 500, …}' --fidelity results/dpo/fidelity.json

The settings are those of the training plus `max_pairs`. The adapter in float32 and the base model have been scored
before (`--preferences`, `--reference`), and so have the GGUF files (`--scores`, one file a type); the rungs between are
measured here. `dpo/fidelity.py` says what a rung's figures mean.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import chat, child_process, cli, fidelity, preferences, token_ids
from dpo.artifacts import read_json, read_jsonl, write_json
from dpo.neutral import encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, required=True, help="LoRA adapter that was trained on it")
    parser.add_argument("--merged", type=Path, required=True, help="merged model, a Hugging Face folder")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--neutral", type=Path, required=True, help="neutral texts (JSON Lines)")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="all test prompts (JSON Lines)")
    parser.add_argument("--reference", type=Path, required=True, help="the base model's preferences.json")
    parser.add_argument("--preferences", type=Path, required=True, help="the run's preferences.json")
    parser.add_argument("--base-scores", type=Path, nargs="+", required=True, help="the base model's GGUF scores")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="the run's GGUF scores, f16 first")
    parser.add_argument("--settings", type=json.loads, required=True, help="training settings and max_pairs, as JSON")
    parser.add_argument("--fidelity", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    settings = arguments.settings

    import numpy as np
    import torch

    from dpo import divergence, policy_scores
    from dpo.inference import tune
    from dpo.models import add_adapter, completion_logps, load_dequantized, load_model, text_logprobs

    tokenizer = chat.load_tokenizer(arguments.model)
    pairs = preferences.choose_pairs(read_jsonl(arguments.heldout), settings["max_pairs"])
    sequences = preferences.encode_pairs(tokenizer, pairs)
    texts = list(encode_texts(tokenizer, arguments.neutral).values())
    prompts = token_ids.conversations(arguments.prompts, pairs)
    reference, scored = (read_json(file)["heldout"]["pairs"] for file in (arguments.reference, arguments.preferences))

    def neutral(logprobs, above=None) -> dict:
        others = above or [None] * len(texts)
        return divergence.summarize(list(map(divergence.score_text, texts, logprobs, others)))

    def compare_ids(folder: Path) -> dict:
        ours = chat.load_tokenizer(folder)
        return token_ids.compare(tokenizer, prompts, [chat.prompt_ids(ours, prompt) for prompt in prompts])

    def rows(logps) -> list[dict]:
        return preferences.pair_rows(pairs, logps)

    print("measuring the adapter in float32", flush=True)
    adapter_logprobs = list(text_logprobs(tune(load_model(arguments.model, arguments.adapter)), texts))
    adapter_ids = compare_ids(arguments.adapter)
    rungs = [
        {"name": "adapter", "above": None, "pairs": scored, "base_pairs": reference}
        | {"neutral": neutral(adapter_logprobs), "token_ids": adapter_ids}
    ]
    print("measuring the adapter as the trainer runs it", flush=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        crashed = f"the trainer's model crashed with {arguments.adapter}; its lines above may say why"
        inputs = (arguments.model, arguments.adapter, settings, sequences, texts, folder)
        trained = child_process.run(crashed, policy_scores.score, *inputs)
        logprobs = (torch.from_numpy(np.load(folder / f"{number}.npy")) for number in range(len(texts)))
        rungs.append(
            {"name": "trainer", "above": "adapter", "token_ids": adapter_ids}
            | {"pairs": rows(trained["logps"]), "base_pairs": rows(trained["base_logps"])}
            | {"neutral": neutral(logprobs, adapter_logprobs)}
        )
    print("measuring the merged model", flush=True)
    merged = tune(load_model(arguments.merged))
    rungs.append(
        {"name": "merged", "above": "adapter", "token_ids": compare_ids(arguments.merged)}
        | {"pairs": rows(completion_logps(merged, sequences))}
        | {"neutral": neutral(text_logprobs(merged, texts), adapter_logprobs)}
    )
    del merged
    base = tune(load_model(arguments.model).to(torch.float16).float())  # stored as the merged model is
    rungs[-1]["base_pairs"] = rows(completion_logps(base, sequences))
    del base
    if settings["load_in_4bit"]:
        # The other way to merge what QLoRA trained: into the base model as the trainer saw it.
        print("measuring the adapter merged into the dequantised base model", flush=True)
        base_logps = completion_logps(tune(load_dequantized(arguments.model)), sequences)
        other = tune(add_adapter(load_dequantized(arguments.model), arguments.adapter))
        rungs.append(
            {"name": "dequantized", "above": "adapter", "token_ids": adapter_ids}
            | {"pairs": rows(completion_logps(other, sequences)), "base_pairs": rows(base_logps)}
            | {"neutral": neutral(text_logprobs(other, texts), adapter_logprobs)}
        )
        del other

    for ours, theirs in zip(arguments.scores, arguments.base_scores, strict=True):
        found = read_json(ours)
        above = "merged" if ours.stem == "f16" else "f16"
        rungs.append({"name": ours.stem, "above": above, "base_pairs": read_json(theirs)["pairs"]} | found)

    ladder = fidelity.build_ladder(rungs, reference, settings["beta"])
    write_json(arguments.fidelity, {"pairs": len(pairs), "rungs": ladder})
    for rung in ladder:
        kept = f", {rung['kept']['value']:.1%} of the adapter's" if rung["kept"] else ""
        print(f"{rung['name']}: margin {rung['margin']['value']:+.3f}{kept}")


if __name__ == "__main__":
    cli.run(main)
