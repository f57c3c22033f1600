"""A hub on this machine: enough of the Hugging Face hub's protocol for its own client to download a repository.

    with HubServer() as hub:
        hub.add("someone/model", commit, folder)
        hub.add("someone/pairs", commit, folder, kind="dataset")
        # a program whose environment says HF_ENDPOINT=hub.url now downloads from it

As on the real hub, small files are answered directly, and large ones (`LFS_SUFFIXES`) by a redirect to a second place,
with their SHA-256 as ETag. Set `hub.cuts[file]` to have the connection cut half-way through that file, and `hub.down`
to have every request answered with status 503.
"""

import hashlib
import json
import os
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".gz", ".parquet")
REPOSITORY = r"(?P<repo>[^/]+/[^/]+)"
INFORMATION = re.compile(rf"/api/(?P<kind>model|dataset)s/{REPOSITORY}/revision/(?P<revision>[^/]+)")
FILE = re.compile(
    rf"(?P<storage>/storage)?/(?:(?P<kind>dataset)s/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)


def environment(home: Path, endpoint: str) -> dict[str, str]:
    """Return this process's environment for a program that asks `endpoint` and keeps its cache in `home`.

    Of this machine's own settings for the hub (token, mirror, cache, proxy), none reaches the program.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return inherited | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "NO_PROXY": "*",
    }


class HubServer:
    """Serves folders as hub repositories on a free port of the loopback interface, until the `with` block ends.

    Attributes:
        url: where it listens.
        requests: what was asked for, as "GET /path" or "GET /path from byte 123", in order.
        cuts: how many more times the connection is cut half-way through a file, by the file's name.
        down: answer everything with "503 Service Unavailable".
    """

    def __init__(self):
        self.requests: list[str] = []
        self.cuts: Counter[str] = Counter()
        self.down = False
        self._repos: dict[tuple[str, str], dict[str, tuple[str, Path]]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host name, as the real hub keeps large files elsewhere; the client then takes another way.
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def add(self, repo: str, commit: str, folder: Path, kind: str = "model") -> None:
        """Serve the files of `folder`, and of the folders in it, as one commit of a repository, and as its `main`.

        A model and a dataset (`kind`) may have the same name, as on the real hub.
        """
        self._repos.setdefault((kind, repo), {}).update({commit: (commit, folder), "main": (commit, folder)})

    def find(self, kind: str, repo: str, revision: str) -> tuple[str, Path]:
        """Return commit and folder of a revision, or raise `_HubError` as the hub answers for one that it has not."""
        revisions = self._repos.get((kind, repo))
        if revisions is None:
            # The real hub says the same of a missing repository and of one that the asker may not see.
            raise _HubError(401, "RepoNotFound", "Invalid username or password.")
        if revision not in revisions:
            raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revisions[revision]

    def __enter__(self) -> "HubServer":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


class _HubError(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int(re.sub(r"\D", "", self.headers["Range"])) if "Range" in self.headers else 0
        self.hub.requests.append(f"{self.command} {path}" + (f" from byte {start}" if start else ""))
        try:
            if self.hub.down:
                raise _HubError(503, "ServiceUnavailable", "The hub is being mended.")
            if match := INFORMATION.fullmatch(path):
                self.answer_information(**match.groupdict())
            elif match := FILE.fullmatch(path):
                self.answer_file(**match.groupdict(), start=start)
            else:
                raise _HubError(404, "EntryNotFound", f"no such page: {path}")
        except _HubError as error:
            self.send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    do_HEAD = do_GET

    def answer_information(self, kind: str, repo: str, revision: str) -> None:
        commit, folder = self.hub.find(kind, repo, revision)
        siblings = [{"rfilename": name} for name in _files(folder)]
        self.send(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())

    def answer_file(
        self, storage: str | None, kind: str | None, repo: str, revision: str, file: str, start: int
    ) -> None:
        commit, folder = self.hub.find(kind or "model", repo, revision)
        path = _files(folder).get(file)
        if path is None:
            raise _HubError(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{_sha256(content)}"'}
        if file.endswith(LFS_SUFFIXES) and not storage:
            headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
            # The real hub offers its Xet protocol too. Here is nobody who speaks it: a client must do without.
            headers |= {"X-Xet-Hash": _sha256(content), "Link": f'<{self.hub.url}/xet>; rel="xet-auth"'}
            self.send(302, b"", headers | {"Location": f"{self.hub.storage_url}/storage{self.path}"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = None
        if self.command == "GET" and self.hub.cuts[file] > 0:
            self.hub.cuts[file] -= 1
            cut = max(0, len(content) // 2 - start)
        self.send(206 if start else 200, content[start:], headers, cut)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        """Send an answer; with `cut`, promise all of it but break off after that many bytes."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        self.close_connection = cut is not None

    def log_message(self, *_) -> None:
        """Keep the test output quiet."""


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
