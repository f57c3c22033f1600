"""Compare ways from one adapter to a shipped file: this workflow's merge, Unsloth's own, and PEFT's in bfloat16.

    PYTHONPATH=scripts python bench/export.py --model results/base/model --adapter results/dpo/adapter \
        --heldout results/data/heldout.jsonl --beta 0.1 --type q4_k_m

Every way's merged model is converted with llama.cpp's converter and quantised, and so is the base model. Printed is the
mean DPO margin that merged model and quantised file have on the held-out pairs, each against the base model in the same
form; then how long converting and quantising take, and how fast the shipped file decodes one answer, against
transformers in bfloat16. Speeds and times are medians, measured in turn.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import chat, child_process, llama_cpp_source, preferences
from dpo.artifacts import read_jsonl

PROJECT = Path(__file__).parents[1]
TOKENS = 64


def run_script(name: str, *arguments) -> float:
    """Run a program of the workflow; return its seconds."""
    started = time.monotonic()
    subprocess.run([sys.executable, PROJECT / "scripts" / name, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def merge_here(model: Path, adapter: Path, merged: Path) -> None:
    """Merge as this workflow does."""
    run_script("merge_adapter.py", "--model", model, "--adapter", adapter, "--merged", merged)


def merge_in_bfloat16(model: Path, adapter: Path, merged: Path) -> None:
    """Merge with PEFT into the base model as it is stored, in bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(merged)
    chat.load_tokenizer(model).save_pretrained(merged)


def merge_with_unsloth(model: Path, adapter: Path, merged: Path) -> None:
    """Merge as the notebook does, with Unsloth's `save_pretrained_merged` and `merged_16bit`."""
    from unsloth import FastLanguageModel

    with TemporaryDirectory() as folder:
        # Unsloth finds the base model through the adapter's config.
        copy = shutil.copytree(adapter, Path(folder) / "adapter")
        config = json.loads((copy / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(model.resolve())
        (copy / "adapter_config.json").write_text(json.dumps(config))
        policy, tokenizer = FastLanguageModel.from_pretrained(str(copy), load_in_4bit=False)
        policy.save_pretrained_merged(str(merged), tokenizer, save_method="merged_16bit")


# Each with the type that its weights are in, so that converting loses nothing.
WAYS = {
    "this workflow": (merge_here, "f16"),
    "PEFT in bfloat16": (merge_in_bfloat16, "bf16"),
    "Unsloth, merged_16bit": (merge_with_unsloth, "bf16"),
}


def convert_and_quantize(model: Path, gguf: Path, outtype: str, kind: str) -> Path:
    """Convert a Hugging Face folder to `gguf` and quantise that; return the quantised file."""
    quantized = gguf.with_name(f"{gguf.stem}-{kind}.gguf")
    llama_cpp_source.convert(model, gguf, "--outtype", outtype)
    run_script("quantize_gguf.py", "--gguf", gguf, "--type", kind, "--quantized", quantized)
    return quantized


def model_logps(model: Path, sequences: list) -> list:
    """Return the log-probability of each completion by a Hugging Face folder, in float32."""
    from dpo.inference import tune
    from dpo.models import completion_logps, load_model

    return completion_logps(tune(load_model(model)), sequences)


def gguf_logps(gguf: Path, sequences: list) -> list:
    """Return the log-probability of each completion by a GGUF file."""
    from dpo import gguf_scores

    context = max(len(prompt) + len(completion) for prompt, completion in sequences)
    return gguf_scores.completion_logps(gguf_scores.open_for_logits(gguf, context)[0], sequences)


def gguf_speed(gguf: Path) -> float:
    """Return how many tokens a second a GGUF file decodes at, one answer at a time."""
    from dpo import gguf_chat, gguf_scores

    llama, formatter = gguf_scores.open_for_logits(gguf, gguf_scores.LEAST_CONTEXT)
    return gguf_scores.decoding_speed(llama, gguf_chat.prompt_ids(llama, formatter, gguf_scores.SPEED_PROMPT))


def transformers_speed(model: Path) -> float:
    """Return the same of a Hugging Face folder in bfloat16, through transformers' `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    from dpo import gguf_scores

    tokenizer = chat.load_tokenizer(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    ids = torch.tensor([chat.prompt_ids(tokenizer, gguf_scores.SPEED_PROMPT)])
    exact = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    loaded.generate(ids, min_new_tokens=8, max_new_tokens=8, **exact)
    started = time.monotonic()
    loaded.generate(ids, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **exact)
    return TOKENS / (time.monotonic() - started)


def in_child(function, *arguments):
    """Run one of the functions above in a process of its own: Unsloth changes whatever is loaded after it."""
    return child_process.run(f"{function.__name__} crashed", function, *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, required=True, help="LoRA adapter that was trained on it")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--beta", type=float, default=0.1, help="beta of the training")
    parser.add_argument("--type", default="q4_k_m", help="llama.cpp's quantisation type")
    parser.add_argument("--repeats", type=int, default=5, help="times that speeds are measured")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

    pairs = read_jsonl(arguments.heldout)
    sequences = preferences.encode_pairs(chat.load_tokenizer(arguments.model), pairs)

    def margin(logps: list, base: list) -> float:
        ours, theirs = (preferences.pair_rows(pairs, found) for found in (logps, base))
        return statistics.mean(preferences.reward_margins(ours, theirs, arguments.beta))

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base_file = convert_and_quantize(arguments.model, folder / "base.gguf", "f16", arguments.type)
        base, base_quantized = (
            in_child(model_logps, arguments.model, sequences),
            in_child(gguf_logps, base_file, sequences),
        )
        shipped = {}
        for number, (name, (merge, outtype)) in enumerate(WAYS.items()):
            merged = folder / f"merged-{number}"
            in_child(merge, arguments.model, arguments.adapter, merged)
            quantized = convert_and_quantize(merged, folder / f"{number}.gguf", outtype, arguments.type)
            before = margin(in_child(model_logps, merged, sequences), base)
            shipped[name] = margin(in_child(gguf_logps, quantized, sequences), base_quantized)
            ratio = shipped["this workflow"] / shipped[name]
            print(
                f"{name}: margin {before:.3f} merged, {shipped[name]:.3f} as {arguments.type} (ours: {ratio:.2f} times)"
            )

        merged, ours = folder / "merged-0", folder / f"0-{arguments.type}.gguf"
        seconds, speeds = [], {"llama.cpp": [], "transformers": []}
        for _ in range(arguments.repeats):
            seconds.append(
                run_script("convert_to_gguf.py", "--model", merged, "--gguf", folder / "0.gguf")
                + run_script(
                    "quantize_gguf.py", "--gguf", folder / "0.gguf", "--type", arguments.type, "--quantized", ours
                )
            )
            speeds["llama.cpp"].append(in_child(gguf_speed, ours))
            speeds["transformers"].append(in_child(transformers_speed, merged))
        print(f"converting and quantising: {statistics.median(seconds):.1f} s")
        gguf, reference = (statistics.median(found) for found in speeds.values())
        print(
            f"{arguments.type}: {gguf:.0f} tokens a second; transformers in bfloat16: {reference:.0f} "
            f"({gguf / reference:.1f} times)"
        )


if __name__ == "__main__":
    main()
