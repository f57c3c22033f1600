"""What the processes of a training tell each other of a step that they share; nothing where there is one."""

import torch
from torch import distributed

from dpo.processes import COUNT, NUMBER


def connect() -> None:
    """Connect all processes, where that has not been done."""
    if COUNT > 1 and not distributed.is_initialized():
        distributed.init_process_group(rank=NUMBER, world_size=COUNT)


def disconnect() -> None:
    """Let all processes go on, or end, by themselves."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def total(values: dict[str, float]) -> dict[str, float]:
    """Return sums over all processes; a name that one has not counts as 0 there."""
    if COUNT == 1:
        return values
    gathered = [None] * COUNT
    distributed.all_gather_object(gathered, values)
    names = dict.fromkeys(name for part in gathered for name in part)
    return {name: sum(part.get(name, 0.0) for part in gathered) for name in names}


def add_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace the gradients of parameters, which all must have one, by their sums over all processes."""
    if COUNT == 1:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    distributed.all_reduce(flat)
    parts = flat.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))
