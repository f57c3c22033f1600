"""A judge behind an address on this machine: enough of OpenAI's protocol for its own client, and every fault on order.

    with JudgeServer(oracle) as server:
        settings = {"base_url": server.url, "model": "someone"}

`oracle` gets the texts of answer A and answer B and returns "A", "B" or "tie". Put replies into `server.next` (a
status, a text to say, or a function of the handler) to have the next requests answered by them instead, and set
`server.always` to have all of them.
"""

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

ANSWER = r"\[answer {} (\w+)\]\n(.*?)\n\[end of answer {} \1\]"


def texts(body: dict) -> tuple[str, str]:
    """Return answers A and B of a request."""
    user = body["messages"][1]["content"]
    return tuple(re.search(ANSWER.format(name, name), user, re.DOTALL)[2] for name in "AB")


class JudgeServer:
    """Answers chat completions on a free port of the loopback interface, until the `with` block ends.

    Attributes:
        url: what to set as `base_url`.
        bodies, headers: of each request, in order; the headers' names in lower case.
        answered: of each request with status 200, the two texts that it showed.
        next, always: see the module.
    """

    def __init__(self, decide: Callable[[str, str], str] = lambda a, b: "tie"):
        self.decide = decide
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.answered: list[tuple[str, str]] = []
        self.next: list = []
        self.always = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"judge": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "JudgeServer":
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.judge.bodies.append(self.body)
        self.judge.headers.append({name.lower(): value for name, value in self.headers.items()})
        reply = self.judge.next.pop(0) if self.judge.next else self.judge.always
        if callable(reply):
            reply = reply(self)
        if reply is None:
            better = self.judge.decide(*texts(self.body))
            reply = json.dumps({"reason": f"{better} says more.", "better": better})
        if isinstance(reply, int):
            # A careless endpoint: it repeats the key.
            said = f"no luck with {self.headers['Authorization']}"
            self.send(reply, {"error": {"message": said, "code": None}})
        else:
            self.judge.answered.append(texts(self.body))
            self.send(200, {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": reply}}]})

    def do_GET(self) -> None:
        """Record that somebody came, say after a redirect."""
        self.judge.bodies.append({})
        self.send(200, {})

    def send(self, status: int, value: dict, **headers: str) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Keep the test output quiet."""
