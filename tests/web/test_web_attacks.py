"""The page under attacks on its memory, connections and threads: during each, it opens and answers probes."""

import concurrent.futures
import contextlib
import socket
from types import SimpleNamespace

import httpx
import pytest

from tests.support import dicoms
from tests.support.attackers import closed, connections, memory, until
from tests.support.pages import Page
from tests.support.serving import errors_in, free_port
from thyroid.web import channel

BEFORE = (
    "from thyroid.web import channel; channel.CONNECTIONS = 60; channel.HEADERS = 1.0; channel.BODY = 2.0; "
    "channel.MEMORY = 40_000_000; channel.SPARE = 4_000_000"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Without an endpoint, and with limits that a small attack reaches."""
    folder = tmp_path_factory.mktemp("page")
    running = Page(folder / "log", f"http://127.0.0.1:{free_port()}", "--proxies", "1", before=BEFORE).wait()
    yield running
    assert running.process.poll() is None
    log = running.stop()
    assert errors_in(log) == []
    assert "Traceback" not in log


def good(page: Page) -> None:
    """A probe, the page and a picture are answered."""
    assert httpx.get(f"{page.address}/health", timeout=30).status_code == 200
    visitor = page.visitor()
    opened = visitor.picture("clip.dcm", dicoms.write(dicoms.cine(3)))
    assert opened.status_code == 200, opened.text
    visitor.client.close()


UPLOAD = "POST /read HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param("", id="nothing", marks=pytest.mark.slow),
        pytest.param("GET / HT", id="a line", marks=pytest.mark.slow),
        pytest.param(f"{UPLOAD}X-Slow: ", id="a header"),
        pytest.param(f"{UPLOAD}Content-Length: 30000000\r\n\r\n--x", id="a body"),
    ],
)
def test_slow_clients_keep_nobody_out_and_are_closed(page, sent):
    good(page)  # the process that reads DICOM starts, which takes a moment
    with connections(page, 55 if "Length" in sent else 100, sent.encode()) as clients:
        good(page)
        for client in clients:
            assert closed(client)
    good(page)


def test_connections_are_taken_in_many_at_once():
    """Up to the limit of all, and so many that those who are in have their turn, too."""
    waiting, taken = list(range(250)), {}
    server = SimpleNamespace(active_channels=taken, _map=taken, adj=SimpleNamespace(connection_limit=150))

    def accept() -> None:
        if waiting:
            taken[waiting.pop()] = None

    take_in = channel._accepting_many(server, accept)
    left = []
    for _ in range(2):
        take_in()
        left.append(len(waiting))
    assert left == [250 - channel.AT_ONCE, 100]
    taken.clear()
    take_in()
    take_in()
    assert waiting == []


def test_bodies_that_no_route_wants_are_not_taken(page):
    for line in ("POST /health", "GET /", "POST /nothing"):
        head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
        with connections(page, 1, head.encode() + b"x") as (client,):
            assert client.recv(65_536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("form", ["whole", pytest.param("chunked", marks=pytest.mark.slow), "aborted"])
def test_large_bodies_at_once_stay_within_the_budget(page, form):
    """A request without room is refused with a message, and the room of aborted requests is freed."""
    good(page)
    before = memory(page)
    peak = 0.0

    def flood(_: int) -> int:
        data = b"x" * 15_000_000
        if form == "aborted":
            head = f"{UPLOAD}Content-Length: 30000000\r\n\r\n"
            with connections(page, 1, head.encode()) as (client,), contextlib.suppress(OSError):
                client.sendall(data)
            return 0
        body = (data[at : at + 1_000_000] for at in range(0, len(data), 1_000_000)) if form == "chunked" else data
        try:
            return httpx.post(f"{page.address}/read", content=body, timeout=60).status_code
        except httpx.TransportError:  # refused while it was sending
            return 503

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        flooding = [pool.submit(flood, number) for number in range(24)]
        while not all(one.done() for one in flooding):
            peak = max(peak, memory(page))
            good(page)
        statuses = {one.result() for one in flooding}
    assert statuses <= ({0} if form == "aborted" else {400, 429, 503})
    assert peak < before + 180, "24 bodies are 360 MB"
    until(lambda: memory(page) < 1.1 * before)
    good(page)


def test_dicom_bombs_are_refused_and_hold_up_nobody(page):
    bombs = [dicoms.regions_bomb(200_000), dicoms.deflated_bomb(60)]

    def send(number: int) -> int:
        return page.visitor().picture("bomb.dcm", bombs[number % 2]).status_code

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(send, number) for number in range(12)]
        while not all(one.done() for one in sent):
            assert httpx.get(f"{page.address}/health", timeout=30).status_code == 200
            assert httpx.get(page.address, timeout=30).status_code == 200
        assert {one.result() for one in sent} <= {400, 503}
    good(page)


@pytest.mark.slow
def test_probes_are_answered_where_every_thread_waits(tmp_path):
    """For an endpoint that takes connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(200)
        running = Page(tmp_path / "log", f"http://127.0.0.1:{silent.getsockname()[1]}").wait()
        try:
            with concurrent.futures.ThreadPoolExecutor(40) as pool:
                waiting = [pool.submit(httpx.get, running.address, timeout=60) for _ in range(40)]
                until(lambda: any(one.done() for one in waiting))  # the first ones have waited, the last ones wait
                assert not all(one.done() for one in waiting)
                assert httpx.get(f"{running.address}/health", timeout=0.9).status_code == 200
                assert {one.result().status_code for one in waiting} == {200}
        finally:
            running.process.kill()
            running.process.wait()


@pytest.mark.slow
def test_a_flood_of_full_size(tmp_path):
    """Thirty readings of 35 MB at once, three times, with the limits as they are."""
    running = Page(tmp_path / "log", f"http://127.0.0.1:{free_port()}", "--proxies", "1").wait()
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    form, peak = part + b"A" * 35_000_000 + b"\r\n--x--\r\n", 0.0
    good(running)
    before = memory(running)

    def send(_: int) -> None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        with contextlib.suppress(httpx.TransportError):  # refused while it was sending
            httpx.post(f"{running.address}/read", content=form, headers=headers, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        sent = [pool.submit(send, number) for number in range(90)]
        while not all(one.done() for one in sent):
            peak = max(peak, memory(running))
            good(running)
    assert peak < 1000
    until(lambda: memory(running) < 1.1 * before)
    running.stop()
