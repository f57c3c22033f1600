"""A file or folder appears whole or not at all, whatever happens while it is written."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from dpo.artifacts import read_json, read_jsonl, sha256_of, staged_file, staged_folder, write_json, write_jsonl


class Failure(Exception):
    """What goes wrong in the middle of a write."""


def names_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


# Files


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with staged_file(path) as partial:
        partial.write_text("whole")
        assert partial.parent == path.parent  # the same file system: there the rename is one step
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["file.txt"]


@pytest.mark.parametrize("failure", [Failure, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path, failure):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(failure), staged_file(path) as partial:
        partial.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file.txt"]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), staged_file(path):
        pass
    assert path.read_text() == "old"


def test_a_killed_process_leaves_the_old_file_and_the_next_one_succeeds(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    program = """
import os, signal, sys
from dpo.artifacts import staged_file
with staged_file(sys.argv[1]) as partial:
    partial.write_text("a half that is longer than what comes next")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program, path], env=environment).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names_in(tmp_path)) == 2  # beside it the part that was written

    with staged_file(path) as partial:
        partial.open("a").close()
        assert partial.read_text() == ""
        partial.write_text("new")
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["file.txt"]


# Folders


def test_a_folder_appears_under_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "model"
    with staged_folder(path) as partial:
        (partial / "below").mkdir()
        (partial / "below" / "file.txt").write_text("whole")
        assert not path.exists()
    assert (path / "below" / "file.txt").read_text() == "whole"
    assert names_in(path.parent) == ["below", "file.txt", "model"]


def test_a_new_folder_replaces_the_old_one_altogether(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with staged_folder(path) as partial:
        (partial / "new.txt").write_text("new")
    assert names_in(tmp_path) == ["model", "new.txt"]


@pytest.mark.parametrize("failure", [Failure, KeyboardInterrupt])
def test_a_failed_folder_leaves_the_old_one_as_it_was(tmp_path, failure):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(failure), staged_folder(path) as partial:
        (partial / "new.txt").write_text("half")
        raise failure
    assert names_in(tmp_path) == ["model", "old.txt"]
    assert (path / "old.txt").read_text() == "old"


def test_what_a_dead_process_left_of_a_folder_is_no_part_of_the_next(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(Failure), staged_folder(path) as partial:
        left_over = partial
        raise Failure
    left_over.mkdir()
    (left_over / "half.txt").write_text("half")

    with staged_folder(path) as partial:
        assert partial == left_over
        (partial / "new.txt").write_text("new")
    assert names_in(tmp_path) == ["model", "new.txt"]


# JSON


def test_json_comes_back_as_it_was_written(tmp_path):
    value = {"text": "Grüße, 世界", "number": 0.1, "nested": {"list": [1, None, True]}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert "Grüße, 世界" in (tmp_path / "value.json").read_text(encoding="utf-8")

    rows = [value, {"second": "line\nbreak"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()] == rows


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_refused_and_the_old_file_stays(tmp_path, number):
    write_json(tmp_path / "value.json", {"loss": 0.5})
    write_jsonl(tmp_path / "rows.jsonl", [{"loss": 0.5}])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": number})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(tmp_path / "rows.jsonl", [{"loss": 0.25}, {"loss": number}])
    assert read_json(tmp_path / "value.json") == {"loss": 0.5}
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"loss": 0.5}]
    assert names_in(tmp_path) == ["rows.jsonl", "value.json"]


# Digests


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
