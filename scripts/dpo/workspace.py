"""Memory for what a forward pass keeps for its backward pass, used again by the next pass.

Passes differ in length. Memory that malloc gives and takes back in other sizes each time falls into pieces, the process
grows from step to step, and every new page costs more time than what is computed in it.
"""

from math import prod

import torch

CHUNK = 64 << 20  # bytes
ALIGNMENT = 64  # bytes, a line of a CPU's cache


class Workspace:
    """Tensors one behind the other in chunks of memory, which are never given back."""

    def __init__(self, device: torch.device):
        self.device = device
        self.chunks: list[torch.Tensor] = []
        self.chunk = self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a new tensor."""
        size = prod(shape) * dtype.itemsize
        while self.chunk < len(self.chunks) and self.used + size > len(self.chunks[self.chunk]):
            self.chunk, self.used = self.chunk + 1, 0
        if self.chunk == len(self.chunks):
            self.chunks.append(torch.empty(max(size, CHUNK), dtype=torch.uint8, device=self.device))
        tensor = self.chunks[self.chunk][self.used : self.used + size].view(dtype).view(shape)
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        return tensor

    def copy(self, values: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a copy of values, contiguous."""
        return self.empty(values.shape, dtype or values.dtype).copy_(values)

    def mark(self) -> tuple[int, int]:
        """Return what `free` takes to free all tensors that come after."""
        return self.chunk, self.used

    def free(self, mark: tuple[int, int] = (0, 0)) -> None:
        """Free all tensors, or those since a mark: new ones will lie in their place."""
        self.chunk, self.used = mark
