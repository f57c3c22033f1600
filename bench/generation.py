"""Time batched answers against transformers' own `generate`, one prompt at a time and in the same batch.

    PYTHONPATH=scripts python bench/generation.py --model results/base/model --prompts 12 --tokens 64 --repeats 3

All three answer the same test prompts greedily, in turn within each repeat; printed are medians, ratios and how many of
the texts are the same.
"""

import argparse
import statistics
import time
from pathlib import Path

from dpo import chat
from dpo.artifacts import read_jsonl

PROJECT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model to answer with, a Hugging Face folder")
    parser.add_argument("--prompts", type=int, default=12, help="test prompts to answer, from data/prompts.jsonl")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--repeats", type=int, default=3, help="times that each way is timed")
    arguments = parser.parse_args()

    from dpo.generation import answer
    from dpo.inference import tune
    from dpo.models import load_model

    tokenizer = chat.load_tokenizer(arguments.model)
    end = tokenizer.eos_token_id
    rows = read_jsonl(PROJECT / "data/prompts.jsonl")[: arguments.prompts]
    prompts = [chat.prompt_ids(tokenizer, chat.conversation(row["prompt"])) for row in rows]
    plain, tuned = load_model(arguments.model), tune(load_model(arguments.model))

    def generate(batch: list[list[int]]) -> list[list[int]]:
        inputs = tokenizer.pad({"input_ids": batch}, return_tensors="pt").to(plain.device)
        outputs = plain.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=arguments.tokens,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = outputs[:, inputs["input_ids"].shape[1] :].tolist()
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]

    ways = {
        "transformers, one at a time": lambda: [generate([prompt])[0] for prompt in prompts],
        "transformers, one batch": lambda: generate(prompts),
        "ours, one batch": lambda: answer(tuned, prompts, arguments.tokens, end),
    }
    seconds, answers = {name: [] for name in ways}, {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            started = time.monotonic()
            answers[name] = way()
            seconds[name].append(time.monotonic() - started)
    ours = statistics.median(seconds["ours, one batch"])
    for name, times in seconds.items():
        median = statistics.median(times)
        same = sum(one == other for one, other in zip(answers[name], answers["ours, one batch"], strict=True))
        tokens = sum(map(len, answers[name]))
        print(
            f"{name}: {median:.1f} s, {tokens / median:.0f} tokens a second, {median / ours:.1f} times ours, "
            f"{same} of {len(prompts)} texts the same"
        )


if __name__ == "__main__":
    main()
