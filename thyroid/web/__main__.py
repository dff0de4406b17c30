"""The page: pictures of a nodule in, the endpoint's answer out.

python -m thyroid.web --endpoint http://localhost:8080 --port 8000
"""

import argparse
import gc
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import waitress

from thyroid import RESEARCH_USE_ONLY, errors, logs, memory
from thyroid.errors import InputError
from thyroid.web import app, channel

IDLE = 30
"""Seconds after which an idle connection is closed."""
THREADS = 16
"""Threads of the server: more than the requests that may wait for the endpoint or for DICOM at once."""


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until the process is ended.

    A user error, such as a port in use, becomes one line on stderr and exit code 2.

    Args:
        argv: Arguments of the command; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m thyroid.web", description=__doc__.split("\n")[0])
    parser.add_argument("--endpoint", required=True, help="address of the endpoint, http://host:port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--proxies", type=int, default=0, help="number of proxies in front of the page")
    parser.add_argument("--token-file", type=Path, help="file with the endpoint's bearer token (or THYROID_TOKEN)")
    parser.add_argument(
        "--secret-file", type=Path, help="file with the key of the CSRF cookie (or THYROID_PAGE_SECRET)"
    )
    parser.add_argument("--with-parent", action="store_true", help="exit when standard input is closed")
    arguments = parser.parse_args(argv)
    if not arguments.endpoint.startswith(("http://", "https://")):
        raise InputError(f"--endpoint {arguments.endpoint}: expected http://host:port or https://host:port")
    if not 0 < arguments.port < 65536:
        raise InputError(f"port {arguments.port}: expected 1 to 65535")
    token = _secret(arguments.token_file, "THYROID_TOKEN")
    secret = _secret(arguments.secret_file, "THYROID_PAGE_SECRET")
    options = app.Options(arguments.endpoint, token, secret)
    logs.configure()
    if arguments.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    channels: dict[Any, Any] = {}
    try:
        server = waitress.create_server(
            app.create(options),
            channels,
            host=arguments.host,
            port=arguments.port,
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
            **(_believed(arguments.proxies) if arguments.proxies else {}),
        )
    except OSError as error:
        raise InputError(f"port {arguments.port}: {errors.one_line(error)}; choose another with --port") from None
    channel.guard(channels)
    # The default is 5 ms. The loop that reads all connections waits that long for every thread that parses a form.
    sys.setswitchinterval(0.0005)
    memory.return_large(1 << 20)
    gc.freeze()  # these objects stay: the collector need not look at them
    print(f"page on http://localhost:{arguments.port} asking {arguments.endpoint}\n{RESEARCH_USE_ONLY}", flush=True)
    server.run()


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
        raise InputError(f"{file}: is empty")
    return found


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
