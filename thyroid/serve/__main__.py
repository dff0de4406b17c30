"""The KServe endpoint of a registry's champion, or of one artefact as KServe mounts it.

python -m thyroid.serve --registry output/registry --port 8080
python -m thyroid.serve --registry gs://bucket/registry
python -m thyroid.serve --model-dir /mnt/models --grpc-port 8081
python -m thyroid.serve --registry output/registry --log output/decisions --shadow
"""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from thyroid import RESEARCH_USE_ONLY, command, errors, logs, workers
from thyroid.command import FLAT
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve.options import ServeOptions

_OPTIONS = ServeOptions()


def run(
    *,
    options: Annotated[ServeOptions, FLAT] = _OPTIONS,
    page_port: int | None = None,
    token_file: Path | None = None,
    with_parent: bool = False,
) -> None:
    """Serve a registry's champion, or one artefact as KServe mounts it, until SIGTERM or SIGINT.

    Args:
        options: What is served, and where.
        page_port: Port of the page for people (python -m thyroid.web); without it, no page.
        token_file: File with the bearer token that requests must carry (or THYROID_TOKEN).
        with_parent: Exit when standard input is closed.
    """
    if (options.registry is None) == (options.model_dir is None):
        raise errors.InputError("give either --registry or --model-dir")
    if options.shadow and options.registry is None:
        raise errors.InputError("--shadow: needs --registry, which names the candidate; give --shadow-dir instead")
    if options.shadow_dir is not None and options.model_dir is None:
        raise errors.InputError("--shadow-dir: needs --model-dir; with --registry give --shadow")
    if page_port is not None and options.tls_certificate is not None:
        raise errors.InputError("--page-port does not support TLS; start python -m thyroid.web separately")
    token = token_file.read_text().strip() if token_file else os.environ.get("THYROID_TOKEN") or None
    if token_file and not token:
        raise errors.InputError(f"--token-file {token_file}: contains no token")
    # Silence warnings that KServe causes, and gRPC's warning about threads at a fork, which never happens here.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fastapi.*")
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.argv = sys.argv[:1]  # kserve parses the command line when it is imported
    from thyroid.serve.server import Server

    if with_parent:
        workers.end_with_input()
    logs.configure()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # With the usual limit on open files, so many connections could be open that no probe gets in.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.nullcontext() if page_port is None else _page(page_port, options.port, token):
        print(
            f"serving on http://localhost:{options.port}/v1/models/{MODEL_NAME}:predict "
            "once /v2/health/ready returns 200\n"
            f"{RESEARCH_USE_ONLY}",
            flush=True,
        )
        Server(replace(options, token=token)).run()


@contextlib.contextmanager
def _page(port: int, endpoint_port: int, token: str | None) -> Iterator[None]:
    """Run the page in a process of its own, which ends with this process however this one ends."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise errors.InputError(
                f"--page-port {port}: {errors.one_line(error)}; choose another port (make serve PAGE_PORT=...)"
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


main = command.main("python -m thyroid.serve", run)

if __name__ == "__main__":
    sys.exit(main())
