"""Render the summary as one self-contained HTML page.

    python scripts/render_report.py --summary results/summary.json --template report/template.html \
        --report results/report.html
"""

import argparse
import json
import traceback
from pathlib import Path

import jinja2

from dpo import cli, svg
from dpo.artifacts import staged_file
from dpo.cli import UserError

MAY_BE_NULL = {"peak_memory_mb", "git_commit"}


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


def signed(value: float) -> str:
    """Return a difference with its sign, a true minus, to two decimals."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0 turns a rounded -0.0 into 0.0


def interval(estimate: dict) -> str:
    """Return an estimate with its interval: 0.62 (0.47 to 0.75)."""
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def signed_interval(estimate: dict) -> str:
    """Return a difference with its interval: +0.52 (−0.10 to +1.14)."""
    return f"{signed(estimate['value'])} ({signed(estimate['low'])} to {signed(estimate['high'])})"


def pretty_json(value: dict) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def curves(runs: dict, key: str) -> dict[str, list[tuple[float, float]]]:
    """Return one logged quantity of each run as points (step, value)."""
    return {name: [(row["step"], row[key]) for row in run["training"]["steps"]] for name, run in runs.items()}


def heldout_intervals(variants: dict) -> dict[str, dict[str, dict]]:
    """Return the accuracies on the held-out pairs by how an answer is preferred; the base has no implicit reward."""
    shown = {"Base model" if name == "base" else name: variant["heldout"] for name, variant in variants.items()}
    return {
        "By log-probability a token": {name: heldout["accuracy_per_token"] for name, heldout in shown.items()},
        "By DPO’s implicit reward": {
            name: heldout["accuracy_implicit_reward"] for name, heldout in shown.items() if name in variants
        },
    }


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
    for function in (duration, size, thousands, memory, interval, signed_interval, pretty_json):
        environment.filters[function.__name__] = function
    drawing = (svg.line_chart, svg.histogram, svg.interval_plot, svg.interval_mark, svg.swatch, svg.series_class)
    for function in (*drawing, curves, heldout_intervals):
        environment.globals[function.__name__] = function
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
