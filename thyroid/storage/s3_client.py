"""The client of services that speak S3: its settings, errors, and the listings that it cannot make itself.

SSL_CERT_FILE names the certificates of an authority of one's own.
"""

import functools
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree

from thyroid.errors import InputError
from thyroid.storage import client

PART = 8 << 20
"""Bytes of a part of an upload. A larger file is sent in parts."""
PARTS = 4
"""Parts that are sent at once: the time-out of an answer counts from the first byte that is sent."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
)
_FOREVER = timedelta(days=1)  # a large file may take as long as it likes while bytes still come
_SIGNED = timedelta(minutes=10)  # that a listing's address is valid; clocks may differ by minutes


def store_of(bucket: str) -> Any:
    """Return the client of a bucket, with the credentials and the endpoint of the environment.

    Raises:
        InputError: The environment has no credentials, or the endpoint is not an address.
    """
    _stay_in_process()
    return _store_of(bucket, environment(), client.PATIENCE)


def store_at(bucket: str, key: str) -> Any:
    """Return a client whose only object, "", is the one of this key.

    The keys that the client itself takes are paths without empty parts and control characters. Those of S3 may be any
    text, such as a//b, and the address of the bucket is not checked.
    """
    # the client adds a / to the address, which must not become part of the key; SDKs send x-id, and services ignore it
    return _made(bucket, f"{_base()}/{bucket}/{quote(key)}?x-id=")


def environment() -> tuple[tuple[str, str], ...]:
    """Return the variables on which a client depends."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


def is_reachable(key: str) -> bool:
    """Return whether an object can be read at all: . and .. between slashes are taken out of every address."""
    return not {".", ".."} & set(key.split("/"))


def is_path(key: str) -> bool:
    """Return whether the client takes a key as it is."""
    return all(key.split("/")) and not re.search(r"[\x00-\x1f\x7f]", key)


def pages(address: str, bucket: str, query: dict[str, str]) -> Iterator[ElementTree.Element]:
    """Yield the pages of a listing, each with the elements of ListObjectsV2.

    The client's own listing ends at the first key that is no path, and takes the name of a folder's placeholder for a
    file's. So its signature is used, but not its parser.

    Args:
        address: Address of the place, which the messages name.
        bucket: Name of the bucket.
        query: Parameters of the listing, such as prefix.

    Raises:
        InputError: The listing failed, as in `input_errors`.
    """
    query = {"list-type": "2", "encoding-type": "url", **query}
    while True:
        page = _page(address, bucket, query)
        yield page
        if text(page, "IsTruncated") != "true":
            return
        query |= {"continuation-token": text(page, "NextContinuationToken")}


def has_versions(address: str, bucket: str) -> bool:
    """Return whether a bucket keeps what was removed or overwritten as older versions.

    Raises:
        InputError: The account has no right to know, or the service failed, as in `input_errors`.
    """
    return text(_page(address, bucket, {"versioning": ""}), "Status") == "Enabled"


def text(element: ElementTree.Element, tag: str) -> str:
    """Return the text of an element's child, "" if it has none. Services differ in the namespace."""
    return element.findtext(f"{{*}}{tag}") or ""


def key_of(page: ElementTree.Element, item: ElementTree.Element, tag: str = "Key") -> str:
    """Return the key of an item of a page."""
    return unquote_plus(text(item, tag)) if text(page, "EncodingType") == "url" else text(item, tag)


@contextmanager
def input_errors(address: str, bucket: str) -> Iterator[None]:
    """Turn the client's errors within the block into InputErrors whose messages say what to do.

    The service's own words are left out: they may quote the key and the signature of the request.

    Args:
        address: Address of the place, which the messages name.
        bucket: Name of the bucket.

    Raises:
        InputError: The bucket does not exist, the account has no permission or no credentials, or the service failed.
    """
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if error.errno is not None:  # a local file
            raise
        raise _failure(address, bucket, "404") from None
    except exceptions.BaseError as error:
        raise _failure(address, bucket, _reason(str(error))) from None


def is_without_bucket(error: Exception) -> bool:
    """Return whether the service said that the bucket itself does not exist."""
    return "NoSuchBucket" in str(error)


def _failure(address: str, bucket: str, reason: str) -> InputError:
    if reason.startswith("404"):
        return InputError(f"{address}: there is no bucket {bucket}; check the address, and AWS_ENDPOINT_URL")
    if reason.startswith(("401", "403")):
        return InputError(
            f"{address}: no permission ({reason}); give the account of AWS_ACCESS_KEY_ID the rights s3:ListBucket and "
            "s3:GetObject to read, s3:PutObject and s3:DeleteObject to write, and check that it is the right account"
        )
    return InputError(
        f"{address}: the service of s3:// failed ({reason}); files already transferred are kept, so check "
        "AWS_ENDPOINT_URL and AWS_REGION, and run the same command again later"
    )


def _reason(message: str) -> str:
    """Return the status and the code of an error of the client, else its kind, without addresses and names."""
    message = message.partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d+)", message)
    code = re.search(r"<Code>(\w+)</Code>", message)
    if status:
        return " ".join([status[1], *([code[1]] if code else [])])
    return message.rpartition(" - ")[2].rpartition("Generic S3 error: ")[2].splitlines()[0][:100]


@functools.cache
def _first_process() -> int:
    return os.getpid()


def _stay_in_process() -> None:
    """Say what would otherwise wait for ever: the client's threads do not survive a fork."""
    if os.getpid() != _first_process():
        raise RuntimeError("a bucket of s3:// was used before this process was forked; start it by spawn or forkserver")


def _base() -> str:
    for variable in _ENDPOINTS:
        if endpoint := os.environ.get(variable, "").rstrip("/"):
            if not endpoint.startswith(("http://", "https://")):
                raise InputError(f"{variable}: give an address such as https://minio.example.org:9000")
            return endpoint
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return f"https://s3.{region}.amazonaws.com"


@functools.lru_cache(maxsize=16)
def _store_of(bucket: str, settings: tuple[tuple[str, str], ...], patience: float) -> Any:
    """Return the client of a bucket, which keeps its connections, for as long as its settings do not change."""
    return _made(bucket, f"{_base()}/{bucket}")


def _made(bucket: str, url: str) -> Any:
    """Return a client for the address of a bucket."""
    from obstore.store import S3Store

    _stay_in_process()
    if not any(os.environ.get(variable) for variable in _CREDENTIALS):
        raise InputError(
            f"s3://{bucket}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for "
            "a service of your own"
        )
    first, longest, patience = (
        timedelta(seconds=seconds) for seconds in (client.FIRST_PAUSE, client.LONGEST_PAUSE, client.PATIENCE)
    )
    connect, answer = (timedelta(seconds=seconds) for seconds in client.TIMEOUTS)
    return S3Store(
        bucket,
        endpoint=url,
        virtual_hosted_style_request=True,  # the address is the bucket's
        disable_bulk_delete=True,  # not every service has it, and what is deleted last must be
        client_options={
            "allow_http": url.startswith("http://"),
            "connect_timeout": connect,
            "read_timeout": answer,
            "timeout": _FOREVER,
        },
        retry_config={
            "max_retries": 1_000_000,  # `retry_timeout` ends them
            "retry_timeout": patience,
            "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
        },
    )


def _page(address: str, bucket: str, query: dict[str, str]) -> ElementTree.Element:
    """Return what the service says about a bucket, asked for until `client.PATIENCE` is over."""
    import obstore

    asked, pause, started = urlencode(query, quote_via=quote), client.FIRST_PAUSE, time.monotonic()
    while True:
        url = f"{_base()}/{bucket}?{asked}&x-id="
        if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() not in ("true", "1"):
            with input_errors(address, bucket):
                url = obstore.sign(_made(bucket, url), "GET", "", _SIGNED)
        try:
            with urllib.request.urlopen(url, timeout=client.TIMEOUTS[1]) as answer:
                return ElementTree.fromstring(answer.read())
        except urllib.error.HTTPError as error:
            reason = _reason(f"status code: {error.code} {error.read().decode('utf-8', 'replace')}")
            if error.code not in (408, 429) and error.code < 500:
                raise _failure(address, bucket, reason) from None
        except (OSError, http.client.HTTPException, ElementTree.ParseError) as error:
            reason = f"listing: {type(error).__name__}"
        if time.monotonic() - started + pause > client.PATIENCE:
            raise _failure(address, bucket, reason) from None
        time.sleep(pause)
        pause = min(2 * pause, client.LONGEST_PAUSE)
