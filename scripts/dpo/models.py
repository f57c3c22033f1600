"""Loading models for evaluation and export, and the log-probabilities that preferences are judged by.

Evaluation runs in float32 on whatever device there is, so that what is measured is the model and not the rounding of a
16-bit forward pass.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local folders by now; no name is looked up on a hub

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from dpo.cli import UserError
from dpo.inference import read_shared_prefix


class Logps(NamedTuple):
    """A completion's summed log-probability (nats) and its length in tokens."""

    total: float
    tokens: int


def load_model(folder: Path, adapter: Path | None = None) -> PreTrainedModel:
    """Load a Hugging Face folder in float32 for evaluation, with a LoRA adapter merged into it where one is given.

    Raises:
        UserError: weights or config are damaged, or the adapter does not fit the model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be loaded ({error}); delete it and run again") from None
    return add_adapter(model, adapter) if adapter else model


def add_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Merge a LoRA adapter into a loaded model, which is changed.

    Raises:
        UserError: the adapter is damaged, or was made for another model: unlike PEFT, this takes no adapter of which a
            part has no place in the model, or which leaves a part of its own layers untrained.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    try:
        weights = load_file(adapter / "adapter_model.safetensors")
        config = PeftConfig.from_pretrained(adapter)
        config.base_model_name_or_path = model.name_or_path  # where it lay in training does not matter
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{adapter} cannot be loaded ({error}); delete it and run again") from None
    try:
        tuned = get_peft_model(model, config)
        result = set_peft_model_state_dict(tuned, weights)
        odd = list(result.unexpected_keys) + [key for key in result.missing_keys if "lora_" in key]
    except (RuntimeError, ValueError) as error:  # other shapes, or none of its layers
        odd = [str(error).strip().splitlines()[-1].strip()]
    if odd:
        raise UserError(f"{adapter} was made for another base model: {odd[0]}")
    return tuned.merge_and_unload().eval()


def load_dequantized(folder: Path) -> PreTrainedModel:
    """Load a Hugging Face folder as QLoRA sees it: its linear layers quantised to 4 bits as Unsloth does, in float32.

    NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3).
    """
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
    return model.dequantize().float().eval()


def batches(items: list, size: int) -> Iterator[list]:
    """Cut a list into consecutive batches of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.inference_mode()
def completion_logps(
    model: PreTrainedModel, sequences: Iterable[tuple[list[int], list[int]]], batch_size: int = 4
) -> list[Logps]:
    """Return the log-probability of each completion given its prompt.

    Args:
        model: causal language model.
        sequences: (prompt token ids, completion token ids); neither may be empty.
        batch_size: sequences in one forward pass; they are sorted by length to waste little on padding.

    Returns:
        One `Logps` a sequence, in the order given: sum over t of log p(completion[t] | prompt, completion[:t]).
    """
    sequences = list(sequences)
    results: list[Logps] = [Logps(0.0, 0)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda index: sum(map(len, sequences[index])))
    for batch in batches(order, batch_size):
        # Padding goes left: then all completions are at the end, and the vocabulary's logits are needed only there.
        cache, shared = read_shared_prefix(model, [sequences[index][0] for index in batch])
        width = max(sum(map(len, sequences[index])) for index in batch)
        longest = max(len(sequences[index][1]) for index in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            whole = sequences[index][0] + sequences[index][1]
            ids[row, width - len(whole) + shared :] = torch.tensor(whole[shared:])
            mask[row, width - len(whole) + shared :] = 1
            mask[row, :shared] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        # The token at position t is predicted by the logits at t - 1, so one position more is kept.
        logits = model(
            input_ids=ids[:, shared:],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1)[:, shared:].clamp(min=0),
            past_key_values=cache,
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        for row, index in enumerate(batch):
            length = len(sequences[index][1])
            lost = torch.nn.functional.cross_entropy(logits[row, -length:], ids[row, -length:], reduction="none")
            results[index] = Logps(-lost.double().sum().item(), length)
    return results


@torch.inference_mode()
def text_logprobs(model: PreTrainedModel, texts: list[list[int]]) -> Iterator[torch.Tensor]:
    """Yield of each text, given in token ids, the model's log-probabilities, (len(text) - 1, vocabulary).

    Row t is the distribution of token t + 1 given the tokens up to t.
    """
    for text in texts:
        yield model(input_ids=torch.tensor([text], device=model.device)).logits[0, :-1].log_softmax(-1)
