"""The labelling bench: readers mark nodules in frames, and rois.csv, labels.csv and clinical.csv are written.

python -m thyroid.label --scans scans --labelled labelled --registry output/registry
"""

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from thyroid import RESEARCH_USE_ONLY, command, storage
from thyroid.command import FLAT
from thyroid.errors import InputError
from thyroid.label.server import app
from thyroid.label.server.bench import Bench, LabelOptions
from thyroid.label.server.readers import Readers
from thyroid.web import server

LOCAL = ("127.0.0.1", "localhost", "::1")


def run(
    *,
    options: Annotated[LabelOptions, FLAT],
    endpoint: str = "",
    registry: storage.Location | None = None,
    readers: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8010,
    proxies: int = 0,
    secret_file: Path | None = None,
) -> None:
    """Serve the labelling bench, which writes rois.csv, labels.csv and clinical.csv, until the process is ended.

    THYROID_TOKEN is the endpoint's bearer token.

    Args:
        options: What is labelled, and how.
        endpoint: Address of the endpoint that proposes boxes, http://host:port; without it, no proposals.
        registry: Root of a registry whose champion proposes boxes; an endpoint is then started here.
        readers: CSV with name, token and role (reader or adjudicator) of everyone who may read; without it, one reader
            on this machine, for whom an address with a random token is printed.
        host: Address to listen on; 0.0.0.0 in a container.
        port: Port to listen on.
        proxies: Number of proxies in front of the bench.
        secret_file: File with the key of the sessions' cookies (or THYROID_LABEL_SECRET); without it, everyone signs in
            again after a restart.
    """
    if endpoint and registry is not None:
        raise InputError("give either --endpoint or --registry")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise InputError(f"--endpoint {endpoint}: expected http://host:port or https://host:port")
    if readers is None and host not in LOCAL:
        raise InputError(f"--host {host}: others can reach it; name them with --readers CSV of name, token and role")
    address = server.Address(host, port, proxies)
    address.check()
    secret = server.secret(secret_file, "THYROID_LABEL_SECRET")
    known, alone = Readers.alone() if readers is None else (Readers.read(readers), "")
    signal.signal(signal.SIGTERM, _end)
    with _endpoint(registry) as (started, token):
        token = token or os.environ.get("THYROID_TOKEN", "")
        bench = Bench(options, started or endpoint, token or None, is_starting=bool(started))
        bench.start()
        greeting = (
            f"bench on http://localhost:{port}/{f'?token={alone}' if alone else ''} for {len(bench.catalogue.frames)} "
            f"frames; results in {options.labelled}\n{RESEARCH_USE_ONLY}"
        )
        try:
            server.serve(app.create(app.Options(bench, known, secret)), address, greeting)
        finally:
            bench.close()


def _end(*_: Any) -> None:
    """End as after an interrupt, so that the tables are written before."""
    raise SystemExit(0)


@contextlib.contextmanager
def _endpoint(registry: storage.Location | None) -> Iterator[tuple[str, str]]:
    """Run an endpoint in a process of its own, which ends with this one however this one ends.

    Returns:
        Its address and its token; both "" without a registry.
    """
    if registry is None:
        yield "", ""
        return
    if importlib.util.find_spec("kserve") is None:
        raise InputError(
            f"--registry {registry}: an endpoint cannot be started, since its packages are not installed here; start "
            "one elsewhere (python -m thyroid.serve) and give --endpoint"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_urlsafe(24)  # others on this machine have no business with it
    start = [sys.executable, "-m", "thyroid.serve", "--with-parent", "--registry", str(registry), "--port", str(port)]
    with subprocess.Popen(
        start, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=os.environ | {"THYROID_TOKEN": token}
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}", token
        finally:
            process.terminate()


main = command.main("python -m thyroid.label", run)

if __name__ == "__main__":
    sys.exit(main())
