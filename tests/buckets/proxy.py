"""A way to a store that fails as networks and stores do: before a real server, it counts requests and spoils chosen ones."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple

Trouble = Literal["503", "lost reply", "500 after it", "409", "hang", "cut", "flip", "late"]
"""What happens to a request: refused; carried out, and the connection closed, or 500 said; refused as a conflict; never
answered; its answer cut; a bit of its answer flipped; carried out after three seconds, when nobody waits any more."""


class Request(NamedTuple):
    """`number`: of those with this method and path, from 0."""

    method: str
    path: str
    number: int


class FaultProxy:
    """Listens on this machine alone. `trouble`: what happens to a request, None for nothing; may be changed at any time."""

    def __init__(self, port: int) -> None:
        self.trouble: Callable[[Request], Trouble | None] = lambda request: None
        self.requests: Counter[str] = Counter()
        """By method, since `forget`."""
        self.latency_s = 0.0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def forget(self) -> None:
        """Counts from 0 again, and lets everything pass."""
        with self._lock:
            self.trouble = lambda request: None
            self.requests.clear()
            self._seen.clear()

    def note(self, method: str, path: str) -> Trouble | None:
        with self._lock:
            self.requests[method] += 1
            number = self._seen[method, path]
            self._seen[method, path] += 1
        return self.trouble(Request(method, path, number))

    def paths(self) -> set[str]:
        """All that were asked for, since `forget`."""
        with self._lock:
            return {path for _, path in self._seen}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that are gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(proxy: FaultProxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            trouble = proxy.note(self.command, self.path.partition("?")[0])
            time.sleep(proxy.latency_s)
            if trouble == "hang":
                time.sleep(30)
            if trouble in ("hang", "503", "409"):
                conflict = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
                slow_down = b"<Error><Code>SlowDown</Code></Error>"
                return self._answer(409, conflict) if trouble == "409" else self._answer(503, slow_down)
            if trouble == "late":
                threading.Timer(3, self._forward, (body,)).start()
                time.sleep(30)
                return None
            status, headers, content = self._forward(body)
            if trouble == "500 after it":
                return self._answer(500, b"<Error><Code>InternalError</Code></Error>")
            if trouble == "lost reply":
                self.close_connection = True
                return None
            if trouble == "flip" and content:
                content = bytes([content[0] ^ 1]) + content[1:]
            return self._answer(status, content[: len(content) // 2] if trouble == "cut" else content, headers, len(content))

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")}
            connection.request(self.command, self.path, body, headers | {"Host": f"127.0.0.1:{port}"})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        def _answer(
            self, status: int, content: bytes, headers: list[tuple[str, str]] | None = None, length: int | None = None
        ) -> None:
            self.send_response_only(status)
            skipped = ("content-length", "connection", "transfer-encoding", "date", "server")
            for name, value in headers or []:
                if name.lower() not in skipped or (self.command == "HEAD" and name.lower() == "content-length"):
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            if length is not None and len(content) < length:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
