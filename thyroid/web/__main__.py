"""The page: pictures of a nodule in, the endpoint's answer out.

python -m thyroid.web --endpoint http://localhost:8080 --port 8000
"""

import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

import waitress

from thyroid import RESEARCH_USE_ONLY, command, errors, logs, memory
from thyroid.errors import InputError
from thyroid.web import app, channel

IDLE = 30
"""Seconds after which an idle connection is closed."""
THREADS = 16
"""Threads of the server: more than the requests that may wait for the endpoint or for DICOM at once."""


def run(
    *,
    endpoint: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    proxies: int = 0,
    token_file: Path | None = None,
    secret_file: Path | None = None,
    with_parent: bool = False,
) -> None:
    """Serve the page, which sends pictures of a nodule to an endpoint, until the process is ended.

    Args:
        endpoint: Address of the endpoint, http://host:port.
        host: Address to listen on; 0.0.0.0 in a container.
        port: Port to listen on.
        proxies: Number of proxies in front of the page.
        token_file: File with the endpoint's bearer token (or THYROID_TOKEN).
        secret_file: File with the key of the CSRF cookie (or THYROID_PAGE_SECRET).
        with_parent: Exit when standard input is closed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise InputError(f"--endpoint {endpoint}: expected http://host:port or https://host:port")
    if not 0 < port < 65536:
        raise InputError(f"port {port}: expected 1 to 65535")
    token = _secret(token_file, "THYROID_TOKEN")
    secret = _secret(secret_file, "THYROID_PAGE_SECRET")
    options = app.Options(endpoint, token, secret)
    logs.configure()
    if with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    channels: dict[Any, Any] = {}
    server = _server(options, channels, host, port, proxies)
    channel.guard(channels)
    # The default is 5 ms. The loop that reads all connections waits that long for every thread that parses a form.
    sys.setswitchinterval(0.0005)
    memory.return_large(1 << 20)
    gc.freeze()  # these objects stay: the collector need not look at them
    print(f"page on http://localhost:{port} for the endpoint {endpoint}\n{RESEARCH_USE_ONLY}", flush=True)
    server.run()


def _server(options: app.Options, channels: dict[Any, Any], host: str, port: int, proxies: int) -> Any:
    """Return Waitress' server of the page, which listens already.

    Raises:
        InputError: The port cannot be used.
    """
    try:
        return waitress.create_server(
            app.create(options),
            channels,
            host=host,
            port=port,
            threads=THREADS,
            connection_limit=2 * channel.CONNECTIONS,  # never reached: `channel` closes others before
            asyncore_use_poll=True,  # select() takes at most 1024 files
            max_request_header_size=channel.LITTLE,
            max_request_body_size=app.MAX_BODY,
            inbuf_overflow=app.MAX_BODY + 1,  # in memory, never in a file
            outbuf_overflow=app.MAX_BODY,
            channel_timeout=IDLE,
            cleanup_interval=IDLE // 3,
            ident="",
            **(_believed(proxies) if proxies else {}),
        )
    except OSError as error:
        raise InputError(f"port {port}: {errors.one_line(error)}; choose another with --port") from None


def _believed(proxies: int) -> dict[str, Any]:
    """Return the options with which Waitress believes `proxies` proxies in front of the page.

    They pass on the visitor's address and scheme. Nobody else may reach the page.
    """
    headers = {"x-forwarded-for", "x-forwarded-proto"}
    return {"trusted_proxy": "*", "trusted_proxy_count": proxies, "trusted_proxy_headers": headers}


def _secret(file: Path | None, variable: str) -> str | None:
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


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


main = command.main("python -m thyroid.web", run)

if __name__ == "__main__":
    sys.exit(main())
