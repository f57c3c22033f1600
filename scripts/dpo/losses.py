"""TRL's losses for pairs: which there are, what each needs, and which of them are no mean over pairs."""

# They take some labels to be wrong; the others would ignore a label_smoothing without a word.
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
NEED_SMOOTHING = ("exo_pair",)
# They sort the log-probabilities of the pairs that are computed together, and so are not a mean over pairs.
NEED_TRLS_BATCHES = ("aot", "aot_unpaired")


def loss_types(settings: dict) -> list[str]:
    """Return the losses that a training adds up, most often one."""
    loss_type = settings["loss_type"]
    return loss_type if isinstance(loss_type, list) else [loss_type]


def compares_pairs(settings: dict) -> bool:
    """Tell whether a training needs TRL's own batches."""
    return any(loss in NEED_TRLS_BATCHES for loss in loss_types(settings))


def fault(settings: dict) -> str | None:
    """Return what is wrong with a training's loss_type, loss_weights and label_smoothing together; None for nothing."""
    losses, weights, smoothing = loss_types(settings), settings["loss_weights"], settings["label_smoothing"]
    named = " + ".join(losses)
    if weights and len(weights) != len(losses):
        return f"loss_weights has {len(weights)} numbers for the {len(losses)} losses {named}; give one each, or none"
    if smoothing and not any(loss in SMOOTHED for loss in losses):
        return (
            f"loss_type {named} takes no label_smoothing; set it to 0.0, or loss_type to one of {', '.join(SMOOTHED)}"
        )
    if not smoothing and any(loss in NEED_SMOOTHING for loss in losses):
        return f"loss_type {named} needs a label_smoothing, such as 1.0e-3"
    return None
