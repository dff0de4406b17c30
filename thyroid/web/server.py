"""Waitress as the applications for people use it: what it listens on, its limits, and the secrets that it is given."""

import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waitress
from flask import Flask

from thyroid import errors, logs, memory
from thyroid.errors import InputError
from thyroid.web import channel

IDLE = 30
"""Seconds after which an idle connection is closed."""
THREADS = 16
"""Threads of the server: more than the requests that may wait for the endpoint or for DICOM at once."""
MAX_BODY = 60_000_000
"""Bytes up to which a body is received, so that the browser reads why it is too large."""


@dataclass(frozen=True)
class Address:
    """Where an application listens.

    Attributes:
        host: Address to listen on; 0.0.0.0 in a container.
        port: Port, 1 to 65535.
        proxies: Number of proxies in front of the application, which pass on the visitor's address and scheme. Nobody
            else may reach it.
    """

    host: str
    port: int
    proxies: int = 0

    def check(self) -> None:
        """Raise `InputError` unless the port is one."""
        if not 0 < self.port < 65536:
            raise InputError(f"port {self.port}: expected 1 to 65535")


def serve(app: Flask, address: Address, greeting: str) -> None:
    """Serve an application until the process is ended.

    Args:
        app: The application.
        address: Where it listens.
        greeting: What is printed once it listens.

    Raises:
        InputError: The port cannot be used.
    """
    logs.configure()
    channels: dict[Any, Any] = {}
    server = _listen(app, channels, address)
    channel.guard(channels)
    # The default is 5 ms. The loop that reads all connections waits that long for every thread that parses a form.
    sys.setswitchinterval(0.0005)
    memory.return_large(1 << 20)
    gc.freeze()  # these objects stay: the collector need not look at them
    sys.stdout.write(f"{greeting}\n")
    sys.stdout.flush()
    server.run()


def _listen(app: Flask, channels: dict[Any, Any], address: Address) -> Any:
    """Return Waitress' server of an application, which listens already.

    Raises:
        InputError: The port cannot be used.
    """
    try:
        return waitress.create_server(
            app,
            channels,
            host=address.host,
            port=address.port,
            threads=THREADS,
            connection_limit=2 * channel.CONNECTIONS,  # never reached: `channel` closes others before
            asyncore_use_poll=True,  # select() takes at most 1024 files
            max_request_header_size=channel.LITTLE,
            max_request_body_size=MAX_BODY,
            inbuf_overflow=MAX_BODY + 1,  # in memory, never in a file
            outbuf_overflow=MAX_BODY,
            channel_timeout=IDLE,
            cleanup_interval=IDLE // 3,
            ident="",
            **(_believed(address.proxies) if address.proxies else {}),
        )
    except OSError as error:
        raise InputError(f"port {address.port}: {errors.one_line(error)}; choose another with --port") from None


def _believed(proxies: int) -> dict[str, Any]:
    """Return the options with which Waitress believes `proxies` proxies in front of the application."""
    headers = {"x-forwarded-for", "x-forwarded-proto"}
    return {"trusted_proxy": "*", "trusted_proxy_count": proxies, "trusted_proxy_headers": headers}


def secret(file: Path | None, variable: str) -> str | None:
    """Return a secret from the file or, without a file, from the environment; None if there is none.

    Raises:
        InputError: The file is empty.
    """
    if file is None:
        return os.environ.get(variable) or None
    found = file.read_text().strip()
    if not found:
        raise InputError(f"{file}: the file is empty; it must contain the token or key")
    return found
