"""The server of the page: this machine alone can reach it, and who knows the token in its address.

Nothing is served but some files of the package and what `Answers` tells. Names of files never come from a request.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from ..errors import DatakitError, ShardError
from .answers import Answers, Missing, whole
from .columns import Stopped, facts
from .matches import BadQuestion

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # by which a browser may call it: another name may have been pointed here by its owner
PAGES = {  # a name in the address: a file of the package
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
IDLE_S = 10  # of a connection on which nothing is asked
_HOST = re.compile(r"([^:\[\]]+)(:\d{1,5})?")
_ROW = re.compile(r"(record|neighbours|image)/(\d{1,15})", re.ASCII)


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    kind: str
    data: bytes
    may_keep: bool = False  # by the browser, as long as the page is open


class Server(ThreadingHTTPServer):
    """Serves what `answers` tells, at a port of this machine; 0: any that is free. SourceError where it is taken."""

    daemon_threads = False  # a thread that is cut off within Arrow takes the process along
    request_queue_size = 128

    def __init__(self, answers: Answers, port: int = 0, say: Callable[[str], None] = print) -> None:
        self.answers, self.say = answers, say
        self.token = secrets.token_urlsafe(24)
        self.built = facts(answers.out)
        self.pages = {name: (files(__package__) / file).read_bytes() for name, (file, _) in PAGES.items()}
        self.open_sockets: set[socket.socket] = set()
        self.lock = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as exc:
            raise DatakitError(f"--port {port}: {exc.strerror}. Give another, or none: any free one is taken") from None
        self.reader = threading.Thread(target=self._read, name="columns")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def _read(self) -> None:
        try:
            self.answers.columns.read_all()
        except Stopped:
            pass
        except DatakitError as exc:  # who asks for this column is told, too
            self.say(f"warning: {exc}")

    def run(self) -> None:
        """Serve until interrupted; then end every connection and thread."""
        self.reader.start()
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self.answers.columns.stop.set()
            with self.lock:
                for one in self.open_sockets:
                    try:
                        one.shutdown(socket.SHUT_RD)  # wakes who waits for a request; who answers one ends
                    except OSError:
                        continue
            self.server_close()
            self.reader.join()

    def server_bind(self) -> None:
        """Without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        with self.lock:
            self.open_sockets.add(request)
        return request, address

    def close_request(self, request: Any) -> None:
        with self.lock:
            self.open_sockets.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = IDLE_S
    server_version, sys_version = "datakit", ""

    def do_GET(self) -> None:
        reply = self._reply()
        self.send_response(reply.status)
        text = reply.kind.startswith("text/") or reply.kind.endswith("json")
        self.send_header("Content-Type", f"{reply.kind}; charset=utf-8" if text else reply.kind)
        self.send_header("Content-Length", str(len(reply.data)))
        self.send_header("Cache-Control", "private, max-age=3600" if reply.may_keep else "no-store")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """The token stands in every address: none is written down."""

    def _reply(self) -> Reply:
        try:
            return self._allowed()
        except BadQuestion as exc:
            return _said(404 if isinstance(exc, Missing) else 400, str(exc))
        except Stopped:
            return _said(503, "the server ends")
        except (DatakitError, OSError) as exc:
            return _said(500, str(exc))
        except Exception as exc:
            self.server.say(f"warning: {self.path.partition('/')[2].partition('/')[2]}: {exc!r}")
            return _said(500, f"{type(exc).__name__}: {exc}")

    def _allowed(self) -> Reply:
        host = _HOST.fullmatch(self.headers.get("Host", ""))
        if host is None or host[1].lower() not in NAMES:
            return _said(403, f"this server is {HOST}, and is called by no other name")
        path, _, query = self.path.partition("?")
        token, slash, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            return _said(403, "the address lacks its token: open the one that `datakit browse` printed")
        if not slash:
            return _said(404, "the address ends with a slash")
        if rest in self.server.pages:
            return Reply(200, PAGES[rest][1], self.server.pages[rest])
        if facts(self.server.answers.out) != self.server.built:
            raise ShardError("the set was built again since it was opened: end `datakit browse`, and start it anew")
        try:
            asked = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=200)
        except ValueError:
            raise BadQuestion("what follows the ? is not a list of name=value") from None
        return self._answer(rest, asked)

    def _answer(self, rest: str, asked: dict[str, list[str]]) -> Reply:
        answers = self.server.answers
        plain: dict[str, Callable[[], Any]] = {
            "about": answers.about,
            "columns": answers.columns.told,
            "rows": lambda: answers.rows(asked),
            "density": lambda: answers.density(asked),
            "find": lambda: answers.found(asked),
        }
        if rest in plain:
            return _json(plain[rest]())
        found = _ROW.fullmatch(rest)
        if not found:
            raise Missing("there is no such page")
        row = int(found[2])
        if found[1] == "record":
            return _json(answers.record(row))
        if found[1] == "neighbours":
            return _json(answers.neighbours(row, asked))
        if row >= answers.columns.count:
            raise Missing(f"no record {row}")
        member, side = "".join(asked.get("member", ())), whole(asked, "side", 0, 1 << 14)
        shown = answers.pictures(row, member, side or None)
        if shown is None:
            raise Missing(f"record {row} has no image that can be shown")
        return Reply(200, shown.kind, shown.data, may_keep=True)


def _json(plain: Any) -> Reply:
    return Reply(200, "application/json", json.dumps(plain, allow_nan=False).encode())


def _said(status: int, text: str) -> Reply:
    return Reply(status, "text/plain", text.encode("utf-8", "replace"))


def serve(out: Path, port: int, say: Callable[[str], None]) -> Server:
    """The server of a build's page, not yet running."""
    return Server(Answers(out, say), port, say)
