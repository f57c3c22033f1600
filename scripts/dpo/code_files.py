"""What a rule's program is made of: its script, and through its imports every module in scripts/dpo/ that it runs."""

import ast
import hashlib
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]


@cache
def imported(file: Path) -> frozenset[Path]:
    """Return the modules of `dpo` that a file imports by itself, `dpo` among them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dpo":
            found |= {SCRIPTS / "dpo" / f"{alias.name}.py" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dpo."):
            found.add(SCRIPTS / f"{node.module.replace('.', '/')}.py")
    return frozenset(found)


def code_files(rule: str) -> list[Path]:
    """Return the files of a rule's program, in the order of their names."""
    found, left = set(), [SCRIPTS / f"{rule}.py", SCRIPTS / "dpo" / "__init__.py"]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += imported(file)
    return sorted(found)


@cache
def code_digest(rule: str) -> str:
    """Return one SHA-256 of all files of a rule's program, by which Snakemake sees that one of them was edited."""
    digest = hashlib.sha256()
    for file in code_files(rule):
        digest.update(f"{file.relative_to(SCRIPTS)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
