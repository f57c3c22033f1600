"""Rows of preference data, one by one: what is wrong with a row, or the pair that it is, ready for training.

A pair is written as TRL's conversational preference format, one JSON object a line: `prompt`, `chosen` and `rejected`
as lists of messages, beside `id` and, where the row has one, `topic`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpo import chat, duplicates
from dpo.json_lines import MalformedLine, parse_line
from dpo.layouts import Pair, Rejected, to_pair
from dpo.sources import Batch, RawRow
from dpo.texts import find_control, normalize
from dpo.tokenisation import Tokenisation


@dataclass
class Examined:
    """What a batch of rows came to: every row is in `numbers`, in `rejected` or counted in `elsewhere`."""

    numbers: list[int] = field(default_factory=list)  # of the sound rows, in their source
    lines: list[bytes] = field(default_factory=list)  # the sound rows, as they are written
    keys: np.ndarray | None = None  # of id, prompt, chosen and rejected answer: uint64 of shape (sound rows, 4)
    bands: np.ndarray | None = None  # for near-duplicates: uint32 of shape (sound rows, duplicates.BANDS)
    prompt_bands: np.ndarray | None = None  # the same of the prompts alone, for leaks
    lengths: np.ndarray | None = None  # tokens of prompt and completions: int32 of shape (sound rows, 3)
    topics: list[str | None] = field(default_factory=list)
    rejected: list[tuple[int, Rejected]] = field(default_factory=list)  # row numbers and reasons
    elsewhere: int = 0  # rows that the split gives to the other set, and those that it counts there


def prompt_text(messages: list[dict[str, str]]) -> str:
    """Return a prompt as compared with others: its turns without the system's, normalised."""
    return "\n".join(normalize(turn["content"]) for turn in messages if turn["role"] != "system")


def parts(row: dict) -> tuple[str, str]:
    """Return what two pairs must both nearly share to be near-duplicates: the prompt, and the answers, normalised."""
    answers = (normalize(row[side][0]["content"]) for side in ("chosen", "rejected"))
    return prompt_text(row["prompt"]), "\n".join(answers)


def is_heldout(prompt: str, share: float, seed: int) -> bool:
    """Tell whether a normalised prompt belongs to the held-out set, by a hash of it and the seed alone.

    Thus rows added later move none to the other side, and rows of one prompt are always on one side.
    """
    digest = hashlib.blake2b(f"{seed}\x00{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


class Examiner:
    """Examines batches of one source's rows; its own process can do so beside others.

    Args:
        model: Hugging Face folder with the tokenizer.
        settings: `max_length`, `max_prompt_length`, `min_score_difference` and `min_score_ratio`, see config.yaml, and
            where one source is split into two sets, `split`: `share` of the held-out set, `seed`, and which `side`
            (train or heldout) to keep.
    """

    def __init__(self, model: Path, settings: dict):
        self.settings = settings
        self.tokenisation = Tokenisation(chat.load_tokenizer(model), settings)

    def __call__(self, batch: Batch, source: dict) -> Examined:
        """Examine a batch.

        Args:
            batch: rows with their numbers.
            source: `name`, `layout` and `columns` (pair's column → source's column).
        """
        examined, numbers, pairs = Examined(), [], []
        split = self.settings.get("split")
        for number, raw in batch:
            try:
                pair = self.read(raw, source)
            except Rejected as rejected:
                # Of a row that is none the prompt is not known, and with it the side; the training set counts it.
                if split and split["side"] == "heldout":
                    examined.elsewhere += 1
                else:
                    examined.rejected.append((number, rejected.bare()))
                continue
            if split and is_heldout(prompt_text(pair.prompt), split["share"], split["seed"]) != (
                split["side"] == "heldout"
            ):
                examined.elsewhere += 1
                continue
            try:
                self.check_answers(pair)
            except Rejected as rejected:
                examined.rejected.append((number, rejected.bare()))
                continue
            numbers.append(number)
            pairs.append(pair)
        self.finish(examined, numbers, pairs, source["name"])
        return examined

    def read(self, raw: RawRow, source: dict) -> Pair:
        """Return the pair of a row with a sound prompt. Raises `Rejected`."""
        try:
            row = parse_line(raw) if isinstance(raw, str) else raw
        except MalformedLine as error:
            raise Rejected("malformed", str(error)) from None
        for name, column in source["columns"].items():
            if column not in row:
                raise Rejected("malformed", f"{column} is missing")
            row = row | {name: row[column]}
        pair = to_pair(row, source["layout"], self.settings)
        for message in pair.prompt:
            self.check_text(f"prompt ({message['role']})" if len(pair.prompt) > 1 else "prompt", message["content"])
        for label, value in pair.labels.items():
            if control := find_control(value):
                raise Rejected("control_characters", f"{label} holds the control character {control}")
        return pair

    def check_answers(self, pair: Pair) -> None:
        """Raise `Rejected` where an answer is not fit to be one, or both say the same."""
        self.check_text("chosen", pair.chosen)
        self.check_text("rejected", pair.rejected)
        if normalize(pair.chosen) == normalize(pair.rejected):
            raise Rejected("identical", "chosen and rejected are the same; no preference can be learned from them")

    def check_text(self, name: str, text: str) -> None:
        """Raise `Rejected` where a text is empty, or holds what must not reach the tokenizer."""
        if control := find_control(text):
            raise Rejected("control_characters", f"{name} holds the control character {control}")
        if not text.strip():
            raise Rejected("empty", f"{name} is empty")
        if token := self.tokenisation.find_special(text):
            raise Rejected("special_tokens", f"{name} holds {token}, which the tokenizer takes for a control token")

    def finish(self, examined: Examined, numbers: list[int], pairs: list[Pair], source: str) -> None:
        """Tokenise the pairs of a batch, and fill in what is kept of the sound ones."""
        lengths, keys, texts = [], [], []
        for number, pair, measured in zip(numbers, pairs, self.tokenisation.measure(pairs), strict=True):
            if isinstance(measured, Rejected):
                examined.rejected.append((number, measured))
                continue
            row = {
                **{"id": f"{source}:{number}", **pair.labels},
                "prompt": pair.prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen}],
                "rejected": [{"role": "assistant", "content": pair.rejected}],
            }
            prompt, chosen, rejected = prompt_text(pair.prompt), normalize(pair.chosen), normalize(pair.rejected)
            examined.numbers.append(number)
            examined.topics.append(pair.labels.get("topic"))
            examined.lines.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            lengths.append((measured.prompt, measured.chosen, measured.rejected))
            keys.append((row["id"], prompt, chosen, rejected))
            texts.append("\n".join((prompt, chosen, rejected)))
        examined.lengths = np.array(lengths, dtype=np.int32).reshape(-1, 3)
        hashed = [[duplicates.key(text) for text in row] for row in keys]
        examined.keys = np.array(hashed, dtype=np.uint64).reshape(-1, 4)
        examined.bands = duplicates.bands(texts)
        examined.prompt_bands = duplicates.bands([prompt for _, prompt, _, _ in keys])


def find_leaks(prompts: list[str], dataset: Path, threshold: float) -> dict[int, tuple[str, float]]:
    """Find which normalised prompts stand in a set that `build_dataset` wrote, exactly or nearly.

    Args:
        prompts: normalised prompts (see `prompt_text`).
        dataset: the set, JSON Lines; the band hashes of its prompts are beside it, in a file named `*.prompts.npy`.
        threshold: least similarity of near-duplicates.

    Returns:
        position in `prompts` → (id of the most similar pair, similarity).
    """
    unique = list(dict.fromkeys(prompts))
    candidates = duplicates.shared_bands(duplicates.bands(unique), np.load(dataset.with_suffix(".prompts.npy")))
    found: dict[str, tuple[str, float]] = {}
    with open(dataset, "rb") as file:
        for number, line in enumerate(file):
            if number in candidates:
                row = json.loads(line)
                text = prompt_text(row["prompt"])
                for prompt in (unique[place] for place in candidates[number]):
                    alike = duplicates.similarity(text, prompt)
                    if alike >= threshold and alike > found.get(prompt, ("", 0.0))[1]:
                        found[prompt] = row["id"], alike
    return {place: found[prompt] for place, prompt in enumerate(prompts) if prompt in found}
