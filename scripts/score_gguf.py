"""Score what the GGUF file that ships prefers in the held-out pairs, to stand beside the full-precision model.

    python scripts/score_gguf.py --gguf results/dpo/gguf/model-q4_k_m.gguf --merged results/dpo/merged \
        --heldout results/data/heldout.jsonl --reference results/base/preferences.json \
        --settings '{"beta": 0.1, "max_pairs": 500}' --preferences results/dpo/gguf_preferences.json

The log-probabilities are llama.cpp's, of the token ids that the merged model's tokenizer makes; the reference of the
implicit reward is the base model in float32. The file is loaded in a child process, so that a crash in native code is
reported too.
"""

import argparse
import json
from pathlib import Path

from dpo import chat, cli, preferences
from dpo.artifacts import read_json, read_jsonl, write_json
from dpo.gguf_chat import completion_logps, run_in_child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="quantised GGUF")
    parser.add_argument("--merged", type=Path, required=True, help="merged model, for its tokenizer")
    parser.add_argument("--heldout", type=Path, required=True, help="held-out set that build_dataset wrote")
    parser.add_argument("--reference", type=Path, required=True, help="the base model's preferences.json")
    parser.add_argument("--settings", type=json.loads, required=True, help="beta and max_pairs, as JSON")
    parser.add_argument("--preferences", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    pairs = preferences.choose_pairs(read_jsonl(arguments.heldout), arguments.settings["max_pairs"])
    sequences = preferences.encode_pairs(chat.load_tokenizer(arguments.merged), pairs)
    scored = preferences.pair_rows(pairs, run_in_child(completion_logps, arguments.gguf, sequences))
    reference = read_json(arguments.reference)["heldout"]["pairs"]
    heldout = preferences.summarize(scored, reference, arguments.settings["beta"])
    write_json(arguments.preferences, {"heldout": heldout})
    print(
        f"held-out pairs preferred rightly: {heldout['accuracy_per_token']['value']:.0%} by token, "
        f"{heldout['accuracy_implicit_reward']['value']:.0%} by implicit reward"
    )


if __name__ == "__main__":
    cli.run(main)
