"""A run beside its base model, prompt by prompt: what the verdict is made of."""

from dpo import statistics

# Natural text may become less probable by 5% in perplexity before it counts: every training moves it a little.
PERPLEXITY_TOLERANCE = 0.05

# Of each answer's degeneration, how much of it is good: positive differences are improvements.
DEGENERATION = {
    "answers that end by themselves": lambda found: float(found["ended"]),
    "answers that say something": lambda found: float(not found["empty"]),
    "answers without loops": lambda found: float(not found["loops"]),
    "distinct word pairs": lambda found: found["distinct_2"],
}


def compare_checks(base: dict, run: dict, base_neutral: list[dict], run_neutral: list[dict]) -> dict[str, dict]:
    """Return each check's paired difference run - base, positive where the run is better.

    Args:
        base, run: what `score_responses` wrote of the same prompts.
        base_neutral, run_neutral: mean negative log-likelihood (`nll`) of each neutral text, in the same order.

    Returns:
        name → `statistics.paired`, with `base` and `run` (the means), their `unit`, `goal` (a gain speaks for the run)
        and `tolerance` (how far it may fall). Neutral text is in nats a token: 0.05 is about 5% of perplexity.
    """
    checks = {}
    for name, label in (("instructions", "instructions followed"), ("adversarial", "adversarial prompts withstood")):
        before, after = (
            [float(row["passed"]) for row in scores["answers"] if row["set"] == name] for scores in (base, run)
        )
        checks[label] = describe(before, after, goal=True)
    for label, good in DEGENERATION.items():
        before, after = ([good(row["degeneration"]) for row in scores["answers"]] for scores in (base, run))
        checks[label] = describe(before, after)
    before, after = ([-row["nll"] for row in rows] for rows in (base_neutral, run_neutral))
    checks["log-likelihood of neutral text"] = describe(
        before, after, tolerance=PERPLEXITY_TOLERANCE, unit="nats a token"
    )
    return checks


def describe(
    before: list[float], after: list[float], goal: bool = False, tolerance: float = 0.0, unit: str = "share"
) -> dict:
    """Return one check's paired difference; with a tolerance, p is of the sign test for a fall by more than that."""
    difference = statistics.paired(before, after)
    if tolerance:
        beyond = [ours - theirs + tolerance for theirs, ours in zip(before, after, strict=True)]
        difference |= statistics.sign_test(beyond)
    means = {"base": sum(before) / len(before), "run": sum(after) / len(after)}
    return difference | means | {"unit": unit, "goal": goal, "tolerance": tolerance}


def compare_by_judge(check: dict, judgements: dict, lengths: dict[str, float]) -> dict:
    """Return a judge's win rate of the run over the base, as it is and controlled for length.

    Args:
        check: what `check_judge` wrote of the judge.
        judgements: what `judge_responses` wrote; each comparison has the prompt's `id` and a `preference` from 0 (base)
            to 1 (run).
        lengths: prompt id → length of the run's answer less that of the base's, in characters.
    """
    judge = {"believed": check["believed"], "accuracy": check["accuracy"]}
    preferences = [row["preference"] for row in judgements["comparisons"]]
    if preferences:
        signs = statistics.sign_test([preference - 0.5 for preference in preferences])
        judge["win_rate"] = statistics.mean(preferences) | signs
        judge["length_controlled"] = statistics.length_controlled_win_rate(
            preferences, [lengths[row["id"]] for row in judgements["comparisons"]]
        )
    return judge
