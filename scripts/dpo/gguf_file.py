"""What a GGUF file is made of, read with the package gguf, without loading the model."""

from pathlib import Path

from dpo.cli import UserError

# Rows of a weight matrix are quantised in blocks. K-quants, and the i-quants below 4 bits, have blocks of 256 weights;
# llama.cpp puts a matrix whose rows are no multiple of that into a type with blocks of 32.
LONG_BLOCK = 256


def describe(gguf: Path) -> dict:
    """Return what a GGUF file holds.

    Returns:
        `bytes`; `tensors`; `weights`; `bits_per_weight`, metadata and tokenizer left out; `types`: of each tensor type
        used, the number of its tensors and weights, those with most weights first; `matrices` and of them `short_rows`,
        whose rows are no multiple of 256 weights.

    Raises:
        UserError: the file is not a whole GGUF.
    """
    from dpo.gguf_reader import Reader

    try:
        tensors = Reader(gguf).tensors
    except Exception as error:  # the reader raises whatever it stumbles on in a damaged file
        fault = f"{type(error).__name__}: {error}"
        raise UserError(f"{gguf} is no whole GGUF file ({fault}); delete it and run again") from None
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        found = types.setdefault(tensor.tensor_type.name, {"tensors": 0, "weights": 0})
        found["tensors"] += 1
        found["weights"] += int(tensor.n_elements)
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    weights = sum(found["weights"] for found in types.values())
    return {
        "bytes": gguf.stat().st_size,
        "tensors": len(tensors),
        "weights": weights,
        "bits_per_weight": 8 * sum(int(tensor.n_bytes) for tensor in tensors) / weights,
        "types": dict(sorted(types.items(), key=lambda entry: -entry[1]["weights"])),
        "matrices": len(matrices),
        "short_rows": sum(int(tensor.shape[0]) % LONG_BLOCK > 0 for tensor in matrices),
    }
