"""Quantise an f16 GGUF with llama.cpp's quantiser, through llama-cpp-python.

    python scripts/quantize_gguf.py --gguf results/dpo/gguf/model-f16.gguf --type q4_k_m \
        --imatrix results/dpo/gguf/imatrix.gguf --quantized results/dpo/gguf/model-q4_k_m.gguf

Without --imatrix every weight counts the same; types of less than 3 bits a weight need one.
"""

import argparse
from pathlib import Path

from dpo import cli
from dpo.artifacts import staged_file
from dpo.quantization import TYPES, quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file in f16")
    parser.add_argument("--type", choices=TYPES, default="q4_k_m", help="llama.cpp's quantisation type")
    parser.add_argument("--imatrix", type=Path, help="importance matrix that compute_imatrix wrote")
    parser.add_argument("--quantized", type=Path, required=True, help="GGUF file to write")
    arguments = parser.parse_args()

    with staged_file(arguments.quantized) as partial:
        quantize(arguments.gguf, partial, arguments.type, arguments.imatrix)
    before, after = arguments.gguf.stat().st_size, arguments.quantized.stat().st_size
    print(f"{arguments.quantized}: {after / 1e6:.1f} MB, {after / before:.0%} of f16")


if __name__ == "__main__":
    cli.run(main)
