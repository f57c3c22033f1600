"""Fixtures that several test files share."""

import os

import pytest

# The models here are too small for several threads, and tests may run beside each other.
os.environ["OMP_NUM_THREADS"] = "1"


# Each takes many minutes: begun last, one of them would leave the other worker idle.
LONGEST = ("test_slurm.py", "test_storage.py", "test_workflow.py")


def pytest_collection_modifyitems(items):
    """Run the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The folder of a small model with the real tokenizer, made once. Read only: copy it before changing anything."""
    from small_model import make_small_model

    folder = tmp_path_factory.mktemp("small") / "model"
    make_small_model(folder)
    return folder
