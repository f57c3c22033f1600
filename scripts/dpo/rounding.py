"""Storing merged weights in float16 without losing what training added to them."""

import torch

SMALLEST_NORMAL = 2.0**-14  # below it float16's steps no longer shrink: 2^-24 is fine enough for any update
LOST_BITS = 13  # float32 has 23 bits behind the leading one, float16 has 10


def round_stochastically(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round to float16, up or down by chance, so that the expected value is the weight itself.

    The weights of a model released in 16 bits lie on float16's grid or near it. Rounded to nearest, an update of less
    than half a step is always taken back, and with it a part of the training. Rounded by chance (Gupta et al. 2015,
    arXiv 1502.02551, section 3), errors have no direction and average out over a row; a weight that float16 can hold
    stays as it is.

    Args:
        weights: float32, none larger than float16 can hold.
        generator: of the random numbers, on the CPU.

    Returns:
        float16, of the same shape.
    """
    chance = torch.randint(1 << LOST_BITS, weights.shape, generator=generator, dtype=torch.int32)
    # Added below the bits that float16 keeps, the random number carries into them as often as the lost bits are large.
    bits = (weights.contiguous().view(torch.int32) + chance) & -(1 << LOST_BITS)
    rounded = bits.view(torch.float32).to(torch.float16)
    return torch.where(weights.abs() < SMALLEST_NORMAL, weights.to(torch.float16), rounded)
