"""Which settings need less memory, by the rule whose program ran out of it."""

LESS_MEMORY = {
    "train_dpo": "lower training.per_device_train_batch_size (and raise gradient_accumulation_steps) or "
    "data.max_length, or set training.use_gradient_checkpointing: true or load_in_4bit: true",
    "compute_reference_logps": "lower data.max_length, or set training.load_in_4bit: true",
    "generate_responses": "lower generation.batch_size",
    "build_dataset": "give fewer --cores, each of which examines rows in a process of its own",
}
NO_SETTING = "no setting needs less; close other programs, or take a smaller model under `model:`"
