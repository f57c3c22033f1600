"""SmolLM2's tokenizer, rebuilt from the vocabulary and merges inside a GGUF file.

transformers' own reconstruction forgets that SmolLM2 splits digits one by one and takes the wrong end token, so the
parts are put together here by hand: byte-level BPE behind a pre-tokenizer that separates every digit.
"""

from pathlib import Path

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpo.gguf_reader import Reader


def rebuild_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF with byte-level BPE and single digits (llama.cpp's pre-tokenizer `smollm`)."""
    fields = Reader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: index for index, token in enumerate(tokens)}

    def named(role: str) -> str:
        return tokens[fields[f"tokenizer.ggml.{role}_token_id"].contents()]

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        chat_template=fields["tokenizer.chat_template"].contents(),
        model_max_length=fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
    )
