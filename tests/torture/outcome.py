"""What came of a fault that was tried, and the table of all of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

RECOVERED = "recovered"  # the same command finished, with artefacts identical to an undisturbed run's
REFUSED = "refused"  # non-zero exit, a message that names the thing and the cause, nothing at the final path
WARNED = "warned"  # finished, and said and counted what happened
HARMLESS = "harmless"  # an attack that was taken for the plain text or number that it looks like
SILENT = "SILENT WRONG"  # anything else


class Tried(NamedTuple):
    """One fault, tried once."""

    fault: str
    stage: str
    outcome: str
    detail: str = ""


def table(tried: Iterable[Tried]) -> str:
    """Return a Markdown table: fault, stage, times tried, outcomes with their numbers, silent wrongs."""
    counts: defaultdict[tuple[str, str], Counter] = defaultdict(Counter)
    for one in tried:
        counts[one.fault, one.stage][one.outcome] += 1
    lines = ["| fault | stage | times tried | outcome | silent wrongs |", "|---|---|---|---|---|"]
    for (fault, stage), outcomes in counts.items():
        named = ", ".join(
            outcome if len(outcomes) == 1 else f"{outcome} {count}" for outcome, count in outcomes.most_common()
        )
        lines.append(f"| {fault} | {stage} | {outcomes.total():,} | {named} | {outcomes[SILENT]} |")
    total = sum((outcomes for outcomes in counts.values()), Counter())
    lines.append(f"| **all** | | **{total.total():,}** | | **{total[SILENT]}** |")
    return "\n".join(lines)
