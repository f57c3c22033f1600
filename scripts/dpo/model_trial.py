"""Loading a stranger's model once, in processes of their own that have only so much time and memory.

Both a config and a chat template can ask for more than there is: the one with its numbers, the other as a program.
"""

import os
import resource
import signal
from pathlib import Path

from dpo import child_process
from dpo.cli import UserError

MEMORY = 4 << 30  # bytes, beside the weights, which are only mapped
SECONDS = 120  # for the files of a model, which may lie on a slow disk
RENDERING_SECONDS = 5
TRIED = [
    [{"role": "user", "content": "Why?"}],
    [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "When?"},
    ],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}],
]


def limit(seconds: int, memory: int) -> None:
    """Have the kernel end this process after so many seconds, and refuse it more memory than so many bytes."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a handler in Python would wait for the end of a long operation
    signal.alarm(seconds)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory if most == resource.RLIM_INFINITY else min(memory, most), most))


def load(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    """Load tokenizer and model, the latter without its weights; return chat template and special tokens.

    Raises:
        UserError: they cannot be loaded, or config and weights do not fit each other: what has no weight in the files
            would be filled with random numbers.
    """
    crashed = (
        f"{name} cannot be loaded: config.json or the tokenizer asks for more than {SECONDS} seconds, or crashed it"
    )
    return child_process.run(crashed, _load, folder, name)


def _load(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # noqa: F401, its libraries take address space that is none of the model's
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    files = list(folder.glob("*.safetensors"))
    limit(SECONDS, MEMORY + 2 * sum(file.stat().st_size for file in files))
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    except Exception as error:  # the files are a stranger's, and their reader raises whatever it stumbles on
        raise UserError(
            f"{name} has no usable tokenizer (tokenizer.json, tokenizer_config.json): {describe(error)}"
        ) from None
    if not template:
        raise UserError(f"{name} has no chat template; DPO on conversations needs an instruct model")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name} has no end token (eos_token in tokenizer_config.json)")
    try:
        layers = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().num_hidden_layers
        tensors = sum(len(safe_open(file, framework="np").keys()) for file in files)
        if layers > tensors:  # or building them would take all there is of time and memory
            raise ValueError(f"num_hidden_layers is {layers}, but there are only {tensors} weight tensors")
        options = {"trust_remote_code": False, "use_safetensors": True, "ignore_mismatched_sizes": True}
        _, found = AutoModelForCausalLM.from_pretrained(folder, device_map="meta", output_loading_info=True, **options)
    except Exception as error:
        raise UserError(f"{name}: config.json and the weights are not of one model: {describe(error)}") from None
    for key, stored, expected in sorted(found["mismatched_keys"]):
        raise UserError(f"{name}: by config.json {key} is {tuple(expected)} weights, but the file has {tuple(stored)}")
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{name}: by config.json the model has {missing[0]} and {len(missing) - 1} more that its weights lack"
        )
    return template, dict(tokenizer.special_tokens_map)


def render(template: str, tokens: dict[str, str], name: str) -> None:
    """Render conversations with a chat template. Raises `UserError` where it refuses a plain one, or does not end."""
    crashed = f"{name}: the chat template does not end within {RENDERING_SECONDS} seconds; is it a loop?"
    child_process.run(crashed, _render, template, tokens, name)


def _render(template: str, tokens: dict[str, str], name: str) -> None:
    from jinja2.exceptions import SecurityError
    from transformers.utils.chat_template_utils import render_jinja_template

    limit(RENDERING_SECONDS, MEMORY)
    for number, conversation in enumerate(TRIED):
        try:
            render_jinja_template([conversation], chat_template=template, add_generation_prompt=True, **tokens)
        except Exception as error:  # a template is a program, and raises what it likes
            if number == 0 or isinstance(error, SecurityError | MemoryError):
                raise UserError(f"{name}: the chat template cannot be rendered: {describe(error)}") from None


def describe(error: Exception) -> str:
    """Return an error's type and text in one line, not too long for a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
