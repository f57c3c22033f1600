"""Quantise an f16 GGUF with llama.cpp's quantiser, through llama-cpp-python.

    python scripts/quantize_gguf.py --gguf results/dpo/gguf/model-f16.gguf --type q4_k_m \
        --quantized results/dpo/gguf/model-q4_k_m.gguf
"""

import argparse
import os
from pathlib import Path

import llama_cpp

from dpo import cli
from dpo.artifacts import staged_file
from dpo.cli import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file in f16")
    parser.add_argument("--type", choices=["q4_k_m"], default="q4_k_m", help="llama.cpp's quantisation type")
    parser.add_argument("--quantized", type=Path, required=True, help="GGUF file to write")
    arguments = parser.parse_args()

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    options.nthread = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    with staged_file(arguments.quantized) as partial:
        if llama_cpp.llama_model_quantize(bytes(arguments.gguf), bytes(partial), options) != 0:
            raise UserError(f"llama.cpp could not quantise {arguments.gguf} to {arguments.type}; see its lines above")
    before, after = arguments.gguf.stat().st_size, arguments.quantized.stat().st_size
    print(f"{arguments.quantized}: {after / 1e6:.1f} MB, {after / before:.0%} of f16")


if __name__ == "__main__":
    cli.run(main)
