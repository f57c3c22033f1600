"""Whether a run is better than its base model, by rules that are stated here and nowhere else.

Evidence comes in two kinds. A judge compares answers; it counts only if it proved better than chance on pairs whose
better answer is known. A check says of each answer whether it passed, or how it reads; it needs no judge.

1. A comparison is clear where its 95% interval leaves out "no difference", and its exact sign test stays below 0.05
   after Holm's correction for all judges that count and all checks together: so that of two identical models at most
   5 in 100 get any other verdict than "no measurable difference".
2. A judge speaks for the run where its win rate is clearly above 50%, and the length-controlled one is too; against it
   where the win rate is clearly below 50%, and length does not explain it. What cannot be told from length speaks for
   nothing.
3. A check speaks against the run where it clearly fell by more than its tolerance; for the run only those checks speak
   that are goals in themselves (`goal`), such as instructions followed.
4. Something for and nothing against: better. Something against and nothing for: worse. Both: inconclusive.
   Neither: no measurable difference if a judge counts whose wins are not tied up with length, otherwise inconclusive.
   Where all answers are the same to the letter, there is no difference to measure.
"""

from dpo.statistics import holm

ALPHA = 0.05
EVEN = 0.5


def clear_direction(low: float, high: float, none: float, p: float) -> int:
    """Return 1 where an interval lies above "no difference", -1 below it, 0 where it does not or p is not small."""
    if p >= ALPHA:
        return 0
    return (low > none) - (high < none)


def judge_direction(judge: dict, p: float) -> tuple[int, bool]:
    """Return what a judge says of the run (1, 0, -1), and whether length kept it from saying something."""
    raw = judge["win_rate"]
    direction = clear_direction(raw["low"], raw["high"], EVEN, p)
    controlled = judge["length_controlled"]
    if direction == 0:
        return 0, False
    if controlled is None:
        return 0, True
    return (direction if clear_direction(controlled["low"], controlled["high"], EVEN, 0.0) == direction else 0), False


def percent(estimate: dict) -> str:
    """Return a share with its interval."""
    return f"{estimate['value']:.0%} ({estimate['low']:.0%} to {estimate['high']:.0%})"


def describe_judge(name: str, judge: dict, direction: int, tied_up: bool) -> str:
    """Return the reason that a judge gives, with its figures."""
    if not judge["believed"]:
        return (
            f"{name} is left out: on the held-out pairs it finds the better answer in {percent(judge['accuracy'])}, "
            "no better than chance"
        )
    raw, controlled = judge["win_rate"], judge["length_controlled"]
    text = f"{name}: wins {raw['up']}, ties {raw['ties']}, losses {raw['down']}, win rate {percent(raw)}"
    if tied_up:
        return f"{text}; answers differ in length so much that nothing can be said at equal length"
    if controlled:
        text += f", at equal length {percent(controlled)}"
    return text + {1: ": for the run", 0: ": no clear difference", -1: ": against the run"}[direction]


def describe_check(name: str, check: dict, direction: int) -> str:
    """Return what became of a check, with its figures."""
    form = ".1%" if check["unit"] == "share" else ".3f"
    change = (
        f"from {check['base']:{form}} to {check['run']:{form}} (95% interval of the difference "
        f"{check['low']:+{form}} to {check['high']:+{form}}, p {check['p']:.2g})"
    )
    told = {1: "improved", 0: "fell, though not clearly once everything is counted,", -1: "fell"}[direction]
    return f"{name} {told} {change}"


def decide(run: str, judges: dict[str, dict], checks: dict[str, dict], same_answers: int, answers: int) -> dict:
    """Return a run's verdict.

    Args:
        run: its name.
        judges: name → `believed`, `accuracy` on the held-out pairs, and of the test prompts `win_rate` (an estimate
            with the sign test's `up`, `down`, `ties` and `p`) and `length_controlled` (an estimate, or None).
        checks: name → paired difference from the base, positive where the run is better, as
            `comparison.compare_checks` returns it.
        same_answers: number of answers that equal the base's to the letter, of `answers`.

    Returns:
        `outcome` (better, worse, no measurable difference, inconclusive), `sentence`, `reasons` and `drops` (names of
        the checks whose 95% interval lies below their tolerance, whether or not they decide anything).
    """
    counting = {name: judge for name, judge in judges.items() if judge["believed"]}
    adjusted = holm([judge["win_rate"]["p"] for judge in counting.values()] + [c["p"] for c in checks.values()])
    p_of = dict(zip([*counting, *checks], adjusted, strict=True))

    speaking = {name: judge_direction(judge, p_of[name]) for name, judge in counting.items()}
    reasons = [describe_judge(name, judge, *speaking.get(name, (0, False))) for name, judge in judges.items()]
    directions = [direction for direction, _ in speaking.values()]
    drops = []
    for name, check in checks.items():
        direction = clear_direction(check["low"], check["high"], -check["tolerance"], p_of[name])
        if direction > 0 and not (check["goal"] and check["low"] > 0):
            direction = 0
        directions.append(direction)
        if check["high"] < -check["tolerance"]:
            drops.append(name)
        if direction or name in drops:
            reasons.append(describe_check(name, check, direction))

    gain, harm = 1 in directions, -1 in directions
    tied_up = any(unclear for _, unclear in speaking.values())
    if same_answers == answers:
        outcome = "no measurable difference"
        reasons = [f"all {answers} answers are the same to the letter"]
    elif gain or harm:
        outcome = "inconclusive" if gain and harm else "better" if gain else "worse"
    else:
        outcome = "no measurable difference" if counting and not tied_up else "inconclusive"
    why = {
        "better": f"{run} is better than the base model",
        "worse": f"{run} is worse than the base model",
        "no measurable difference": f"{run} shows no measurable difference from the base model",
        "inconclusive": f"Whether {run} is better than the base model is inconclusive",
    }[outcome]
    if outcome == "inconclusive":
        why += (
            ", because the evidence points both ways" if gain and harm
            else ", because its wins cannot be told from the length of its answers" if tied_up
            else ", because no judge of the answers could be believed"
        )  # fmt: skip
    named = f"; what fell beyond its interval: {', '.join(drops)}" if drops else ""
    return {"outcome": outcome, "sentence": f"{why}{named}.", "reasons": reasons, "drops": drops}
