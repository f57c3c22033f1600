"""Stopped at any moment, the same command finishes, and what it makes is what an undisturbed run makes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dpo.artifacts import sha256_of
from workflow import PROJECT, copy_project, edit_config, snakemake

TARGET = "results/dpo/adapter"


@pytest.fixture(scope="module")
def prepared(small_model, tmp_path_factory):
    """A folder with everything done up to training, which takes long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("prepared") / "project"
    copy_project(folder, small_model)
    edit_config(folder, "training", max_steps=30, save_steps=3, logging_steps=3)
    result = snakemake(folder, "results/data/train.jsonl", "results/data/heldout.jsonl")
    assert result.returncode == 0, result.stdout
    return folder


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """What a run makes that nothing interrupts: the SHA-256 of its adapter, and its log."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    result = snakemake(folder, TARGET)
    assert result.returncode == 0, result.stdout
    return sha256_of(folder / TARGET / "adapter_model.safetensors"), log_of(folder)


def log_of(folder):
    """The log of a training as text, without the seconds that it took."""
    return re.sub(r'"seconds": [0-9.]+', "", (folder / "results/dpo/training.jsonl").read_text())


def heed_ctrl_c():
    """Undo that a shell has its background jobs ignore Ctrl-C, which every program below would inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_and_signal(folder, number, checkpoint):
    """Start the workflow, send its whole process group a signal once a checkpoint is there, and wait for its end."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", TARGET]
    with open(folder / "output", "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, start_new_session=True, preexec_fn=heed_ctrl_c
        )
    saved = folder / f"results/dpo/checkpoints/checkpoint-{checkpoint}/trainer_state.json"
    deadline = time.monotonic() + 180
    while not saved.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.wait(timeout=120)
    while any_left(process.pid):
        time.sleep(0.1)


def any_left(group):
    """Tell whether a process of the group is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_stopped_by_ctrl_c_sigterm_and_sigkill_the_same_command_finishes(prepared, undisturbed, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    for number, checkpoint in ((signal.SIGINT, 6), (signal.SIGTERM, 12), (signal.SIGKILL, 18)):
        start_and_signal(folder, number, checkpoint)
        assert not (folder / TARGET).exists()
        assert not (folder / "results/dpo/training.jsonl").exists()
        if checkpoint > 6:
            assert "resuming after step" in (folder / "output").read_text()
    result = snakemake(folder, TARGET)
    assert result.returncode == 0, result.stdout
    assert "resuming after step" in result.stdout
    assert sha256_of(folder / TARGET / "adapter_model.safetensors") == undisturbed[0]
    assert log_of(folder) == undisturbed[1]
    assert not (folder / "results/dpo/checkpoints").exists()
    steps = (folder / "results/dpo/training.jsonl").read_text().count("\n")
    assert steps == 11, "step 1 and every third of 30"


SLOW_TO_IMPORT = """
import sys, time
if __name__ != "__main__":  # the pool's process imports this anew
    open(sys.argv[1], "w").close()
    time.sleep(3)
from dpo import child_process
if __name__ == "__main__":
    child_process.run("crashed", time.sleep, 60)
"""


def test_a_pool_process_whose_maker_is_killed_while_it_imports_ends_too(tmp_path):
    program, importing = tmp_path / "program.py", tmp_path / "importing"
    program.write_text(SLOW_TO_IMPORT)
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "scripts")}
    process = subprocess.Popen([sys.executable, program, importing], env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not importing.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any_left(process.pid):
        assert time.monotonic() < deadline, "the pool's process outlived its maker"
        time.sleep(0.1)
