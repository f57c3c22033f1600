"""llama.cpp's quantisation types, importance matrices, and quantising a GGUF file."""

import ctypes
import os
import re
from pathlib import Path

import llama_cpp

from dpo import child_process, cli
from dpo.artifacts import raise_why_unwritten
from dpo.cli import UserError

PREFIX = "LLAMA_FTYPE_MOSTLY_"
# Floating-point types quantise nothing, mxfp4_moe is for mixtures of experts, and llama.cpp cannot write nvfp4.
LEFT_OUT = {"f16", "bf16", "mxfp4_moe", "nvfp4"}
# llama.cpp's names, in lower case, and the numbers that a file of the type has as `general.file_type`.
TYPES: dict[str, int] = {
    name.removeprefix(PREFIX).lower(): number
    for name, number in vars(llama_cpp).items()
    if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in LEFT_OUT
}
# Without an importance matrix llama.cpp refuses to write these: the result would be garbage. Of iq3_xs and iq3_xxs it
# depends on the model's shapes whether it does.
NEED_IMATRIX = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "q2_k_s"}

SUMS, COUNTS = ".in_sum2", ".counts"  # ends of the names of an importance matrix's tensors
ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h
PREFACE = re.compile(r"^\w+: (failed to quantize: |error loading model: )?")  # of an error: where in llama.cpp it arose


def read_imatrix(file: Path) -> tuple[dict, dict[str, str | int]]:
    """Read an importance matrix that llama-imatrix wrote, as llama-quantize reads it.

    Returns:
        (for each weight matrix by name, the mean square of what each of its columns was multiplied with, float32
        (columns,); what llama-quantize notes of it in a quantised file's metadata)

    Raises:
        UserError: the file is no importance matrix, or not a whole one.
    """
    import numpy
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        found = {tensor.name: tensor.data for tensor in reader.tensors}
        names = [name.removesuffix(SUMS) for name in found if name.endswith(SUMS)]
        means = {}
        for name in names:
            counts = found[name + COUNTS].round().reshape(-1, 1)
            sums = found[name + SUMS].reshape(len(counts), -1)
            # What was never multiplied with anything, an expert that no token was sent to, counts as 1.
            means[name] = numpy.where(counts > 0, sums / numpy.maximum(counts, 1), 1).astype(numpy.float32).ravel()
            if not (means[name] >= 0).all():
                raise ValueError(f"a mean square of {name} is not a number of 0 or more")
        noted = {
            "quantize.imatrix.file": file.name,
            "quantize.imatrix.dataset": reader.get_field("imatrix.datasets").contents()[0],
            "quantize.imatrix.entries_count": len(means),
            "quantize.imatrix.chunks_count": int(reader.get_field("imatrix.chunk_count").contents()),
        }
        return means, noted
    except Exception as error:  # the reader raises whatever it stumbles on in a damaged file
        fault = f"{type(error).__name__}: {error}"
        raise UserError(f"{file} is no whole importance matrix ({fault}); delete it and run again") from None


def quantize(gguf: Path, quantized: Path, type: str, imatrix: Path | None = None) -> None:
    """Quantise an f16 GGUF file, in a process of its own: llama.cpp ends the process on some damaged files.

    Args:
        gguf: file in f16.
        quantized: file to write; the caller stages it.
        type: a key of `TYPES`.
        imatrix: importance matrix that llama-imatrix wrote.

    Raises:
        UserError: llama.cpp refused the file or crashed on it, or the type needs an importance matrix.
    """
    lacking = f"llama.cpp writes {gguf} as {type} only with an importance matrix; set `export.imatrix: true`"
    if type in NEED_IMATRIX and imatrix is None:
        raise UserError(lacking)
    refused, damaged = f"llama.cpp could not quantise {gguf} to {type}", "if a file is damaged, delete it and run again"
    crashed = f"{refused}: it crashed, see above; {damaged}"
    reason = child_process.run(crashed, call_llama_cpp, gguf, quantized, type, imatrix)
    # The latter is what a thread says that gets no memory for its stack.
    if cli.NO_MEMORY.search(reason) or "Resource temporarily unavailable" in reason:
        raise MemoryError(reason)
    if "iostream error" in reason:
        raise_why_unwritten(quantized, gguf.stat().st_size)  # more than llama.cpp had to write
    if reason:
        raise UserError(lacking if "requires an importance matrix" in reason else f"{refused}: {reason}; {damaged}")


def call_llama_cpp(gguf: Path, quantized: Path, type: str, imatrix: Path | None) -> str:
    """Quantise a file as `quantize` does, in this process; return why llama.cpp refused, or an empty string."""
    errors = []

    @llama_cpp.llama_log_callback
    def keep_error(level: int, text: bytes, _) -> None:
        line = " ".join(text.decode(errors="replace").strip("= \n").split())
        if level == ERROR and line:
            errors.append(PREFACE.sub("", line))

    llama_cpp.llama_log_set(keep_error, None)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = TYPES[type]
    options.nthread = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    if imatrix is not None:
        means, noted = read_imatrix(imatrix)
        options.imatrix, options.kv_overrides = as_imatrix_data(means), as_metadata(noted)
    if llama_cpp.llama_model_quantize(bytes(gguf), bytes(quantized), options) != 0:
        return errors[0]  # what follows the first only says that things went wrong
    # Quantising asks for no particular tensors or sizes, and lets damaged ones pass; loading does not.
    loading = llama_cpp.llama_model_default_params()
    loading.n_gpu_layers, loading.check_tensors = 0, True
    model = llama_cpp.llama_model_load_from_file(bytes(quantized), loading)
    return "" if model else f"what came out cannot be loaded, {errors[0]}"


def as_imatrix_data(means: dict) -> ctypes.Array:
    """Return an importance matrix as llama.cpp's C structures, ended by an empty one; `means` must live as long."""
    entries = [
        llama_cpp.llama_model_imatrix_data(
            name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
        )
        for name, values in means.items()
    ]
    return (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)


def as_metadata(values: dict[str, str | int]) -> ctypes.Array:
    """Return what llama.cpp shall note in a file's metadata as its C structures, ended by an empty one."""
    entries = (llama_cpp.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(entries, values.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, int):
            entry.tag, entry.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            entry.tag, entry.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
    return entries
