"""Buckets of the emulated services, for the set-up and the checks of tests."""

import http.client
import json
import urllib.parse
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.etree import ElementTree

from tests.support.gcs import Proxy

ACCOUNT = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""Names an account. The server of the tests does not check signatures."""


@dataclass
class Cloud(ABC):
    """A fresh bucket of an emulator.

    Attributes:
        bucket: Name of the bucket.
        proxy: Proxy in front of the emulator, which the code under test uses. The methods here go past it.
    """

    bucket: str
    proxy: Proxy
    scheme: ClassVar[str]
    writes: ClassVar[str]
    """Method by which an object is written."""

    def address(self, prefix: str = "") -> str:
        return f"{self.scheme}{self.bucket}/{prefix}"

    def downloads(self) -> list[str]:
        """The paths of the downloads until now."""
        return [path for method, path in self.proxy.requests if self.is_download(method, path)]

    def deleted(self) -> list[str]:
        """The names of the objects whose deletion was asked for, in this order."""
        paths = [path.partition("?")[0] for method, path in self.proxy.requests if method == "DELETE"]
        return [urllib.parse.unquote(path).partition(f"{self.bucket}/")[2].removeprefix("o/") for path in paths]

    @abstractmethod
    def put(self, objects: dict[str, bytes]) -> None:
        """Write objects by their whole names."""

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def delete(self, *names: str) -> None:
        """Delete objects; all of them and the bucket if none is named."""

    @abstractmethod
    def is_download(self, method: str, path: str) -> bool: ...

    @abstractmethod
    def without(self, listing: bytes, name: str) -> bytes:
        """Return the body of a page of a listing without one of its objects."""


@dataclass
class GoogleCloud(Cloud):
    """A bucket of fake-gcs-server.

    Attributes:
        client: Google's client, connected directly to the emulator.
    """

    client: Any
    scheme = "gs://"
    writes = "POST"

    @classmethod
    @contextmanager
    def new(cls, emulator: str, proxy: Proxy) -> Iterator["GoogleCloud"]:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        client = Client("none", AnonymousCredentials(), client_options={"api_endpoint": emulator})
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        client.create_bucket(bucket)
        yield cls(bucket, proxy, client)
        client.close()

    def put(self, objects: dict[str, bytes]) -> None:
        """Write objects by their whole names; without Google's client, thousands take seconds."""
        connection = http.client.HTTPConnection(self.proxy.target)
        for name, data in objects.items():
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            connection.request("POST", f"/upload/storage/v1/b/{self.bucket}/o?{query}", data)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()

    def names(self) -> list[str]:
        return [blob.name for blob in self.client.list_blobs(self.bucket)]

    def read(self, name: str) -> bytes:
        return bytes(self.client.bucket(self.bucket).blob(name).download_as_bytes())

    def delete(self, *names: str) -> None:
        there = self.client.bucket(self.bucket)
        for name in names or self.names():
            there.delete_blob(name)
        if not names:
            there.delete()

    def is_download(self, method: str, path: str) -> bool:
        return "alt=media" in path

    def without(self, listing: bytes, name: str) -> bytes:
        page = json.loads(listing)
        return json.dumps(page | {"items": [item for item in page["items"] if item["name"] != name]}).encode()


@dataclass
class S3Cloud(Cloud):
    """A bucket of the S3 server."""

    scheme = "s3://"
    writes = "PUT"

    @classmethod
    def new(cls, proxy: Proxy) -> "S3Cloud":
        cloud = cls(f"bucket-{uuid.uuid4().hex[:12]}", proxy)
        cloud.ask("PUT", "")
        return cloud

    def ask(self, method: str, name: str, data: bytes | None = None, query: str = "") -> bytes:
        """Send one request about an object, or about the bucket if `name` is empty."""
        return self._ask([(method, name, data, query)])[0]

    def _ask(self, requests: list[tuple[str, str, bytes | None, str]]) -> list[bytes]:
        connection, bodies = http.client.HTTPConnection(self.proxy.target), []
        for method, name, data, query in requests:
            path = f"/{self.bucket}" + (f"/{urllib.parse.quote(name)}" if name else "")
            connection.request(method, path + query, data, {"Authorization": ACCOUNT})
            answer = connection.getresponse()
            bodies.append(answer.read())
            assert answer.status < 300, bodies[-1]
        connection.close()
        return bodies

    def put(self, objects: dict[str, bytes]) -> None:
        self._ask([("PUT", name, data, "") for name, data in objects.items()])

    def names(self) -> list[str]:
        found, query = [], "?list-type=2"
        while True:
            page = ElementTree.fromstring(self.ask("GET", "", query=query))
            found += [item.findtext("{*}Key") or "" for item in page.iterfind("{*}Contents")]
            if page.findtext("{*}IsTruncated") != "true":
                return found
            token = page.findtext("{*}NextContinuationToken") or ""
            query = "?" + urllib.parse.urlencode({"list-type": 2, "continuation-token": token})

    def read(self, name: str) -> bytes:
        return self.ask("GET", name)

    def delete(self, *names: str) -> None:
        for name in names or self.names():
            self.ask("DELETE", name)
        if not names:
            self.ask("DELETE", "")

    def is_download(self, method: str, path: str) -> bool:
        return method == "GET" and not path.startswith(f"/{self.bucket}?")

    def without(self, listing: bytes, name: str) -> bytes:
        page = ElementTree.fromstring(listing)
        for item in page.findall("{*}Contents"):
            if urllib.parse.unquote_plus(item.findtext("{*}Key") or "") == name:
                page.remove(item)
        return ElementTree.tostring(page)
