"""Convert a merged Hugging Face folder to an f16 GGUF, with llama.cpp's own converter.

python scripts/convert_to_gguf.py --model results/dpo/merged --gguf results/dpo/gguf/model-f16.gguf
"""

import argparse
from pathlib import Path

from dpo import cli, llama_cpp_source
from dpo.artifacts import staged_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="merged model, a Hugging Face folder")
    parser.add_argument("--gguf", type=Path, required=True, help="GGUF file to write")
    arguments = parser.parse_args()

    with staged_file(arguments.gguf) as partial:
        llama_cpp_source.convert(arguments.model, partial, "--outtype", "f16")
    print(f"{arguments.gguf}: {arguments.gguf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
