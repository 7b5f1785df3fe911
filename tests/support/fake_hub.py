"""A Hugging Face Hub on loopback, for tests: what the Hub's clients ask for, over HTTP, from a folder.

In: a folder of `models/<organisation>/<name>/...` and `datasets/<organisation>/<name>/...`. Out: an
endpoint for HF_ENDPOINT, and an account of every request. `publish` makes a commit of each repository
that has changed; older commits stay served. As on the Hub, large files are not sent by it but by
another origin, to which it redirects (here the same server under another name), and a repository that
does not exist and one that may not be seen look alike.

It can be told to fail: to answer with a status, or to stop answering at some byte of a reply.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE_FILES = (".safetensors", ".bin", ".parquet")  # kept in Git LFS, sent by another origin
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
FILE = re.compile(
    r"/(?P<cdn>cdn/)?(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
    r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass(frozen=True)
class Blob:
    """One file of a commit."""

    content: bytes
    large: bool

    @functools.cached_property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Repository:
    """Commits by their SHA, and the branches and tags that name them."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request, and the bytes of a file that were sent in reply."""

    method: str
    path: str
    host: str
    token: str | None
    status: int
    sent: int


@dataclass(frozen=True)
class Fault:
    """What becomes of a request whose method and path fit `pattern`: a status, or a stall after `after`
    bytes of the reply's body (None: before its first line)."""

    pattern: str
    status: int | None = None
    after: int | None = None


class FakeHub:
    """A Hub over `folder`. `gated` and `private` name the token that opens a repository, by its
    `models/<organisation>/<name>`; `faults` are tried in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.gated: dict[str, str] = {}
        self.private: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}/cdn"
        self.publish()

    def publish(self) -> None:
        """Make what the folder holds the commit that `main` stands at, where it has changed."""
        for folder in sorted(self.folder.glob("*/*/*")):
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            commit = {
                path: Blob(content, path.endswith(LARGE_FILES)) for path, content in files.items()
            }
            names = "".join(f"{path} {blob.git_id}\n" for path, blob in commit.items())
            sha = hashlib.sha1(names.encode()).hexdigest()
            name = folder.relative_to(self.folder).as_posix()
            repository = self.repositories.setdefault(name, Repository())
            repository.commits[sha] = commit
            repository.refs["main"] = sha

    def tag(self, repository: str, name: str) -> None:
        """Give the commit that `main` stands at a name."""
        self.repositories[repository].refs[name] = self.sha(repository)

    def sha(self, repository: str) -> str:
        """The commit that `main` stands at."""
        return self.repositories[repository].refs["main"]

    def files(self, repository: str) -> list[str]:
        """The paths in the commit that `main` stands at."""
        return [*self.repositories[repository].commits[self.sha(repository)]]

    def sent(self, repository: str, path: str = "") -> int:
        """Bytes sent so far of one file of a repository, or of all of them."""
        prefix = repository.removeprefix("models/")
        file = re.compile(
            rf"/(cdn/)?{re.escape(prefix)}/resolve/[^/]+/" + (re.escape(path) or ".+")
        )
        return sum(seen.sent for seen in self.requests if file.fullmatch(seen.path))


@contextmanager
def serving(folder: Path, *faults: Fault) -> Iterator[FakeHub]:
    """A Hub over what `folder` holds, until the block ends."""
    hub = FakeHub(folder)
    hub.faults = list(faults)
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.server.shutdown()
        hub.server.server_close()


@contextmanager
def refusing() -> Iterator[str]:
    """An endpoint at which nothing listens, and nothing else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes | None) -> None:
        self.url = urlsplit(self.path)
        self.path = unquote(self.url.path)
        self.after: int | None = None
        line = f"{self.command} {self.path}"
        fault = next((one for one in self.hub.faults if re.search(one.pattern, line)), None)
        if fault and fault.status:
            self._refuse(fault.status, "the Hub was told to fail")
        elif fault and fault.after is None:
            self._log(0, 0)
            self._stall()
        else:
            self.after = fault.after if fault else None
            self._route(body)

    def _route(self, body: bytes | None) -> None:
        if (match := FILE.fullmatch(self.path)) is None:
            match = API.fullmatch(self.path)
        if match is None:
            return self._refuse(404, "no such page")
        parts = match.groupdict()
        kind = parts["kind"] or "models"
        name = f"{kind}/{parts['name']}"
        repository = self.hub.repositories.get(name)
        key = self.hub.private.get(name)
        if repository is None or (key and self._token() != key and not parts.get("cdn")):
            status = 404 if self._token() else 401
            return self._refuse(status, "Repository not found", "RepoNotFound")
        revision = unquote(parts["revision"] or "main")
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            return self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        commit = repository.commits[sha]
        if match.re is FILE:
            return self._file(name, sha, commit, parts)
        if parts["what"] == "tree":
            return self._tree(sha, commit, parts["path"] or "")
        if parts["what"] == "paths-info":
            paths = parse_qs((body or b"").decode()).get("paths", [])
            return self._json([_entry(path, commit[path]) for path in paths if path in commit])
        return self._json(
            {
                "id": parts["name"],
                "sha": sha,
                "private": name in self.hub.private,
                "gated": "auto" if name in self.hub.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in commit],
            }
        )

    def _tree(self, sha: str, commit: dict[str, Blob], path: str) -> None:
        """What lies below a path, with its folders; only its children where it is not recursive."""
        prefix = f"{path}/" if path else ""
        below = [file for file in commit if file.startswith(prefix)]
        if not below:
            return self._refuse(404, f"{path} does not exist", "EntryNotFound", sha)
        folders = {
            parent.as_posix() for file in below for parent in Path(file).parents if parent.name
        }
        entries = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            for folder in sorted(folders)
            if folder.startswith(prefix)
        ] + [_entry(file, commit[file]) for file in below]
        if parse_qs(self.url.query).get("recursive", ["false"])[0].lower() != "true":
            entries = [item for item in entries if "/" not in item["path"].removeprefix(prefix)]
        return self._json(entries)

    def _file(self, name: str, sha: str, commit: dict[str, Blob], parts: dict[str, Any]) -> None:
        key = self.hub.gated.get(name)
        if key and self._token() != key and not parts["cdn"]:
            status = 403 if self._token() else 401
            return self._refuse(status, f"Access to {name} is restricted", "GatedRepo")
        blob = commit.get(parts["path"])
        if blob is None:
            return self._refuse(404, "Entry not found", "EntryNotFound", sha)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not blob.large:
            return self._content(blob, {**headers, "ETag": f'"{blob.git_id}"'})
        if parts["cdn"]:
            return self._content(blob, {"ETag": f'"{blob.sha256}"', "Accept-Ranges": "bytes"})
        place = f"{name.removeprefix('models/')}/resolve/{sha}/{parts['path']}"
        headers |= {
            "X-Linked-ETag": f'"{blob.sha256}"',
            "X-Linked-Size": str(len(blob.content)),
            "Location": f"{self.hub.cdn}/{quote(place)}",
        }
        return self._send(302, b"", headers)

    def _content(self, blob: Blob, headers: dict[str, str]) -> None:
        size = len(blob.content)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(200, blob.content, headers, count=True)
        first, last = asked.groups()
        start = int(first) if first else size - int(last)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return self._send(206, blob.content[start:stop], headers, count=True)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str = "", sha: str = "") -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"X-Repo-Commit": sha} if sha else {}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, count: bool = False
    ) -> None:
        sent = body if self.command != "HEAD" else b""
        sent = sent if self.after is None else sent[: self.after]
        self._log(status, len(sent) if count else 0)
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            self.wfile.flush()
        except ConnectionError:  # the client went away
            self.close_connection = True
        if self.after is not None:
            self._stall()

    def _stall(self) -> None:
        self.hub.closing.wait()
        self.close_connection = True

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _log(self, status: int, sent: int) -> None:
        host = self.headers.get("Host", "").partition(":")[0]
        self.hub.requests.append(
            Request(self.command, self.path, host, self._token(), status, sent)
        )


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    """A file as the Hub lists it."""
    entry: dict[str, Any] = {
        "type": "file",
        "oid": blob.git_id,
        "size": len(blob.content),
        "path": path,
    }
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return entry
