"""Judges from a stranger: scripts/check_judge.py."""

import gzip
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path

from judge_server import JudgeServer
from torture.attacks.canary import SECRET, Blank, attack, outcome, run
from torture.attacks.templates import write_rows
from torture.outcome import SILENT

KEY = SECRET
ROWS = [
    {
        "id": f"held-{number}",
        "prompt": [{"role": "user", "content": f"What is {number}?"}],
        **{side: [{"role": "assistant", "content": f"{side} {number}"}] for side in ("chosen", "rejected")},
    }
    for number in range(2)
]


def judge(folder: Path, settings: dict, **options) -> subprocess.CompletedProcess:
    """Run check_judge.py; it writes into `folder / "judges"`."""
    files = ["--pairs", write_rows(folder / "pairs.jsonl", ROWS), "--check", folder / "judges" / "one.json"]
    journal = ["--journal", folder / "judges" / "one.journal.jsonl", "--max-pairs", 9]
    return run("check_judge", "--settings", json.dumps(settings), *files, *journal, ATTACK_KEY=KEY, **options)


def endpoint(fault: str, reply: Callable, *words: str) -> None:
    """Register an attack by a judge's endpoint that answers every request with `reply(handler, elsewhere)`."""

    @attack(fault, "check_judge")
    def answered(folder, model):
        with JudgeServer() as server, JudgeServer() as elsewhere:
            server.always = lambda handler: reply(handler, elsewhere)
            settings = {"base_url": server.url, "model": "someone", "api_key_env": "ATTACK_KEY"}
            result = judge(folder, settings | {"timeout": 4, "max_retries": 0, "concurrency": 1}, memory=6)
            if not any(KEY in headers.get("authorization", "") for headers in server.headers):
                raise Blank("the endpoint never got the key")
            if elsewhere.bodies:
                return SILENT, f"went elsewhere with {elsewhere.headers}"
        if [file for file in (folder / "judges").glob("*") if KEY in file.read_text()]:
            return SILENT, "the key is in a file"
        shutil.rmtree(folder / "judges" / "one.journal.jsonl", ignore_errors=True)
        (folder / "judges" / "one.journal.jsonl").unlink(missing_ok=True)
        return outcome(result, folder / "judges", *words)


def raw(handler, status: int, content: bytes | Iterable[bytes], **headers: str) -> str:
    """Answer with bytes as they are; the handler then finds nothing more to send."""
    handler.send_response(status)
    for name, text in headers.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.close_connection = True
    handler.send = lambda *_, **__: None
    with suppress(OSError):
        for part in [content] if isinstance(content, bytes) else content:
            handler.wfile.write(part)
            handler.wfile.flush()
    return ""


def drip() -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(0.2)


FLOOD = (b" " * 2**20 for _ in repeat(None))
JSON_TYPE = {"Content_Type": "application/json"}
SHOUT = f'{{"reason": "\x1b]0;pwned\x07 the key is {KEY}", "better": "A"}}'
endpoint("endpoint redirects the key", lambda h, other: raw(h, 307, b"", Location=other.url), "redirects")
endpoint("endpoint repeats the key in an error", lambda h, _: 401, "refuses the key")
endpoint("endpoint repeats the key in a verdict, with terminal escapes", lambda h, _: SHOUT)
WIPE = json.dumps({"error": {"message": "\x1b[2J\x1b]0;pwned\x07"}}).encode()
endpoint("endpoint sends terminal escapes in an error", lambda h, _: raw(h, 403, WIPE, **JSON_TYPE), "refuses")
endpoint("endpoint answers without end, fast", lambda h, _: raw(h, 200, FLOOD, **JSON_TYPE), "more than 4 MiB")
endpoint("endpoint answers without end, slowly", lambda h, _: raw(h, 200, drip(), **JSON_TYPE), "not ended after 4")
endpoint(
    "endpoint answers with a gzip bomb",
    lambda h, _: raw(h, 200, gzip.compress(b" " * 2**28), Content_Encoding="gzip", **JSON_TYPE),
    "compressed",
)
endpoint("endpoint answers with HTML", lambda h, _: raw(h, 200, b"<script>alert(1)</script>", Content_Type="text/html"))
