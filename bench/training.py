"""Time a training step of this workflow's trainer against Unsloth's and TRL's, on the same pairs, in turn.

    PYTHONPATH=scripts python bench/training.py --model results/base/model --adapter results/dpo/adapter --rounds 5

Every contender is a process of its own that waits for its turn: one step of eight pairs, with the settings of
config.yaml. TRL 1.9.0, the last release that trains on a CPU by itself, is downloaded beside the environment. Printed
are medians; the share of the matrix peak that our step reaches, counting only operations that it cannot do without
(`dpo.shared_prompt.needed_operations`); what sharing the prompt gains against the prompt's share of the tokens; how
cost grows with the number of pairs; and what loss each sees of an adapter. On a GPU the same command reports its
memory, and how often a step waits for the GPU.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

PROJECT = Path(__file__).parents[1]
TRL = PROJECT / ".venv/trl-1.9.0"
PAIRS = 16  # two whole steps an epoch
WARM_UP = 2  # steps that are not counted


def settings_of(**changes) -> dict:
    """Return the training settings of config.yaml."""
    config = yaml.safe_load((PROJECT / "config.yaml").read_text())
    return config["training"] | {"max_length": config["data"]["max_length"]} | changes


def notebook_arguments(settings: dict, folder: str) -> dict:
    """Return what the notebook tells TRL's `DPOConfig`."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings["per_device_train_batch_size"],
        "gradient_accumulation_steps": settings["gradient_accumulation_steps"],
        "warmup_steps": settings["warmup_steps"],
        "max_steps": 10_000,
        "learning_rate": settings["learning_rate"],
        "logging_steps": settings["logging_steps"],
        "lr_scheduler_type": settings["lr_scheduler_type"],
        "beta": settings["beta"],
        "max_length": settings["max_length"],
        "seed": settings["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def this_workflow(model: Path, rows: list[dict], folder: str):
    from dpo import chat, trainer
    from dpo.policy import load_frozen, load_policy, products_dtype
    from dpo.shared_prompt import SharedPromptModel, answer_logps

    settings = settings_of(max_steps=10_000, save_steps=10_000)
    policy, tokenizer = load_policy(model, settings)
    rows = [chat.pair_ids(tokenizer, row, settings["max_length"]) for row in rows]
    base = SharedPromptModel(load_frozen(model, settings), products_dtype(settings), adapter=False)
    rows = [row | logps for row, logps in zip(rows, answer_logps(base, rows), strict=True)]
    return trainer.make_shared_prompt_trainer(policy, tokenizer, rows, settings, Path(folder))


def unsloth(model: Path, rows: list[dict], folder: str):
    from unsloth import FastLanguageModel

    settings = settings_of()
    policy, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=settings["max_length"], dtype=None, load_in_4bit=settings["load_in_4bit"]
    )
    policy = FastLanguageModel.get_peft_model(
        policy,
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        use_gradient_checkpointing="unsloth",
        random_state=settings["seed"],
    )
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**notebook_arguments(settings, folder))
    return DPOTrainer(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def trl(model: Path, rows: list[dict], folder: str, **tuned):
    sys.path.insert(0, str(TRL))
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    settings = settings_of()
    lora = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        task_type="CAUSAL_LM",
    )
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(**notebook_arguments(settings, folder), use_cpu=not torch.cuda.is_available(), **tuned),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora,
    )


def trl_tuned(model: Path, rows: list[dict], folder: str):
    return trl(model, rows, folder, gradient_checkpointing=False, precompute_ref_log_probs=True)


CONTENDERS = {
    "this workflow": this_workflow,
    "Unsloth as it comes": unsloth,
    "TRL 1.9.0 + PEFT as it comes": trl,
    "TRL 1.9.0 + PEFT tuned": trl_tuned,
}


def contend(connection, name: str, model: Path, rows: list[dict], log: Path) -> None:
    """Train in a process of its own, one step a message; answer with seconds, peak memory in bytes, and waits."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    folder = TemporaryDirectory()
    trainer = CONTENDERS[name](model, rows, folder.name)

    import torch
    from transformers import TrainerCallback

    gpu = torch.cuda.is_available()

    class Turns(TrainerCallback):
        def on_step_begin(self, *arguments, **named):
            connection.recv()
            self.warned = warnings.catch_warnings(record=True)
            self.waits = self.warned.__enter__()
            if gpu:
                warnings.simplefilter("always")
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("warn")
            self.started = time.monotonic()

        def on_step_end(self, *arguments, **named):
            waits = sum("synchroniz" in str(warning.message) for warning in self.waits)
            self.warned.__exit__(None, None, None)
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
            seconds = time.monotonic() - self.started
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send((seconds, torch.cuda.max_memory_allocated() if gpu else kilobytes * 1024, waits))

    trainer.add_callback(Turns())
    trainer.train()


def install_trl() -> None:
    """Put TRL 1.9.0 into a folder of its own, where only its contender finds it."""
    if not TRL.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", TRL, "trl==1.9.0"]
        subprocess.run(command, check=True)


def matrix_peak() -> float:
    """Return the most bfloat16 operations a second that products of large matrices reach here."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for size in (1024, 2048):
        a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        ways = [lambda a=a, b=b: a @ b]
        if device == "cpu":
            packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
            ways.append(lambda a=a, p=packed: torch.ops.mkldnn._linear_pointwise(a, p, None, "none", [], ""))
        for way in ways:
            way()
            for _ in range(3):
                started = time.monotonic()
                for _ in range(4):
                    way()
                if device == "cuda":
                    torch.cuda.synchronize()
                best = max(best, 4 * 2 * size**3 / (time.monotonic() - started))
    return best


def compare(model: Path, rows: list[dict], rounds: int) -> None:
    """Print the table of contenders."""
    from transformers import AutoConfig

    from dpo import chat
    from dpo.shared_prompt import Pair, needed_operations

    install_trl()
    spawn = multiprocessing.get_context("spawn")
    connections, processes, found, peaks = {}, [], {name: [] for name in CONTENDERS}, []
    logs = TemporaryDirectory()
    for name in CONTENDERS:
        connections[name], theirs = spawn.Pipe()
        log = Path(logs.name, name)
        process = spawn.Process(target=contend, args=(theirs, name, model, rows, log), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    for number in range(WARM_UP + rounds):
        for name, connection in connections.items():
            try:
                connection.send("step")
                step = connection.recv()
            except (BrokenPipeError, EOFError):
                sys.exit(f"{name} ended:\n{Path(logs.name, name).read_text()[-2000:]}")
            if number >= WARM_UP:
                found[name].append(step)
        peaks.append(matrix_peak())
    for process in processes:
        process.kill()

    tokenizer = chat.load_tokenizer(model)
    pairs = [Pair(*chat.pair_ids(tokenizer, row, settings_of()["max_length"]).values()) for row in rows]
    operations = needed_operations(AutoConfig.from_pretrained(model), pairs) * 8 / len(pairs)
    medians = {name: statistics.median(step[0] for step in steps) for name, steps in found.items()}
    for name, steps in found.items():
        seconds = sorted(step[0] for step in steps)
        print(
            f"{name:30} {medians[name]:6.2f} s a step ({seconds[0]:.2f} to {seconds[-1]:.2f}), "
            f"{medians[name] / medians['this workflow']:5.2f} times ours, peak {max(s[1] for s in steps) / 1e9:.2f} GB"
            + (f", waits for the GPU {statistics.median(s[2] for s in steps):.0f} times" if steps[0][2] else "")
        )
    rate = operations / medians["this workflow"]
    print(
        f"ours: {operations / 1e12:.2f} Tflop needed a step, {rate / 1e9:.0f} GFLOP/s, {rate / max(peaks):.0%} of the "
        f"matrix peak of {max(peaks) / 1e9:.0f} GFLOP/s (each round's: {min(peaks) / 1e9:.0f} or more)"
    )


def generate(tokenizer, pairs: int, prompt: int, answer: int) -> list[dict]:
    """Return pairs of random words, as rows of token ids without differences to a reference."""
    chance = random.Random(0)
    words = tokenizer.encode(" ".join(f"word{number}" for number in range(1000)), add_special_tokens=False)

    def some(length: int) -> list[int]:
        return [chance.choice(words) for _ in range(chance.randint(length // 2, length * 3 // 2))]

    return [
        {"prompt_ids": some(prompt), "chosen_ids": some(answer), "rejected_ids": some(answer)}
        | {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
        for _ in range(pairs)
    ]


def scale(model: Path, sizes: list[int], steps: int) -> None:
    """Print what a token costs with few and many pairs, and with short and long prompts."""
    import torch
    from transformers import TrainerCallback

    from dpo import trainer
    from dpo.policy import load_policy
    from dpo.shared_prompt import needed_operations, pair_of

    for prompt, answer in ((32, 96), (192, 96)):
        for size in sizes:
            settings = settings_of(max_steps=1 + steps, save_steps=10_000)
            policy, tokenizer = load_policy(model, settings)
            rows = generate(tokenizer, size, prompt, answer)
            started = time.monotonic()
            with TemporaryDirectory() as folder:
                trained = trainer.make_shared_prompt_trainer(policy, tokenizer, rows, settings, Path(folder))
                preparing = time.monotonic() - started
                seen, begun = [], []

                class Clock(TrainerCallback):
                    def on_step_end(self, *arguments, begun=begun, **named):
                        if torch.cuda.is_available():
                            torch.cuda.synchronize()
                        begun.append(time.monotonic())

                collate = trained.data_collator
                trained.data_collator = lambda rows, collate=collate, seen=seen: seen.append(rows) or collate(rows)
                trained.add_callback(Clock())
                trained.train()
            counted = [row for batch in seen[1 : 1 + steps] for row in batch]
            tokens = sum(sum(map(len, pair_of(row))) for row in counted)
            seconds = begun[-1] - begun[0]
            rate = needed_operations(policy.config, [pair_of(row) for row in counted]) / seconds
            memory = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if torch.cuda.is_available() else ""
            print(
                f"{size:6} pairs, prompts of {prompt:3} tokens: {seconds / tokens * 1e3:.2f} ms a token "
                f"({tokens / seconds:.0f} tokens a second, {rate / 1e9:.0f} GFLOP/s, {rate / matrix_peak():.0%} of the "
                f"peak{memory}); {preparing / size * 1e3:.2f} ms a pair to prepare"
            )


def share(model: Path, rounds: int) -> None:
    """Print what one row a pair gains over one row an answer, by the prompt's share of a pair's tokens."""
    from dpo.policy import load_policy, products_dtype
    from dpo.shared_prompt import Pair, SharedPromptModel

    settings = settings_of()
    policy, tokenizer = load_policy(model, settings)
    ours = SharedPromptModel(policy, products_dtype(settings))
    for prompt in (16, 64, 128, 256):
        pairs = [Pair(*list(row.values())[:3]) for row in generate(tokenizer, 4, prompt, 64)]
        apart = [Pair(pair.prompt, answer, []) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        seconds = {"together": [], "apart": []}
        for _ in range(1 + rounds):
            for name, batch in (("together", pairs), ("apart", apart)):
                started = time.monotonic()
                ours.score(batch)[0].sum().backward()
                seconds[name].append(time.monotonic() - started)
        together, alone = (statistics.median(values[1:]) for values in seconds.values())
        tokens = sum(sum(map(len, pair)) for pair in pairs)
        part = sum(len(pair.prompt) for pair in pairs) / tokens
        print(
            f"prompt {part:.0%} of a pair's tokens: {alone / together:.2f} times as fast (tokens: {1 + part:.2f} times)"
        )


def compare_losses(model: Path, adapter: Path, rows: list[dict]) -> None:
    """Print an adapter's loss on pairs: in float32, as our trainer sees it, and in bfloat16 layers of PEFT."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    from dpo import chat
    from dpo.policy import load_policy
    from dpo.shared_prompt import SharedPromptModel, answer_logps

    settings = settings_of(bf16=True)
    policy, tokenizer = load_policy(model, settings)
    set_peft_model_state_dict(policy, load_file(adapter / "adapter_model.safetensors"))
    rows = [chat.pair_ids(tokenizer, row, settings["max_length"]) for row in rows]

    def loss(tuned: list[dict], base: list[dict]) -> float:
        """-log sigmoid(beta * (log ratio of chosen - log ratio of rejected)), the mean over pairs."""
        changes = [[mine[side] - theirs[side] for side in mine] for mine, theirs in zip(tuned, base, strict=True)]
        margins = torch.tensor([settings["beta"] * (chosen - rejected) for chosen, rejected in changes])
        return -torch.nn.functional.logsigmoid(margins).mean().item()

    def in_peft() -> list[dict]:
        found = []
        for row in rows:
            pair = {}
            for side in ("chosen", "rejected"):
                ids, start = row["prompt_ids"] + row[f"{side}_ids"], len(row["prompt_ids"])
                with torch.no_grad():
                    logits = policy(input_ids=torch.tensor([ids], device=policy.device)).logits[0, start - 1 : -1]
                answer = torch.tensor(ids[start:], device=policy.device)[:, None]
                pair[side] = logits.float().log_softmax(-1).gather(-1, answer).sum().item()
            found.append(pair)
        return found

    tuned = in_peft()
    with policy.disable_adapter():
        peft = loss(tuned, in_peft())
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        scores = [list(answer_logps(SharedPromptModel(policy, dtype, adapter=on), rows)) for on in (True, False)]
        losses[dtype] = loss(*scores)
    exact = losses[torch.float32]
    print(f"loss of the adapter on {len(rows)} training pairs, in float32: {exact:.4f}")
    print(
        f"as our trainer sees it in bfloat16: {losses[torch.bfloat16]:.4f} ({losses[torch.bfloat16] / exact - 1:+.1%})"
    )
    print(f"as bfloat16 layers of PEFT show it: {peft:.4f} ({peft / exact - 1:+.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, required=True, help="LoRA adapter whose loss is compared")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender that count")
    parser.add_argument("--pairs", type=int, nargs="+", default=[20, 1_000, 10_000], help="sizes of generated data")
    parser.add_argument("--steps", type=int, default=5, help="steps on generated data")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (PROJECT / "results/data/train.jsonl").read_text().splitlines()]
    compare(arguments.model, rows[:PAIRS], arguments.rounds)
    share(arguments.model, arguments.rounds)
    compare_losses(arguments.model, arguments.adapter, rows[:20])
    scale(arguments.model, arguments.pairs, arguments.steps)


if __name__ == "__main__":
    main()
