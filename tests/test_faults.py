"""A fault of storage or memory is recovered from or refused with a message, never silent: the fast part of the sweeps.

The sweeps themselves are in tests/torture/: storage.py and resources.py.
"""

import json
import os
import resource
import subprocess
import sys

import pytest

from dpo import cli
from dpo.journal import Journal
from test_fidelity import ladder
from torture import storage
from torture.outcome import REFUSED, SILENT, table
from torture.stages import STAGES, execute, job_command
from workflow import PROJECT, copy_project, snakemake


def assert_no_silent_wrong(tried, at_least):
    """Print what came of each fault, and fail where one did silent harm or too few were tried."""
    tried = list(tried)
    print(table(tried))
    assert not [one for one in tried if one.outcome == SILENT]
    assert len(tried) >= at_least
    return tried


@pytest.fixture
def needs_mounts():
    if storage.no_mounts():
        pytest.skip("no mount namespaces for this user")


# Every operation of a job on its files, by a job that takes no time


@pytest.fixture(scope="module")
def checked(small_model, tmp_path_factory):
    """A project in which just check_fidelity has run, on a made up ladder that a job has vouched for. Read only."""
    folder = tmp_path_factory.mktemp("checked") / "project"
    copy_project(folder, small_model)
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    made = "results/dpo/fidelity.json"
    (folder / made).parent.mkdir(parents=True)
    command = [sys.executable, "scripts/run_stage.py", "--rule", "measure_fidelity", "--inputs", "config.yaml"]
    command += ["--outputs", made, "results/manifests/measure_fidelity/dpo.json", "--"]
    command += [sys.executable, "-c", write, made, json.dumps({"rungs": ladder()})]
    for one in (command, job_command(folder, STAGES["check_fidelity"])):
        result = execute(one, folder)
        assert result.returncode == 0, result.stdout
    return folder


def test_whichever_operation_on_a_file_fails_nothing_half_written_stays(checked, tmp_path):
    tried = storage.nth_operation(checked, tmp_path, "check_fidelity")
    assert_no_silent_wrong(tried, at_least=12)


# Disks that are full, by programs that write through other languages


@pytest.fixture(scope="module")
def built(small_model, tmp_path_factory):
    """A project in which everything up to the training set and the base model's GGUF files has run. Read only."""
    folder = tmp_path_factory.mktemp("built") / "project"
    copy_project(folder, small_model)
    result = snakemake(folder, "results/data/train.jsonl", "results/base/gguf/model-q4_k_m.gguf")
    assert result.returncode == 0, result.stdout
    return folder


def test_on_a_full_disk_pairs_are_all_written_or_none(built, needs_mounts, tmp_path):
    [tried] = assert_no_silent_wrong(
        storage.full_disk(built, tmp_path, "build_dataset", [0.5], direct=True), at_least=1
    )
    assert tried.outcome == REFUSED


def on_a_disk(size, folder, command, place):
    """Run a program with a file system of so many bytes at `place`, which is in `folder`; return result and files."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    with storage.Mounts() as mounts:
        mounts.must("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder / place)
        result = mounts.run(command, folder)
        return result, sorted(path.name for path in mounts.seen(folder / place).iterdir())


@pytest.mark.parametrize("size", [storage.PAGE, 1 << 20])
def test_what_llama_cpp_does_not_say_of_a_full_disk_is_said(built, needs_mounts, size):
    command = [sys.executable, "scripts/quantize_gguf.py", "--gguf", "results/base/gguf/model-f16.gguf"]
    command += ["--type", "q4_k_m", "--quantized", "disk/model-q4_k_m.gguf"]
    result, files = on_a_disk(size, built, command, "disk")
    assert result.returncode == 1
    assert "error: No space left on device, while writing disk/model-q4_k_m.gguf; make room" in result.stdout
    assert files == []


def test_llama_cpps_converter_on_a_full_disk_shows_no_traceback(built, needs_mounts):
    command = [sys.executable, "scripts/convert_to_gguf.py", "--model", "results/base/model"]
    result, files = on_a_disk(4 << 20, built, [*command, "--gguf", "disk/model-f16.gguf"], "disk")
    assert result.returncode == 1
    assert "error: No space left on device, while writing disk/model-f16.gguf; make room" in result.stdout
    assert "Traceback" not in result.stdout
    assert files == []


HALF_AN_IMATRIX = """#!/bin/sh
# Writes what fits, and says that all is well, as llama-imatrix does.
while [ "$1" != --output-file ]; do shift; done
head -c 100000 /dev/zero > "$2"
exit 0
"""


def test_an_importance_matrix_that_llama_imatrix_cut_short_is_refused(built, needs_mounts, tmp_path):
    tool = tmp_path / "llama-imatrix"
    tool.write_text(HALF_AN_IMATRIX)
    tool.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'scripts'); import compute_imatrix as program\n"
        f"program.find_tool = lambda _: {str(tool)!r}\n"
        "arguments = [Path(word) for word in sys.argv[1:]]\n"
        "def main():\n"
        "    with program.staged_file(arguments[1]) as partial:\n"
        "        program.compute_imatrix(arguments[0], 'text', 32, partial)\n"
        "program.cli.run(main)\n"
    )
    command = [sys.executable, "-c", program, "results/base/gguf/model-f16.gguf", "disk/imatrix.gguf"]
    result, files = on_a_disk(4 * storage.PAGE, built, command, "disk")
    assert result.returncode == 1
    assert "error: No space left on device, while writing disk/imatrix.gguf; make room" in result.stdout
    assert files == []


def test_of_read_only_folders_only_the_one_written_to_matters(checked, needs_mounts):
    command = job_command(checked, STAGES["check_fidelity"])
    with storage.Mounts() as mounts:
        mounts.read_only(checked / "results")
        refused = mounts.run(command, checked)
        mounts.writable(checked / "results")
        mounts.read_only(checked / "data")
        done = mounts.run(command, checked)
    assert refused.returncode == 1
    assert "fidelity_check.json" in refused.stdout
    assert "Read-only file system" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert done.returncode == 0, done.stdout


def test_a_journal_whose_disk_is_full_keeps_no_torn_line(tmp_path):
    """As threads share it: what another one adds afterwards must not be glued to half a line."""
    journal = tmp_path / "journal.jsonl"
    program = (
        "import contextlib, resource, sys; from pathlib import Path; from dpo.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1100, 1100))\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.add('a', {'text': 'x' * 800})\n"
        "with contextlib.suppress(OSError):\n"
        "    journal.add('b', {'text': 'x' * 800})\n"
        "journal.add('c', {'text': 'x'})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "scripts")}
    subprocess.run([sys.executable, "-c", program, journal], env=environment, check=True)
    assert Journal(journal).answers.keys() == {"a", "c"}


# Memory


def test_out_of_memory_a_program_says_so_while_it_still_imports():
    program = "from dpo import cli\nraise ImportError('libtorch.so: failed to map segment from shared object')"
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "scripts")}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 137
    assert result.stderr == "error: memory ran out (libtorch.so: failed to map segment from shared object)\n"


def test_out_of_memory_a_program_that_cannot_even_start_says_so(built):
    command = job_command(built, STAGES["compute_reference_logps"])
    limit = 300 << 20
    limited = execute(command, built, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert limited.returncode == 1
    assert "error: compute_reference_logps ran out of memory: in config.yaml lower data.max_length" in limited.stdout
    assert "Traceback" not in limited.stdout
    assert not (built / "results/base/reference_logps").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device, while writing x; make room"),
        (OSError(30, "Read-only file system", "x"), "x: Read-only file system, while writing x; see that"),
        (OSError(28, "No space", "a", None, "b"), "a to b: No space left on device, while writing x; make room"),
        (OSError("80 requested and 16 written"), "not all could be written, while writing x; make room"),
        (RuntimeError("I/O error: (os error 28)"), "No space left on device, while writing x; make room"),
    ],
)
def test_a_storage_error_is_explained_with_file_and_cause(error, words):
    error.add_note("while writing x")
    assert cli.explain_storage(error).startswith(words)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
)
def test_want_of_memory_is_told_from_other_errors(error):
    assert cli.is_out_of_memory(error)
    assert not cli.is_out_of_memory(OSError(28, "No space left on device"))
    assert not cli.is_out_of_memory(ImportError("No module named 'x'"))
