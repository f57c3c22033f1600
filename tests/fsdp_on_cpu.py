"""The training program, for which accelerate takes two processes of a CPU for two GPUs: on a CPU it divides no model.

python tests/fsdp_on_cpu.py --train …  # as scripts/train_dpo.py
"""

import os
import sys
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from torch.distributed.fsdp import FSDPModule

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import train_dpo
from dpo import cli, processes


def prepare_backend(self, *_):
    return ("gloo", DistributedType.MULTI_GPU) if "LOCAL_RANK" in os.environ else (None, DistributedType.NO)


def set_device(self):
    self.device = torch.device("cpu")


def trained_weights(trainer):
    if isinstance(trainer.model, FSDPModule):
        print("the model is divided")
    return whole_weights(trainer)


PartialState._prepare_backend, PartialState.set_device = prepare_backend, set_device
processes.check_gpus = lambda *_: None
processes.stand_together = lambda: None
if processes.LAUNCHED:
    from dpo import trainer as trainers

    whole_weights, trainers.trained_weights = trainers.trained_weights, trained_weights

if __name__ == "__main__":
    cli.run(train_dpo.main)
