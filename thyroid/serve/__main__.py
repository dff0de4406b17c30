"""The KServe endpoint of a registry's champion, or of one artefact as KServe mounts it.

python -m thyroid.serve --registry output/registry --port 8080
python -m thyroid.serve --registry gs://bucket/registry
python -m thyroid.serve --model-dir /mnt/models --grpc-port 8081
"""

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, engine, errors, registry


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname}
        return json.dumps(told | {"message": record.getMessage()} | getattr(record, "fields", {}), ensure_ascii=False)


def configure_logging() -> None:
    """Our lines as JSON on standard output; of everybody else warnings and worse."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("thyroid").setLevel(logging.INFO)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.serve", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--registry",
        help="root of a registry, a folder or gs://bucket/prefix: its champion, else its candidate; a new champion is taken over",
    )
    source.add_argument("--model-dir", type=Path, help="folder of one artefact, as KServe mounts it")
    parser.add_argument("--port", type=int, default=8080, help="of HTTP")
    parser.add_argument("--grpc-port", type=int, help="of gRPC; none without it")
    parser.add_argument("--form", choices=engine.FORMS, help="default: the fastest that was scored and runs here")
    parser.add_argument("--token-file", type=Path, help="file with the bearer token that requests must carry")
    parser.add_argument("--repository-api", action="store_true", help="open /v2/repository (load and unload)")
    parser.add_argument("--tls-certificate", type=Path, help="PEM file")
    parser.add_argument("--tls-key", type=Path, help="PEM file")
    arguments = parser.parse_args(argv)
    values = vars(arguments)
    token_file = values.pop("token_file")
    token = token_file.read_text().strip() if token_file else os.environ.get("THYROID_TOKEN") or None
    if token_file and not token:
        raise errors.InputError(f"{token_file}: holds no token")
    # a warning of KServe's own, and gRPC's about threads at a fork that nobody makes
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fastapi.*")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.argv = sys.argv[:1]  # kserve parses the command line when it is imported
    from thyroid.serve.server import Options, Server

    configure_logging()
    print(
        f"serving on http://localhost:{arguments.port}/v1/models/{registry.NAME}:predict once /v2/health/ready says so\n"
        f"{RESEARCH_USE_ONLY}",
        flush=True,
    )
    Server(Options(**values, token=token)).run()


if __name__ == "__main__":
    sys.exit(main())
