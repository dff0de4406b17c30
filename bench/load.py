"""A load generator that takes little processor time from the server it measures: one thread, sockets and epoll."""

import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

_PATIENCE = 60.0  # seconds to wait for answers after a round's end


@dataclass(frozen=True)
class Answer:
    """An answer: the times of the request and of the answer, in seconds of the round, and the HTTP status."""

    asked: float
    there: float
    status: int


class _Connection:
    """A connection that stays open and carries one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.asked, self.left, self.got = 0.0, memoryview(b""), b""

    def ask(self, request: bytes, asked: float) -> None:
        self.asked, self.left, self.got = asked, memoryview(request), b""
        self.write()

    def write(self) -> bool:
        """Send as many bytes as the socket takes, and return whether all have been sent."""
        if self.left:
            try:
                self.left = self.left[self.socket.send(self.left) :]
            except BlockingIOError:
                return False
        return not self.left

    def read(self) -> int | None:
        """Read from the socket and return the answer's status; None until the answer is complete."""
        part = self.socket.recv(262_144)
        if not part:
            raise ConnectionError(f"closed after {self.got[:200]!r}")
        self.got += part
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found:
            return None
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head.split(b" ", 2)[1]) if len(body) >= int(length.split(b":")[1]) else None


class Load:
    """Sends the same request repeatedly.

    Args:
        url: URL of the route.
        body: Body of each request.
        kind: Content type of the body.
    """

    def __init__(self, url: str, body: bytes, kind: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._place = (parts.hostname, parts.port)
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        )
        self._request = f"{head}\r\n\r\n".encode() + body

    def closed(self, clients: int, seconds: float) -> list[Answer]:
        """Run a closed loop: each client sends its next request as soon as it has any answer."""
        return self._run([0.0] * clients, seconds, again=True)

    def open(self, rate: float, seconds: float, seed: int) -> list[Answer]:
        """Run an open loop: requests follow a Poisson process with `rate` per second, whatever has been answered."""
        chance, due = random.Random(seed), [0.0]
        while due[-1] < seconds:
            due.append(due[-1] + chance.expovariate(rate))
        return self._run(due[1:-1], seconds, again=False)

    def _run(self, times: list[float], seconds: float, again: bool) -> list[Answer]:
        due, free, answers = deque(times), list[_Connection](), list[Answer]()
        busy = 0
        with selectors.DefaultSelector() as selector:
            started = time.perf_counter()

            def ask(one: _Connection, asked: float) -> None:
                one.ask(self._request, asked)
                selector.modify(one.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if one.left else 0), one)

            while busy or due:
                now = time.perf_counter() - started
                if now > seconds + _PATIENCE:
                    raise TimeoutError(f"{busy} requests were not answered within {_PATIENCE:g} seconds")
                while due and due[0] <= now:
                    if free:
                        one = free.pop()
                    else:
                        one = _Connection(*self._place)
                        selector.register(one.socket, selectors.EVENT_READ, one)
                    busy += 1
                    ask(one, due.popleft())
                for one, status in self._answered(selector, free, max(0.0, due[0] - now) if due else 1.0):
                    now = time.perf_counter() - started
                    answers.append(Answer(one.asked, now, status))
                    if again and now < seconds:
                        ask(one, now)
                    else:
                        free.append(one)
                        busy -= 1
            for one in free:
                one.socket.close()
        return answers

    def _answered(
        self, selector: selectors.BaseSelector, free: list[_Connection], patience: float
    ) -> Iterator[tuple[_Connection, int]]:
        for key, events in selector.select(patience):
            one: _Connection = key.data
            if one in free:  # the server closes connections that were idle for some seconds
                free.remove(one)
                selector.unregister(one.socket)
                one.socket.close()
                continue
            if events & selectors.EVENT_WRITE and one.write():
                selector.modify(one.socket, selectors.EVENT_READ, one)
            if events & selectors.EVENT_READ and (status := one.read()) is not None:
                yield one, status
