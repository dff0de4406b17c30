"""The one run of a batch: found by its name if it exists, else created; and whether it is unfinished."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.kubeflow import submit
from pipelines.kubeflow.host import EXPERIMENT, Connection

PAGE = 100
"""Runs in one answer of the host."""
NOT_FOUND = 404


@dataclass(frozen=True)
class Pipeline:
    """What every run consists of.

    Attributes:
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        connection: The host.
    """

    package: Path
    values: Mapping[str, Any]
    connection: Connection

    def find(self, name: str) -> str:
        """Return the id of the run of this name, "" if there is none.

        Raises:
            InputError: The host refuses or cannot be reached.
        """
        with self._client() as client:
            experiment = self._experiment(client)
            wanted = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
            token = ""
            while True:
                answer = client.list_runs(
                    page_token=token,
                    page_size=PAGE,
                    experiment_id=experiment,
                    filter=json.dumps({"predicates": [wanted]}),
                )
                for run in answer.runs or []:
                    if run.display_name == name:
                        return str(run.run_id)
                token = answer.next_page_token or ""
                if not token:
                    return ""

    def create(self, name: str, note: Callable[[], None]) -> str:
        """Create a run of this name and return its id.

        Args:
            name: Name of the run.
            note: Called right before the request, since what comes before it can take minutes. Its exceptions end the
                attempt.

        Raises:
            InputError: The host refuses or cannot be reached, or does not answer. In the last case the run may exist.
        """
        with self._client() as client:
            experiment = self._experiment(client)
            note()
            made = submit.create(client, self.package, self.values, self.connection, experiment=experiment, name=name)
            return str(made.run_id)

    def state(self, id: str) -> str:
        """Return the state of a run, such as RUNNING; "DELETED" if it no longer exists.

        Raises:
            InputError: The host refuses or cannot be reached.
        """
        import kfp_server_api

        with self._client() as client:
            try:
                return str(client.get_run(id).state or "PENDING")
            except kfp_server_api.ApiException as error:
                if error.status != NOT_FOUND:
                    raise
                return "DELETED"

    def has_ended(self, state: str) -> bool:
        """Return whether a run in this state is over."""
        return state in (*submit.ENDED, "DELETED")

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        """Yield kfp's client of the host, whose prints would be between the lines of the log."""
        with contextlib.redirect_stdout(io.StringIO()), self.connection.client() as client:
            yield client

    def _experiment(self, client: Any) -> str:
        found = client.create_experiment(EXPERIMENT, namespace=self.connection.namespace or None)
        return str(found.experiment_id)
