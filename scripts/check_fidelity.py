"""Hold what is left of the training against the limits in config.yaml, and stop where a file must not ship.

    python scripts/check_fidelity.py --fidelity results/dpo/fidelity.json --types q4_k_m \
        --settings '{"merged_kept": 0.97, "merged_kl": 1e-4, "quantized_kept": 0.9}' \
        --check results/dpo/fidelity_check.json
"""

import argparse
import json
from pathlib import Path

from dpo import cli, fidelity
from dpo.artifacts import read_json, write_json
from dpo.cli import UserError


def spell(value: float | None) -> str:
    """Return a figure of a gate, to four digits."""
    return "not measurable" if value is None else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fidelity", type=Path, required=True, help="the run's fidelity.json")
    parser.add_argument("--types", nargs="+", required=True, help="types of the quantised files")
    parser.add_argument("--settings", type=json.loads, required=True, help="the limits, as JSON")
    parser.add_argument("--check", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()

    gates = fidelity.check_gates(read_json(arguments.fidelity)["rungs"], arguments.settings, arguments.types)
    signs = {True: "passed", False: "FAILED", None: "no margin to lose"}
    for gate in gates:
        figures = f"{spell(gate['value'])}, limit {spell(gate['limit'])}"
        print(f"{gate['rung']}: {gate['what']}: {figures}: {signs[gate['met']]}")
    if failed := [gate for gate in gates if gate["met"] is False]:
        lines = [
            f"{gate['rung']}: {gate['what']} is {spell(gate['value'])}, the limit is {spell(gate['limit'])}; "
            f"likely cause: {gate['cause']}"
            for gate in failed
        ]
        raise UserError("\n  ".join([f"{arguments.fidelity}: too much of the training is lost:", *lines]))
    write_json(arguments.check, {"gates": gates})


if __name__ == "__main__":
    cli.run(main)
