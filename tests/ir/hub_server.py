"""A Hub on 127.0.0.1: the real layout of addresses, headers, redirects and range answers, serving a folder's files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves and how it misbehaves.

    `asked`: of every file the spans (first byte, number of bytes) that requests asked for, in their order. How many of the bytes of a
    broken answer arrive depends on buffers of the system; what is asked for does not.
    """

    folder: Path
    name: str = "acme/tiny"
    gated: bool = False
    busy: int = 0
    """How many requests are answered with 429 first."""
    broken: int = 0
    """How many answers with weights break off in the middle."""
    ranges: bool = True
    address: str = ""
    asked: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens_at_cdn: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bytes_asked(self, name: str) -> int:
        """Sum the bytes of a file that requests asked for."""
        return sum(count for _, count in self.asked.get(name, ()))

    def admit(self, name: str, first: int, count: int) -> int:
        """Note what a request asks for; how many of these bytes it gets. Files are fetched side by side."""
        with self.lock:
            self.asked.setdefault(name, []).append((first, count))
            if not self.broken or not name.endswith(".safetensors"):
                return count
            self.broken -= 1
            return count // 2


def _entry(path: Path) -> dict[str, Any]:
    """A file as `/api/models/…/tree/…` lists it."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path.name, "size": len(data), "oid": digest[:40]}
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str = "", **headers: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(path)
            if hub.busy:
                hub.busy -= 1
                return self.refuse(429, Retry_After="0")
            if path.startswith("/cdn/"):
                hub.tokens_at_cdn.append(self.headers.get("Authorization", ""))
                return self.file(hub.folder / path.removeprefix("/cdn/"), body)
            if f"/{hub.name}" not in path:
                return self.refuse(401, "RepoNotFound")
            if hub.gated and "/api/" not in path:
                return self.refuse(403, "GatedRepo")
            if path.startswith("/api/models/"):
                return self.info(path, body)
            _, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if not (hub.folder / name).is_file():
                return self.refuse(404, "EntryNotFound")
            if name.endswith(".safetensors"):
                return self.redirect(hub.folder / name)
            return self.file(hub.folder / name, body)

        def info(self, path: str, body: bool) -> None:
            revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if "/tree/" in path:
                return self.document([_entry(p) for p in sorted(hub.folder.iterdir())], body)
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(hub.folder.iterdir())]
            document = {"_id": "1", "id": hub.name, "modelId": hub.name, "sha": COMMIT, "siblings": files, "private": False,
                        "gated": hub.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": []}  # fmt: skip
            return self.document(document, body)

        def document(self, document: Any, body: bool) -> None:
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def redirect(self, path: Path) -> None:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"{hub.address.replace('127.0.0.1', 'localhost')}/cdn/{path.name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def file(self, path: Path, body: bool) -> None:
            data = path.read_bytes()
            size, wanted, start = len(data), self.headers.get("Range"), 0
            if wanted and hub.ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last) if last else size - 1, size - 1)
                data = data[start : end + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            allowed = hub.admit(path.name, start, len(data))
            self.close_connection = allowed < len(data)
            try:
                self.wfile.write(data[:allowed])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The Hub, running."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
