"""Servers for tests, on this machine: one that speaks S3, one that gives files, and what both may do wrong."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Reply = tuple[int, dict[str, str], bytes]


@contextmanager
def moto() -> Iterator[int]:
    """A process that speaks S3; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@dataclass
class Web:
    """A server that gives files by ranges, or passes requests on to `upstream`; what it does wrong may be changed."""

    folder: Path | None = None
    upstream: int = 0  # port of the server that speaks S3
    ranges: bool = True
    etags: bool = True
    wrong: Callable[[str, str, int], str] = lambda method, path, count: ""  # "503", "drop", "short", "flip", "404"
    log: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, method: str, part: str = "") -> list[tuple[str, str, str]]:
        return [one for one in self.log if one[0] == method and part in one[1]]

    def file(self, path: str, wanted: str) -> Reply:
        """What is answered where files are given."""
        assert self.folder is not None
        place = self.folder / unquote(path).lstrip("/")
        if place.is_dir():
            return 200, {"Content-Type": "text/html"}, b"<html>a page that lists a folder</html>"
        if not place.is_file():
            return 404, {}, b""
        data, headers = place.read_bytes(), {"Accept-Ranges": "bytes"} if self.ranges else {}
        if self.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        else:
            headers["Last-Modified"] = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(place.stat().st_mtime))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if not found or not self.ranges:
            return 200, headers, data
        begin, end = int(found[1]), min(int(found[2]) + 1, len(data))
        if begin >= len(data):
            return 416, headers, b""
        return 206, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end]

    def passed_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """What the server behind answers."""
        there = HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        there.request(method, path, body, headers)
        reply = there.getresponse()
        content = reply.read()
        left_out = {"content-length", "transfer-encoding", "connection", "date", "server"}
        kept = {k: v for k, v in reply.getheaders() if k.lower() not in left_out}
        if method == "HEAD":
            kept["Content-Length"] = reply.getheader("Content-Length") or "0"
        there.close()
        return reply.status, kept, content


@contextmanager
def serving(web: Web) -> Iterator[Web]:
    """The server runs, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with web.lock:
                web.log.append((self.command, self.path, self.headers.get("Range", "")))
                count = len(web.log)
            wrong = web.wrong(self.command, self.path, count)
            if wrong == "drop":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if wrong in ("503", "404"):
                status, headers, data = int(wrong), {}, b""
            elif web.upstream:
                status, headers, data = web.passed_on(self.command, self.path, dict(self.headers), body)
            else:
                status, headers, data = web.file(self.path, self.headers.get("Range", ""))
            if wrong == "flip":
                data = bytes([data[0] ^ 0xFF]) + data[1:] if data else data
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if wrong == "short":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None: ...  # a client that was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        web.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
