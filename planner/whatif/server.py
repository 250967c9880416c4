"""Serves the page to this machine's browser: a page and the parts that it asks for, all read only, on 127.0.0.1 alone."""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from passes.errors import InputError, TightfitError
from passes.ir.sources import open_model
from planner.report.page import digest, render, text
from planner.spec.spec import Spec
from planner.version import VERSION
from planner.whatif.ahead import OTHERS, PLAN, Ahead
from planner.whatif.controls import controls, state_of

_HOST = "127.0.0.1"


class Server:
    """The page of a spec at `url`, as long as `serve` runs."""

    def __init__(self, spec: Spec, port: int = 0) -> None:
        """Take a port (0: any that is free). Raises InputError where it is taken, or the model is not known."""
        source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
        self._controls = controls(spec)
        self._page = _page(spec, self._controls)
        try:
            self._http = ThreadingHTTPServer((_HOST, port), _handler(self))
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            raise InputError(f"port {port}: {said}", remedy="--port 0 takes one that is free") from error
        self._ahead = Ahead(spec, source, self._controls)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{_HOST}:{self._http.server_port}/"

    def serve(self) -> None:
        """Serve until it is interrupted."""
        self._ahead.ask({})
        try:
            self._http.serve_forever()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the port and end the processes."""
        self._http.server_close()
        self._ahead.close()

    def answer(self, host: str, target: str) -> tuple[HTTPStatus, str]:
        """Return what an address holds. A name that is not this machine's own is refused, so that no page elsewhere reads along."""
        if host not in (f"{_HOST}:{self._http.server_port}", f"localhost:{self._http.server_port}"):
            return HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 only"
        address = urlsplit(target)
        if address.path == "/":
            return HTTPStatus.OK, self._page
        part = address.path.removeprefix("/")
        if part not in (PLAN, OTHERS):
            return HTTPStatus.NOT_FOUND, "nothing is here"
        try:
            return HTTPStatus.OK, self._ahead.ask(state_of(dict(parse_qsl(address.query)), self._controls), part)
        except TightfitError as error:
            return HTTPStatus.BAD_REQUEST, str(error)
        except Exception as error:  # noqa: BLE001 (the page says it; a traceback would end in the terminal)
            return HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error: {type(error).__name__}: {error}"


def _page(spec: Spec, known: tuple[object, ...]) -> str:
    style, script = text("page.css") + text("whatif.css"), text("page.js") + text("whatif.js")
    return render(
        "whatif.html.j2", title=f"{spec.model}: what if", controls=known, style=style, script=script, version=VERSION,
        style_digest=digest(style), script_digest=digest(script),
    )  # fmt: skip


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET, and nothing else."""

        def do_GET(self) -> None:
            status, html = server.answer(self.headers.get("Host", ""), self.path)
            body = html.encode()
            self.send_response(status)
            self.send_header(
                "Content-Type", "text/html; charset=utf-8" if status is HTTPStatus.OK else "text/plain; charset=utf-8"
            )
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal is the user's."""

    return Handler
