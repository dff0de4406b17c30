"""A receiver of webhooks on this machine, which answers as a test wants it to."""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from thyroid.notify.notification import Notification

SECRET = "T0K3N-in-the-path"
"""What no log, error, file or output may show."""


@dataclass
class Receiver:
    """What a receiver got, and how it answers.

    Attributes:
        url: Address, whose path is secret.
        answers: Status of each answer; the last one holds for all later ones. "hang", "drip" and "huge" are ways not to
            answer as one should.
        got: Path, headers and body of each message.
    """

    url: str = ""
    answers: list[Any] = field(default_factory=lambda: [204])
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def messages(self) -> list[Notification]:
        """What it got in the plain form."""
        return [Notification.parse(json.loads(body), "body") for _, _, body in self.got]

    @property
    def events(self) -> list[str]:
        """What happened, of each message."""
        return [message.event for message in self.messages]


@contextlib.contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """Run a receiver, with TLS if there is a PEM file with a certificate for localhost and its key."""
    receiver, ended = Receiver(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            with contextlib.suppress(OSError):
                self._answer(answer)

        def do_GET(self) -> None:
            self.do_POST()

        def _answer(self, answer: Any) -> None:
            if answer == "hang":
                ended.wait(60)
            elif answer == "drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.1):
                    self.wfile.write(b"x")
            elif answer == "huge":
                self.send_response(200)
                self.end_headers()
                for _ in range(10):
                    self.wfile.write(bytes(2**20))
                while not ended.wait(0.1):
                    self.wfile.write(b"x")
            else:
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    receiver.url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        receiver.url = f"https://localhost:{server.server_port}/{SECRET}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
