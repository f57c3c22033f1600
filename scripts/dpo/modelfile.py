"""An Ollama Modelfile that says the same as the model's Jinja chat template.

Ollama renders Go templates, not Jinja. The pieces of the template (what opens and closes each turn) are found by
rendering marked messages, and put together again in Go's notation. Format: Ollama's Modelfile reference.
"""

from dpo.cli import UserError

SYSTEM, USER, ASSISTANT = "\u27e6system\u27e7", "\u27e6user\u27e7", "\u27e6assistant\u27e7"


def render(tokenizer, messages: list[tuple[str, str]], header: bool = False) -> str:
    """Render (role, text) messages with the chat template; `header` opens the assistant's turn at the end."""
    conversation = [{"role": role, "content": text} for role, text in messages]
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=header)


def turn_parts(tokenizer) -> dict[str, str]:
    """Return what the chat template puts around a system text, a user text and an assistant text.

    Raises:
        UserError: the template does not put its turns one after another, so Go's notation cannot say it.
    """
    system_turn = render(tokenizer, [("system", SYSTEM)])
    asked = render(tokenizer, [("system", SYSTEM), ("user", USER)], header=True)
    answered = render(tokenizer, [("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT)])
    unasked = render(tokenizer, [("user", USER)], header=True)
    try:
        system_open, system_close = system_turn.split(SYSTEM)
        user_open, assistant_open = asked.removeprefix(system_turn).split(USER)
        assistant_close = answered.split(ASSISTANT)[1]
        preamble = unasked.split(user_open + USER + assistant_open)[0]
        default_system = preamble.removeprefix(system_open).removesuffix(system_close)
    except (ValueError, IndexError):
        raise UserError(
            "the chat template cannot be written as an Ollama Modelfile: its turns are not separate"
        ) from None
    return {
        "system_open": system_open,
        "system_close": system_close,
        "default_system": default_system,
        "user_open": user_open,
        "assistant_open": assistant_open,
        "assistant_close": assistant_close,
    }


def write_modelfile(tokenizer, gguf_name: str, prompts: list[str]) -> str:
    """Return the text of a Modelfile, after checking that it renders the prompts as the chat template does.

    Args:
        tokenizer: tokenizer with the chat template.
        gguf_name: file name of the GGUF, which lies beside the Modelfile.
        prompts: user prompts to compare both renderings on.

    Raises:
        UserError: the chat template cannot be expressed, or renders differently.
    """
    parts = turn_parts(tokenizer)
    if any(mark in text for text in parts.values() for mark in ("{{", '"""')):
        raise UserError("the chat template cannot be written as an Ollama Modelfile: it holds {{ or three quotes")
    system = (
        f"{parts['system_open']}{parts['default_system']}{parts['system_close']}" if parts["default_system"] else ""
    )
    for prompt in prompts:
        rendered = system + parts["user_open"] + prompt + parts["assistant_open"]
        if rendered != render(tokenizer, [("user", prompt)], header=True):
            raise UserError(f"the Modelfile would render this prompt differently from the chat template: {prompt!r}")
    template = (
        f"{{{{ if .System }}}}{parts['system_open']}{{{{ .System }}}}{parts['system_close']}{{{{ end }}}}"
        f"{parts['user_open']}{{{{ .Prompt }}}}{parts['assistant_open']}{{{{ .Response }}}}{parts['assistant_close']}"
    )
    stops = sorted(
        {tokenizer.eos_token, *(token for token in tokenizer.all_special_tokens if token in parts["user_open"])}
    )
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{template}"""']
    if parts["default_system"]:
        lines.append(f'SYSTEM """{parts["default_system"]}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"
