"""Fixtures that several test files share."""

import os

import pytest

# The models here are too small for several threads, and tests may run beside each other.
os.environ["OMP_NUM_THREADS"] = "1"


# In the order of the minutes that they take: begun last, one of them would leave the others idle.
LONGEST = ["slurm", "storage", "sweep", "workflow", "attacks", "train_dpo", "processes", "export", "llama_cpp_tools"]


def pytest_collection_modifyitems(items):
    """Run the longest files first."""
    files = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: files.index(item.path.name) if item.path.name in files else len(files))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The folder of a small model with the real tokenizer, made once. Read only: copy it before changing anything."""
    from small_model import make_small_model

    folder = tmp_path_factory.mktemp("small") / "model"
    make_small_model(folder)
    return folder
