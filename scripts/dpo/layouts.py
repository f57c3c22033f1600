"""The layouts in which preference data is published, and how a row of each becomes a pair.

A pair is a prompt (messages, the last one the user's), a chosen answer and a rejected one. Every layout below has one
function that makes a pair of a row or raises `Rejected`; docs/data.md shows the mappings side by side. Texts are taken
as they stand, except for white space at the seams where a layout glues prompt and answer, or turns, into one text.
"""

import math
import os
import re
from dataclasses import dataclass, field

Messages = list[dict[str, str]]

ROLES = ("system", "user", "assistant")
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Rejected(Exception):
    """A row that must not be trained or tested on.

    Attributes:
        reason: one of `dpo.audit.REASONS`.
        detail: what is wrong, for people.
        measure: how bad it is within its reason, where that can be said (tokens over a limit, a similarity).
    """

    def __init__(self, reason: str, detail: str, measure: float | None = None):
        super().__init__(reason, detail, measure)  # all of them, so that it can come back from another process
        self.reason, self.detail, self.measure = reason, detail, measure

    def __str__(self) -> str:
        return self.detail

    def bare(self) -> "Rejected":
        """Return the same without its traceback, which would keep a whole batch of rows in memory."""
        return Rejected(*self.args)


@dataclass
class Pair:
    """One preference: to this prompt, this answer rather than that one."""

    prompt: Messages
    chosen: str
    rejected: str
    labels: dict[str, str] = field(default_factory=dict)  # `id` and `topic`, where the row has them


def recognise(row: dict) -> str | None:
    """Return the name of a row's layout, judged by its columns; None where they fit none."""
    columns = set(row)
    if columns >= {"question", "answer_0", "answer_1", "score_0", "score_1"}:
        return "webgpt_comparisons"
    if columns >= {"history", "human_ref_A", "human_ref_B", "labels"}:
        return "shp"
    if columns >= {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}:
        return "ultrafeedback_binarized"
    if columns >= {"prompt", "chosen", "rejected"}:
        return "explicit_prompt"
    if columns >= {"chosen", "rejected"}:
        text = row["chosen"]
        return "hh_rlhf" if isinstance(text, str) and text.startswith("\n\nHuman:") else "implicit_prompt"
    return None


def to_pair(row: dict, layout: str, settings: dict) -> Pair:
    """Convert a row.

    Args:
        row: columns and values as they were read.
        layout: a name that `recognise` returns.
        settings: `min_score_difference` and `min_score_ratio`, see config.yaml.

    Raises:
        Rejected: `malformed`, or `low_confidence` for a tie or a preference weaker than the settings ask for.
    """
    if layout == "webgpt_comparisons":
        pair = from_webgpt_comparisons(row, settings["min_score_difference"])
    elif layout == "shp":
        pair = from_shp(row, settings["min_score_ratio"])
    elif layout == "ultrafeedback_binarized":
        pair = from_ultrafeedback_binarized(row, settings["min_score_difference"])
    elif layout == "explicit_prompt":
        pair = from_explicit_prompt(row)
    elif layout == "hh_rlhf":
        pair = from_hh_rlhf(row)
    else:
        pair = from_implicit_prompt(row)
    for label in ("id", "topic"):
        value = row.get(label)
        if isinstance(value, str) and value.strip():
            pair.labels[label] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            pair.labels[label] = str(value)
        elif value is not None:
            raise Rejected("malformed", f"{label} is {kind(value)}; it must be text, or left out")
    return pair


def from_explicit_prompt(row: dict) -> Pair:
    """TRL's preference format with an explicit prompt, standard (texts) or conversational (lists of messages)."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = messages(row, "prompt")
    else:
        prompt = [{"role": "user", "content": text(row, "prompt")}]
    return Pair(prompt, answer(row, "chosen", prompt), answer(row, "rejected", prompt))


def from_implicit_prompt(row: dict) -> Pair:
    """TRL's preference format with an implicit prompt: what chosen and rejected begin with alike is the prompt."""
    if isinstance(row.get("chosen"), list):
        return split_conversations(messages(row, "chosen"), messages(row, "rejected"))
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071, of texts, not of paths
    if shared and len(shared) < min(len(chosen), len(rejected)) and not shared[-1].isspace():
        shared = shared.removesuffix(shared.rsplit(maxsplit=1)[-1])  # not through the middle of a word
    if not shared.strip():
        raise Rejected("malformed", "chosen and rejected share no beginning that could be the prompt")
    prompt = [{"role": "user", "content": shared.rstrip()}]
    return Pair(prompt, chosen[len(shared) :], rejected[len(shared) :])


def from_hh_rlhf(row: dict) -> Pair:
    """`Anthropic/hh-rlhf`: two transcripts of "\\n\\nHuman: …\\n\\nAssistant: …" that part at the last answer."""
    return split_conversations(transcript(row, "chosen"), transcript(row, "rejected"))


def from_ultrafeedback_binarized(row: dict, min_score_difference: float) -> Pair:
    """`HuggingFaceH4/ultrafeedback_binarized`: chosen and rejected are whole conversations, each with a score."""
    require_difference(number(row, "score_chosen") - number(row, "score_rejected"), min_score_difference)
    pair = split_conversations(messages(row, "chosen"), messages(row, "rejected"))
    if pair.prompt[-1]["content"] != text(row, "prompt"):
        raise Rejected("malformed", "chosen and rejected do not answer the row's prompt")
    return pair


def from_webgpt_comparisons(row: dict, min_score_difference: float) -> Pair:
    """`openai/webgpt_comparisons`: two answers to a question, scored from -1 to 1; the higher score is chosen."""
    question = row.get("question")
    prompt = text(question, "full_text") if isinstance(question, dict) else text(row, "question")
    difference = number(row, "score_0") - number(row, "score_1")
    require_difference(abs(difference), min_score_difference)
    answers = text(row, "answer_0"), text(row, "answer_1")
    chosen, rejected = answers if difference > 0 else answers[::-1]
    return Pair([{"role": "user", "content": prompt}], chosen, rejected)


def from_shp(row: dict, min_score_ratio: float) -> Pair:
    """`stanfordnlp/SHP`: a post and two comments; label 1 prefers A, 0 prefers B, by votes of the ratio score_ratio."""
    label = row.get("labels")
    if label in ("0", "1"):  # from a CSV file
        label = int(label)
    if isinstance(label, bool) or label not in (0, 1):
        raise Rejected("malformed", f"labels is {shown(label)}; it must be 1 (A is preferred) or 0 (B is preferred)")
    ratio = number(row, "score_ratio")
    if ratio < min_score_ratio:
        raise Rejected(
            "low_confidence", f"the votes differ by a factor of {ratio:g}, below min_score_ratio = {min_score_ratio:g}"
        )
    answers = text(row, "human_ref_A"), text(row, "human_ref_B")
    chosen, rejected = answers if label == 1 else answers[::-1]
    return Pair([{"role": "user", "content": text(row, "history")}], chosen, rejected)


def require_difference(difference: float, least: float) -> None:
    """Raise `Rejected` unless one answer scores higher than the other by more than `least`."""
    if not difference > least:
        raise Rejected(
            "low_confidence", f"the scores differ by {difference:g}, not more than min_score_difference = {least:g}"
        )


def split_conversations(chosen: Messages, rejected: Messages) -> Pair:
    """Return the pair of two conversations that are the same up to their last turn, an assistant's."""
    if chosen[:-1] != rejected[:-1]:
        raise Rejected("malformed", "the conversations of chosen and rejected part before their last turn")
    for name, conversation in (("chosen", chosen), ("rejected", rejected)):
        if conversation[-1]["role"] != "assistant":
            raise Rejected("malformed", f"{name} does not end with an assistant's turn")
    return Pair(checked_prompt(chosen[:-1]), chosen[-1]["content"], rejected[-1]["content"])


def transcript(row: dict, column: str) -> Messages:
    """Return the turns of an hh-rlhf transcript; white space around each turn is the layout's, not the text's."""
    before, *parts = HH_TURN.split(text(row, column))
    if before.strip() or not parts:
        raise Rejected("malformed", f'{column} does not begin with "\\n\\nHuman:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2], strict=True)]


def messages(row: dict, column: str) -> Messages:
    """Return a column that holds a list of messages; of a prompt, the last one must be the user's."""
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise Rejected("malformed", f"{column} is {kind(value)}; it must be a list of messages")
    for place, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise Rejected("malformed", f'{column}: message {place} is not {{"role": …, "content": …}}')
        if message["role"] not in ROLES:
            raise Rejected(
                "malformed",
                f"{column}: message {place} has role {shown(message['role'])}; known are {', '.join(ROLES)}",
            )
        if not isinstance(message["content"], str):
            raise Rejected(
                "malformed", f"{column}: message {place} has {kind(message['content'])} as content, not text"
            )
    conversation = [{"role": message["role"], "content": message["content"]} for message in value]
    return checked_prompt(conversation) if column == "prompt" else conversation


def checked_prompt(prompt: Messages) -> Messages:
    """Return the prompt if it ends with the user's turn and has a system turn at most at its start."""
    if not prompt or prompt[-1]["role"] != "user":
        raise Rejected("malformed", "the prompt does not end with a user's turn")
    if any(message["role"] == "system" for message in prompt[1:]):
        raise Rejected("malformed", "a system turn stands after the first turn")
    return prompt


def answer(row: dict, column: str, prompt: Messages) -> str:
    """Return an answer: a text, or one assistant's message, with or without the prompt's messages before it."""
    if not isinstance(row.get(column), list):
        return text(row, column)
    conversation = messages(row, column)
    if conversation[: len(prompt)] == prompt:
        conversation = conversation[len(prompt) :]
    if [message["role"] for message in conversation] != ["assistant"]:
        raise Rejected("malformed", f"{column} must be one assistant's message, alone or after the prompt's messages")
    return conversation[0]["content"]


def text(row: dict, column: str) -> str:
    """Return a column that must hold text."""
    if column not in row:
        raise Rejected("malformed", f"{column} is missing")
    if not isinstance(row[column], str):
        raise Rejected("malformed", f"{column} is {kind(row[column])}; it must be text")
    return row[column]


def number(row: dict, column: str) -> float:
    """Return a column that must hold a finite number; CSV files have it as text."""
    value = row.get(column)
    try:
        value = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise Rejected("malformed", f"{column} is {kind(row.get(column))}; it must be a number")
    return value


def shown(value: object) -> str:
    """Return a value as messages show it: a short text or number as it is, of anything else its type."""
    return repr(value) if isinstance(value, str | int | float) and len(str(value)) <= 80 else kind(value)


def kind(value: object) -> str:
    """Name a value's type as JSON does, for messages."""
    names = {type(None): "empty (null)", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
