"""What chat template and tokenizer make of a pair, as `trl.DPOTrainer` will train on it, checked token by token.

TRL tokenises the prompt with the header that opens the answer, and the whole conversation with each answer; what goes
beyond the prompt's ids is the completion (`DPOTrainer._prepare_dataset`). It then cuts what is longer than `max_length`
at its end, and drops pairs whose prompt alone is that long. All of this is foreseen here and counted.
"""

import re
from dataclasses import dataclass

from dpo.chat import conversation
from dpo.layouts import Messages, Pair, Rejected


@dataclass
class Lengths:
    """Tokens of a pair's parts, before anything is cut: the prompt with the answer's header, and each completion."""

    prompt: int
    chosen: int
    rejected: int


class Tokenisation:
    """Measures pairs with one tokenizer under one pair of limits.

    Args:
        tokenizer: of the base model, with its chat template.
        settings: `max_length` and `max_prompt_length`, in tokens.
    """

    def __init__(self, tokenizer, settings: dict):
        self.tokenizer = tokenizer
        self.settings = settings
        self.special_ids = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        tokens = sorted(map(tokenizer.convert_ids_to_tokens, self.special_ids), key=len, reverse=True)
        self.special_text = re.compile("|".join(map(re.escape, tokens)))
        self.patterns: dict[tuple[str, ...], list[int]] = {}

    def find_special(self, text: str) -> str | None:
        """Return the first special token that stands in a text, which the tokenizer would take for the real one."""
        match = self.special_text.search(text)
        return match[0] if match else None

    def measure(self, pairs: list[Pair]) -> list[Lengths | Rejected]:
        """Return the lengths of each pair, or why it cannot be trained on."""
        try:
            return [self.check(pair, *ids) for pair, ids in zip(pairs, self.tokenise(pairs), strict=True)]
        except Exception as error:  # a template is a program, and raises what it likes
            if len(pairs) == 1:
                return [Rejected("malformed", f"the chat template refuses the conversation: {error}")]
            return [self.measure([pair])[0] for pair in pairs]

    def tokenise(self, pairs: list[Pair]) -> zip:
        """Return the token ids of each pair's prompt, prompt with chosen and prompt with rejected answer."""
        prompts = [pair.prompt for pair in pairs]
        chosen = [[*pair.prompt, {"role": "assistant", "content": pair.chosen}] for pair in pairs]
        rejected = [[*pair.prompt, {"role": "assistant", "content": pair.rejected}] for pair in pairs]
        ids = self.encode(prompts, header=True) + self.encode(chosen + rejected)
        return zip(*(ids[start : start + len(pairs)] for start in range(0, len(ids), len(pairs))), strict=True)

    def encode(self, conversations: list[Messages], header: bool = False) -> list[list[int]]:
        """Return the token ids of conversations; with `header`, the assistant's turn is opened at the end."""
        rendered = self.tokenizer.apply_chat_template(conversations, add_generation_prompt=header, tokenize=False)
        # Not through transformers, which makes a dictionary of each result.
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast(rendered, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def special_pattern(self, roles: tuple[str, ...]) -> list[int]:
        """Return the special tokens that a conversation of these roles must have, in order: those of the template."""
        if roles not in self.patterns:
            plain = [{"role": role, "content": "x"} for role in roles]
            self.patterns[roles] = [index for index in self.encode([plain])[0] if index in self.special_ids]
        return self.patterns[roles]

    def check(self, pair: Pair, prompt: list[int], chosen: list[int], rejected: list[int]) -> Lengths | Rejected:
        """Return a pair's lengths if the prompt's ids begin both conversations and each special token is in place."""
        expected = self.special_pattern((*(message["role"] for message in pair.prompt), "assistant"))
        for side, whole in (("chosen", chosen), ("rejected", rejected)):
            if [index for index in whole if index in self.special_ids] != expected:
                return Rejected("special_tokens", f"{side}: other start and end tokens than the chat template's own")
            if whole[: len(prompt)] != prompt:
                return Rejected(
                    "boundary_merge",
                    f"{side}: its first characters {getattr(pair, side)[:8]!r} merge with the end of the prompt into "
                    "one token, so that the model would see another prompt in training than in use",
                )
        longest_prompt, longest = self.settings["max_prompt_length"], self.settings["max_length"]
        if len(prompt) > longest_prompt:
            return Rejected(
                "prompt_too_long",
                f"the prompt is {len(prompt)} tokens in the chat template, over max_prompt_length = {longest_prompt}",
                len(prompt),
            )
        if len(prompt) >= longest:
            return Rejected(
                "no_room", f"the prompt alone is {len(prompt)} tokens, max_length is {longest}", len(prompt)
            )
        return Lengths(len(prompt), len(chosen) - len(prompt), len(rejected) - len(prompt))

    def prompt_length(self, prompt: str) -> int:
        """Return the tokens of a single-turn prompt with the header that opens the answer."""
        return len(self.encode([conversation(prompt)], header=True)[0])
