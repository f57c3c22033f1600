"""Render the summary as one self-contained HTML page.

    python scripts/render_report.py --summary results/summary.json --template report/template.html \
        --report results/report.html
"""

import argparse
import json
import traceback
from pathlib import Path

import jinja2
from markupsafe import Markup

from dpo import cli, svg, sweep, sweep_charts
from dpo.artifacts import staged_file
from dpo.cli import UserError

MAY_BE_NULL = {
    "peak_memory_mb", "git_commit", "position", "first", "consistent", "longer",
    "when_longer_is_better", "when_shorter_is_better", "length_controlled", "better",
    "above", "kept", "kept_from_float32", "step_kept", "same_top", "first_other", "met",
}  # fmt: skip

RUNGS = {
    "adapter": "Adapter, float32",
    "trainer": "Adapter as the trainer runs it",
    "merged": "Merged, in float16",
    "dequantized": "Merged into the dequantised base",
}

PREFERENCES = {
    "accuracy_total": "By total log-probability",
    "accuracy_per_token": "By log-probability a token",
    "accuracy_implicit_reward": "By implicit reward",
}


def duration(seconds: float) -> str:
    """Return a duration as people say it: 4.2 s, 3 min 12 s, 1 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: float) -> str:
    """Return a number of bytes in MB (10^6 bytes), or in kB where that is less than 0.1 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def thousands(number: int) -> str:
    """Return a whole number with its thousands set apart."""
    return f"{int(number):,}"  # int() refuses what the summary lacks, which a format alone would not name


def memory(mebibytes: float) -> str:
    """Return an amount of memory given in MiB, as Snakemake's benchmarks have it."""
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def interval(estimate: dict) -> str:
    """Return an estimate with its interval: 0.62 (0.47 to 0.75)."""
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def signed_interval(estimate: dict) -> str:
    """Return a difference with its interval: +0.52 (−0.10 to +1.14)."""
    return spell_interval(estimate, 1, 2)


def percent(share: float) -> str:
    """Return a share in per cent, to one decimal."""
    return f"{100 * share:.1f}%"


def percent_interval(estimate: dict) -> str:
    """Return a share with its interval in whole per cent: 41% (27% to 57%)."""
    return f"{estimate['value']:.0%} ({estimate['low']:.0%} to {estimate['high']:.0%})"


def points_interval(estimate: dict) -> str:
    """Return a difference of shares with its interval in percentage points: −8.3 (−22.2 to −2.8)."""
    return spell_interval(estimate, 100, 1)


def nats_interval(estimate: dict) -> str:
    """Return a difference with its interval to three decimals: +0.043 (+0.037 to +0.048)."""
    return spell_interval(estimate, 1, 3)


def signed(value: float, decimals: int) -> str:
    """Return a difference with its sign, a true minus; a zero has none."""
    rounded = round(value, decimals) + 0.0  # + 0.0 turns a rounded -0.0 into 0.0
    return f"{rounded:{'+' if rounded else ''}.{decimals}f}".replace("-", "−")


def spell_interval(estimate: dict, factor: float, decimals: int) -> str:
    """Return a difference times a factor with its interval, all signed."""
    value, low, high = (signed(factor * estimate[key], decimals) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def p_value(p: float) -> str:
    """Return a p-value to two digits, and none that is too small to tell apart."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def pretty_json(value: dict) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def curves(runs: dict, key: str) -> dict[str, list[tuple[float, float]]]:
    """Return one logged quantity of each run as points (step, value)."""
    return {name: [(row["step"], row[key]) for row in run["training"]["steps"]] for name, run in runs.items()}


def compared(name: str, judge: dict) -> bool:
    """Tell whether a judge compared the answers: a model that did not pass its check is not asked."""
    return name == "rubric" or judge["believed"]


def changes(run: dict) -> list[dict]:
    """Return how a run differs from its base: each judge's win rate (an even one is no difference), then each check.

    Each is `{"name", "left_out", "nats", "figures", "interval"}`; those with an interval also have `base`, `run` and
    `p`. A judge that was not asked has none.
    """
    rows = []
    for name, judge in run["judges"].items():
        row = {"name": f"{name}: win rate", "left_out": not judge["believed"], "nats": False, "interval": None}
        if row["left_out"]:
            row["name"] += " (left out)"
        if compared(name, judge):
            rate = judge["win_rate"]
            row |= {"base": 0.5, "run": rate["value"], "p": rate["p"]}
            row["interval"] = {key: rate[key] - 0.5 for key in ("value", "low", "high")}
        rows.append(row)
    for name, check in run["checks"].items():
        row = {"name": name[0].upper() + name[1:], "left_out": False, "nats": check["unit"] != "share"}
        row |= {key: check[key] for key in ("base", "run", "p")}
        rows.append(row | {"interval": {key: check[key] for key in ("value", "low", "high")}})
    for row in rows:
        if row["interval"] is None:
            row["figures"] = "not asked"
        else:
            row["figures"] = nats_interval(row["interval"]) if row["nats"] else points_interval(row["interval"])
    return rows


def change_plot(name: str, runs: dict) -> Markup:
    """Draw a run's changes, on axes that are the same for all runs."""
    found = {run: changes(measured) for run, measured in runs.items()}
    sections = []
    for nats, factor, unit in ((False, 100, "percentage points"), (True, 1, "nats a token")):
        drawn = [row["interval"] for rows in found.values() for row in rows if row["nats"] == nats and row["interval"]]
        limit = factor * max(max(abs(row["low"]), abs(row["high"])) for row in drawn)
        limit = max(limit, 0.05 * factor)  # so that small differences look small
        rows = [
            row
            | {
                "series": svg.series_class(name, list(runs)),
                "interval": row["interval"] and {key: factor * value for key, value in row["interval"].items()},
            }
            for row in found[name]
            if row["nats"] == nats
        ]
        sections.append(
            {
                "groups": {"": rows},
                "limits": (-limit, limit),
                "reference": (0, "no difference"),
                "ends": ("← base better", "run better →"),
                "unit": unit,
            }
        )
    return svg.interval_plot(sections, f"{name}: difference from the base model")


def preference_plot(variants: dict, names: list[str]) -> Markup:
    """Draw how often each variant prefers the better answer: dots on held-out pairs, rings on training pairs."""
    groups = {
        heading: [
            {
                "name": "Base model" if variant == "base" else variant,
                "series": svg.series_class(variant, names),
                "figures": ", ".join(
                    f"{spoken} {measured[pairs][key]['value']:.2f}"
                    for pairs, spoken in (("heldout", "held out"), ("train", "training"))
                ),
                "interval": measured["heldout"][key],
                "ring": measured["train"][key],
            }
            for variant, measured in variants.items()
            if variant in names or key != "accuracy_implicit_reward"
        ]
        for key, heading in PREFERENCES.items()
    }
    section = {
        "groups": groups,
        "limits": (0, 1),
        "reference": (0.5, "chance"),
        "ends": ("", ""),
        "unit": "share of pairs",
    }
    return svg.interval_plot([section], "Share of pairs with the better answer preferred")


def rung_title(name: str) -> str:
    """Return what a rung of the ladder is called."""
    return RUNGS.get(name, f"{name} GGUF")


def kept_sentence(run: dict, shipped_type: str) -> str:
    """Say how much of what training taught is in the file that ships."""
    rungs = {rung["name"]: rung for rung in run["fidelity"]["rungs"]}
    kept = rungs[shipped_type]["kept"]
    if kept is None:
        return "Training taught too little of the preference to tell how much of it is in the file that ships."
    sentence = f"The {shipped_type} file keeps {percent_interval(kept)} of the preference margin that training taught"
    if "dequantized" not in rungs:
        return f"{sentence}."
    share = rungs["adapter"]["margin"]["value"] / rungs["trainer"]["margin"]["value"]
    return f"{sentence} as it is over the 16-bit base model: {share:.0%} of what it is over the one in 4 bits."


def ladder_plot(name: str, runs: dict) -> Markup:
    """Draw what each rung of a run keeps of the adapter's margin, on an axis that is the same for all runs."""
    drawn = [
        rung[key]
        for run in runs.values()
        for rung in run["fidelity"]["rungs"]
        for key in ("kept", "kept_from_float32")
        if rung[key]
    ]
    rows = [
        {
            "name": rung_title(rung["name"]),
            "series": svg.series_class(name, list(runs)),
            "figures": percent_interval(rung["kept"]) if rung["kept"] else "too little was taught to tell",
            "interval": rung["kept"],
            "ring": rung["kept_from_float32"],
        }
        for rung in runs[name]["fidelity"]["rungs"]
    ]
    section = {
        "groups": {"": rows},
        "limits": (min([0, *(found["low"] for found in drawn)]), max([1, *(found["high"] for found in drawn)])),
        "reference": (1, "all of it"),
        "ends": ("", ""),
        "unit": "share of the adapter’s margin",
    }
    return svg.interval_plot([section], f"{name}: share of the adapter’s margin that is left")


def sweep_figure(measure: str, found: dict) -> str:
    """Return a measure of a sweep in words, with its interval where it has one."""
    spelled = {
        "accuracy": percent, "distinct_2": percent, "kept": percent, "training_seconds": duration,
        "kl": lambda value: f"{value:.4f}", "margin": lambda value: f"{value:.2f}",
        "answer_tokens": lambda value: f"{value:.0f}",
    }[measure]  # fmt: skip
    if "low" not in found:
        return spelled(found["value"])
    return f"{spelled(found['value'])} ({spelled(found['low'])} to {spelled(found['high'])})".replace("-", "−")


def without_nulls(pairs: dict) -> dict:
    """Drop what is null and must not be: then a null is the same error as a number that is not there."""
    return {key: value for key, value in pairs.items() if value is not None or key in MAY_BE_NULL}


def render(summary: dict, template: Path) -> str:
    """Return the page. Raises KeyError or jinja2.UndefinedError where the summary lacks something that it shows."""
    # Texts come from models and data files: everything is escaped, and an undefined name is an error, not a blank.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    wording = (
        duration, size, thousands, memory, interval, signed_interval, percent, percent_interval,
        spell_interval, p_value, pretty_json,
    )  # fmt: skip
    for function in wording:
        environment.filters[function.__name__] = function
    drawing = (svg.line_chart, svg.histogram, svg.reliability_plot, svg.interval_mark, svg.swatch, svg.series_class)
    plots = (change_plot, preference_plot, ladder_plot)
    swept = (sweep_charts.measure_chart, sweep_charts.frontier_chart, sweep_charts.series_of, sweep_charts.spell)
    for function in (*drawing, *plots, *swept, curves, compared, changes, rung_title, kept_sentence, sweep_figure):
        environment.globals[function.__name__] = function
    environment.globals["MEASURES"] = sweep.MEASURES
    return environment.get_template(template.name).render(summary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", type=Path, required=True, help="summary.json")
    parser.add_argument("--template", type=Path, required=True, help="Jinja2 template of the page")
    parser.add_argument("--report", type=Path, required=True, help="HTML file to write")
    arguments = parser.parse_args()

    summary = json.loads(arguments.summary.read_text(encoding="utf-8"), object_hook=without_nulls)
    try:
        page = render(summary, arguments.template)
    except (KeyError, jinja2.UndefinedError) as error:
        # Jinja puts the template's own lines into the traceback; the last one is where the name was asked for.
        frames = traceback.extract_tb(error.__traceback__)
        line = [frame.lineno for frame in frames if Path(frame.filename) == arguments.template][-1]
        raise UserError(
            f"{arguments.summary} lacks something that the report shows ({arguments.template}, line {line}): {error}\n"
            f"delete {arguments.summary} and run again; if it still lacks it, the template asks for too much"
        ) from None
    with staged_file(arguments.report) as partial:
        partial.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
