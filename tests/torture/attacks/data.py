"""Data from a stranger: scripts/fetch_dataset.py and scripts/build_dataset.py."""

import bz2
import gzip
import json
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import hub_server
from hub_server import HubServer
from torture.attacks.canary import SECRET, Pickled, attack, carelessly, outcome, run, secret_file
from torture.attacks.templates import build, write_rows
from torture.outcome import REFUSED, SILENT


@attack("hub dataset has files named ../../ and /absolute", "fetch_dataset")
def dataset_paths(folder, model):
    served = folder / "served"
    served.mkdir()
    rows = write_rows(served / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    names = {"pairs.jsonl": rows, "../../outside.jsonl": rows, f"{folder}/absolute.jsonl": rows}
    before, hub_server._files = hub_server._files, lambda _: names
    try:
        with HubServer() as hub:
            hub.add("someone/pairs", "d" * 40, served, kind="dataset")
            settings = {"repo": "someone/pairs", "revision": "d" * 40}
            result = download(folder, hub, settings)
    finally:
        hub_server._files = before
    if [file for file in folder.rglob("*.jsonl") if file.name != "pairs.jsonl"]:
        return SILENT, "a file was written outside"
    return outcome(result, folder / "data", "someone/pairs", "outside.jsonl")


def download(folder: Path, hub: HubServer, settings: dict) -> subprocess.CompletedProcess:
    """Run fetch_dataset.py; it writes into `folder / "data"`."""
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
    return run("fetch_dataset", "--settings", json.dumps(settings), "--folder", folder / "data", **home)


def refused_card(fault: str, path: str) -> None:
    """Register an attack by a dataset card that says where the rows of a split are."""

    @attack(fault, "fetch_dataset")
    def card(folder, model):
        served, hits = folder / "served", []
        served.mkdir()
        write_rows(served / "pairs.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
        secret = folder / "private.jsonl"
        write_rows(secret, [{"prompt": f"{SECRET}?", "chosen": SECRET + " b", "rejected": "c"}])
        with HubServer() as hub:
            target = path.format(folder=folder, url=hub.url)
            configs = [{"config_name": "default", "data_files": [{"split": "train", "path": target}]}]
            (served / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# Pairs\n")
            hub.add("someone/pairs", "d" * 40, served, kind="dataset")
            result = download(folder, hub, {"repo": "someone/pairs", "revision": "d" * 40})
            found = outcome(result, folder / "data", "README.md", target)
            if found[0] != REFUSED:
                source = {"repo": "someone/pairs", "revision": "d" * 40, "folder": str(folder / "data")}
                result = build(folder / "built", model, source, HF_HUB_OFFLINE="0")
                hits = [request for request in hub.requests if "leak" in request]
                found = outcome(result, folder / "built", "someone/pairs")
        return (SILENT, f"asked for {hits}") if hits else found


refused_card("dataset card names a file in a folder above", "../private.jsonl")
refused_card("dataset card names an absolute path", "{folder}/private.jsonl")
refused_card("dataset card names an address", "{url}/leak.jsonl")


def data_bomb(fault: str, name: str, write: Callable[[Path], None], *words: str) -> None:
    """Register an attack by a small file that becomes a large one."""

    @attack(fault, "build_dataset")
    def bomb(folder, model):
        file = folder / name
        write(file)
        assert file.stat().st_size < 10_000_000
        return outcome(build(folder, model, file, memory=6), folder / "data", name, *words)


def endless_line(opener) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with opener(file, "wb") as stream:
            stream.write(b'{"prompt": "')
            for _ in range(300):
                stream.write(b"x" * 2**20)

    return write


data_bomb("300 MB in one line, gzipped", "pairs.jsonl.gz", endless_line(gzip.open), "a line of more than")
data_bomb("300 MB in one line of CSV, as bzip2", "pairs.csv.bz2", endless_line(bz2.open), "a line of more than")


@attack("Parquet column of a type that unpickles", "build_dataset")
def pickled_parquet(folder, model):
    import pyarrow
    from pyarrow import parquet

    canary = folder / "fired"
    payload = pickle.dumps(Pickled(canary))
    kinds = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    names = ("prompt", "chosen", "rejected")
    schema = pyarrow.schema([pyarrow.field(name, pyarrow.string(), metadata=kinds) for name in names])
    columns = [[f"{name} {number}" for number in range(3)] for name in names]
    parquet.write_table(pyarrow.table(columns, schema=schema), folder / "pairs.parquet")
    assert payload in parquet.read_schema(folder / "pairs.parquet").field("prompt").metadata.values()
    naive = "import pyarrow.parquet as p, pickle, sys; f = p.ParquetFile(sys.argv[1]).schema_arrow.field(0)"
    carelessly(canary, naive + "; pickle.loads(f.metadata[b'ARROW:extension:metadata'])", folder / "pairs.parquet")
    return outcome(build(folder, model, folder / "pairs.parquet"), folder / "data", canary=canary)


@attack("Parquet column of pictures at a path", "build_dataset")
def picture_parquet(folder, model):
    import pyarrow
    from pyarrow import parquet

    features = {
        "chosen": {"_type": "Image"},
        **{name: {"dtype": "string", "_type": "Value"} for name in ("prompt", "rejected")},
    }
    where = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    rows = [{"prompt": "a?", "chosen": {"bytes": None, "path": str(secret_file(folder))}, "rejected": "b"}] * 2
    kinds = {"prompt": pyarrow.string(), "chosen": where, "rejected": pyarrow.string()}
    schema = pyarrow.schema(kinds, {"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / "pairs.parquet")
    return outcome(build(folder, model, folder / "pairs.parquet"), folder / "data", "pairs.parquet")
