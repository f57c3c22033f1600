"""TRL's `DPOTrainer`, running over pairs that share their prompt.

Loss, metrics, optimizer, schedule and checkpoints are TRL's and transformers' own. Ours is how log-probabilities come
about (`SharedPromptModel`), and that a step's pairs are taken together: `per_device_train_batch_size` says how many
tokens are held at once, `gradient_accumulation_steps` only how many pairs make a step. Where several processes train,
each takes a share of every step's pairs, and then the same step as the others.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from dpo import exchange
from dpo.inference import keep_freed_memory
from dpo.losses import loss_types
from dpo.plain_head import install_plain_head
from dpo.policy import products_dtype
from dpo.processes import COUNT, NUMBER
from dpo.shared_prompt import SharedPromptModel, answer_logps, needed_operations, pair_of
from dpo.workers import shared_out


@dataclass
class Step:
    """The pairs of a step, as rows; no container that transformers or accelerate would look into."""

    rows: list[dict]


class SharedPromptTrainer(DPOTrainer):
    """A `DPOTrainer` for a dataset of token ids and reference log-probabilities, and a model with one LoRA adapter."""

    def __init__(self, *arguments, dtype: torch.dtype, checkpoint: bool, most_tokens: int, **named):
        """Prepare as `DPOTrainer` does.

        Args:
            dtype: of products of matrices.
            checkpoint: whether to compute each layer again for the backward pass, to save memory.
            most_tokens: about how many to take in one forward pass.
        """
        super().__init__(*arguments, **named)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # TRL makes adapters of 4-bit models bfloat16
        self.precompute_ref_logps = True  # they are in the dataset
        self.pad, self.data_collator = self.data_collator, lambda rows: {"step": Step(rows)}
        self.most_tokens = most_tokens
        keep_freed_memory()
        self.shared_prompt = SharedPromptModel(self.model, dtype, checkpoint)
        exchange.connect()

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def training_step(self, model, inputs: dict[str, Step], num_items_in_batch=None) -> torch.Tensor:
        """Compute the loss and its gradient, both the mean over the step's pairs, in as few passes as memory allows.

        Each process has all of the step's pairs and takes its share of them.
        """
        model.train()
        rows = inputs["step"].rows
        lengths = [sum(map(len, pair_of(row))) for row in rows]
        ours = (shared_out(lengths, COUNT) + [[]] * COUNT)[NUMBER]  # none, where pairs are fewer than processes
        our_lengths = [lengths[n] for n in ours]
        parts = shared_out(our_lengths, -(-sum(our_lengths) // self.most_tokens))
        batches = [[rows[ours[n]] for n in part] for part in parts]
        shares = [len(batch) / len(rows) for batch in batches]
        # TRL's SFT term is a mean over tokens, the others are means over pairs.
        tokens = [sum(len(row["chosen_ids"]) for row in batch) for batch in batches]
        all_tokens = sum(len(row["chosen_ids"]) for row in rows)
        weights, seen = self.loss_weights, self._total_train_tokens
        mean = torch.zeros(())
        for batch, share, count in zip(batches, shares, tokens, strict=True):
            of_tokens = count / all_tokens / share
            self.loss_weights = [
                weight * of_tokens if loss_type == "sft" else weight
                for loss_type, weight in zip(self.loss_types, weights, strict=True)
            ]
            loss = self.compute_loss(model, self.pad(batch)) * share
            self.accelerator.backward(loss)
            mean = mean + loss.detach()
        self.loss_weights = weights
        metrics = self._metrics["train"]
        sums = {"loss": mean.item(), "num_tokens": self._total_train_tokens - seen}
        for name, values in metrics.items():
            if name != "num_tokens":  # a sum since the start
                sums[name] = sum(v * s for v, s in zip(values[len(values) - len(batches) :], shares, strict=True))
                del values[len(values) - len(batches) :]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not batches:
            # Zeros in their place; through `backward`, which also prepares the scaling of 16-bit losses.
            self.accelerator.backward(sum(parameter.sum() for parameter in trained) * 0.0)
        exchange.add_gradients(trained)
        sums = exchange.total(sums)
        mean, self._total_train_tokens = sums.pop("loss"), seen + sums.pop("num_tokens")
        for name, value in sums.items():
            metrics[name].append(value)
        metrics["num_tokens"] = [self._total_train_tokens]
        return torch.tensor(mean).to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._compute_loss(self.shared_prompt, inputs, return_outputs)

    def floating_point_ops(self, inputs: dict[str, Step]) -> float:
        return needed_operations(self.model.config, [pair_of(row) for row in inputs["step"].rows])


def trained_weights(trainer: DPOTrainer) -> dict[str, torch.Tensor]:
    """Return the trained weights by name, each as a whole; where FSDP divides them, all processes must ask."""
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in weights.items()}


def leave_others(trainer: DPOTrainer) -> None:
    """Have a trainer that has finished ask other processes nothing any more; they may have ended."""
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda values: values
    exchange.disconnect()


@torch.no_grad()
def loss_on(trainer: DPOTrainer, rows: list[dict]) -> float:
    """Return the mean loss of pairs as the trainer computes it.

    Args:
        trainer: of either kind.
        rows: of its dataset.
    """
    ours = isinstance(trainer, SharedPromptTrainer)
    losses = []
    for row in rows:
        inputs = trainer.pad([row]) if ours else trainer._prepare_inputs(trainer.data_collator([row]))
        losses.append(trainer.compute_loss(trainer.model, inputs).item())
    return sum(losses) / len(losses)


@torch.no_grad()
def float32_loss_on(trainer: DPOTrainer, rows: list[dict]) -> float:
    """Return the same with every product in float32, of policy and reference."""
    if ours := isinstance(trainer, SharedPromptTrainer):
        trainer.shared_prompt.workspaces.clear()  # their memory is needed for weights in float32
    pad = trainer.pad if ours else trainer.data_collator
    reference = list(answer_logps(SharedPromptModel(trainer.model, torch.float32, adapter=False), rows))
    policy = SharedPromptModel(trainer.model, torch.float32)
    trainer.precompute_ref_logps = True
    losses = [
        trainer._compute_loss(policy, pad([row | logps]), return_outputs=False).item()
        for row, logps in zip(rows, reference, strict=True)
    ]
    return sum(losses) / len(losses)


def make_shared_prompt_trainer(policy, tokenizer, rows: list[dict], settings: dict, checkpoints: Path):
    """Return a trainer over rows of token ids with `ref_chosen_logps` and `ref_rejected_logps`."""
    pairs_a_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    dtype = products_dtype(settings)
    config = dpo_config(
        settings,
        checkpoints,
        per_device_train_batch_size=pairs_a_step,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        save_strategy="no" if NUMBER else "steps",  # all would save the same
        bf16=False,
        fp16=dtype == torch.float16,  # for its loss scaling
    )
    return make(
        SharedPromptTrainer,
        policy,
        tokenizer,
        rows,
        config,
        dtype=dtype,
        checkpoint=bool(settings["use_gradient_checkpointing"]),
        most_tokens=2 * settings["per_device_train_batch_size"] * settings["max_length"],  # as many as TRL would
    )


def make_trl_trainer(policy, tokenizer, rows: list[dict], settings: dict, checkpoints: Path):
    """Return TRL's own trainer, or Unsloth's where that was imported, over rows in conversational format.

    In float32 the reference log-probabilities are computed once, before training. In 16 bits they come with each batch:
    there they depend on the batch's padding, by half a nat an answer, and policy and reference must see the same. So
    they do where several processes train: each would look for what the first one computed in a folder of its own.
    """
    dtype = products_dtype(settings)
    gpu = torch.cuda.is_available()
    config = dpo_config(
        settings,
        checkpoints,
        per_device_train_batch_size=settings["per_device_train_batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"] // COUNT,
        gradient_checkpointing=bool(settings["use_gradient_checkpointing"]),
        precompute_ref_log_probs=dtype == torch.float32 and COUNT == 1,
        bf16=gpu and dtype == torch.bfloat16,
        fp16=gpu and dtype == torch.float16,
        fsdp=settings["fsdp"],
        ddp_find_unused_parameters=False,
    )
    install_plain_head()
    return make(DPOTrainer, policy, tokenizer, rows, config)


def dpo_config(settings: dict, checkpoints: Path, **more) -> DPOConfig:
    """Return what all trainers are told alike, with more."""
    return DPOConfig(
        output_dir=str(checkpoints),
        beta=settings["beta"],
        loss_type=loss_types(settings),
        loss_weights=settings["loss_weights"] or None,
        label_smoothing=settings["label_smoothing"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["lr_scheduler_type"],
        max_steps=settings["max_steps"],
        warmup_steps=settings["warmup_steps"],
        max_length=settings["max_length"],
        optim=settings["optim"],
        weight_decay=settings["weight_decay"],
        seed=settings["seed"],
        logging_steps=settings["logging_steps"],
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=settings["save_steps"],
        save_total_limit=2,
        report_to="none" if NUMBER else settings["report_to"],
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **more,
    )


def make(kind: type[DPOTrainer], policy, tokenizer, rows: list[dict], config: DPOConfig, **named) -> DPOTrainer:
    """Return a trainer that prints nothing by itself and refers to the base model."""
    dataset = Dataset.from_list(rows)
    trainer = kind(model=policy, args=config, train_dataset=dataset, processing_class=tokenizer, **named)
    trainer.remove_callback(PrinterCallback)
    # TRL keeps a copy of the fresh adapter as reference, which equals the bare base model. With two adapters in a
    # checkpoint transformers would resume from the copy instead of the trained one; without it TRL refers to the base.
    if "ref" in policy.peft_config:
        policy.delete_adapter("ref")
    return trainer
