"""Cost of the page: the time that it adds to the endpoint's answer, its time on a slow network, and its bytes.

The baseline is the endpoint itself, which is asked for the same explanation in turns with the page. The slow network is
DevTools' "Fast 3G" (1.44 Mbit/s, 562.5 ms a request) with an empty cache, in Chromium.

    python bench/web.py [--views 1,4] [--rounds 40]
"""

import argparse
import base64
import http.client
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from endpoint import Endpoint, free_port
from serving import artefact

from thyroid.imaging import images, phantom

FAST_3G = {"offline": False, "latency": 562.5, "downloadThroughput": 180_000, "uploadThroughput": 84_375}
MOST_MILLISECONDS = 20
MOST_SECONDS = 1.0
MOST_BYTES = 200_000
LOADS = 7


@contextmanager
def page(endpoint: str) -> Iterator[str]:
    """Yield the address of a page that uses the endpoint.

    The page trusts a proxy's headers, so that its limit of requests counts every client separately.
    """
    port = free_port()
    command = [sys.executable, "-m", "thyroid.web", "--endpoint", endpoint, "--port", str(port), "--proxies", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


class Visitor:
    """A visitor that sends the form as the page's own script does."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=120)
        self.connection.request("GET", "/")
        answer = self.connection.getresponse()
        text = answer.read().decode()
        (self.token,) = re.findall(r'name="csrf_token" value="([^"]+)"', text)
        self.cookie = str(answer.headers["set-cookie"]).split(";")[0]
        self.clients = itertools.count()

    def body(self, picture: bytes, roi: str, views: int) -> tuple[bytes, str]:
        """Return the form and its content type."""
        edge = uuid.uuid4().hex
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{self.token}\r\n'.encode()]
        for _ in range(views):
            head = 'Content-Disposition: form-data; name="files"; filename="scan.jpg"\r\nContent-Type: image/jpeg'
            parts += [f"--{edge}\r\n{head}\r\n\r\n".encode(), picture, b"\r\n"]
            parts += [f'--{edge}\r\nContent-Disposition: form-data; name="roi"\r\n\r\n{roi}\r\n'.encode()]
        return b"".join([*parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"

    def read(self, body: bytes, kind: str) -> None:
        number = next(self.clients)
        headers = {"Content-Type": kind, "Cookie": self.cookie, "X-Requested-With": "fetch"}
        headers["X-Forwarded-For"] = f"10.0.{number // 250}.{number % 250}"
        send(self.connection, "/read", body, headers)


def send(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> None:
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}")


def latencies(endpoint: str, address: str, views: int, rounds: int) -> tuple[float, float, float]:
    """Return median seconds of the endpoint, of the page, and of the difference within each turn.

    Both are asked for the same pictures, in turns.
    """
    drawn = phantom.draw("M", patient=3, image=1)
    picture, roi = images.encode(drawn.image), list(drawn.roi)
    instance = {"image": {"b64": base64.b64encode(picture).decode()}, "roi": roi, "patient": "1"}
    asked = json.dumps({"instances": [instance] * views}).encode()
    line = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=120)
    visitor = Visitor(address)
    body, kind = visitor.body(picture, ",".join(map(str, roi)), views)
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 5):
        for side in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            if side:
                visitor.read(body, kind)
            else:
                send(line, "/v1/models/thyroid:explain", asked, {"Content-Type": "application/json"})
            if number >= 5:  # the first five are warm-up
                taken[side].append(time.perf_counter() - started)
    added = statistics.median(through - direct for direct, through in zip(*taken, strict=True))
    return statistics.median(taken[0]), statistics.median(taken[1]), added


def slow_line(address: str) -> tuple[float, int]:
    """Return the median seconds until the page is interactive on "Fast 3G", and the bytes that are loaded."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("error: this benchmark needs Chromium; tests/browser/install.sh installs it")
    seconds, sizes = [], []
    with sync_playwright() as playwright:
        quiet = [f"--disable-{one}" for one in ("background-networking", "component-update", "sync", "gpu")]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *quiet])
        for number in range(LOADS):
            context = browser.new_context(extra_http_headers={"x-forwarded-for": f"10.9.0.{number}"})
            tab = context.new_page()
            session = context.new_cdp_session(tab)
            session.send("Network.enable")
            session.send("Network.emulateNetworkConditions", FAST_3G)
            got: list[int] = []
            session.on("Network.loadingFinished", lambda told, got=got: got.append(int(told["encodedDataLength"])))
            tab.goto(f"http://{address}/", wait_until="load")
            seconds.append(tab.evaluate("performance.getEntriesByName('interactive')[0].startTime") / 1000)
            sizes.append(sum(got))
            context.close()
        browser.close()
    return statistics.median(seconds), max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--views", default="1,4", help="pictures of a reading")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = artefact("ResNet50", Path(folder) / "model")
        with Endpoint("--model-dir", str(model)) as endpoint, page(endpoint.url) as address:
            for views in map(int, given.views.split(",")):
                direct, through, added = latencies(endpoint.url, address, views, given.rounds)
                added *= 1000
                print(
                    f"{views} pictures: endpoint {direct * 1000:.1f} ms, page {through * 1000:.1f} ms: "
                    f"{added:.1f} ms added (at most {MOST_MILLISECONDS})"
                )
                ratios[f"endpoint_vs_page_{views}_views"] = direct / through
                ratios[f"limit_vs_added_{views}_views"] = MOST_MILLISECONDS / max(added, 0.1)
            seconds, size = slow_line(address)
            print(
                f"Fast 3G: interactive after {seconds:.2f} s (at most {MOST_SECONDS:g}), {size:,} bytes "
                f"(at most {MOST_BYTES:,})"
            )
            ratios |= {"limit_vs_interactive": MOST_SECONDS / seconds, "limit_vs_bytes": MOST_BYTES / size}
    print(json.dumps({"bench": "web", "ratios": {key: round(value, 2) for key, value in ratios.items()}}))


if __name__ == "__main__":
    main()
