"""What the model says as the trainer runs it: in its precision, through its code. For a child process.

Unsloth changes transformers in the process that imports it, so nothing else should be measured there.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dpo.policy import load_policy, products_dtype, settle_trainer

Logps = list[tuple[float, int]]


def score(
    model: Path,
    adapter: Path,
    settings: dict,
    sequences: list[tuple[list[int], list[int]]],
    texts: list[list[int]],
    folder: Path,
) -> dict[str, Logps]:
    """Score a trained adapter, and the base model under it, with the model that `train_dpo.py` trains.

    Args:
        model: base model, a Hugging Face folder.
        adapter: LoRA adapter that was trained on it.
        settings: of the training.
        sequences: (prompt token ids, completion token ids); none may be empty.
        texts: token ids of neutral texts.
        folder: where the log-probabilities of text number n are written: `n.npy`, (len(text) - 1, vocabulary), float32.

    Returns:
        `logps` and `base_logps`: (log-probability in nats, length in tokens) of each completion.
    """
    settings, _ = settle_trainer(model, settings)
    policy, _ = load_policy(model, settings)

    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(policy, load_file(adapter / "adapter_model.safetensors"))
    with torch.inference_mode():
        run = run_shared_prompt if settings["trainer"] == "shared_prompt" else run_transformers
        return run(policy, settings, sequences, texts, lambda n, logprobs: np.save(folder / f"{n}.npy", logprobs))


def run_shared_prompt(policy, settings: dict, sequences, texts, save: Callable) -> dict[str, Logps]:
    """Score with `SharedPromptModel`."""
    from dpo.shared_prompt import SharedPromptModel, answer_logps

    rows = [{"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": []} for prompt, answer in sequences]
    lengths = [len(answer) for _, answer in sequences]

    def logps(model) -> Logps:
        found = [row["ref_chosen_logps"] for row in answer_logps(model, rows)]
        return list(zip(found, lengths, strict=True))

    dtype = products_dtype(settings)
    model = SharedPromptModel(policy, dtype)
    for number, text in enumerate(texts):
        save(number, model.text_logprobs(text).cpu().numpy())
    return {"logps": logps(model), "base_logps": logps(SharedPromptModel(policy, dtype, adapter=False))}


def run_transformers(policy, settings: dict, sequences, texts, save: Callable) -> dict[str, Logps]:
    """Score with transformers' own forward pass, or Unsloth's where that was imported."""
    if settings["trainer"] == "unsloth":
        from unsloth import FastLanguageModel

        FastLanguageModel.for_inference(policy)
    device, half = policy.device.type, products_dtype(settings)

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.autocast(device, half, enabled=device != "cpu" and half != torch.float32):
            return policy(input_ids=torch.tensor([ids], device=policy.device)).logits[0, :-1].float()

    def logps() -> Logps:
        found = []
        for prompt, completion in sequences:
            predicting = logits(prompt + completion)[len(prompt) - 1 :]
            following = torch.tensor(completion, device=predicting.device)
            lost = torch.nn.functional.cross_entropy(predicting, following, reduction="none")
            found.append((-lost.double().sum().item(), len(completion)))
        return found

    for number, text in enumerate(texts):
        save(number, logits(text).log_softmax(-1).cpu().numpy())
    scores = {"logps": logps()}
    with policy.disable_adapter():
        scores["base_logps"] = logps()
    return scores
