"""The page: pictures of a nodule in, the endpoint's answer out.

python -m thyroid.web --endpoint http://localhost:8080 --port 8000
"""

import sys
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, command, workers
from thyroid.errors import InputError
from thyroid.web import app, server


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
    address = server.Address(host, port, proxies)
    address.check()
    token = server.secret(token_file, "THYROID_TOKEN")
    secret = server.secret(secret_file, "THYROID_PAGE_SECRET")
    if with_parent:
        workers.end_with_input()
    greeting = f"page on http://localhost:{port} for the endpoint {endpoint}\n{RESEARCH_USE_ONLY}"
    server.serve(app.create(app.Options(endpoint, token, secret)), address, greeting)


main = command.main("python -m thyroid.web", run)

if __name__ == "__main__":
    sys.exit(main())
