"""Train a LoRA adapter with Direct Preference Optimization, through TRL's `DPOTrainer`.

    python scripts/train_dpo.py --train results/data/train.jsonl --model results/base/model \
        --reference results/base/reference_logps/bf16-auto.jsonl \
        --settings '{"beta": 0.1, …}' --checkpoints results/dpo/checkpoints \
        --adapter results/dpo/adapter --log results/dpo/training.jsonl

The settings are the `training:` section of config.yaml plus `max_length`, under TRL's and PEFT's own names. The same
code runs on a CPU and on a GPU. Interrupted, the same command goes on from its last checkpoint.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7. With a fresh adapter policy and reference agree, so the first
implicit rewards are 0; anything else means that the two do not see the same model, and training stops.

The last line of the log also says what the loss on training pairs is in the end, at most CHECKED_PAIRS of them:
`final_loss` as the trainer computes it, `final_loss_float32` with every product in float32.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import read_jsonl, sha256_of, staged_folder, write_json, write_jsonl
from dpo.cli import UserError
from dpo.preferences import choose_pairs

FIRST_REWARD_TOLERANCE = 0.02
CHECKED_PAIRS = 20
SECONDS_BETWEEN_LINES = 10


def make_trainer(policy, tokenizer, rows: list[dict], reference: list[dict], settings: dict, checkpoints: Path):
    """Return the trainer that the settings ask for.

    Args:
        policy, tokenizer: from `load_policy`.
        rows: pairs in conversational format.
        reference: their log-probabilities under the base model, empty where the trainer computes them itself.
        settings: of the training.
        checkpoints: folder for checkpoints.
    """
    from dpo import trainer as trainers

    if settings["trainer"] != "shared_prompt":
        return trainers.make_trl_trainer(policy, tokenizer, rows, settings, checkpoints)
    if [row["id"] for row in rows] != [row["id"] for row in reference]:
        raise UserError("the reference log-probabilities are of other pairs; delete results/base/reference_logps")
    rows = [
        chat.pair_ids(tokenizer, row, settings["max_length"])
        | {key: logps[key] for key in ("ref_chosen_logps", "ref_rejected_logps")}
        for row, logps in zip(rows, reference, strict=True)
    ]
    return trainers.make_shared_prompt_trainer(policy, tokenizer, rows, settings, checkpoints)


def watch(trainer) -> None:
    """Have the trainer time each logged step, print progress, and stop on wrong first rewards or a non-finite value."""
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
                check_first_rewards(entry)
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


def check_first_rewards(entry: dict) -> None:
    """Raise `UserError` unless the first implicit rewards are 0, as they must be while policy and reference agree."""
    for side in ("chosen", "rejected"):
        reward = entry[f"rewards/{side}"]
        if not abs(reward) <= FIRST_REWARD_TOLERANCE:
            raise UserError(
                f"before training the {side} answers' mean implicit reward is {reward:.4f}, not 0 "
                f"(±{FIRST_REWARD_TOLERANCE}): policy and reference do not agree. Either results/base/reference_logps "
                "is of another model (delete it), or installed are other versions of unsloth, trl or peft than those "
                "in envs/requirements.txt (remove .venv and run `make .venv`), or they do not support this model"
            )


def final_losses(trainer) -> dict:
    """Return what the last line of the log says of the loss in the end; nothing where float32 has no code for it."""
    from dpo import trainer as trainers
    from dpo.shared_prompt import why_not

    if why_not(trainer.model.config):
        return {}
    rows = choose_pairs(trainer.train_dataset.to_list(), CHECKED_PAIRS)
    return {
        "final_loss": trainers.loss_on(trainer, rows),
        "final_loss_float32": trainers.float32_loss_on(trainer, rows),
    }


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
    parser.add_argument("--reference", type=Path, help="file that compute_reference_logps wrote, for shared_prompt")
    parser.add_argument("--settings", type=json.loads, required=True, help="training settings, as JSON")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints, removed when done")
    parser.add_argument("--adapter", type=Path, required=True, help="folder to write: LoRA adapter and tokenizer")
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines file to write: one line a logged step")
    arguments = parser.parse_args()

    from dpo.policy import load_policy, products_dtype, settle_trainer

    settings, reason = settle_trainer(arguments.model, arguments.settings)
    if reason:
        print(f"trainer: trl instead of shared_prompt, since {reason}")
    policy, tokenizer = load_policy(arguments.model, settings)
    weights = {file.name: sha256_of(file) for file in sorted(arguments.model.glob("*.safetensors"))}
    stamp = {
        "settings": settings,
        "products": str(products_dtype(settings)),
        "train": sha256_of(arguments.train),
        "weights": weights,
    }
    checkpoint = claim_checkpoints(arguments.checkpoints, stamp)
    reference = read_jsonl(arguments.reference) if arguments.reference else []
    trainer = make_trainer(policy, tokenizer, read_jsonl(arguments.train), reference, settings, arguments.checkpoints)
    watch(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)

    with staged_folder(arguments.adapter) as folder:
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink()  # PEFT's blank model card
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    lines[-1] |= final_losses(trainer)
    write_jsonl(arguments.log, lines)
    shutil.rmtree(arguments.checkpoints)


if __name__ == "__main__":
    cli.run(main)
