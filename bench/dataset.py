"""Time the audit, split and tokenisation of generated preference data, beside TRL's own preparation of the same rows.

    python bench/dataset.py --model results/base/model --rows 100000 1000000

Generated pairs have about 200 tokens in each answer; one in fifty repeats another, nearly repeats one, contradicts one
or is faulty. Printed for each size: wall time and peak memory (of all processes together, sampled ten times a second)
of the three programs that the workflow runs, and the rows a second of both ways. Run it on a machine that does nothing
else.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

PROJECT = Path(__file__).parents[1]
SETTINGS = {
    "max_length": 512,
    "max_prompt_length": 256,
    "min_score_difference": 0,
    "min_score_ratio": 2,
    "near_duplicate": 0.8,
    "max_length_auc": 1.0,
    "tolerance": {"other": 1},
}
HELDOUT_SHARE = 0.02
ROWS_OF_TRL = 5000


def words() -> list[str]:
    """Return the words of the shipped data, each as often as it stands there."""
    texts = (PROJECT / "data" / name for name in ("preferences.jsonl", "heldout.jsonl"))
    return re.findall(r"[A-Za-z]+[,.]?", " ".join(file.read_text() for file in texts))


def generate(file: Path, rows: int) -> None:
    """Write generated pairs, always the same for the same number."""
    rng, vocabulary = random.Random(0), words()

    def say(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    before: list[dict] = []
    with open(file, "w") as out:
        for number in range(rows):
            row = {"prompt": say(25), "chosen": say(170), "rejected": say(170)}
            fault = rng.randrange(200) if before else 5
            if fault == 0:
                row = rng.choice(before)
            elif fault == 1:
                row = rng.choice(before)
                row = row | {"rejected": row["rejected"] + " Anyway."}
            elif fault == 2:
                row = rng.choice(before)
                row = {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
            elif fault == 3:
                row["chosen"] = " "
            elif number < 1000:
                before.append(row)
            out.write(json.dumps(row) + "\n")


class PeakMemory:
    """The largest memory of a process with its children, in bytes, sampled while it runs.

    It is the proportional set size, in which a page that several processes share counts once.
    """

    def __init__(self, process: int):
        self.peak, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, args=(psutil.Process(process),))
        self.thread.start()

    def watch(self, process: psutil.Process) -> None:
        while not self.ended.wait(0.1):
            total = 0
            try:
                for one in (process, *process.children(recursive=True)):
                    total += one.memory_full_info().pss
            except psutil.NoSuchProcess:
                pass
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.peak


def run(*command: object) -> tuple[float, int]:
    """Run a program of the project; return its wall time in seconds and its peak memory in bytes."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, cwd=PROJECT)
    memory = PeakMemory(process.pid)
    status = process.wait()
    seconds, peak = time.monotonic() - started, memory.stop()
    if status:
        sys.exit(f"{command[0]} failed")
    return seconds, peak


def measure(rows: int, model: Path, folder: Path) -> float:
    """Print what one size takes; return its rows a second."""
    generate(folder / "generated.jsonl", rows)
    settings = SETTINGS | {"sources": [{"path": str(folder / "generated.jsonl")}]}
    total, peaks = 0.0, []
    for side in ("train", "heldout"):
        split = {"share": HELDOUT_SHARE, "seed": 42, "side": side}
        seconds, peak = run(
            "scripts/build_dataset.py", "--model", model, "--settings", json.dumps(settings | {"split": split}),
            *(["--trained", folder / "train.jsonl"] if side == "heldout" else []),
            "--dataset", folder / f"{side}.jsonl", "--rejected", folder / f"{side}.rejected.jsonl",
            "--prompts", folder / f"{side}.prompts.npy", "--audit", folder / f"{side}.audit.json",
        )  # fmt: skip
        print(f"  build_dataset ({side}): {seconds:.1f} s, {peak / 1e9:.2f} GB")
        total, peaks = total + seconds, [*peaks, peak]
    seconds, peak = run(
        "scripts/audit_dataset.py", "--data", folder, "--model", model, *(
            part for name in ("prompts", "instructions", "adversarial")
            for part in (f"--{name}", PROJECT / f"data/{name}.jsonl")
        ),
        "--settings", json.dumps(settings), "--audit", folder / "audit.json", "--rejected", folder / "rejected.jsonl",
    )  # fmt: skip
    print(f"  audit_dataset: {seconds:.1f} s, {peak / 1e9:.2f} GB")
    total, peaks = total + seconds, [*peaks, peak]
    audit = json.loads((folder / "audit.json").read_text())
    tokens = audit["train"]["tokens"]
    print(
        f"{rows:,} rows: {total:.1f} s, peak {max(peaks) / 1e9:.2f} GB, {rows / total:,.0f} rows a second; mean tokens "
        + ", ".join(f"{name} {tokens[name]['mean']:.0f}" for name in tokens)
    )
    print(f"  {audit['accounting']}, {audit['train']['rejected_for']}", flush=True)
    return rows / total


def measure_trl(model: Path, dataset: Path) -> float:
    """Return the rows a second of TRL's preparation (chat template and tokenisation), in as many processes as cores."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    with open(dataset) as file:
        rows = [json.loads(line) for line in islice(file, ROWS_OF_TRL)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tiny = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    )  # fmt: skip
    with TemporaryDirectory() as output:
        config = DPOConfig(output_dir=output, report_to="none", bf16=False, dataset_num_proc=os.cpu_count())

        def prepare(count: int) -> float:
            data = Dataset.from_list(rows[:count])
            started = time.monotonic()
            DPOTrainer(
                model=tiny, args=config, train_dataset=data, processing_class=tokenizer, peft_config=LoraConfig()
            )
            return time.monotonic() - started

        prepare(os.cpu_count())
        return len(rows) / (prepare(len(rows)) - prepare(os.cpu_count()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder whose tokenizer counts")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="sizes to measure")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(os.cpu_count()), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with TemporaryDirectory(dir=PROJECT / "results") as folder:
        for rows in arguments.rows:
            ours = measure(rows, arguments.model.resolve(), Path(folder))
        theirs = measure_trl(arguments.model, Path(folder) / "train.jsonl")
        print(f"TRL's own preparation: {theirs:,.0f} rows a second; ours is {ours / theirs:.2f} times as fast")


if __name__ == "__main__":
    main()
