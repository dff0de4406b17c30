"""The connection to a Kubeflow Pipelines host, and its errors in one line."""

import contextlib
import functools
import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thyroid import errors
from thyroid.errors import InputError

EXPERIMENT = "thyroid"
"""Experiment that holds all runs."""
TIMEOUT = 60.0
"""Seconds to connect, and to wait for more of an answer."""


@dataclass(frozen=True)
class Connection:
    """The host, and how it knows who is asking.

    Attributes:
        host: Address of Kubeflow Pipelines as the browser shows it (…/pipeline), or that of a port-forward.
        namespace: Profile on a multi-user Kubeflow; empty for a single-user one.
        service_account: Service account that the pods run as; empty for the installation's default.
        token_file: File with a bearer token for the host; none if the host asks for none.
    """

    host: str = ""
    namespace: str = ""
    service_account: str = ""
    token_file: Path | None = None

    def page(self, path: str) -> str:
        """Return the address of a page of the UI."""
        return f"{self.host.rstrip('/')}/#/{path}"

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Yield the `kfp.Client` of the host, and turn the host's errors within the block into one line.

        Raises:
            InputError: There is no host, or it refuses, cannot be reached, or is not Kubeflow Pipelines.
        """
        if not self.host:
            raise InputError("--host: give the address of Kubeflow Pipelines")
        warnings.filterwarnings("ignore", "This client only works", FutureWarning)
        import kfp
        import kfp_server_api
        from urllib3.exceptions import HTTPError

        class Client(kfp.Client):
            def get_kfp_healthz(self, *given: Any) -> Any:  # the constructor asks for it
                _bound(self)
                return super().get_kfp_healthz(*given)

        token = self.token_file.read_text().strip() if self.token_file else ""
        _check_health(self.host, token)
        try:
            client = Client(host=self.host, namespace=self.namespace or "kubeflow", existing_token=token or None)
            _bound(client)
            yield client
        except kfp_server_api.ApiException as error:
            raise InputError(f"--host {self.host}: {error.status} {message(error)}") from None
        except (HTTPError, ConnectionError) as error:
            raise InputError(
                f"--host {self.host}: cannot be reached ({type(error).__name__}); is it the Pipelines address?"
            ) from None


def _bound(client: Any) -> None:
    """Give every request of kfp's client a time-out. The client itself waits for an answer for ever."""
    pool = client.runs.api_client.rest_client.pool_manager
    pool.request = functools.partial(_request, pool.request)


def _request(request: Callable[..., Any], *arguments: Any, timeout: Any = None, **options: Any) -> Any:
    return request(*arguments, timeout=timeout or TIMEOUT, **options)


def _check_health(host: str, token: str) -> None:
    """Check the host's health once. kfp's client would try it for half a minute and print a traceback each time.

    Raises:
        InputError: The host refuses, cannot be reached, or is not Kubeflow Pipelines.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{host.rstrip('/')}/apis/v2beta1/healthz", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(500).decode(errors="replace")
        raise InputError(f"--host {host}: {error.code} {text}; is a token needed (--token-file)?") from None
    except OSError as error:
        raise InputError(f"--host {host}: cannot be reached ({errors.one_line(error)})") from None
    except ValueError:
        raise InputError(
            f"--host {host}: no answer from Kubeflow Pipelines, perhaps a login page; give a token with "
            "--token-file, or the address of kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        ) from None


def message(error: Any) -> str:
    """Return the message in the body of an `ApiException`, or else the reason of its status."""
    try:
        content = json.loads(error.body)
        return content.get("message") or content.get("error") or str(error.reason)
    except (TypeError, ValueError, AttributeError):
        return str(error.reason)
