"""The options of the endpoint."""

from dataclasses import dataclass
from pathlib import Path

from thyroid import storage


@dataclass(frozen=True)
class ServeOptions:
    """What `python -m thyroid.serve` serves, and where. Either `registry` or `model_dir` is set.

    Attributes:
        registry: Root of a registry, a folder or a bucket.
        model_dir: Folder of one artefact.
        port: Port of HTTP.
        grpc_port: Port of gRPC; None for no gRPC.
        form: One of `engine.FORMS`; None for the fastest one here.
        token: Bearer token that requests must carry; None if they need none.
        repository_api: Whether models can be loaded and unloaded through /v2/repository and its gRPC calls.
        tls_certificate: PEM file of the certificate; None for no TLS.
        tls_key: PEM file of its key.
    """

    registry: storage.Location | None = None
    model_dir: Path | None = None
    port: int = 8080
    grpc_port: int | None = None
    form: str | None = None
    token: str | None = None
    repository_api: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
