"""The model as it is trained: Unsloth's, with a LoRA adapter on it, in the precision of the training."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # every file that training reads is local


def load_policy(model: Path, settings: dict):
    """Load the base model with Unsloth and put a fresh LoRA adapter on it; return (model, tokenizer).

    A GPU computes in the 16-bit type that it supports. A CPU computes in float32, whether or not it has bfloat16
    instructions: the same results on every processor, and small LoRA updates do not round away in the forward pass.
    """
    import torch
    from unsloth import FastLanguageModel

    policy, tokenizer = FastLanguageModel.from_pretrained(
        str(model),
        max_seq_length=settings["max_length"],
        dtype=None if torch.cuda.is_available() else torch.float32,
        load_in_4bit=settings["load_in_4bit"],
    )
    policy = FastLanguageModel.get_peft_model(
        policy,
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        use_gradient_checkpointing=settings["use_gradient_checkpointing"],
        random_state=settings["seed"],
    )
    return policy, tokenizer
