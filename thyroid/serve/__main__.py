"""The KServe endpoint of a registry's champion, or of one artefact as KServe mounts it.

python -m thyroid.serve --registry output/registry --port 8080
python -m thyroid.serve --registry gs://bucket/registry
python -m thyroid.serve --model-dir /mnt/models --grpc-port 8081
"""

import argparse
import contextlib
import os
import resource
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, errors, logs
from thyroid.model import engine
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve.options import ServeOptions


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve a model until SIGTERM or SIGINT.

    A user error, such as a model that cannot be served, becomes one line on stderr and exit code 2.

    Args:
        argv: Arguments of the command; None for those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m thyroid.serve", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--registry",
        help="root of a registry, a folder or gs://bucket/prefix: its champion, else its candidate; "
        "a new champion is taken over",
    )
    source.add_argument("--model-dir", type=Path, help="folder of one artefact, as KServe mounts it")
    parser.add_argument("--port", type=int, default=8080, help="port of HTTP")
    parser.add_argument("--grpc-port", type=int, help="port of gRPC; without it, there is no gRPC")
    parser.add_argument(
        "--page-port", type=int, help="port of the page for people (python -m thyroid.web); without it, no page"
    )
    parser.add_argument(
        "--form", choices=engine.FORMS, help="form of the model; default: the fastest one here, which is measured"
    )
    parser.add_argument("--token-file", type=Path, help="file with the bearer token that requests must carry")
    parser.add_argument("--repository-api", action="store_true", help="open /v2/repository (load and unload)")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file of the certificate")
    parser.add_argument("--tls-key", type=Path, help="PEM file of its key")
    arguments = parser.parse_args(argv)
    values = vars(arguments)
    token_file, page_port = values.pop("token_file"), values.pop("page_port")
    if page_port is not None and arguments.tls_certificate is not None:
        raise errors.InputError("--page-port asks the endpoint without TLS; start python -m thyroid.web by itself")
    token = token_file.read_text().strip() if token_file else os.environ.get("THYROID_TOKEN") or None
    if token_file and not token:
        raise errors.InputError(f"{token_file}: holds no token")
    # Silence warnings that KServe causes, and gRPC's warning about threads at a fork, which never happens here.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fastapi.*")
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.argv = sys.argv[:1]  # kserve parses the command line when it is imported
    from thyroid.serve.server import Server

    logs.configure()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # With the usual limit on open files, so many connections could be open that no probe gets in.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.nullcontext() if page_port is None else _page(page_port, arguments.port, token):
        print(
            f"serving on http://localhost:{arguments.port}/v1/models/{MODEL_NAME}:predict "
            "once /v2/health/ready says so\n"
            f"{RESEARCH_USE_ONLY}",
            flush=True,
        )
        Server(ServeOptions(**values, token=token)).run()


@contextlib.contextmanager
def _page(port: int, endpoint_port: int, token: str | None) -> Iterator[None]:
    """Run the page in a process of its own, which ends with this process however this one ends."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise errors.InputError(
                f"--page-port {port}: {errors.one_line(error)}; choose another one (make serve PAGE_PORT=...)"
            ) from None
    command = [sys.executable, "-m", "thyroid.web", "--with-parent", "--port", str(port)]
    environment = os.environ | ({"THYROID_TOKEN": token} if token else {})
    with subprocess.Popen(
        [*command, "--endpoint", f"http://127.0.0.1:{endpoint_port}"], stdin=subprocess.PIPE, env=environment
    ) as page:
        try:
            yield
        finally:
            page.terminate()


if __name__ == "__main__":
    sys.exit(main())
