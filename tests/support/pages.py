"""A real process of the page, and an HTTP client that fills in its form as a browser does."""

import itertools
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.support.serving import free_port

_visitors = itertools.count()
_TRUSTED = ssl.create_default_context()
"""Trusted certificates, read only once, since every client that reads them itself takes 35 ms."""


class Page:
    """A process of the page on a free port, which uses an endpoint.

    Its output goes to a file, so that no pipe fills up. `before` holds statements that the process runs first, for
    instance to shorten limits.
    """

    def __init__(
        self, log: Path, endpoint: str, *arguments: str, environment: dict[str, str] | None = None, before: str = ""
    ) -> None:
        self.port, self.log = free_port(), log
        self._visitors: list[Visitor] = []
        code = f"{before}; import sys; from thyroid.web.__main__ import main; sys.exit(main())"
        start = [sys.executable, *(["-c", code] if before else ["-m", "thyroid.web"])]
        command = [*start, "--endpoint", endpoint, "--port", str(self.port), *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | (environment or {})
            )
        self.address = f"http://127.0.0.1:{self.port}"

    def wait(self) -> "Page":
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health", verify=_TRUSTED).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self) -> str:
        for visitor in self._visitors:
            visitor.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
        return self.log.read_text()

    def visitor(self, **headers: str) -> "Visitor":
        """Return a new visitor, with an IP address of its own if the page trusts a proxy."""
        number = next(_visitors)
        told = {"x_forwarded_for": f"10.1.{number // 250}.{number % 250}"} | headers
        self._visitors.append(Visitor(self.address, **told))
        return self._visitors[-1]


class Visitor:
    """A session that keeps the cookie and sends the form's token, as a browser does."""

    def __init__(self, address: str, **headers: str) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.client = httpx.Client(base_url=address, headers=headers, timeout=60, verify=_TRUSTED)
        home = self.client.get("/")
        assert home.status_code == 200, home.text[:500]
        (self.token,) = re.findall(r'name="csrf_token" value="([^"]+)"', home.text)

    def read(
        self,
        files: Sequence[tuple[str, bytes]],
        rois: Sequence[str] = (),
        script: bool = False,
        token: str | None = None,
    ) -> httpx.Response:
        """Send the form with files (name, content) and boxes, either as the form itself or as its script does."""
        parts = [("files", (name, data, "application/octet-stream")) for name, data in files]
        data = {"csrf_token": self.token if token is None else token, "roi": list(rois)}
        headers = {"x-requested-with": "fetch"} if script else {}
        # httpx sends a multipart body only if there is a file
        return self.client.post("/read", data=data, files=parts or [("none", b"")], headers=headers)

    def picture(self, name: str, data: bytes, frame: str = "") -> httpx.Response:
        """Send one file to be converted to a picture, as the script does with DICOM files."""
        form = {"csrf_token": self.token, "frame": frame}
        return self.client.post("/picture", data=form, files=[("file", (name, data))])
