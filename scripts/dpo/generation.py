"""Greedy answers to many prompts at once."""

import torch
from transformers import PreTrainedModel

from dpo.inference import read_shared_prefix

# Rows that are finished leave the batch when they are this share of it: leaving copies the cache of those that stay.
FINISHED = 1 / 8


@torch.inference_mode()
def answer(model: PreTrainedModel, prompts: list[list[int]], limit: int, end: int) -> list[list[int]]:
    """Continue each prompt with the most probable token, until the end token or the limit.

    Rows do not see each other and padding is masked, so that the batch changes nothing but the last bits of the
    logits; which texts come out stays the same unless two tokens are equally probable to within those.

    Args:
        model: causal language model.
        prompts: token ids of each prompt.
        limit: most new tokens of an answer.
        end: id of the token that ends an answer.

    Returns:
        Token ids of each answer; the last one is `end` where the model ended it itself.
    """
    cache, shared = read_shared_prefix(model, prompts)
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt[shared:] for prompt in prompts], device=model.device)
    mask = torch.tensor(
        [[1] * shared + [0] * (width - len(prompt)) + [1] * (len(prompt) - shared) for prompt in prompts],
        device=model.device,
    )
    positions = (mask.cumsum(-1) - 1)[:, shared:].clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the batch continues
    for _ in range(limit):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits
        ids = logits.argmax(-1)
        going = []
        for place, (row, token) in enumerate(zip(rows, ids[:, 0].tolist(), strict=True)):
            if answers[row][-1:] != [end]:
                answers[row].append(token)
                if token != end:
                    going.append(place)
        if not going:
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if len(rows) - len(going) >= FINISHED * len(rows):
            kept = torch.tensor(going, device=model.device)
            cache.keep(kept)
            ids, mask, positions = ids[kept], mask[kept], positions[kept]
            rows = [rows[place] for place in going]
    return answers
