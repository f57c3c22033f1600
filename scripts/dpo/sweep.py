"""Runs of a sweep side by side: what each measure does against the swept settings, and what can be told from chance.

Runs that differ in their seed alone are one group. The spread within groups is what another seed does to a measure, and
every difference between groups is held against it: pooled over all groups, as in a one-way analysis of variance (Fisher
1925; Montgomery, Design and Analysis of Experiments, section 3.5). It says how much of a difference is luck in
training; that the pairs and prompts themselves are a sample, the intervals of single runs say.
"""

import math
from statistics import mean  # exact: seeds that agree have their value as mean, and no spread

from scipy import stats

from dpo import statistics

# What is compared: a title for people, and a unit.
MEASURES = {
    "accuracy": ("Held-out pairs preferred rightly", "share, by implicit reward"),
    "margin": ("Held-out margin", "nats: the reward margin over beta"),
    "kl": ("KL from the base model", "nats a token of neutral text"),
    "answer_tokens": ("Answer length", "tokens, open questions"),
    "distinct_2": ("Distinct word pairs", "share; less is repetition"),
    "training_seconds": ("Training time", "seconds"),
    "kept": ("Margin kept in the shipped file", "share of the adapter's"),
}
# What the notebook says of DPO's beta.
TOO_LOW, BEST, TOO_HIGH = 0.05, 0.1, 0.5
MOVED = "kl"  # how far training moved the model: what "weak" and "extreme" are taken to speak of


def group_runs(runs: dict[str, dict], keys: list[str]) -> list[dict]:
    """Return the runs as groups that differ in their seed alone.

    Args:
        runs: name → `settings` and `measures` (name → `value`, and `low` and `high` where it has an interval).
        keys: the swept settings.

    Returns:
        For each group `settings` (the swept ones but for the seed), `runs` (names), `values`: name of a measure → those
        of its runs, and `measures`: name → `value`, their mean, `n`, and `low` and `high` where there is an interval:
        with several seeds Student's with the pooled deviation, with one the run's own. A measure that a run lacks, its
        group lacks.
    """
    grouped: dict[str, dict] = {}
    for name, run in runs.items():
        settings = {key: run["settings"][key] for key in keys if key != "seed"}
        grouped.setdefault(repr(settings), {"settings": settings, "runs": []})["runs"].append(name)
    groups = list(grouped.values())
    for group in groups:
        members = [runs[name]["measures"] for name in group["runs"]]
        shared = [name for name in MEASURES if all(name in measures for measures in members)]
        group["values"] = {name: [measures[name]["value"] for measures in members] for name in shared}
    for group in groups:
        group["measures"] = {}
        for name, values in group["values"].items():
            middle, own = mean(values), runs[group["runs"][0]]["measures"][name]
            interval = {key: own[key] for key in ("low", "high") if key in own}
            if len(values) > 1:
                spread = pooled(groups, name)
                half = stats.t.ppf(0.5 + statistics.CONFIDENCE / 2, spread["df"]) * spread["deviation"]
                half /= math.sqrt(len(values))
                interval = {"low": middle - half, "high": middle + half}
            group["measures"][name] = {"value": middle, "n": len(values)} | interval
    return groups


def pooled(groups: list[dict], name: str) -> dict | None:
    """Return the deviation of a measure between seeds, pooled over all groups, with its degrees of freedom.

    None where no group has two runs.
    """
    squares, df = 0.0, 0
    for group in groups:
        values = group["values"].get(name, [])
        squares += sum((value - mean(values)) ** 2 for value in values)
        df += max(len(values) - 1, 0)
    return {"deviation": math.sqrt(squares / df), "df": df} if df else None


def difference(groups: list[dict], one: dict, other: dict, name: str, comparisons: int) -> int | None:
    """Return 1 where a measure of `one` is clearly above that of `other`, -1 where below, 0 where neither.

    By Student's t with the pooled deviation, at 95% for all of so many comparisons together (Bonferroni). None where no
    seeds were swept, or one of the two lacks the measure: then nothing can be said.
    """
    spread = pooled(groups, name)
    if spread is None or name not in one["values"] or name not in other["values"]:
        return None
    sizes = 1 / len(one["values"][name]) + 1 / len(other["values"][name])
    quantile = stats.t.ppf(1 - (1 - statistics.CONFIDENCE) / 2 / comparisons, spread["df"])
    gap = one["measures"][name]["value"] - other["measures"][name]["value"]
    return 0 if abs(gap) <= quantile * spread["deviation"] * math.sqrt(sizes) else int(math.copysign(1, gap))


def frontier(groups: list[dict]) -> list[int]:
    """Return the places of groups that no other one beats, with a larger held-out margin at no larger a KL.

    The trade between reward and KL divergence: Rafailov et al. 2023, arXiv 2305.18290, section 6.1.
    """
    points = [
        (group["measures"]["kl"]["value"], -group["measures"]["margin"]["value"], place)
        for place, group in enumerate(groups)
    ]
    best, found = math.inf, []
    for _, loss, place in sorted(points):
        if loss < best:
            best = loss
            found.append(place)
    return found


def judge_advice(groups: list[dict]) -> str | None:
    """Return a sentence on whether the notebook's advice on beta holds, from groups that differ in beta alone.

    It says: above 0.5 the effect is extreme, below 0.05 weak, and 0.1 works well. Effect is how far the model moved
    from the base; working well is that no other value prefers clearly more held-out pairs rightly. None where beta 0.1,
    or anything to hold it against, was not trained.
    """
    by_beta = {group["settings"]["beta"]: group for group in groups}
    if BEST not in by_beta or len(by_beta) < 2:
        return None
    best = by_beta[BEST]
    if pooled(groups, MOVED) is None:
        return (
            "Whether the notebook's advice on beta holds cannot be told from one seed a value: sweep seed too, to see "
            "what chance does."
        )
    claims = []
    for beta, is_asked, word, expected in (
        (max(by_beta), max(by_beta) >= TOO_HIGH, "extreme", 1),
        (min(by_beta), min(by_beta) <= TOO_LOW, "weak", -1),
    ):
        if is_asked:
            group = by_beta[beta]
            found = difference(groups, group, best, MOVED, 2)
            told = {1: "more", -1: "less", 0: "neither clearly more nor clearly less"}[found]
            kls = " against ".join(f"{one['measures'][MOVED]['value']:.2g}" for one in (group, best))
            claims.append(
                (
                    found == expected,
                    f"with {beta:g}, which it calls {word}, the model moved {told} than with {BEST} (KL {kls})",
                )
            )
    others = [group for beta, group in by_beta.items() if beta != BEST]
    better = [g for g in others if difference(groups, g, best, "accuracy", len(others)) == 1]
    accuracy = f"{best['measures']['accuracy']['value']:.0%} of the held-out pairs"
    if better:
        values = ", ".join(f"{g['settings']['beta']:g} ({g['measures']['accuracy']['value']:.0%})" for g in better)
        claims.append((False, f"with {BEST} it prefers {accuracy} rightly, clearly fewer than with {values}"))
    else:
        claims.append((True, f"with {BEST} it prefers {accuracy} rightly, and with no other value clearly more"))
    held = [is_held for is_held, _ in claims]
    verdict = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    return (
        f"The notebook's advice on beta {verdict} for this model and data: "
        + "; ".join(told for _, told in claims)
        + "."
    )


def compare(runs: dict[str, dict], keys: list[str]) -> dict:
    """Return the whole comparison of a sweep, as the report shows it.

    Returns:
        `keys`; `runs`; `groups` (see `group_runs`), each with `best`, whether it is on the `frontier`; `spread`, the
        pooled deviation between seeds by measure; `advice`: a sentence a combination of the other settings.
    """
    groups = group_runs(runs, keys)
    spread = {name: found for name in MEASURES if (found := pooled(groups, name))}
    best = frontier(groups)
    advice = {}
    if "beta" in keys:
        others = {}
        for group in groups:
            rest = {key: value for key, value in group["settings"].items() if key != "beta"}
            others.setdefault(", ".join(f"{key} {value}" for key, value in rest.items()), []).append(group)
        advice = {name: sentence for name, found in others.items() if (sentence := judge_advice(found))}
    shown = [
        {key: group[key] for key in ("settings", "runs", "measures")} | {"on_frontier": place in best}
        for place, group in enumerate(groups)
    ]
    return {"keys": keys, "runs": runs, "groups": shown, "spread": spread, "advice": advice}
