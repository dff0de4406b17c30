"""Attacks on a server process, and how the process is watched meanwhile."""

import contextlib
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import psutil

from tests.support.pages import Page
from tests.support.serving import Server


def memory(running: Server | Page) -> float:
    """Return the resident memory of a server's process and its children in MB."""
    process = psutil.Process(running.process.pid)
    held = process.memory_info().rss
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            held += one.memory_info().rss
    return held / 1e6


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition, and fail if it is not met in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def connections(running: Server | Page, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open `count` connections that send the given bytes and nothing more."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30))
            with contextlib.suppress(OSError):
                client.sendall(sent)
            opened.append(client)
        yield opened


def closed(client: socket.socket) -> bool:
    """Return whether the other end closes the connection, with or without an answer."""
    try:
        while client.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size but holds almost no data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
