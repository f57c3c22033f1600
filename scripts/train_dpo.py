"""Train a LoRA adapter with Direct Preference Optimization, through Unsloth's model and TRL's `DPOTrainer`.

    python scripts/train_dpo.py --train results/data/train.jsonl --model results/base/model \
        --settings '{"beta": 0.1, …}' --checkpoints results/dpo/checkpoints \
        --adapter results/dpo/adapter --log results/dpo/training.jsonl

The settings are the `training:` section of config.yaml plus `max_length`, under TRL's and PEFT's own names. The same
code runs on a CPU and on a GPU. Interrupted, the same command goes on from its last checkpoint.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7. With a fresh adapter policy and reference agree, so the first
loss is -log sigmoid(0) = ln 2; anything else means that the two do not see the same model, and training stops.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

from dpo import cli
from dpo.artifacts import read_jsonl, sha256_of, staged_folder, write_json, write_jsonl
from dpo.cli import UserError
from dpo.policy import load_policy

FIRST_LOSS = math.log(2)
FIRST_LOSS_TOLERANCE = 0.01
SECONDS_BETWEEN_LINES = 10


def make_trainer(policy, tokenizer, rows: list[dict], settings: dict, checkpoints: Path):
    """Return a `trl.DPOTrainer` over rows in conversational format.

    In float32 the reference log-probabilities are computed once, before training. In 16 bits they come with each batch:
    there they depend on the batch's padding, by half a nat an answer, and policy and reference must see the same.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer
    from unsloth import is_bfloat16_supported

    gpu = torch.cuda.is_available()
    config = DPOConfig(
        output_dir=str(checkpoints),
        beta=settings["beta"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["lr_scheduler_type"],
        max_steps=settings["max_steps"],
        warmup_steps=settings["warmup_steps"],
        per_device_train_batch_size=settings["per_device_train_batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
        gradient_checkpointing=bool(settings["use_gradient_checkpointing"]),
        max_length=settings["max_length"],
        precompute_ref_log_probs=not gpu,
        optim=settings["optim"],
        weight_decay=settings["weight_decay"],
        seed=settings["seed"],
        logging_steps=settings["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=settings["save_steps"],
        save_total_limit=2,
        report_to=settings["report_to"],
        bf16=gpu and is_bfloat16_supported(),
        fp16=gpu and not is_bfloat16_supported(),
        dataloader_pin_memory=gpu,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(model=policy, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    # TRL keeps a copy of the fresh adapter as reference, which equals the bare base model. With two adapters in a
    # checkpoint transformers would resume from the copy instead of the trained one; without it TRL refers to the base.
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")
    return trainer


def watch(trainer) -> None:
    """Have the trainer time each logged step, print progress, and stop on a wrong first loss or a non-finite value."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.first_step = state.global_step
            self.seconds_before = state.log_history[-1]["seconds"] if state.log_history else 0.0
            self.started = self.printed = time.monotonic()
            if self.first_step:
                print(f"resuming after step {self.first_step}")

        def on_step_end(self, args, state, control, **kwargs):
            # A step that is logged is shown by `on_log`, with its loss.
            if not control.should_log and time.monotonic() - self.printed >= SECONDS_BETWEEN_LINES:
                self.show(state)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in logs:
                return
            entry = state.log_history[-1]
            entry["seconds"] = round(self.seconds_before + time.monotonic() - self.started, 3)
            check_finite(entry)
            if entry["step"] == 1:
                check_first_loss(entry["loss"])
            self.show(state, f"loss {entry['loss']:.4f}, reward margin {entry['rewards/margins']:+.3f}, ")

        def show(self, state, measured=""):
            self.printed = time.monotonic()
            per_step = (self.printed - self.started) / (state.global_step - self.first_step)
            left = per_step * (state.max_steps - state.global_step)
            print(f"step {state.global_step}/{state.max_steps}: {measured}{left / 60:.1f} minutes left", flush=True)

    trainer.add_callback(Watch())


def check_finite(entry: dict) -> None:
    """Raise `UserError` where a logged value is NaN or infinite."""
    for key, value in entry.items():
        if not math.isfinite(value):
            raise UserError(
                f"training went wrong at step {entry['step']}: {key} is {value}; "
                "lower training.learning_rate or raise training.warmup_steps in config.yaml"
            )


def check_first_loss(loss: float) -> None:
    """Raise `UserError` unless the first loss is ln 2, as it must be while policy and reference agree."""
    if not abs(loss - FIRST_LOSS) <= FIRST_LOSS_TOLERANCE:
        raise UserError(
            f"the first loss is {loss:.4f}, not ln 2 = {FIRST_LOSS:.4f} (±{FIRST_LOSS_TOLERANCE}): policy and "
            "reference do not agree before training. Installed are other versions of unsloth, trl or peft than those "
            "in envs/requirements.txt (remove .venv and run `make .venv`), or they do not support this model"
        )


def claim_checkpoints(folder: Path, stamp: dict) -> str | None:
    """Return the last whole checkpoint that belongs to these settings and data, or None after clearing any others."""
    stamp_file = folder / "stamp.json"
    if stamp_file.exists() and json.loads(stamp_file.read_text()) == stamp:
        from transformers.trainer_utils import get_last_checkpoint

        return get_last_checkpoint(str(folder))
    if folder.exists():
        print(f"the checkpoints in {folder} belong to other settings or data; starting anew")
        shutil.rmtree(folder)
    write_json(stamp_file, stamp)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="training set that build_dataset wrote")
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--settings", type=json.loads, required=True, help="training settings, as JSON")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints, removed when done")
    parser.add_argument("--adapter", type=Path, required=True, help="folder to write: LoRA adapter and tokenizer")
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines file to write: one line a logged step")
    arguments = parser.parse_args()
    settings = arguments.settings

    # unsloth patches transformers and trl, so it is imported before either.
    policy, tokenizer = load_policy(arguments.model, settings)
    weights = {file.name: sha256_of(file) for file in sorted(arguments.model.glob("*.safetensors"))}
    stamp = {"settings": settings, "train": sha256_of(arguments.train), "weights": weights}
    checkpoint = claim_checkpoints(arguments.checkpoints, stamp)
    rows = read_jsonl(arguments.train)
    trainer = make_trainer(policy, tokenizer, rows, settings, arguments.checkpoints)
    watch(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)

    with staged_folder(arguments.adapter) as folder:
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink()  # PEFT's blank model card
    write_jsonl(arguments.log, (entry for entry in trainer.state.log_history if "loss" in entry))
    shutil.rmtree(arguments.checkpoints)


if __name__ == "__main__":
    cli.run(main)
