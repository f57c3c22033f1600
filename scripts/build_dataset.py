"""Make one set of preference pairs out of its sources: every row becomes a checked pair or is rejected with a reason.

    python scripts/build_dataset.py --model results/base/model --settings '{"sources": [{"path": "data/heldout.jsonl"}],
        "max_length": 512, "max_prompt_length": 256, "min_score_difference": 0, "min_score_ratio": 2,
        "near_duplicate": 0.8}' --trained results/data/train.jsonl \
        --dataset results/data/heldout.jsonl --rejected results/data/heldout.rejected.jsonl \
        --prompts results/data/heldout.prompts.npy --audit results/data/heldout.audit.json

The set is written in TRL's conversational preference format, for training and scoring to read. Rows are read in a
stream, examined in as many processes as OMP_NUM_THREADS says, and compared with each other by small keys and hashes, so
that memory stays about the same from twenty rows to a million. Layouts and reasons: docs/data.md.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from dpo import audit, cli, duplicates, layouts, sources
from dpo.artifacts import staged_file, write_json
from dpo.child_process import end_with_pool
from dpo.cli import UserError
from dpo.json_lines import MalformedLine, parse_line
from dpo.layouts import Rejected
from dpo.pairs import Examined, Examiner, find_leaks, parts

SECONDS_BETWEEN_LINES = 10
EXAMPLES = 3


def find_layout(batch: sources.Batch, source: dict) -> str:
    """Return the layout of a source: the configured one, or that of most rows of the first batch.

    One row alone cannot tell: where it lacks its prompt, the others' prompts would be ignored without a word.

    Raises:
        UserError: there are rows, but their columns fit no layout.
    """
    if "layout" in source:
        return source["layout"]
    found: Counter = Counter()
    columns: list[str] = []
    for _, raw in batch:
        try:
            row = parse_line(raw) if isinstance(raw, str) else raw
        except MalformedLine:
            continue
        row = row | {name: row[column] for name, column in source.get("columns", {}).items() if column in row}
        if layout := layouts.recognise(row):
            found[layout] += 1
        columns = columns or list(row)
    if found:
        return max(found, key=lambda layout: (found[layout], layout != "implicit_prompt"))
    if len(columns) and len(batch) > 1 and not {"prompt", "chosen", "rejected"} & set(columns):
        raise UserError(
            f"{sources.name_of(source)}: its columns ({', '.join(columns)[:200]}) fit no known layout. "
            "Say in config.yaml which hold what, for example {path: …, columns: {prompt: question, chosen: better, "
            "rejected: worse}}"
        )
    return "explicit_prompt"


def read_all(settings: dict, seen: list[dict]) -> Iterator[tuple[int, sources.Batch, dict]]:
    """Yield (source's number, batch, source as `Examiner` wants it); note each source in `seen` with its rows."""
    for place, source in enumerate(settings["sources"]):
        name = sources.name_of(source)
        seen.append({"source": name, "rows": 0})
        batches = sources.read(source)
        first = next(batches, [])
        described = {"name": name, "columns": source.get("columns", {}), "layout": find_layout(first, source)}
        seen[-1]["layout"] = described["layout"]
        for batch in chain([first], batches):
            seen[-1]["rows"] += len(batch)
            yield place, batch, described


def start_worker(model: Path, settings: dict) -> None:
    """Give a worker process its examiner."""
    end_with_pool()
    global examiner
    examiner = Examiner(model, settings)


def work(batch: sources.Batch, source: dict) -> Examined:
    """Examine a batch in a worker process."""
    return examiner(batch, source)


def examine_all(
    batches: Iterable[tuple[int, sources.Batch, dict]], model: Path, settings: dict, processes: int
) -> Iterator[tuple[int, Examined]]:
    """Yield what each batch came to, in order, with its source's number; a few batches are under way at a time."""
    batches = iter(batches)
    first = list(islice(batches, 2))
    batches = chain(first, batches)
    if processes == 1 or len(first) < 2:  # processes take seconds to start
        here = Examiner(model, settings)
        for place, batch, source in batches:
            yield place, here(batch, source)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    waiting: deque = deque()
    # They are forked from one server process that has imported what they share, which saves time and memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dpo.pairs", "transformers.models.auto.tokenization_auto"])
    with ProcessPoolExecutor(processes, context, start_worker, (model, settings)) as pool:
        for place, batch, source in batches:
            waiting.append((place, pool.submit(work, batch, source)))
            if len(waiting) > 2 * processes:
                yield waiting[0][0], waiting.popleft()[1].result()
        for place, future in waiting:
            yield place, future.result()


class Kept:
    """The sound rows: a few numbers of each in memory, their text and their prompts' hashes in files without a name."""

    def __init__(self, folder: Path):
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115, lives as long as this object
        self.prompts = TemporaryFile(dir=folder)  # noqa: SIM115
        self.offsets = array("Q", [0])
        self.places, self.numbers, self.topics = array("H"), array("Q"), []
        self._keys, self._bands, self._lengths = array("Q"), array("I"), array("i")

    def add(self, place: int, examined: Examined) -> None:
        """Take over the sound rows of a batch of source number `place`."""
        for line in examined.lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.file.write(b"".join(examined.lines))
        self.prompts.write(examined.prompt_bands.tobytes())
        self.places.extend([place] * len(examined.lines))
        self.numbers.extend(examined.numbers)
        self.topics += [topic and sys.intern(topic) for topic in examined.topics]
        self._keys.frombytes(examined.keys.tobytes())
        self._bands.frombytes(examined.bands.tobytes())
        self._lengths.frombytes(examined.lengths.tobytes())

    @property
    def keys(self) -> np.ndarray:
        """Keys of id, prompt, chosen and rejected answer: uint64 of shape (rows, 4)."""
        return np.frombuffer(self._keys, np.uint64).reshape(-1, 4)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt and completions: int32 of shape (rows, 3)."""
        return np.frombuffer(self._lengths, np.int32).reshape(-1, 3)

    def take_bands(self, rows: np.ndarray) -> np.ndarray:
        """Return the band hashes of some rows, and forget all of them: they are most of what is in memory."""
        bands = np.frombuffer(self._bands, np.uint32).reshape(-1, duplicates.BANDS)[rows]
        self._bands = array("I")
        return bands

    def prompt_bands(self, rows: np.ndarray) -> np.ndarray:
        """Return the band hashes of some rows' prompts: uint32 of shape (rows, duplicates.BANDS)."""
        self.prompts.seek(0)
        return np.frombuffer(self.prompts.read(), np.uint32).reshape(-1, duplicates.BANDS)[rows]

    def __len__(self) -> int:
        return len(self.numbers)

    def line(self, index: int) -> bytes:
        """Return a row's text."""
        self.file.seek(self.offsets[index])
        return self.file.read(self.offsets[index + 1] - self.offsets[index])

    def row(self, index: int) -> dict:
        """Return a row."""
        return json.loads(self.line(index))


def first_places(values: np.ndarray) -> np.ndarray:
    """Return for each value the position at which it first stands."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def compare(kept: Kept, where, threshold: float) -> dict[int, Rejected]:
    """Find the rows that must go because of other rows: repeated, nearly repeated, or contradicted.

    Args:
        kept: the sound rows.
        where: names a row by its position.
        threshold: least similarity of near-duplicates.

    Returns:
        position → why.
    """
    faults: dict[int, Rejected] = {}
    identifier, prompt, chosen, rejected = kept.keys.T
    preference = (prompt * duplicates.MULTIPLIER ^ chosen) * duplicates.MULTIPLIER ^ rejected
    reverse = (prompt * duplicates.MULTIPLIER ^ rejected) * duplicates.MULTIPLIER ^ chosen
    first = first_places(preference)
    for index in np.flatnonzero(first != np.arange(len(kept))):
        faults[int(index)] = Rejected("duplicate", f"the same pair as {where(first[index])}", 1.0)
    known = dict(
        zip(preference[contradicted := np.isin(preference, reverse)], np.flatnonzero(contradicted), strict=True)
    )
    for index in np.flatnonzero(contradicted):
        faults.setdefault(
            int(index), Rejected("contradiction", f"the opposite preference is at {where(known[reverse[index]])}")
        )
    first = first_places(identifier)
    for index in np.flatnonzero(first != np.arange(len(kept))):
        faults.setdefault(int(index), Rejected("malformed", f"the same id as {where(first[index])}"))
    left = np.setdiff1d(np.arange(len(kept)), np.fromiter(faults, np.int64), assume_unique=True)
    near = duplicates.near_duplicates(kept.take_bands(left), lambda index: parts(kept.row(left[index])), threshold)
    for index, (earlier, alike) in near.items():
        faults[int(left[index])] = Rejected("near_duplicate", f"{alike:.0%} the same as {where(left[earlier])}", alike)
    return faults


def build(arguments: argparse.Namespace, settings: dict, rejections, dataset, prompts) -> dict:
    """Examine all rows, write the sound ones, the rejected ones and the prompts' hashes, and return the set's audit."""
    seen: list[dict] = []
    kept = Kept(arguments.dataset.parent)
    counts: Counter = Counter()
    examples: dict[str, list[dict]] = {}
    elsewhere, started, printed = 0, time.monotonic(), time.monotonic()

    def reject(place: int, number: int, rejected: Rejected) -> None:
        counts[rejected.reason] += 1
        entry = {
            "source": seen[place]["source"], "line": number, "reason": rejected.reason,
            "detail": str(rejected)[:1000].encode("utf-8", "backslashreplace").decode(), "measure": rejected.measure,
        }  # fmt: skip
        rejections.write(json.dumps(entry, ensure_ascii=False) + "\n")
        worst = examples.setdefault(rejected.reason, [])
        worst.append(entry)
        worst.sort(key=lambda entry: -(entry["measure"] or 0))
        del worst[EXAMPLES:]

    def where(index: int) -> str:
        return f"{seen[kept.places[index]]['source']}:{kept.numbers[index]}"

    processes = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    for place, examined in examine_all(read_all(settings, seen), arguments.model, settings, processes):
        kept.add(place, examined)
        elsewhere += examined.elsewhere
        for number, rejected in examined.rejected:
            reject(place, number, rejected)
        if time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            done = len(kept) + counts.total() + elsewhere
            print(f"{done:,} rows examined, {done / (printed - started):,.0f} a second", flush=True)

    faults = compare(kept, where, settings["near_duplicate"])
    if arguments.trained:
        left = [index for index in range(len(kept)) if index not in faults]
        texts = [parts(kept.row(index))[0] for index in left]
        for place, (known, alike) in find_leaks(texts, arguments.trained, settings["near_duplicate"]).items():
            faults[left[place]] = Rejected(
                "leak",
                f"its prompt is {alike:.0%} that of the training pair {known}; what is tested must be new",
                alike,
            )
    for index in sorted(faults):
        reject(kept.places[index], kept.numbers[index], faults[index])
    sound = np.ones(len(kept), dtype=bool)
    sound[list(faults)] = False
    kept.file.seek(0)
    for line, is_sound in zip(kept.file, sound, strict=True):
        if is_sound:
            dataset.write(line)
    chosen = np.flatnonzero(sound)
    np.save(prompts, kept.prompt_bands(chosen))
    if not len(chosen):
        if counts:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())
            why = f"rows were rejected for: {reasons}" + "".join(f"\n  {show(e)}" for e in chain(*examples.values()))
        elif elsewhere:
            why = "the split gives every row to the other set; change data.heldout in config.yaml"
        else:
            why = "there are no rows; write pairs into it, or name another file under `data:` in config.yaml"
        raise UserError(f"no usable pair in {', '.join(source['source'] for source in seen)}; {why}")
    topics = Counter(kept.topics[index] for index in chosen if kept.topics[index])
    return {
        "sources": seen,
        "rows": sum(source["rows"] for source in seen) - elsewhere,
        "pairs": len(chosen),
        "rejected": counts.total(),
        "rejected_for": {reason: counts[reason] for reason in audit.REASONS},
        "topics": dict(sorted(topics.items())),
        **audit.count_lengths(kept.lengths[chosen], settings["max_length"]),
        "examples": [kept.row(index) for index in chosen[:EXAMPLES]],
        "worst": examples,
    }


def show(entry: dict) -> str:
    """Return a rejected row as people look for it: file:line: what is wrong."""
    return f"{entry['source']}:{entry['line']}: {entry['detail']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder whose tokenizer counts")
    parser.add_argument("--settings", type=json.loads, required=True, help="sources and limits, as JSON")
    parser.add_argument(
        "--trained", type=Path, help="training set with its *.prompts.npy beside it; none of its prompts may come again"
    )
    parser.add_argument("--dataset", type=Path, required=True, help="JSON Lines file of pairs to write")
    parser.add_argument("--rejected", type=Path, required=True, help="JSON Lines file of rejected rows to write")
    parser.add_argument("--prompts", type=Path, required=True, help="NumPy file of hashes of the prompts to write")
    parser.add_argument("--audit", type=Path, required=True, help="JSON file of counts to write")
    arguments = parser.parse_args()

    with (
        staged_file(arguments.dataset) as dataset,
        staged_file(arguments.rejected) as rejected,
        staged_file(arguments.prompts) as prompts,
    ):
        with (
            open(dataset, "wb") as pairs,
            open(rejected, "w", encoding="utf-8") as rejections,
            open(prompts, "wb") as hashes,
        ):
            counts = build(arguments, arguments.settings, rejections, pairs, hashes)
        write_json(arguments.audit, counts)
    print(f"{counts['rows']:,} rows: {counts['pairs']:,} pairs, {counts['rejected']:,} rejected")


if __name__ == "__main__":
    cli.run(main)
