"""What the model says as the trainer runs it: in its precision, through its code. For a child process.

Unsloth changes transformers in the process that imports it, so nothing else should be measured there.
"""

from pathlib import Path

import numpy as np

from dpo.policy import load_policy


def score(
    model: Path,
    adapter: Path,
    settings: dict,
    sequences: list[tuple[list[int], list[int]]],
    texts: list[list[int]],
    folder: Path,
) -> dict[str, list[tuple[float, int]]]:
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
    policy, _ = load_policy(model, settings)

    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from unsloth import FastLanguageModel, is_bfloat16_supported

    set_peft_model_state_dict(policy, load_file(adapter / "adapter_model.safetensors"))
    FastLanguageModel.for_inference(policy)
    device = policy.device.type
    half = torch.bfloat16 if device == "cpu" or is_bfloat16_supported() else torch.float16

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.autocast(device, half, enabled=device != "cpu"):
            return policy(input_ids=torch.tensor([ids], device=policy.device)).logits[0, :-1].float()

    def logps() -> list[tuple[float, int]]:
        found = []
        for prompt, completion in sequences:
            predicting = logits(prompt + completion)[len(prompt) - 1 :]
            following = torch.tensor(completion, device=predicting.device)
            lost = torch.nn.functional.cross_entropy(predicting, following, reduction="none")
            found.append((-lost.double().sum().item(), len(completion)))
        return found

    with torch.inference_mode():
        for number, text in enumerate(texts):
            np.save(folder / f"{number}.npy", logits(text).log_softmax(-1).cpu().numpy())
        scores = {"logps": logps()}
        with policy.disable_adapter():
            scores["base_logps"] = logps()
    return scores
