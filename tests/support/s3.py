"""A server that speaks S3: moto's, in a process of its own, which carries requests out one after the other.

Moto compares a precondition and writes in two steps. One at a time, no other writer comes between them.
"""

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support import ROOT
from tests.support.serving import free_port


@contextmanager
def server() -> Iterator[str]:
    """Yield the address of a running server, which loses its objects when it stops."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.s3", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/")
                connection.getresponse().read()
                connection.close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def variables(address: str) -> dict[str, str]:
    """The environment variables by which code finds a server."""
    return {
        "AWS_ACCESS_KEY_ID": "account",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": address,
        "AWS_REGION": "us-east-1",
    }


def _serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    service, one = create_backend_app("s3"), threading.Lock()

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with one:
            return list(service(environ, start))

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def log(self, *_: object) -> None:
            pass

    run_simple("127.0.0.1", port, application, threaded=True, request_handler=Handler)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
