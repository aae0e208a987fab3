"""A model hub on this machine: repositories to the two answers that a download needs, with faults that a test chooses.

It speaks the hub's interface: `/api/models/REPOSITORY/revision/REVISION?blobs=true` and
`/REPOSITORY/resolve/COMMIT/FILE` with `ETag`, `X-Repo-Commit`, `X-Linked-*` and ranges.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")


def commit_of(name: str) -> str:
    """A commit for a repository's name."""
    return hashlib.sha1(name.encode()).hexdigest()


def git_digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repository:
    """Its files, its one commit, and the names of revisions that lead to it."""

    name: str
    files: dict[str, bytes]
    revisions: list[str] = field(default_factory=lambda: ["main"])

    @property
    def commit(self) -> str:
        return commit_of(self.name)

    def siblings(self) -> list[dict[str, Any]]:
        """The files as the hub lists them."""
        return [self._sibling(name, content) for name, content in self.files.items()]

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        listed: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
        if name.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            listed["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        return listed


@dataclass
class Faults:
    """What goes wrong; empty: nothing."""

    break_after: int | None = None  # bytes of each answer, after which the connection is closed
    breaks: int = 10**9  # how many times it does so
    ignore_range: bool = False
    other_part: bool = False  # answers a range with one that begins a byte later
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answers, each given once, before the right
    busy_listing: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)  # names of files whose bytes differ, of the same size
    shorter: set[str] = field(default_factory=set)
    longer: set[str] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)  # status by repository
    refused_files: dict[str, int] = field(default_factory=dict)  # status by file
    commit: str | None = None  # what the listing says in place of the commit
    commit_of_file: str | None = None  # what the file's answer says
    redirect: str | None = None  # another host that has the files
    listing: bytes | None = None  # in place of the list
    extra: list[dict[str, Any]] = field(default_factory=list)  # further entries of the list
    encoding: str | None = None
    without_length: bool = False
    break_listing: int = 0  # how many lists are cut off
    second: float = 0.0  # between two pieces of a file


class HubServer:
    """The running server."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0  # bytes of files
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = _Server(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add(self, name: str, files: dict[str, bytes], *revisions: str) -> Repository:
        """Serve a repository."""
        self.repositories[name] = Repository(name, dict(files), ["main", *revisions])
        return self.repositories[name]

    def add_folder(self, name: str, folder: Path) -> Repository:
        """Serve the files of a folder."""
        return self.add(name, {file.name: file.read_bytes() for file in sorted(folder.iterdir())})

    def asked(self, word: str) -> list[dict[str, str]]:
        """The headers of the requests whose path contains a word."""
        return [headers for path, headers in self.requests if word in path]


@contextmanager
def serving() -> Iterator[HubServer]:
    """A server until the block ends."""
    hub = HubServer()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Print nothing where a client ended."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        hub, url = self.server_hub, urlsplit(self.path)
        hub.requests.append((unquote(self.path), {name.lower(): value for name, value in self.headers.items()}))
        try:
            if url.path.startswith("/api/models/"):
                assert parse_qs(url.query) == {"blobs": ["true"]}
                self._list(*url.path.removeprefix("/api/models/").split("/revision/"))
            else:
                repository, _, rest = url.path.lstrip("/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                self._file(repository, unquote(revision), unquote(name))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _list(self, name: str, revision: str) -> None:
        faults = self.server_hub.faults
        if faults.busy_listing:
            status, headers = faults.busy_listing.pop(0)
            return self._answer(status, b"busy", headers)
        if name in faults.refused:
            code = {404: "RepoNotFound", 401: "RepoNotFound", 403: "GatedRepo"}.get(faults.refused[name], "")
            return self._answer(faults.refused[name], b"{}", {"X-Error-Code": code})
        if faults.break_listing:
            faults.break_listing -= 1
            self.close_connection = True
            return self._answer(200, b"{", {"Content-Length": "100"})
        repository = self.server_hub.repositories.get(name)
        if repository is None:
            return self._answer(401, b'{"error":"Invalid username or password."}', {"X-Error-Code": "RepoNotFound"})
        if unquote(revision) not in (*repository.revisions, repository.commit):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        content = {"id": name, "sha": faults.commit or repository.commit, "siblings": repository.siblings()}
        content["siblings"] = [*repository.siblings(), *faults.extra]
        return self._answer(200, faults.listing or json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        faults, repository = self.server_hub.faults, self.server_hub.repositories[name]
        if faults.busy:
            status, headers = faults.busy.pop(0)
            return self._answer(status, b"busy", headers)
        if file in faults.refused_files:
            return self._answer(faults.refused_files[file], b"{}", {"X-Error-Code": "GatedRepo"})
        headers = {"X-Repo-Commit": faults.commit_of_file or repository.commit}
        if faults.redirect:
            return self._answer(302, b"", headers | {"Location": f"{faults.redirect}{self.path}"})
        if revision != repository.commit or file not in repository.files:
            return self._answer(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        content = self._content(repository.files[file], file)
        digest = hashlib.sha256(content).hexdigest() if file.endswith(LARGE) else git_digest(content)
        headers |= {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        headers |= {"Accept-Ranges": "bytes"} | ({"Content-Encoding": faults.encoding} if faults.encoding else {})
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if faults.ignore_range or not self.headers.get("Range"):
            return self._answer(200, content, headers)
        start += faults.other_part
        if start >= len(content):
            return self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._answer(206, content[start:], headers)

    def _content(self, content: bytes, name: str) -> bytes:
        faults = self.server_hub.faults
        if name in faults.wrong:
            return bytes([content[0] ^ 1]) + content[1:]
        if name in faults.shorter:
            return content[:-3]
        return content + b"more" if name in faults.longer else content

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        faults, is_file = self.server_hub.faults, status in (200, 206) and "ETag" in headers
        self.send_response(status)
        if is_file and faults.without_length:
            self.close_connection = True
            headers = headers | {"Connection": "close"}
        else:
            headers = {"Content-Length": str(len(content))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if is_file and faults.break_after is not None and len(content) > faults.break_after and faults.breaks > 0:
            faults.breaks -= 1
            content = content[: faults.break_after]
            self.close_connection = True
        for start in range(0, len(content), 1 << 16):
            piece = content[start : start + (1 << 16)]
            self.wfile.write(piece)
            self.server_hub.sent += len(piece) if is_file else 0
            if faults.second:
                threading.Event().wait(faults.second)
