"""Models that can be asked which of two answers is better: a GGUF on this machine, or an OpenAI-compatible endpoint.

    {"gguf": path}
    {"base_url": …, "model": …, "api_key_env": …, "timeout": 60, "max_retries": 3, "concurrency": 4}

`api_key_env` names the environment variable that holds the key, and may be left out with the numbers. A key goes into
the request's header and nowhere else; it is removed from whatever the endpoint says.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dpo.cli import UserError
from dpo.gguf_chat import open_gguf, run_in_child
from dpo.model_trial import MEMORY, RENDERING_SECONDS, TRIED, describe, limit

LONGEST_REASON = 240
# The reason comes first, so that the verdict follows from it and not the other way round.
SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": LONGEST_REASON},
        "better": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["reason", "better"],
    "additionalProperties": False,
}

CONTEXT = 4096  # tokens of a question and its answer, for a GGUF
ANSWER_TOKENS = 512  # for a GGUF: enough for the longest reason in most scripts
SEED = 0

ENDPOINT_KEYS = {"base_url", "model", "api_key_env", "timeout", "max_retries", "concurrency"}
TIMEOUT, MAX_RETRIES, CONCURRENCY = 60, 3, 4
ATTEMPTS = 3  # to get a usable answer out of an endpoint
# How to ask an endpoint for JSON, the best way first: OpenAI's, llama-cpp-python's (and Anyscale's), and one for models
# that refuse a temperature or a keyword of the schema.
JSON_SCHEMA = {"name": "verdict", "schema": SCHEMA}
DIALECTS = (
    {"temperature": 0, "response_format": {"type": "json_schema", "json_schema": JSON_SCHEMA | {"strict": True}}},
    {"temperature": 0, "response_format": {"type": "json_object", "schema": SCHEMA}},
    {"response_format": {"type": "json_schema", "json_schema": JSON_SCHEMA}},
)
# Error codes that are about one question; the next one may be answered.
REFUSALS = {
    "context_length_exceeded": "the question is longer than the judge's context",
    "content_filter": "the endpoint's filter refused the question",
}
LONGEST_FAULT = 300
LARGEST_ANSWER = 4 << 20  # bytes, of which a verdict needs a few hundred

# Messages → {"better": "A", "B", "tie" or None for no usable answer, "reason": text}
Ask = Callable[[list[dict[str, str]]], dict]


class EndpointFault(Exception):
    """An endpoint cannot be asked any more. The text says what happened, and holds no key."""


def check_settings(settings: dict) -> None:
    """Raise `UserError` unless the settings are those of a model that can be asked.

    A faulty `base_url` is not repeated: it may hold a password.
    """
    if "gguf" in settings:
        known = {"gguf"}
    else:
        known = ENDPOINT_KEYS
        if missing := {"base_url", "model"} - settings.keys():
            raise UserError(f"a judge in config.yaml lacks {' and '.join(sorted(missing))}; or give it a `gguf`")
        try:
            url = urlsplit(settings["base_url"])
            sound = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise UserError("`base_url` of a judge in config.yaml is no address; write it like https://host/v1")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise UserError(
                f"`base_url` of a judge in config.yaml ({url.scheme}://{url.hostname}…) must hold no name, password, "
                "query or fragment, since it is written into results; `api_key_env` names the variable with the key"
            )
    if unknown := settings.keys() - known:
        raise UserError(f"a judge in config.yaml has no setting {', '.join(sorted(unknown))}; known: {sorted(known)}")


def open_model(settings: dict) -> tuple[Ask, int]:
    """Return how to ask a judge, and how many questions it takes at once."""
    if "gguf" in settings:
        return open_local(Path(settings["gguf"])), 1
    return open_endpoint(settings), settings.get("concurrency", CONCURRENCY)


def read_verdict(content: str | None) -> dict | None:
    """Return `better` and `reason` of a model's answer, or None where it is not JSON of the schema."""
    try:
        value = json.loads(content, strict=False)  # llama-cpp-python's grammar lets line breaks into strings
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.keys() != {"reason", "better"} or not isinstance(value["reason"], str):
        return None
    if value["better"] not in ("A", "B", "tie"):
        return None
    # Control characters have no place in a report, and half of a surrogate pair cannot even be written to a file.
    reason = "".join(character for character in one_line(value["reason"]) if character.isprintable())
    return {"better": value["better"], "reason": reason[:LONGEST_REASON]}


def no_verdict(why: str = "") -> dict:
    """Return what is recorded of a question that got no usable answer."""
    return {"better": None, "reason": why}


def open_local(gguf: Path) -> Ask:
    """Load a GGUF, to be asked greedily with a grammar that allows nothing but the schema.

    Raises:
        UserError: llama.cpp cannot load the file, or it cannot chat.
    """
    try:
        run_in_child(try_local, gguf)
    except UserError as error:
        raise UserError(f"the judge's file {gguf} cannot be loaded: {error}; is it a whole GGUF?") from None
    except KeyError:
        raise UserError(f"the judge's file {gguf} has no chat template; a judge must be an instruct model") from None
    llama, formatter = open_gguf(gguf, CONTEXT)
    trained = int(llama.metadata[f"{llama.metadata['general.architecture']}.context_length"])

    def ask(messages: list[dict[str, str]]) -> dict:
        try:
            rendered = formatter(messages=messages).prompt
        except Exception as error:  # as above
            raise UserError(f"the chat template of {gguf} refuses the question: {error}; take another judge") from None
        if len(llama.tokenize(rendered.encode(), add_bos=False, special=True)) + ANSWER_TOKENS > min(CONTEXT, trained):
            return no_verdict(REFUSALS["context_length_exceeded"])
        llama.reset()  # or the last bits of the logits would depend on what was asked before
        completion = llama.create_chat_completion(
            messages,
            response_format={"type": "json_object", "schema": SCHEMA},
            temperature=0.0,
            seed=SEED,
            max_tokens=ANSWER_TOKENS,
        )
        return read_verdict(completion["choices"][0]["message"]["content"]) or no_verdict()

    return ask


def try_local(gguf: Path) -> None:
    """Load a GGUF and render with its chat template, in a process that may crash or be ended in doing so."""
    llama, formatter = open_gguf(gguf, CONTEXT)
    int(llama.metadata[f"{llama.metadata['general.architecture']}.context_length"])
    limit(RENDERING_SECONDS, MEMORY + gguf.stat().st_size)
    try:
        formatter(messages=TRIED[0])
    except Exception as error:  # a template is a program, and raises what it likes
        raise UserError(f"its chat template cannot be rendered: {describe(error)}") from None


def read_key(settings: dict) -> str | None:
    """Return the key that an endpoint's settings name, or None where they name none.

    Raises:
        UserError: the variable is not set, or holds what no header can carry.
    """
    if "api_key_env" not in settings:
        return None
    name = settings["api_key_env"]
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"the judge's key is missing: set the environment variable {name}, which `api_key_env` names")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {name} holds characters that no key has; set it again")
    return key


def open_client(settings: dict, key: str | None):
    """Return an `openai.OpenAI` that takes everything from the settings, and nothing from variables of this machine.

    It repeats requests that time out, are refused for now (429) or fail (5xx), and follows no redirect: that would hand
    the key and the answers to an address that nobody named. It reads no answer that is too large or does not end.
    """
    timeout = settings.get("timeout", TIMEOUT)
    # Variables for other programs: an organisation, more headers, verbose logs. The client has no switch against them.
    ambient = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OPENAI_")}
    try:
        import httpx2 as httpx
        import openai

        class Bounded(httpx.SyncByteStream):
            def __init__(self, stream: httpx.SyncByteStream):
                self.stream, self.until = stream, time.monotonic() + timeout

            def __iter__(self) -> Iterator[bytes]:
                read = 0
                for part in self.stream:
                    read += len(part)
                    if read > LARGEST_ANSWER:
                        raise EndpointFault(f"an answer of more than {LARGEST_ANSWER >> 20} MiB, which no verdict has")
                    if time.monotonic() > self.until:
                        raise EndpointFault(f"an answer that has not ended after {timeout:g} seconds")
                    yield part

            def close(self) -> None:
                self.stream.close()

        def bound(response: httpx.Response) -> None:
            if response.headers.pop("Content-Encoding", "identity") != "identity":
                raise EndpointFault("a compressed answer, which was not asked for")
            response.stream = Bounded(response.stream)

        return openai.OpenAI(
            api_key=key or "none",
            base_url=settings["base_url"],
            timeout=timeout,
            default_headers={"Accept-Encoding": "identity"},
            max_retries=settings.get("max_retries", MAX_RETRIES),
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [bound]}),
        )
    finally:
        os.environ.update(ambient)


def open_endpoint(settings: dict) -> Ask:
    """Return how to ask an endpoint, which several threads may do.

    Asking raises `EndpointFault` when the client has given up.
    """
    key = read_key(settings)
    client = open_client(settings, key)
    import openai

    dialects = DIALECTS

    def without_key(text: str) -> str:
        return text.replace(key, "[key]") if key else text

    def complete(messages: list[dict[str, str]], seed: int) -> str | None:
        nonlocal dialects
        tried = dialects
        for dialect in tried:
            try:
                completion = client.chat.completions.create(
                    model=settings["model"], messages=messages, seed=seed, **dialect
                )
            except openai.APIStatusError as error:
                if dialect is tried[-1] or not is_about_dialect(error):
                    raise
            else:
                dialects = (dialect, *(other for other in tried if other is not dialect))
                return content_of(completion)

    def ask(messages: list[dict[str, str]]) -> dict:
        try:
            for attempt in range(ATTEMPTS):
                content = complete(messages, SEED + attempt)
                verdict = read_verdict(content and without_key(content))
                if verdict:
                    return verdict
            return no_verdict()
        except openai.APIStatusError as error:
            if str(error.code) in REFUSALS:
                return no_verdict(REFUSALS[error.code])
            raise EndpointFault(one_line(without_key(describe_status(error)))) from None
        except openai.APITimeoutError:
            raise EndpointFault(f"no answer within {client.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, EndpointFault):
                raise error.__cause__ from None
            raise EndpointFault(one_line(without_key(f"no connection ({error.__cause__ or error})"))) from None
        except openai.OpenAIError as error:
            raise EndpointFault(one_line(without_key(str(error)))) from None

    return ask


def is_about_dialect(error) -> bool:
    """Tell whether an endpoint may have refused the way of asking and not the question.

    llama-cpp-python's server answers a form of `response_format` that it does not know with status 500.
    """
    if str(error.code) in REFUSALS:
        return False
    return error.status_code in (400, 422) or (error.status_code == 500 and "response_format" in str(error))


def content_of(completion) -> str | None:
    """Return the text of a chat completion, or None where the endpoint sent something else with status 200."""
    try:
        content = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None


def describe_status(error) -> str:
    """Return what an endpoint's refusal means, and what it said."""
    status = error.status_code
    if 300 <= status < 400:
        return f"it redirects (status {status}), which is not followed; set `base_url` to the right address"
    if status in (401, 403):
        return f"it refuses the key (status {status}); check `api_key_env` and what the variable holds: {error}"
    return str(error)


def one_line(text: str) -> str:
    """Return a text without line breaks and what terminals take for commands, and not too long for a message."""
    return "".join(filter(str.isprintable, " ".join(text.split())))[:LONGEST_FAULT]
