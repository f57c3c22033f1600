"""Merge a LoRA adapter into the base model: a Hugging Face folder that needs neither PEFT nor the base.

    python scripts/merge_adapter.py --model results/base/model --adapter results/dpo/adapter --merged results/dpo/merged

The merge is computed in float32 and stored in float16, rounded stochastically with a fixed seed. Base weights lie on
the bfloat16 grid, whose steps are eight times wider than float16's at the same size: stored in bfloat16, much of what a
short DPO run taught rounds away.
"""

import argparse
from pathlib import Path

from dpo import chat, cli
from dpo.artifacts import staged_folder
from dpo.cli import UserError

SEED = 0  # of the rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="base model, a Hugging Face folder")
    parser.add_argument("--adapter", type=Path, required=True, help="LoRA adapter to merge into it")
    parser.add_argument("--merged", type=Path, required=True, help="folder to write, in Hugging Face layout")
    arguments = parser.parse_args()

    import torch

    from dpo.models import load_model
    from dpo.rounding import round_stochastically

    model = load_model(arguments.model, arguments.adapter).cpu()
    largest = max(parameter.abs().max().item() for parameter in model.parameters())
    if not largest <= torch.finfo(torch.float16).max:
        raise UserError(f"{arguments.adapter}: a merged weight is {largest:g}, which float16 cannot hold")
    tokenizer = chat.load_tokenizer(arguments.adapter)
    if len(tokenizer) > (rows := model.get_input_embeddings().num_embeddings):
        raise UserError(
            f"the tokenizer in {arguments.adapter} has {len(tokenizer):,} tokens, but the model has embeddings for "
            f"{rows:,}: tokens were added to it; train with the tokenizer of the base model"
        )
    with staged_folder(arguments.merged) as folder:
        generator = torch.Generator().manual_seed(SEED)
        for parameter in model.parameters():  # one at a time, so that there is never a second model in memory
            parameter.data = round_stochastically(parameter.data, generator)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters merged in float32, stored in float16")


if __name__ == "__main__":
    cli.run(main)
