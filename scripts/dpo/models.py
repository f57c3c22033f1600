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
from transformers import AutoModelForCausalLM, PreTrainedModel


class Logps(NamedTuple):
    """A completion's summed log-probability (nats) and its length in tokens."""

    total: float
    tokens: int


def load_model(folder: Path, adapter: Path | None = None) -> PreTrainedModel:
    """Load a Hugging Face folder in float32 for evaluation, with a LoRA adapter merged into it where one is given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.to(device).eval()


def batches(order: list[int], size: int) -> Iterator[list[int]]:
    """Cut a list of positions into consecutive batches of at most `size`."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def completion_logps(
    model: PreTrainedModel, sequences: Iterable[tuple[list[int], list[int]]], batch_size: int = 8
) -> list[Logps]:
    """Return the log-probability of each completion given its prompt.

    Args:
        model: causal language model.
        sequences: (prompt token ids, completion token ids); the completion must not be empty.
        batch_size: sequences in one forward pass; they are sorted by length to waste little on padding.

    Returns:
        One `Logps` a sequence, in the order given: sum over t of log p(completion[t] | prompt, completion[:t]).
    """
    sequences = list(sequences)
    results: list[Logps] = [Logps(0.0, 0)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda index: sum(map(len, sequences[index])))
    for batch in batches(order, batch_size):
        width = max(sum(map(len, sequences[index])) for index in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            whole = sequences[index][0] + sequences[index][1]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for row, index in enumerate(batch):
            prompt, completion = sequences[index]
            # The token at position t is predicted by the logits at t - 1.
            predicting = logits[row, len(prompt) - 1 : len(prompt) + len(completion) - 1].float()
            targets = torch.tensor(completion, device=model.device)
            chosen = predicting.log_softmax(-1).gather(-1, targets[:, None])
            results[index] = Logps(chosen.double().sum().item(), len(completion))
    return results
