"""Reading preference data row by row through `datasets`, never a whole file at once (but for a JSON array).

What a row holds stays as it was written: `datasets` would guess types (a column of dates becomes time stamps, a CSV
column of numbers loses its zeros) and give up on a whole file at its first broken line. So JSON Lines come through its
text reader and are parsed here, one by one, and CSV columns are read as text.
"""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path

from dpo.cli import UserError
from dpo.json_lines import BOM, reject_repeated_keys

ROWS_A_BATCH = 250  # in one piece of work for a process; more only takes more memory
JSON_LINES = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
LONGEST_LINE = 64 << 20  # bytes; readers keep a line in memory, and a small compressed file can hold one without end

RawRow = str | dict  # a line of JSON still to be parsed, or a row that its file format already gave types
Batch = list[tuple[int, RawRow]]  # with the row's place: a line of a JSON Lines file, otherwise its number from 1 on


def name_of(source: dict) -> str:
    """Return how messages and audit call a source: its path, or its repository at a revision."""
    if "path" in source:
        return source["path"]
    parts = [source["repo"], "@", source["revision"][:12]]
    parts += [f"/{source[key]}" for key in ("data_dir", "name", "split") if key in source]
    return "".join(parts)


def read(source: dict) -> Iterator[Batch]:
    """Yield a source's rows in batches, in order.

    Args:
        source: `path` of a JSON Lines, JSON, CSV or Parquet file (JSON Lines and CSV also compressed), or `folder` of a
            downloaded hub dataset with, where it has several, the `name` of a configuration, `data_dir` and `split`.

    Raises:
        UserError: the file is missing, or cannot be read as what its name says.
    """
    try:
        yield from _read_folder(source) if "folder" in source else _read_file(Path(source["path"]))
    except UserError:
        raise
    except Exception as error:  # the files are a stranger's, and their readers raise whatever they stumble on
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name_of(source)} cannot be read: {what[:500]}\nIs it whole, in UTF-8, and of the format its name says?"
        ) from None


def _read_file(path: Path) -> Iterator[Batch]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it one by one under `data:` in config.yaml")
    if not path.is_file():
        raise UserError(f"{path} does not exist; check `data:` in config.yaml")
    if path.stat().st_size == 0:
        return iter(())
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".json" and _begins_with_bracket(path):
        return _read_json_array(path)
    if kind in JSON_LINES:
        _check_lines(path)
        return _read_lines(path)
    if kind == ".csv":
        _check_lines(path)
        return _read_csv(path)
    if kind == ".parquet":
        return _stream("parquet", data_files=glob.escape(str(path)), batch_size=ROWS_A_BATCH)
    raise UserError(
        f"{path}: known are .jsonl, .json, .csv and .parquet, the first three also compressed as .gz or .zst"
    )


def _check_lines(path: Path) -> None:
    """Raise `UserError` where a line of a text file, compressed or not, is longer than any row can be."""
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    left = LONGEST_LINE
    with open(path, "rb") as stored, compr[infer_compression(path.name)](stored, mode="rb") as file:
        while block := file.read(1 << 20):
            end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            left = left - len(block) if end < 0 else LONGEST_LINE - (len(block) - end)
            if left < 0:
                raise UserError(f"{path} has a line of more than {LONGEST_LINE >> 20} MiB; write one row a line")


def _begins_with_bracket(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read_lines(path: Path) -> Iterator[Batch]:
    """Read lines as bytes in disguise (Latin-1), so that a line that is no UTF-8 is that line's fault alone."""
    for batch in _stream("text", data_files=glob.escape(str(path)), encoding="latin-1"):
        lines = [(number, row["text"]) for number, row in batch]
        if lines[0][0] == 1:
            lines[0] = (1, lines[0][1].removeprefix(BOM))
        yield lines


def _read_json_array(path: Path) -> Iterator[Batch]:
    """Parse a whole JSON array; `datasets` would do the same, and then guess types."""
    rows = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=reject_repeated_keys)
    for start in range(0, len(rows), ROWS_A_BATCH):
        # A row that is not an object goes on as JSON, to be rejected like a line that is none.
        yield [
            (number, row if isinstance(row, dict) else json.dumps(row))
            for number, row in enumerate(rows[start : start + ROWS_A_BATCH], start=start + 1)
        ]


def _read_csv(path: Path) -> Iterator[Batch]:
    import datasets
    import pandas

    header = pandas.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False).values.tolist()[0]
    if twice := [column for column in header if column and header.count(column) > 1]:
        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one of them in the file's first line")
    begin = pandas.read_csv(path, nrows=1, dtype=str)
    # pandas takes a first row with one cell too many for a row whose first cell is a name, and moves the others.
    if not isinstance(begin.index, pandas.RangeIndex):
        raise UserError(f"{path}: its first row has more cells than the header; put text with commas in quotes")
    columns = list(begin.columns)
    as_text = datasets.Features({column: datasets.Value("string") for column in columns})
    # "NA" and "null" are words, and only a cell that is not there is null.
    options = {"features": as_text, "keep_default_na": False, "on_bad_lines": "error"}
    return _stream("csv", data_files=glob.escape(str(path)), **options)


def _read_folder(source: dict) -> Iterator[Batch]:
    for file in sorted(Path(source["folder"]).rglob("*")):
        if {*file.suffixes} & {".jsonl", ".ndjson", ".csv"}:
            _check_lines(file)
    options = {key: source[key] for key in ("name", "data_dir") if key in source}
    return _stream(source["folder"], split=source.get("split", "train"), **options)


def _stream(builder: str, split: str = "train", **options) -> Iterator[Batch]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would show its own message beside ours
    rows = datasets.load_dataset(builder, split=split, streaming=True, **options)
    number = 0
    for table in rows.with_format("arrow").iter(batch_size=ROWS_A_BATCH):
        batch = list(enumerate(table.to_pylist(), start=number + 1))
        number += len(batch)
        yield batch
