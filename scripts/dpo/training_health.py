"""What a training log says about the training: named findings, each with the setting to change.

Read are TRL's own metrics (`loss`, `rewards/*`); the reward of an answer is beta * (log pi - log pi_ref), so that it
tells which way the answer's log-probability has moved since the start.
"""

import math

PINNED = 0.95  # a final loss of this share of the first one or more has hardly moved
CHANCE = 0.6  # share of training pairs preferred rightly up to which a trained model counts as guessing
SATURATED = math.log(
    9
)  # reward margin at which sigmoid(margin) is 0.9: little is left of the loss, and of its gradient


def find(steps: list[dict], train: dict | None = None, heldout: dict | None = None) -> list[dict]:
    """Return what is to be said of a training, as `{"name", "what", "advice"}`; nothing where all is well.

    Args:
        steps: the lines of training.jsonl, in order; the last one is a mean over the last logged steps.
        train, heldout: accuracy by implicit reward on either set, with intervals, where they were measured.
    """
    last, findings = steps[-1], []

    def add(name: str, what: str, advice: str) -> None:
        findings.append({"name": name, "what": what, "advice": advice})

    first = steps[0]["loss"]
    if pairs := last.get("pairs_at_once"):
        add(
            "out of memory",
            f"memory did not suffice for as many pairs at once as were asked for; it was trained with {pairs} at once, "
            "and as many a step as ever, which comes to the same",
            f"per_device_train_batch_size: {pairs}, with more gradient_accumulation_steps, saves the failed attempt",
        )
    if last["loss"] >= PINNED * first:
        add(
            "loss pinned",
            f"the loss ends at {last['loss']:.3f}, hardly below {first:.3f}, where it starts",
            "raise learning_rate (to 1.0e-4), then max_steps; check that chosen really is better than rejected",
        )
    if last["rewards/accuracies"] <= CHANCE:
        add(
            "accuracy at chance",
            f"only {last['rewards/accuracies']:.0%} of the training pairs are preferred rightly at the end",
            "raise learning_rate or max_steps; lower beta (0.05); look for pairs whose answers are mixed up",
        )
    if last["rewards/chosen"] < 0 < last["rewards/margins"]:
        add(
            "chosen answers become less probable",
            f"the reward of chosen answers ends at {last['rewards/chosen']:.2f} while the margin grows to "
            f"{last['rewards/margins']:.2f}: the model unlearns both answers, the rejected one faster (likelihood "
            "displacement, Razin et al. 2024, arXiv 2410.08847)",
            "raise beta (0.15 to 0.2) or lower learning_rate; use pairs whose answers differ more",
        )
    if last["rewards/margins"] >= SATURATED and last["rewards/accuracies"] >= 1:
        add(
            "margin saturated",
            f"all training pairs are preferred rightly, with a mean margin of {last['rewards/margins']:.2f} and a loss "
            f"of {last['loss']:.3f}: the data have nothing left to teach, further steps only move the model",
            "more pairs; or fewer max_steps",
        )
    if train and heldout and train["low"] > heldout["high"]:
        add(
            "memorised",
            f"{train['value']:.0%} of the training pairs are preferred rightly, but only {heldout['value']:.0%} of the "
            "held-out pairs, and the intervals are apart",
            "more and more varied pairs; fewer max_steps",
        )
    return findings
