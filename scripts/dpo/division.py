"""How a training is divided among processes: which settings go together."""

from dpo.losses import compares_pairs


def fault(settings: dict) -> str | None:
    """Return what is wrong with a training's processes and fsdp; None for nothing."""
    count, fsdp = settings["processes"], settings["fsdp"]
    trainer = "trl" if compares_pairs(settings) and settings["trainer"] == "shared_prompt" else settings["trainer"]
    batch, batches = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    if trainer == "unsloth" and count > 1:
        return (
            f"processes {count} is not for trainer unsloth, whose model is made for one process; set processes to 1, "
            "or trainer to shared_prompt or trl"
        )
    if trainer == "trl" and batches % count:
        return (
            f"processes {count} cannot share the {batches} batches of a step evenly, as trainer trl must; make "
            f"gradient_accumulation_steps a multiple of {count} (a step has {batch} x {batches} = {batch * batches} "
            "pairs), or take trainer shared_prompt, which shares out pairs"
        )
    if fsdp and trainer != "trl":
        return (
            f"fsdp is for trainer trl alone: {trainer} reads whole weights, of which FSDP leaves each process a part; "
            "set fsdp to false, or trainer to trl"
        )
    if fsdp and count == 1:
        return "fsdp divides the model among processes, and there is 1; set processes to 2 or more, or fsdp to false"
    if fsdp and settings["load_in_4bit"]:
        return "fsdp cannot divide weights that are held in 4 bits; set load_in_4bit to false, or fsdp to false"
    return None
