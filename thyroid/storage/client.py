"""Google's client: its connections, retries and errors; and how long either service is waited for."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thyroid import errors
from thyroid.errors import InputError

WORKERS = 16
"""Number of transfers at once; a small object spends most of its time waiting."""
TIMEOUTS = (10.0, 60.0)  # seconds to connect, seconds to answer
PATIENCE = 300.0
"""Seconds of 429, 5xx and broken connections, retried with doubling pauses, before a transfer is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


def connect() -> Any:
    """Return Google's client for the service, or for the emulator that STORAGE_EMULATOR_HOST names."""
    return client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache
def client_of(emulator: str | None) -> Any:
    """Return the client of a process for an emulator; None for the service itself. A forked process needs its own."""
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))  # only new buckets need it
    client._bucket_metadata_cache = None  # it requests the bucket in the background, which needs a further right
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, HTTPAdapter(pool_connections=WORKERS, pool_maxsize=WORKERS))  # the default is ten
    return client


def retry(*more: type[Exception]) -> Any:
    """Return the retries of every call: Google's own, and downloads whose checksum is wrong.

    Args:
        more: Further errors after which a call is made once more.
    """
    from google.cloud.storage.exceptions import DataCorruption
    from google.cloud.storage.retry import DEFAULT_RETRY

    passing = DEFAULT_RETRY._predicate
    return (
        DEFAULT_RETRY.with_predicate(lambda error: passing(error) or isinstance(error, (DataCorruption, *more)))
        .with_delay(FIRST_PAUSE, LONGEST_PAUSE, 2.0)
        .with_timeout(PATIENCE)
    )


def transfer_options() -> dict[str, Any]:
    """Return the keyword arguments of every upload and download."""
    return {"retry": retry(), "timeout": TIMEOUTS, "checksum": "crc32c"}


@contextmanager
def input_errors(address: str, bucket: str) -> Iterator[None]:
    """Turn Google's errors within the block into InputErrors whose messages say what to do.

    Args:
        address: Address of the place, which the messages name.
        bucket: Name of the bucket.

    Raises:
        InputError: The bucket does not exist, the account has no permission or no credentials, or the service failed.
    """
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except exceptions.NotFound:
        raise InputError(f"{address}: there is no bucket {bucket}; check the address") from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise InputError(
            f"{address}: no permission ({errors.one_line(error)[:200]}); give the account "
            "roles/storage.objectViewer to read, roles/storage.objectUser to write, and check that it is the "
            "right account"
        ) from None
    except GoogleAuthError as error:
        raise InputError(
            f"{address}: no credentials ({errors.one_line(error)[:200]}); run gcloud auth "
            "application-default login, set GOOGLE_APPLICATION_CREDENTIALS, or give the pod workload identity"
        ) from None
    except (exceptions.GoogleAPIError, requests.RequestException, ConnectionError, DataCorruption) as error:
        raise InputError(
            f"{address}: Google Cloud Storage failed ({errors.one_line(error)[:200]}); files already "
            "transferred are kept, so run the same command again later"
        ) from None
