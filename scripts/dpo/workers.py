"""Threads that compute parts of a batch side by side, each on cores of its own.

Many of the operations between two products are too small to be shared by cores; whole pairs are not. What a part gives
does not depend on when the others are done, so that results are the same each time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class Workers:
    """One thread for each core that PyTorch uses on a CPU; on a GPU, which overlaps work by itself, none."""

    def __init__(self, device: torch.device):
        self.cores = torch.get_num_threads() if device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(self.cores)

    def map(self, function: Callable, parts: list) -> list:
        """Return the function's results, without gradients, for at most `cores` parts."""
        if len(parts) == 1:
            return [function(parts[0])]
        return list(self.pool.map(lambda part: self._alone(function, part, self.cores // len(parts)), parts))

    @staticmethod
    def _alone(function: Callable, part, cores: int):
        torch.set_num_threads(cores)  # of this thread
        with torch.no_grad():
            return function(part)


def shared_out(lengths: list[int], count: int) -> list[list[int]]:
    """Share items out as evenly as the longest-first rule does (Graham 1969); return each share's numbers, in order."""
    shares = [[] for _ in range(min(count, len(lengths)))]
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        min(shares, key=lambda share: sum(lengths[n] for n in share)).append(number)
    return [sorted(share) for share in shares]
