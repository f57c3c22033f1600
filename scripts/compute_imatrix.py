"""Compute an importance matrix: which columns of the weights matter most to the training pairs' conversations.

    python scripts/compute_imatrix.py --gguf results/dpo/gguf/model-f16.gguf --model results/dpo/merged \
        --train results/data/train.jsonl --imatrix results/dpo/gguf/imatrix.gguf

Quantising then errs least where it would be noticed most. Both answers of each pair are read, by llama.cpp's own
program llama-imatrix, as the model's chat template writes them. Held-out pairs are not: what is measured on them must
not be tuned to them.
"""

import argparse
import os
import random
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from dpo import chat, cli
from dpo.artifacts import raise_why_unwritten, read_jsonl, staged_file
from dpo.child_process import ends_with_this
from dpo.cli import UserError
from dpo.llama_cpp_tools import find_tool
from dpo.quantization import read_imatrix

# Tokens. Chunks are what the model sees at a time. Importance matrices are commonly made from 100 of them.
LONGEST_CHUNK, SHORTEST_CHUNK = 512, 32
LEAST_CHUNKS, MOST_CHUNKS = 4, 100
QUOTED = 15  # lines of llama-imatrix where it fails


def write_text(model: Path, pairs: list[dict]) -> tuple[str, int]:
    """Return (conversations as the model's chat template writes them, their tokens): all, or as many as will be read.

    Args:
        model: Hugging Face folder, for its tokenizer.
        pairs: pairs with `prompt`, `chosen` and `rejected` as lists of messages.
    """
    tokenizer = chat.load_tokenizer(model)
    text, tokens = "", 0
    for pair in random.Random(0).sample(pairs, len(pairs)):  # a set may be sorted by topic
        for side in ("chosen", "rejected"):
            conversation = tokenizer.apply_chat_template(pair["prompt"] + pair[side], tokenize=False)
            text += conversation
            tokens += len(tokenizer(conversation, add_special_tokens=False).input_ids)
        if tokens >= LONGEST_CHUNK * MOST_CHUNKS:
            break
    return text, tokens


def choose_chunk(tokens: int) -> int:
    """Return the tokens of a chunk: a power of two, and short enough that little is lost in the last, unfinished one.

    Raises:
        UserError: there is too little text.
    """
    chunk = LONGEST_CHUNK
    while chunk * LEAST_CHUNKS > tokens and chunk > SHORTEST_CHUNK:
        chunk //= 2
    if chunk * LEAST_CHUNKS > tokens:
        raise UserError(
            f"the training pairs have {tokens} tokens, an importance matrix needs at least "
            f"{SHORTEST_CHUNK * LEAST_CHUNKS}; give more pairs, or set `export.imatrix: false`"
        )
    return chunk


def compute_imatrix(gguf: Path, text: str, chunk: int, imatrix: Path) -> None:
    """Run llama-imatrix on a text.

    Args:
        gguf: file in f16.
        text: what to read.
        chunk: tokens that are read at a time.
        imatrix: file to write; the caller stages it.

    Raises:
        UserError: llama-imatrix failed; its last lines are quoted.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    # One chunk at a time: for each token read at once, llama-imatrix holds as many numbers as the vocabulary has.
    reading = ["--ctx-size", str(chunk), "--batch-size", str(chunk), "--parse-special", "--no-ppl"]
    with TemporaryDirectory() as folder:
        # llama-imatrix notes the text's path in the file, which would differ each time: so it is run beside the text.
        Path(folder, "training-pairs.txt").write_text(text, encoding="utf-8")
        command = [find_tool("llama-imatrix"), "--model", gguf.absolute(), "--file", "training-pairs.txt", *reading]
        command += ["--threads", threads, "--output-file", imatrix.absolute(), "--output-format", "gguf"]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        result = subprocess.run(command, cwd=folder, **output, preexec_fn=ends_with_this())
    if result.returncode != 0 or not imatrix.exists():
        last = "\n".join(result.stdout.strip().splitlines()[-QUOTED:])
        raise UserError(f"llama-imatrix failed on {gguf} with exit status {result.returncode}:\n{last}")
    try:
        read_imatrix(imatrix)
    except UserError:  # on a full disk llama-imatrix leaves what fits, and says that all is well
        raise_why_unwritten(imatrix, gguf.stat().st_size)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file in f16")
    parser.add_argument("--model", type=Path, required=True, help="the model that it was made from, for its tokenizer")
    parser.add_argument("--train", type=Path, required=True, help="training set that build_dataset wrote")
    parser.add_argument("--imatrix", type=Path, required=True, help="GGUF file to write")
    arguments = parser.parse_args()

    text, tokens = write_text(arguments.model, read_jsonl(arguments.train))
    chunk = choose_chunk(tokens)
    print(f"reading {tokens // chunk} chunks of {chunk} tokens of the training pairs", flush=True)
    with staged_file(arguments.imatrix) as partial:
        compute_imatrix(arguments.gguf, text, chunk, partial)
    print(f"{arguments.imatrix}: {arguments.imatrix.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
