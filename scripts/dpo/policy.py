"""The model as it is trained: base weights in the precision of the training, and a fresh LoRA adapter on them."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # every file that training reads is local

import torch

from dpo.losses import compares_pairs, loss_types
from dpo.shared_prompt import why_not


def settle_trainer(model: Path, settings: dict) -> tuple[dict, str | None]:
    """Return the settings with TRL's trainer where the shared layout cannot serve, and why; decided before loading.

    `bf16: auto` depends on it.
    """
    from transformers import AutoConfig

    if settings["trainer"] != "shared_prompt":
        return settings, None
    reason = why_not(AutoConfig.from_pretrained(model))
    if compares_pairs(settings):
        reason = f"loss type {' + '.join(loss_types(settings))} compares the pairs of a batch with each other"
    return (settings | {"trainer": "trl"} if reason else settings), reason


def products_dtype(settings: dict) -> torch.dtype:
    """Return the type in which matrices are multiplied: `bf16` of the settings, `auto` resolved on this machine.

    On a GPU `auto` is its 16-bit type. On a CPU it is bfloat16 where the processor multiplies it by itself and the
    trainer keeps what the adapter adds in float32; TRL's and Unsloth's add it in bfloat16, where it is rounded away.
    """
    if settings["bf16"] != "auto":
        return torch.bfloat16 if settings["bf16"] else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    able = torch.cpu.get_capabilities()
    native = able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16")
    return torch.bfloat16 if native and settings["trainer"] == "shared_prompt" else torch.float32


def load_policy(model: Path, settings: dict):
    """Load the base model and put a fresh LoRA adapter on it; return (model, tokenizer).

    With `trainer: unsloth` the model is Unsloth's, which changes transformers in this process.
    """
    if settings["trainer"] == "unsloth":
        return load_unsloth_policy(model, settings)
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, set_seed

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = load_frozen(model, settings)
    set_seed(settings["seed"])
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config), tokenizer


def load_frozen(model: Path, settings: dict):
    """Load the base model, frozen, in the precision of the training."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = products_dtype(settings)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantization = {"quantization_config": nf4} if settings["load_in_4bit"] else {}
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **quantization).requires_grad_(False)
    return base.to("cuda") if torch.cuda.is_available() else base


def load_unsloth_policy(model: Path, settings: dict):
    """Do the same with Unsloth."""
    from unsloth import FastLanguageModel

    policy, tokenizer = FastLanguageModel.from_pretrained(
        str(model),
        max_seq_length=settings["max_length"],
        dtype=products_dtype(settings),
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
