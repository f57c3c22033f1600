"""The parts of jsonschema that are used here, imported in a twentieth of the usual time."""

import sys

# With this package installed, as the bill of materials' tool wants it, jsonschema builds dozens of grammars at import,
# which takes as long as all else that Snakemake imports. They serve formats that no schema here has.
sys.modules.setdefault("rfc3987_syntax", None)

from jsonschema import Draft202012Validator  # noqa: E402
from jsonschema.exceptions import best_match  # noqa: E402

__all__ = ["Draft202012Validator", "best_match"]
