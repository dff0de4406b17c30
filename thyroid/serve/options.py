"""The options of the endpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from thyroid import storage
from thyroid.command import NOT_AN_OPTION, one_of
from thyroid.model.engine import FORMS


@dataclass(frozen=True)
class ServeOptions:
    """What `python -m thyroid.serve` serves, and where. Either `registry` or `model_dir` is set.

    Attributes:
        registry: Root of a registry, a folder, or a gs:// or s3:// prefix: its champion, else its candidate; a new
            champion is taken over.
        model_dir: Folder of one artefact, as KServe mounts it.
        port: Port of HTTP.
        grpc_port: Port of gRPC; without it, there is no gRPC.
        form: Form of the model: keras, openvino-f32 or openvino-bf16; without it, the fastest one here, which is
            measured.
        token: Bearer token that requests must carry; None if they need none.
        repository_api: Whether models can be loaded and unloaded through /v2/repository and its gRPC calls.
        tls_certificate: PEM file of the certificate; without it, no TLS.
        tls_key: PEM file of its key.
        log: Folder of the decision log, which holds a line of JSON for every image that was answered, without pixels;
            without this and `log_url`, there is no log.
        log_url: http:// or https:// address to which the decisions are posted as CloudEvents.
        log_features: Whether a decision holds the features of the network that novelty is computed from.
        site: Name of the cohort within which the patients' numbers of the requests are known, for their hashes in the
            log.
        shadow: Whether the registry's candidate answers behind the champion, in a process of its own on what the
            champion leaves of the processor, so that the log and the metrics show what it would have changed.
        shadow_dir: Folder of the artefact that answers behind that of --model-dir, in the same way.
    """

    registry: storage.Location | None = None
    model_dir: Path | None = None
    port: int = 8080
    grpc_port: int | None = None
    form: Annotated[str | None, one_of(FORMS)] = None
    token: Annotated[str | None, NOT_AN_OPTION] = None
    repository_api: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    log: Path | None = None
    log_url: str = ""
    log_features: bool = False
    site: str = ""
    shadow: bool = False
    shadow_dir: Path | None = None
