"""The command that waits for scans and starts a run for each batch of them."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines import compile
from pipelines.events.auth import Gate, Senders
from pipelines.events.batch import Patience
from pipelines.events.scope import Scope
from pipelines.kubeflow import schedule, submit
from pipelines.kubeflow.host import Connection
from thyroid import RESEARCH_USE_ONLY, logs, storage
from thyroid.command import FLAT
from thyroid.errors import InputError

LAST_PORT = 65535


def listen(
    *,
    state: storage.Location,
    connection: Annotated[Connection, FLAT] = Connection(),
    placement: Annotated[compile.Placement, FLAT] = compile.Placement(),
    given: Annotated[Sequence[str], Parameter(name="--set")] = (),
    senders: Annotated[Senders, FLAT] = Senders(),
    patience: Annotated[Patience, FLAT] = Patience(),
    address: str = "127.0.0.1",
    port: int = 8020,
) -> None:
    """Start a run on Kubeflow whenever a batch of scans has arrived, until SIGTERM or SIGINT.

    Takes CloudEvents of Google Cloud Storage, notifications of S3, and plain lists of objects over HTTP. A batch is
    ready when no more scans arrive, or when there are enough. It gets one run, unless nothing of it is left or new.
    While that run is unfinished, the next batch grows.

    Args:
        state: Folder, gs:// or s3:// prefix that keeps the batches. It holds the names of objects.
        connection: The host.
        placement: What is trained, and where.
        given: Parameters of the pipeline in every run, each as PARAMETER=VALUE; may be repeated. minimum=1 and
            recipe=warm are set unless given here.
        senders: Who may send events.
        patience: When a batch is ready.
        address: Address to listen on; 0.0.0.0 in a container.
        port: Port to listen on.

    Raises:
        InputError: An option is missing or wrong, or the state cannot be read.
    """
    gate = Gate(senders)
    if not connection.host:
        raise InputError("--host: give the address of Kubeflow Pipelines")
    if not 0 < port <= LAST_PORT:
        raise InputError(f"--port {port}: expected 1 to {LAST_PORT}")
    from pipelines.events import server
    from pipelines.events.leader import Leader
    from pipelines.events.start import Pipeline
    from pipelines.events.state import Store

    with submit.compiled(placement) as (package, specification):
        values = _values(specification, given)
        submit.check_places(values, specification, placement)
        scope = Scope.of(values)
        _check_folders(scope)
        pipeline = Pipeline(package, submit.with_run(specification, values, placement.names), connection)
        with contextlib.closing(Store(state)) as store, server.bind(address, port) as listening:
            # before the leader starts, since its requests to the host swallow what is printed meanwhile
            logs.configure()
            greeting = f"listening on http://{address}:{port} for scans in {', '.join(scope.scans)}"
            print(f"{greeting}\n{RESEARCH_USE_ONLY}", flush=True)
            leader = Leader(store, pipeline, patience)
            leader.start()
            try:
                server.serve(server.Listener(store, scope, gate), listening)
            finally:
                leader.stop()


def _values(specification: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    return submit.convert(specification, schedule.defaults(specification) | compile.pairs("--set", given))


def _check_folders(scope: Scope) -> None:
    """Check that folders of scans are mounted here, since a batch is checked before its run starts.

    Raises:
        InputError: One is not.
    """
    for place in scope.scans:
        if not storage.is_bucket(place) and not Path(place).is_dir():
            raise InputError(f"{place}: no such folder of scans here; mount the volume of the scans")
