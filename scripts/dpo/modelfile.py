"""An Ollama Modelfile that says the same as the model's Jinja chat template.

Ollama renders Go templates, not Jinja. What the chat template puts around each message is found by rendering marked
messages, and put together again in Go's notation. Format: Ollama's Modelfile reference and its parser/parser.go, which
silently drops what cannot be printed; values: its template/template.go, which joins messages of one role that follow
each other before the TEMPLATE sees them. A chat template that strips white space around messages cannot be followed in
that, since Go templates cannot strip.
"""

import re
import unicodedata
from dataclasses import dataclass

from jinja2 import TemplateError

from dpo.cli import UserError

# Conversations to compare, besides the prompts alone: every role, and what Go, Jinja or a Modelfile could misread.
ASKED = [
    ("user", 'How?\nAnd "why" {{ .Role }}?'),
    ("assistant", 'So:\n\n- """it""" \\n {% raw %}'),
    ("user", "When? é"),
]
SYSTEM = [("system", "Be {{ brief }},\n\nand kind.")]
CONVERSATIONS = [ASKED, SYSTEM + ASKED[:1], SYSTEM + ASKED]


def kept(character: str) -> bool:
    """Tell whether Ollama keeps a character of a Modelfile, whatever Unicode version its Go has: 3.2 or any since."""
    return character in "\n\t" or (character.isprintable() and unicodedata.ucd_3_2_0.category(character) != "Cn")


@dataclass(frozen=True)
class Parts:
    """What a chat template puts around the texts of a conversation."""

    start: str  # before the first turn
    without_system: str  # after `start`, unless the first turn is a system turn
    turns: dict[str, tuple[str, str]]  # role: what opens its turn, what closes it; a role that is not here is left out
    header: str  # opens the answer

    def render(self, messages: list[tuple[str, str]]) -> str:
        """Put (role, text) messages together as the Modelfile makes Ollama do."""
        beginning = self.start if messages[0][0] == "system" else self.start + self.without_system
        turns = [(*self.turns[role], text) for role, text in messages if role in self.turns]
        return beginning + "".join(opening + text + closing for opening, closing, text in turns) + self.header

    @property
    def default_system(self) -> str:
        """The system text that conversations without one get, as far as a Modelfile's SYSTEM can say it; else empty."""
        opening, closing = self.turns.get("system", ("", ""))
        text = self.without_system.removeprefix(opening).removesuffix(closing)
        sayable = '"""' not in text and all(map(kept, text)) and opening + text + closing == self.without_system
        return text if sayable else ""


def render(tokenizer, messages: list[tuple[str, str]], header: bool = True) -> str:
    """Render (role, text) messages with the chat template; `header` opens the assistant's turn at the end.

    A start token that llama.cpp puts before every text by itself is left out: in a Modelfile it would come twice.
    """
    conversation = [{"role": role, "content": text} for role, text in messages]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=header)
    if tokenizer.bos_token and tokenizer("x").input_ids[0] == tokenizer.bos_token_id:
        rendered = rendered.removeprefix(tokenizer.bos_token)
    return rendered


def between(tokenizer, *roles: str, header: bool = True) -> list[str]:
    """Return what the chat template writes before, between and after the texts of these roles' messages.

    Raises:
        ValueError: it does not write each text once, in order and unchanged.
    """
    marks = [f"\u27e6{place}\u27e7" for place in range(len(roles))]
    rendered = render(tokenizer, list(zip(roles, marks, strict=True)), header)
    if re.findall("\u27e6\\d+\u27e7", rendered) != marks:
        raise ValueError("the texts are not in their places")
    return re.split("\u27e6\\d+\u27e7", rendered)


def turn_parts(tokenizer) -> Parts:
    """Find what the chat template puts around texts, if it puts its turns one after another; else the parts are wrong.

    Raises:
        ValueError: it does not write each user and assistant text once, in order and unchanged.
        TemplateError: it refuses a conversation of user and assistant.
    """
    before, asked = between(tokenizer, "user")
    user_close = between(tokenizer, "user", header=False)[1]
    header = asked.removeprefix(user_close)
    assistant_close = between(tokenizer, "user", "assistant")[2].removesuffix(header)
    _, answering, asking, _ = between(tokenizer, "user", "assistant", "user")
    user_open = asking.removeprefix(assistant_close)
    turns = {"user": (user_open, user_close), "assistant": (answering.removeprefix(user_close), assistant_close)}
    beginning = before.removesuffix(user_open)
    try:
        system_open, after_system, _ = between(tokenizer, "system", "user")
    except (TemplateError, ValueError):
        return Parts(beginning, "", turns, header)  # system messages are refused or left out
    try:  # a system turn further on tells the start of the text from the start of the turn
        later_open = between(tokenizer, "user", "assistant", "system", "user")[2].removeprefix(assistant_close)
    except (TemplateError, ValueError):
        later_open = system_open
    start = system_open.removesuffix(later_open) if system_open.endswith(later_open) else ""
    turns = {"system": (system_open.removeprefix(start), after_system.removesuffix(user_open)), **turns}
    return Parts(start, beginning.removeprefix(start), turns, header)


def go_text(text: str) -> str:
    r"""Return text as a Go template inside a Modelfile's three quotes; what either would misread or drop as "\U…"."""
    return "".join(
        character if kept(character) and character not in '{"' else f'{{{{ "\\U{ord(character):08x}" }}}}'
        for character in text
    )


def go_template(parts: Parts) -> str:
    """Return the Go template that renders Ollama's .Messages as `parts.render` does, if SYSTEM says the default."""
    text = go_text(parts.start)
    if parts.without_system and not parts.default_system:
        text += f'{{{{ if ne (index .Messages 0).Role "system" }}}}{go_text(parts.without_system)}{{{{ end }}}}'
    turns = [
        f'if eq .Role "{role}" }}}}{go_text(opening)}{{{{ .Content }}}}{go_text(closing)}{{{{ '
        for role, (opening, closing) in parts.turns.items()
    ]
    return f"{text}{{{{ range .Messages }}}}{{{{ {'else '.join(turns)}end }}}}{{{{ end }}}}{go_text(parts.header)}"


def write_modelfile(tokenizer, gguf_name: str, prompts: list[str]) -> str:
    """Return the text of a Modelfile, after checking that it renders conversations as the chat template does.

    Args:
        tokenizer: tokenizer with the chat template.
        gguf_name: file name of the GGUF, which lies beside the Modelfile.
        prompts: user prompts to compare both renderings on, besides conversations of several turns and system texts.

    Raises:
        UserError: the chat template cannot be expressed.
    """
    advice = "give the base model a chat template that only puts something around each message, such as ChatML"
    try:
        parts = turn_parts(tokenizer)
    except (TemplateError, ValueError) as error:
        raise UserError(f"the chat template cannot be written as an Ollama Modelfile: {error}; {advice}") from None
    for messages in [*([("user", prompt)] for prompt in prompts), *CONVERSATIONS]:
        try:
            wanted = render(tokenizer, messages)
        except TemplateError:
            continue  # a conversation that the chat template refuses has no text to match
        if parts.render(messages) != wanted:
            raise UserError(
                f"the chat template cannot be written as an Ollama Modelfile: it writes {messages!r} as {wanted!r}, "
                f"the Modelfile would write {parts.render(messages)!r}; if only white space at the ends of the prompt "
                f"differs, take it off; else {advice}"
            )
    ends = parts.turns["user"][0] + parts.turns["assistant"][1]
    stops = sorted({tokenizer.eos_token, *(token for token in tokenizer.all_special_tokens if token in ends)})
    if unsayable := [stop for stop in stops if not all(map(kept, stop)) or {*'"\n'} & {*stop}]:
        # It would end its line, and what follows would be an instruction of its own.
        raise UserError(f"an Ollama Modelfile cannot name the token {unsayable[0]!r}; give the base model another")
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{go_template(parts)}"""']
    if parts.default_system:
        lines.append(f'SYSTEM """{parts.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"
