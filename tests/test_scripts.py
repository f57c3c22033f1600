"""Scripts are plain programs: one a rule, of the rule's own name, that explain themselves."""

import ast
import re
import subprocess
import sys

import pytest

from workflow import PROJECT

WITHOUT_BENCHMARK = ("summarize", "render_report", "render_model_card", "record_provenance")
OTHER_INPUTS = ("fetch_dataset", "record_provenance")  # none; so many that they come on standard input
SCRIPTS = sorted((PROJECT / "scripts").glob("*.py"))


def test_each_rule_has_a_script_log_and_benchmark_of_its_own_name():
    rules = {}
    for file in (PROJECT / "rules").glob("*.smk"):
        for block in re.split(r"\n(?=rule )", "\n" + file.read_text())[1:]:
            rules[re.match(r"rule (\w+):", block)[1]] = block
    assert set(rules) == {script.stem for script in SCRIPTS} - {"run_stage"}
    for name, block in rules.items():
        assert f"python scripts/{name}.py" in block
        assert f'code=code_digest("{name}"),' in block
        assert f'"logs/{name}/' in block
        assert f'manifest="results/manifests/{name}/' in block
        assert f"exec python scripts/run_stage.py --rule {name} --" in block
        # Nothing that a job reads escapes the check.
        assert ("--inputs {input:q} --outputs {output:q} --" in block) == (name not in OTHER_INPUTS)
        assert f'"benchmarks/{name}/' in block or name in WITHOUT_BENCHMARK, name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_shows_what_the_program_does_and_how_it_is_called(script):
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert f"python scripts/{script.name} --" in docstring
    result = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert docstring.splitlines()[0] in result.stdout
