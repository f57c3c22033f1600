"""Train a LoRA adapter with Direct Preference Optimization, through TRL's `DPOTrainer`.

    python scripts/train_dpo.py --train results/data/train.jsonl --model results/base/model \
        --reference results/base/reference_logps/bf16-auto.jsonl \
        --settings '{"beta": 0.1, …}' --checkpoints results/dpo/checkpoints \
        --adapter results/dpo/adapter --log results/dpo/training.jsonl

The settings are the `training:` section of config.yaml plus `max_length`, under TRL's and PEFT's own names. The same
code runs on a CPU and on a GPU, and as several processes where `processes` says so. Interrupted, the same command goes
on from its last whole checkpoint. Out of memory, it goes on from there with half as many pairs at once, and as many a
step.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7. With a fresh adapter policy and reference agree, so the first
implicit rewards are 0; anything else means that the two do not see the same model, and training stops.

The last line of the log also says what the loss on training pairs is in the end, at most CHECKED_PAIRS of them:
`final_loss` as the trainer computes it, `final_loss_float32` with every product in float32.
"""

import argparse
import json
import math
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

from dpo import chat, cli, division, processes
from dpo.artifacts import read_json, read_jsonl, remove_folder, sha256_of, staged_folder, write_json, write_jsonl
from dpo.cli import UserError
from dpo.preferences import choose_pairs
from dpo.processes import LAUNCHED, NUMBER

FIRST_REWARD_TOLERANCE = 0.02
CHECKED_PAIRS = 20
SECONDS_BETWEEN_LINES = 10
# What an adapter says that it belongs to, also where it was trained on a local copy of a bucket's.
MODEL = "results/base/model"
SEAL = "sha256.json"  # in a checkpoint, written last


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

        def on_save(self, args, state, control, **kwargs):
            trainer.accelerator.wait_for_everyone()  # with TRL's trainer each process writes a part
            if not NUMBER:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args, state, control, logs=None, **kwargs):
            if NUMBER or "loss" not in logs:
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


def contents(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by name."""
    return {file.name: sha256_of(file) for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name != SEAL}


def seal(checkpoint: Path) -> None:
    """Say in a checkpoint what is in it: one without that was never finished.

    What transformers pickles of its arguments is left out: nothing reads it, and it would hold a hub's token.
    """
    (checkpoint / "training_args.bin").unlink(missing_ok=True)
    write_json(checkpoint / SEAL, contents(checkpoint))


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was finished, and is what it was then."""
    try:
        return read_json(checkpoint / SEAL) == contents(checkpoint)
    except (OSError, ValueError):
        return False


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


def check_adapter(weights: dict, settings: dict) -> None:
    """Raise `UserError` where training left a weight that is no number, or changed nothing at all.

    A fresh adapter's second factors are all zero: what it adds is zero until a step has moved one of them.

    Args:
        weights: the trained ones, by name.
        settings: of the training.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(
                f"training went wrong: {name} holds NaN or infinity at the end; "
                "lower training.learning_rate or raise training.warmup_steps in config.yaml"
            )
    if not any(weight.any() for name, weight in weights.items() if "lora_B" in name):
        raise UserError(
            f"training changed nothing: in {settings['max_steps']} steps, the first {settings['warmup_steps']} to warm "
            "up, the learning rate never rose above zero; in config.yaml raise training.max_steps or "
            "training.learning_rate, or lower training.warmup_steps"
        )


def claim_checkpoints(folder: Path, stamp: dict) -> str | None:
    """Return the last whole checkpoint that belongs to these settings and data, or None; any others are removed."""
    stamp_file = folder / "stamp.json"
    try:
        ours = read_json(stamp_file) == stamp
    except (OSError, ValueError):
        ours = False
    if not ours:
        if folder.exists():
            print(f"the checkpoints in {folder} belong to other settings or data; starting anew")
        remove_folder(folder)
        write_json(stamp_file, stamp)
    for checkpoint in sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: -int(path.name.partition("-")[2])):
        if is_whole(checkpoint):
            return str(checkpoint)
        print(f"{checkpoint} is not whole: removed")
        shutil.rmtree(checkpoint)
    return None


def with_pairs_at_once(settings: dict, pairs: int) -> dict:
    """Return settings with other many pairs in a forward pass, and as many a step."""
    a_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    return settings | {"per_device_train_batch_size": pairs, "gradient_accumulation_steps": a_step // pairs}


def start_again(pairs: int) -> None:
    """Become this program anew, which frees all memory, with half as many pairs at once, or one where they are odd."""
    fewer = 1 if pairs % 2 else pairs // 2
    print(f"warning: memory ran out with {pairs} pairs at once; going on with {fewer}", flush=True)
    os.execv(sys.executable, [sys.executable, *sys.argv, "--pairs-at-once", str(fewer)])


def train(arguments: argparse.Namespace, settings: dict, checkpoint: str | None) -> None:
    """Train to the end, from a checkpoint where there is one, and write adapter and log.

    Of several processes all train, and the first one writes.
    """
    from dpo import trainer as trainers
    from dpo.policy import load_policy

    policy, tokenizer = load_policy(arguments.model, settings)
    reference = read_jsonl(arguments.reference) if arguments.reference else []
    trainer = make_trainer(policy, tokenizer, read_jsonl(arguments.train), reference, settings, arguments.checkpoints)
    watch(trainer)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except pickle.UnpicklingError:
        raise UserError(
            f"{checkpoint} holds a pickle of more than numbers, which could run code, and is not loaded; "
            f"delete {arguments.checkpoints} and run again"
        ) from None
    except Exception as error:
        if cli.explain_storage(error):
            error.add_note(f"while writing {arguments.checkpoints}")
        raise
    weights = trainers.trained_weights(trainer)
    trainers.leave_others(trainer)
    if NUMBER:
        return
    check_adapter(weights, settings)

    # Where a training is resumed, TRL's count of tokens begins at zero again, and lines of before have sorted keys.
    lines = [
        {key: entry[key] for key in sorted(entry) if key != "num_tokens"}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    if not settings["fsdp"]:  # which leaves this process a part of the weights
        lines[-1] |= final_losses(trainer)
    if arguments.pairs_at_once:
        lines[-1]["pairs_at_once"] = arguments.pairs_at_once
    config = policy.peft_config[policy.active_adapter]
    config.target_modules = sorted(config.target_modules)  # a set: its order would differ from run to run
    if str(arguments.model).endswith(MODEL):
        config.base_model_name_or_path = MODEL
    with staged_folder(arguments.adapter) as folder:
        policy.save_pretrained(folder, state_dict=weights if settings["fsdp"] else None)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink()  # PEFT's blank model card
    write_jsonl(arguments.log, lines)
    remove_folder(arguments.checkpoints)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="training set that build_dataset wrote")
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--reference", type=Path, help="file that compute_reference_logps wrote, for shared_prompt")
    parser.add_argument("--settings", type=json.loads, required=True, help="training settings, as JSON")
    parser.add_argument(
        "--pairs-at-once", type=int, help="fewer than the settings say; a step has as many all the same"
    )
    parser.add_argument(
        "--resume-from", help="checkpoint that several processes go on from; they are told by the one that starts them"
    )
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints, removed when done")
    parser.add_argument("--adapter", type=Path, required=True, help="folder to write: LoRA adapter and tokenizer")
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines file to write: one line a logged step")
    arguments = parser.parse_args()

    if LAUNCHED:
        processes.run(lambda: train_together(arguments))
        return
    from dpo.policy import products_dtype, settle_trainer

    processes.stand_alone()
    settings, reason = settle_trainer(arguments.model, arguments.settings)
    if reason:
        print(f"trainer: trl instead of shared_prompt, since {reason}", flush=True)
    if fault := division.fault(settings):
        raise UserError(fault)
    weights = {file.name: sha256_of(file) for file in sorted(arguments.model.glob("*.safetensors"))}
    stamp = {
        "settings": {key: value for key, value in settings.items() if key != "processes"},  # they change rounding alone
        "products": str(products_dtype(settings)),
        "train": sha256_of(arguments.train),
        "weights": weights,
    }
    pairs = arguments.pairs_at_once or settings["per_device_train_batch_size"]
    checkpoint = claim_checkpoints(arguments.checkpoints, stamp)
    try:
        if settings["processes"] > 1:
            options = ["--resume-from", checkpoint] if checkpoint else []
            processes.launch(settings["processes"], settings["fsdp"], options)
        else:
            train(arguments, with_pairs_at_once(settings, pairs), checkpoint)
    except (MemoryError, RuntimeError) as error:
        if pairs == 1 or not cli.is_out_of_memory(error):
            raise
        start_again(pairs)


def train_together(arguments: argparse.Namespace) -> None:
    """Train as one of several processes."""
    processes.be_quiet()
    from dpo.policy import settle_trainer

    settings, _ = settle_trainer(arguments.model, arguments.settings)
    if settings["trainer"] == "shared_prompt":
        processes.stand_alone()
    else:
        processes.stand_together()
    pairs = arguments.pairs_at_once or settings["per_device_train_batch_size"]
    train(arguments, with_pairs_at_once(settings, pairs), arguments.resume_from)


if __name__ == "__main__":
    cli.run(main)
