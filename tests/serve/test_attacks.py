"""The endpoint under attacks on its memory, connections and access control; good requests are answered meanwhile."""

import asyncio
import base64
import concurrent.futures
import contextlib
import gc
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import variant
from tests.support import dicoms, toy_artefact
from tests.support.attackers import closed, connections, memory, png_header, until
from tests.support.serving import INFER, PREDICT, Server, encoded, errors_in
from thyroid.model.artefact import SUM
from thyroid.registry.registry import Registry
from thyroid.serve import limits, payload
from thyroid.serve.admission import Memory
from thyroid.serve.limits import RequestError
from thyroid.serve.options import ServeOptions
from thyroid.serve.protocol import bodies
from thyroid.serve.protocol.guard import Guard
from thyroid.serve.state import State

TOKEN = "the-token"
BEFORE = (
    "from thyroid.serve import limits; limits.CONNECTIONS = 60; limits.HEADERS = 1.0; limits.MEMORY = 104_000_000; "
    "limits.SPARE = 4_000_000; limits.SLOW_CLIENT = 2.0; limits.PATIENCE = 0.2"
)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """With a token, and limits that a small attack reaches."""
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "token").write_text(TOKEN)
    arguments = ("--registry", str(model), "--token-file", str(folder / "token"))
    running = Server(folder / "log", *arguments, before=BEFORE).wait()
    yield running
    assert running.process.poll() is None
    log = running.stop()
    assert errors_in(log) == []
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def scan(phantoms) -> Path:
    return next((phantoms / "scans").iterdir())


def good(server: Server, scan: Path) -> None:
    """A probe and a prediction are answered."""
    assert server.ask("/v2/health/live")[0] == 200
    status, told = server.ask(PREDICT, {"instances": [{"image": encoded(scan)}]}, Authorization=f"Bearer {TOKEN}")
    assert status == 200, told


HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param("", id="nothing", marks=pytest.mark.slow),
        pytest.param("POST /v1/mod", id="a line", marks=pytest.mark.slow),
        pytest.param(f"{HEAD}X-Slow: ", id="a header"),
    ],
)
def test_half_sent_heads_keep_nobody_out_and_are_closed(server, scan, sent):
    with connections(server, 100, sent.encode()) as clients:
        good(server, scan)
        for client in clients:
            assert closed(client)
    good(server, scan)


def test_a_head_without_an_end_is_cut(server, scan):
    with connections(server, 1, b"GET / HTTP/1.1\r\n") as (client,):
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.sendall(b"X-Long: " + b"y" * 4000 + b"\r\n")
        assert closed(client)
    good(server, scan)


def test_bodies_without_the_token_are_not_waited_for(server, scan):
    """Nor those of requests that have none."""
    before = memory(server)
    head = f"{HEAD}Content-Length: 45000000\r\n\r\n".encode()
    with connections(server, 30, head + b"x" * 100_000) as clients:
        good(server, scan)
        for client in clients:
            assert client.recv(65_536).startswith(b"HTTP/1.1 401 ")
    with connections(server, 1, b"POST /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 45000000\r\n\r\n") as (
        client,
    ):
        assert client.recv(65_536).startswith(b"HTTP/1.1 413 ")
    assert memory(server) < before + 30


def test_slow_bodies_keep_nobody_out(server, scan):
    """Small ones count what has arrived; large ones reserve what there is for large ones."""
    for length in (900_000, 30_000_000):
        head = f"{HEAD}Authorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n{{"
        with connections(server, 50, head.encode()) as clients:
            good(server, scan)
            answers = [client.recv(65_536)[9:12] for client in clients]
        assert set(answers) <= {b"408", b"503"}
        assert b"408" in answers
    good(server, scan)


def test_large_bodies_at_once_stay_within_the_budget(server, scan):
    before = memory(server)
    body = b'{"instances": "' + b"x" * 15_000_000 + b'"}'
    peak = [0.0]

    def flood(_: int) -> int:
        with httpx.Client(timeout=60) as client:
            headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
            try:
                return client.post(
                    f"http://127.0.0.1:{server.port}{PREDICT}", content=body, headers=headers
                ).status_code
            except httpx.TransportError:  # refused while it was sending
                return 503

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        flooding = [pool.submit(flood, number) for number in range(24)]
        while not all(one.done() for one in flooding):
            peak[0] = max(peak[0], memory(server))
            good(server, scan)
        assert {one.result() for one in flooding} == {400, 503}
    assert peak[0] < before + 250, "24 bodies are 360 MB, and twice that when they are joined"
    until(lambda: memory(server) < 1.1 * before)


class Part(bytes):
    """Bytes that count themselves."""

    alive = 0

    def __new__(cls, data: bytes) -> "Part":
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).alive -= 1


@pytest.mark.parametrize("end", ["disconnect", "too large", "too slow", "cancelled", "whole"])
def test_whatever_becomes_of_a_body_its_bytes_are_free(monkeypatch, end):
    """At once, and without the garbage collector, which comes late where there are few and large objects."""
    monkeypatch.setattr(limits, "SLOW_CLIENT", 0.05)
    held = Memory()
    kept: list[Exception] = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(_):
        pass

    async def upload() -> None:
        count = 0

        async def receive():
            nonlocal count
            count += 1
            if count <= 3 or end == "too large":
                return {
                    "type": "http.request",
                    "body": Part(b"x" * 20_000_000),
                    "more_body": count < 3 or end != "whole",
                }
            if end == "disconnect":
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
            raise AssertionError

        state = State(ServeOptions())
        state.memory = held
        guard = Guard(app, state)
        monkeypatch.setattr(limits, "MAX_BODY", 70_000_000)
        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": []}
        task = asyncio.create_task(guard(scope, receive, send))
        if end == "cancelled":
            while held.held < 60_000_000:
                await asyncio.sleep(0)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    gc.collect()
    gc.disable()
    try:
        asyncio.run(upload())
        assert Part.alive == 0
    finally:
        gc.enable()
    assert held.held == 0
    assert not kept


def test_small_bodies_that_do_not_end_give_way():
    """Who fills the memory with bodies of which the last byte never comes keeps nobody out; the newest one is read."""
    held = Memory(limit=3_000_000, spare=500_000)

    async def app(scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(body)).encode()})

    async def ask(parts: int, ends: bool) -> int:
        told: list[int] = []
        left = [b"x" * 100_000] * parts

        async def receive():
            if not left:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": left.pop(), "more_body": bool(left) or not ends}

        async def send(message):
            told.extend([message["status"]] if "status" in message else [])

        await guard({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send)
        return told[0]

    state = State(ServeOptions())
    state.memory = held
    guard = Guard(app, state)

    async def together() -> list[int]:
        slow = [asyncio.create_task(ask(9, ends=False)) for _ in range(4)]
        await asyncio.sleep(0.05)
        good = [await ask(9, ends=True) for _ in range(6)]
        assert held.held <= 3_500_000
        for one in slow:
            one.cancel()
        ended = await asyncio.gather(*slow, return_exceptions=True)
        assert 408 in ended
        assert asyncio.CancelledError in map(type, ended), "as few as need be"
        return good

    assert asyncio.run(together()) == [200] * 6
    assert held.held == 0


def test_memory_is_reserved_first_come_first_served(monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE", 0.0)
    memory, came = Memory(limit=100, spare=20), []

    async def ask(name: str, size: int) -> None:
        await memory.reserve(size)
        came.append(name)

    async def together() -> None:
        await memory.reserve(80)
        with pytest.raises(RequestError) as caught:
            await memory.reserve(30)
        assert caught.value.code == "overloaded"
        monkeypatch.setattr(limits, "PATIENCE", 60.0)
        tasks = [asyncio.create_task(ask(*one)) for one in (("large", 90), ("small", 10), ("gone", 10), ("last", 10))]
        await asyncio.sleep(0)
        memory.take(40)
        with pytest.raises(RequestError):
            memory.take(1)
        memory.give(40)
        tasks[2].cancel()
        await asyncio.sleep(0)
        assert came == []
        memory.give(80)
        await asyncio.sleep(0)
        assert came == ["large", "small"]
        memory.give(90)
        await asyncio.wait(tasks)
        assert came == ["large", "small", "last"]
        assert memory.held == 20

    asyncio.run(together())


def test_a_request_has_a_limit_of_pixels(server):
    """The sizes are read from the headers, before an image is decoded."""
    from tests.serve.test_serve_hard import b64

    one = b64(png_header(7000, 7000))
    status, told = server.ask(PREDICT, {"instances": [one] * 3}, Authorization=f"Bearer {TOKEN}")
    assert status == 400
    assert re.match(r"instances:.*\b147,000,000\b.*\b100,000,000\b", told["error"])
    tensor = {"name": "image", "shape": [3], "datatype": "BYTES", "data": [one["image"]["b64"]] * 3}
    told = server.ask(INFER, {"inputs": [tensor]}, Authorization=f"Bearer {TOKEN}")[1]
    assert re.match(r"inputs\.image:.*\b147,000,000\b", told["error"])
    status, told = server.ask(PREDICT, {"instances": [one] * 2}, Authorization=f"Bearer {TOKEN}")
    assert status == 400
    assert "PNG" in told["error"], "two are within the limit, so they are decoded"


def test_refused_bodies_leave_others_their_time(server):
    """Their rest is taken bit by bit, to its end, and the connection can be used again."""
    body = b"x" * 8_000_000
    refused = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode()

    def send(_: int) -> set[bytes]:
        with connections(server, 1, refused) as (client,):
            client.sendall(body)
            answers = {client.recv(65_536)[9:12]}
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            return answers | {client.recv(65_536)[9:12]}

    probes = 0
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        sent = [pool.submit(send, number) for number in range(30)]
        while not all(one.done() for one in sent):
            assert server.ask("/v2/health/live")[0] == 200
            probes += 1
        assert [one.result() for one in sent] == [{b"401", b"200"}] * 30
    assert probes > 20, "at full speed the bodies leave time for two"


@pytest.mark.parametrize("length", [8, 262_144, 300_000, 1_000_004])
def test_base64_is_as_strict_in_parts(length):
    text = base64.b64encode(bytes(range(256)) * 3000)[:length].decode()
    assert payload._base64("f", text) == base64.b64decode(text, validate=True)
    edge = min(bodies.PART, length)
    padded = f"{text[: edge - 2]}=={text[edge:]}AAAA"
    for wrong in (text[:-1], "AA==" + text, "A-" + text[2:], text[:-4] + "\u00e9AAA", padded):
        with pytest.raises(RequestError, match="base64"):
            payload._base64("f", wrong)


LONG = base64.b64encode(np.random.default_rng(0).bytes(1_500_000)).decode()


@pytest.mark.parametrize("separators", [(",", ":"), (" , ", " :\n ")])
@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"image": {"b64": LONG}, "roi": [1, 2, 3, 4]}, {"image": {"b64": LONG[:600_000]}, "frame": 1}]},
        {"instances": [{"image": {"b64": LONG}, "patient": 'a"b\\"'}]},
        {"instances": [{"image": {"B64": LONG, "b64": "x", "b": LONG}}, {"image": LONG}]},
        {"instances": LONG},
        [LONG],
    ],
)
def test_a_large_body_is_decoded_without_copies_of_its_pictures(body, separators):
    text = json.dumps(body, separators=separators).encode()

    def plain(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: plain(value) for key, value in found.items()}
        if isinstance(found, list):
            return [plain(value) for value in found]
        return bytes(found).decode() if isinstance(found, memoryview) else found

    assert plain(bodies.decoded(memoryview(text))) == body


@pytest.mark.parametrize("text", [f'{{"b64": "{LONG}', f'"{LONG}"}}', f'{{"a": {LONG}}}', "x" * 2_000_000, f'["{LONG}'])
def test_a_large_body_that_is_no_json(text):
    with pytest.raises(ValueError, match="column"):
        bodies.decoded(memoryview(text.encode()))


@pytest.mark.parametrize("value", [b"{},", b"[],", b'"a",', b"0,"])
def test_a_body_of_empty_values_is_not_decoded(server, value):
    """As objects 30 MB would be nearly a gigabyte. Those of the first part count, too."""
    before = memory(server)
    most = {b"0,": limits.MAX_NUMBERS, b'"a",': limits.MAX_VALUES // 2}.get(value, limits.MAX_VALUES)
    many = 30_000_000 // len(value)
    for path, count in ((PREDICT, many), (INFER, many), (PREDICT, most + most // 10)):
        body = b'{"instances": [' + value * count + b"0]}"
        status, told = server.ask(path, body, Authorization=f"Bearer {TOKEN}")
        assert (status, told["error"][:22]) == (400, "body: too many values;")
    assert memory(server) < before + 100


def test_dicom_bombs_are_refused_and_hold_up_nobody(server, scan):
    bombs = [dicoms.regions_bomb(200_000), dicoms.deflated_bomb(60)]

    def send(number: int) -> int:
        header = {"Content_Type": "application/dicom", "Authorization": f"Bearer {TOKEN}"}
        return server.ask(PREDICT, bombs[number % 2], **header)[0]

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(send, number) for number in range(12)]
        while not all(one.done() for one in sent):
            good(server, scan)
        assert {one.result() for one in sent} == {400}
    clip = dicoms.write(dicoms.cine(3))
    assert server.ask(PREDICT, clip, Content_Type="application/dicom", Authorization=f"Bearer {TOKEN}")[0] == 200


GRPC = """
import sys, grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb, grpc_predict_v2_pb2_grpc as rpc

port, token = sys.argv[1:3]
channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", 60_000_000)])
stub = rpc.GRPCInferenceServiceStub(channel)
given = [("authorization", f"Bearer {token}")]

def asked(method, message, metadata=()):
    try:
        getattr(stub, method)(message, metadata=metadata, timeout=60)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name

def raw(data, metadata=()):
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        call(data, metadata=metadata, timeout=60)
    except grpc.RpcError as error:
        return error.code().name

big = pb.ModelInferRequest(model_name="thyroid", raw_input_contents=[bytes(45_000_000)])
assert asked("ServerLive", pb.ServerLiveRequest()) == asked("ServerReady", pb.ServerReadyRequest()) == "OK"
for method, message in (
    ("ModelInfer", pb.ModelInferRequest(model_name="thyroid")),
    ("ModelMetadata", pb.ModelMetadataRequest(name="thyroid")),
    ("ServerMetadata", pb.ServerMetadataRequest()),
    ("ModelReady", pb.ModelReadyRequest(name="thyroid")),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="thyroid")),
    ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="thyroid")),
):
    for metadata in ((), [("authorization", "Bearer wrong")], [("authorization", token)]):
        assert asked(method, message, metadata) == "UNAUTHENTICATED", method
futures = [stub.ModelInfer.future(big) for _ in range(6)]
assert {one.exception().code().name for one in futures} == {"UNAUTHENTICATED"}
for number in range(20):
    assert raw(bytes([number, 255, 7]) * 50) == "UNAUTHENTICATED"
    assert raw(bytes([number, 255, 7]) * 50, given) in ("INVALID_ARGUMENT", "NOT_FOUND"), number
assert asked("ModelMetadata", pb.ModelMetadataRequest(name="thyroid"), given) == "OK"
assert asked("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="thyroid"), given) == \
"PERMISSION_DENIED"
futures = [stub.ModelInfer.future(big, metadata=given) for _ in range(3)]
print({one.exception().code().name for one in futures})
"""


def test_grpc_asks_for_the_token_before_it_reads(server, scan):
    """And for memory; its log says nothing of messages that are none."""
    before, peak = memory(server), 0.0
    command = [sys.executable, "-c", GRPC, str(server.grpc_port), TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        while client.poll() is None:
            peak = max(peak, memory(server))
            good(server, scan)
        told, errors = client.communicate()
    assert client.returncode == 0, errors
    assert eval(told) <= {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}
    assert peak < before + 250
    until(lambda: memory(server) < 1.1 * before)
    assert "grpc" not in server.log.read_text().split('"serving"')[1].lower()


def test_a_broken_champion_ends_no_watch(evaluated, tmp_path, scan):
    """Nor does a registry that cannot be read for a moment, for whatever reason; the next champion is taken over."""
    root = tmp_path / "registry"

    def promote(version: int) -> None:
        gate = toy_artefact.gate("promoted", version - 1 or None)
        Registry(root).publish(variant(evaluated / "artefact", tmp_path), gate)

    def served() -> int:
        return running.ask(PREDICT, {"instances": [{"image": encoded(scan)}]})[1]["predictions"][0]["model_version"]

    promote(1)
    fault = tmp_path / "fault"
    before = (
        "import pathlib; from thyroid.registry.registry import Registry; from thyroid.serve import state, model; "
        "state.WATCH_SECONDS = 0.1; state.RETRY_SECONDS = 0.1; "
        "read, load = Registry.read_aliases, model.ThyroidModel.load; "
        f"broken = pathlib.Path({str(fault)!r}); "
        "Registry.read_aliases = lambda registry: "
        "1 / 0 if broken.exists() and broken.read_text() == 'read' else read(registry); "
        "model.ThyroidModel.load = lambda one: "
        "{}['odd'] if broken.exists() and broken.read_text() == 'load' else load(one)"
    )
    running = Server(tmp_path / "log", "--registry", str(root), before=before).wait()
    assert served() == 1
    fault.write_text("read")
    running.wait_for("registry not read")
    assert "ZeroDivisionError" in running.log.read_text()
    fault.write_text("load")
    promote(2)
    running.wait_for("model not loaded")
    assert served() == 1
    fault.unlink()
    until(lambda: served() == 2)
    running.kill()


def test_a_champion_without_a_threshold_ends_the_start_in_words(model, tmp_path):
    import shutil

    copy = shutil.copytree(Registry(model).find(), tmp_path / "model")
    facts = json.loads((copy / "model.json").read_text())
    del facts["threshold"]
    (copy / "model.json").write_text(json.dumps(facts))
    (copy / SUM).unlink()
    running = Server(tmp_path / "log", "--model-dir", str(copy))
    assert running.process.wait(timeout=60) == 2
    assert re.search(r"model\.json.*\bthreshold\b", running.log.read_text())


@pytest.mark.slow
def test_sigterm_is_carried_out_under_load(model, tmp_path, scan):
    """Clients that retry at once do not keep the server alive: they are asked to, on connections that are closed."""
    running = Server(
        tmp_path / "log", "--registry", str(model), before="from thyroid.serve import limits; limits.DRAIN = 0.3"
    )
    running.wait()
    body, seen, stop = json.dumps({"instances": [{"image": encoded(scan)}]}).encode(), [], threading.Event()

    def load() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post(
                        f"http://127.0.0.1:{running.port}{PREDICT}",
                        content=body,
                        headers={"content-type": "application/json"},
                    )
                    seen.append((answer.status_code, answer.headers.get("connection")))
                except httpx.TransportError:
                    pass

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(seen) > 20)
        running.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        running.process.wait(timeout=20)
        assert time.monotonic() - started < 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        running.kill()
    assert running.process.returncode in (0, -signal.SIGTERM)
    assert {status for status, _ in seen} <= {200, 503}
    assert {connection for status, connection in seen if status == 503} <= {"close"}


@pytest.mark.slow
def test_a_model_is_not_retired_while_it_parses(model, scan):
    """A large body is parsed outside the event loop; its model must still be there when that is done."""
    from thyroid.serve.model import ThyroidModel
    from thyroid.serve.state import retire

    served = ThyroidModel("thyroid", Registry(model).find())
    served.load()

    async def swapped():
        answering = asyncio.ensure_future(served({"instances": [{"image": encoded(scan)}]}))
        await asyncio.sleep(0)  # it is parsing now
        retiring = asyncio.ensure_future(retire(served))
        answer, _ = await answering
        await retiring
        return answer

    assert asyncio.run(swapped())["predictions"]
    assert served.in_flight == 0


@pytest.mark.slow
def test_a_flood_of_full_size(model, tmp_path, scan):
    """Thirty bodies of 45 MB at once, three times, with the limits as they are and no token asked for."""
    running = Server(tmp_path / "log", "--registry", str(model)).wait()
    picture = {"instances": [{"image": encoded(scan)}]}
    body, peak = b'{"instances": [{"image": {"b64": "' + b"A" * 45_000_000 + b'"}}]}', 0.0
    assert running.ask(PREDICT, picture)[0] == 200
    before = memory(running)

    def send(_: int) -> None:
        with contextlib.suppress(httpx.TransportError):  # refused while it was sending
            httpx.post(f"http://127.0.0.1:{running.port}{PREDICT}", content=body, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        sent = [pool.submit(send, number) for number in range(90)]
        while not all(one.done() for one in sent):
            peak = max(peak, memory(running))
            assert running.ask(PREDICT, picture)[0] == 200
    assert peak < 1200
    until(lambda: memory(running) < 1.1 * before)
    assert errors_in(running.kill()) == []
