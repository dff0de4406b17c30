"""The endpoint under bad input, load, faults and attack, as real server processes."""

import asyncio
import base64
import concurrent.futures
import datetime
import io
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from tests.conftest import variant
from tests.support import ROOT, toy_artefact, validated
from tests.support.attackers import png_header
from tests.support.serving import EXPLAIN, INFER, PREDICT, Server, encoded, errors_in
from thyroid.imaging import images
from thyroid.registry import aliases, validations
from thyroid.registry.registry import Registry
from thyroid.serve import limits


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("log") / "log", "--registry", str(model)).wait()
    yield running
    assert running.process.poll() is None, "it is still running after everything here"
    log = running.stop()
    assert errors_in(log) == []


@pytest.fixture(scope="module")
def scan(phantoms) -> Path:
    return next((phantoms / "scans").iterdir())


def one(scan: Path, **more) -> dict:
    return {"instances": [{"image": encoded(scan)} | more]}


def b64(data: bytes) -> dict:
    return {"image": {"b64": base64.b64encode(data).decode()}}


@pytest.mark.parametrize(
    ("body", "field", "named"),
    [
        (b"", "body", "instances"),
        (b"{not json", "body", ""),
        (b"\xff\xfe{}", "body", ""),
        (b"[1, 2]", "body", "instances"),
        ({}, "body", "instances"),
        ({"instances": "x"}, "body", "instances"),
        ({"instances": []}, "instances", "64"),
        ({"instances": [{}] * 1000}, "instances", "1000"),
        ({"instances": [{}]}, "instances[0].image.b64", ""),
        ({"instances": ["x"]}, "instances[0]", "image.b64"),
        ({"instances": [{"image": {"b64": "%%%"}}]}, "instances[0].image.b64", "base64"),
        ({"instances": [{"image": {"b64": ""}}]}, "instances[0].image.b64", "empty"),
        ({"instances": [b64(b"hello")]}, "instances[0].image.b64", "JPEG"),
        ({"instances": [b64(b"GIF89a" + b"\0" * 50)]}, "instances[0].image.b64", "JPEG"),
        ({"instances": [b64(png_header(30_000, 30_000))]}, "instances[0].image.b64", f"{images.MAX_PIXELS:,}"),
        ({"instances": [b64(png_header(9, 9))]}, "instances[0].image.b64", "16"),
        ({"instances": [b64(png_header(64, 64))]}, "instances[0].image.b64", "PNG"),
    ],
)
def test_bad_bodies_name_the_field(server, body, field, named):
    for path in (PREDICT, EXPLAIN):
        status, answer = server.ask(path, body)
        assert status == 400
        assert answer["error"].startswith(f"{field}:")
        assert named in answer["error"]
        assert answer["code"] == "invalid_input"


@pytest.mark.parametrize(
    ("roi", "named"),
    [
        ([0, 0, 9999, 5], "640x480"),
        ([0, 0, 0, 5], "[0, 0, 0, 5]"),
        ([-1, 0, 5, 5], "[-1, 0, 5, 5]"),
        ([0, 0, 10**7, 5], "10000000"),
        ([1, 2, 3], "[x, y, width, height]"),
        ("1,2,3,4", "[x, y, width, height]"),
        ([1.5, 2, 3, 4], "[x, y, width, height]"),
        ([True, 2, 3, 4], "[x, y, width, height]"),
    ],
)
def test_bad_rois_name_the_field(server, scan, roi, named):
    status, answer = server.ask(PREDICT, one(scan, roi=roi))
    assert status == 400
    assert answer["error"].startswith("instances[0].roi:")
    assert named in answer["error"]


def test_a_tiny_roi_is_answered(server, scan):
    assert server.ask(PREDICT, one(scan, roi=[5, 5, 1, 1]))[0] == 200


def test_truncated_images(server, scan):
    data = scan.read_bytes()
    status, answer = server.ask(PREDICT, {"instances": [b64(data[: len(data) // 2])]})
    assert status == 400
    assert answer["error"].startswith("instances[0].image.b64:")
    assert "JPEG" in answer["error"]


def test_names_and_types_do_not_decide(server, scan):
    """A PNG sent as JPEG is a PNG; a text sent as JPEG is none."""
    buffer = io.BytesIO()
    Image.open(scan).save(buffer, "PNG")
    assert server.ask(PREDICT, buffer.getvalue(), Content_Type="image/jpeg")[0] == 200
    status, answer = server.ask(PREDICT, b"just a text, named scan.jpg", Content_Type="image/jpeg")
    assert status == 400
    assert answer["error"].startswith("body:")
    assert "DICOM" in answer["error"]


@pytest.mark.parametrize("kind", ["text/html", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_other_content_types(server, kind):
    status, answer = server.ask(PREDICT, b"x", Content_Type=kind)
    assert status == 415
    assert "content-type" in answer["error"]
    assert server.ask(PREDICT, b"{}", Content_Type="application/json; charset=utf-8")[0] == 400


def test_large_bodies_are_refused_without_reading_them(server):
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"http://127.0.0.1:{server.port}{PREDICT}", content=b"x" * (limits.MAX_BODY + 1))
        assert answer.status_code == 413

        def endless():
            for _ in range(80):
                yield b"x" * 1_000_000

        chunked = client.post(
            f"http://127.0.0.1:{server.port}{PREDICT}", content=endless(), headers={"content-type": "application/json"}
        )
        assert chunked.status_code == 413
        assert chunked.json()["code"] == "too_large"
        assert f"{limits.MAX_BODY:,}" in chunked.json()["error"]


def v2(**inputs) -> dict:
    return {"inputs": [{"name": name} | tensor for name, tensor in inputs.items()]}


PICTURE = {"shape": [1, 20, 20, 3], "datatype": "UINT8", "data": [0] * 1200}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (v2(), "image"),
        (v2(picture=PICTURE), "'picture'"),
        (v2(image=PICTURE | {"datatype": "FP32", "data": [0.0] * 1200}), "FP32"),
        (v2(image=PICTURE | {"shape": [1, 20, 60]}), "[1, 20, 60]"),
        (v2(image=PICTURE | {"shape": [1, 20, 20, 4], "data": [0] * 1600}), "[1, 20, 20, 4]"),
        (v2(image=PICTURE | {"data": [0] * 7}), "inputs.image"),
        (v2(image=PICTURE | {"shape": [-1, 20, 20, 3]}), "inputs.image"),
        (v2(image={"shape": [1], "datatype": "BYTES", "data": ["%%%"]}), "inputs.image[0]"),
        (v2(image={"shape": [1], "datatype": "BYTES", "data": [""]}), "inputs.image[0]"),
        (v2(image={"shape": [1], "datatype": "BYTES", "data": [None]}), "inputs.image[0]"),
        (v2(image={"shape": [1], "datatype": "BYTES", "data": [5]}), "inputs.image[0]"),
        (
            v2(image=PICTURE, patient={"shape": [1], "datatype": "BYTES", "data": [None]}),
            "inputs.patient",
        ),
        (
            v2(image=PICTURE, roi={"shape": [1, 4], "datatype": "FP32", "data": [float(i) for i in range(4)]}),
            "inputs.roi",
        ),
        (v2(image=PICTURE, roi={"shape": [2, 4], "datatype": "INT32", "data": [1] * 8}), "inputs.roi"),
        (
            v2(image=PICTURE, roi={"shape": [1, 4], "datatype": "INT64", "data": [0, 0, 99, 99]}),
            "20x20",
        ),
        (v2(image=PICTURE, patient={"shape": [2], "datatype": "BYTES", "data": ["a", "b"]}), "inputs.patient"),
    ],
)
def test_bad_tensors_name_the_input(server, body, named):
    status, answer = server.ask(INFER, body)
    assert status == 400
    assert answer["error"].startswith("inputs")
    assert named in answer["error"]


def test_tensors_that_are_no_numbers(server):
    body = json.dumps(v2(image=PICTURE)).replace("[0, 0", "[NaN, 0", 1).encode()
    status, _ = server.ask(INFER, body)
    assert 400 <= status < 500
    assert 400 <= server.ask(INFER, v2(image=PICTURE | {"data": [300] * 1200}))[0] < 500
    assert 400 <= server.ask(INFER, v2(image=PICTURE | {"data": ["x"] * 1200}))[0] < 500


@pytest.mark.parametrize("length", ["abc", "-1", "999999", "5"])
def test_bad_binary_headers(server, length):
    status, answer = server.ask(INFER, b'{"inputs": []}', inference_header_content_length=length)
    assert status == 400
    assert "error" in answer


def test_binary_sizes_that_are_not_in_the_body(server):
    described = v2(image={"shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 10**9}})
    body = json.dumps(described).encode()
    status, answer = server.ask(INFER, body, inference_header_content_length=str(len(body)))
    assert status == 400
    assert "binary_data_size" in answer["error"]


def test_unknown_models_and_versions(server, scan):
    assert server.ask("/v1/models/other:predict", one(scan))[0] == 404
    assert server.ask("/v2/models/other/infer", v2(image=PICTURE))[0] == 404
    assert server.ask("/v2/models/thyroid/versions/9/infer", v2(image=PICTURE))[0] == 404
    assert server.ask("/v2/models/thyroid/versions/9")[0] == 404
    assert server.ask("/nothing")[0] == 404


def test_errors_of_the_framework_have_the_form_of_all_others(server):
    for path, body, status, code in (
        ("/nothing", None, 404, "not_found"),
        ("/v1/models", {}, 405, "invalid_input"),
        (INFER, b"{\x80", 400, "invalid_input"),
        (INFER, b"{not json", 422, "invalid_input"),
    ):
        got, answer = server.ask(path, body)
        assert (got, answer["code"]) == (status, code)
        assert answer["error"]


def test_the_repository_is_closed(server):
    for action in ("load", "unload"):
        status, answer = server.ask(f"/v2/repository/models/thyroid/{action}", {})
        assert (status, answer["code"]) == (403, "closed")
    assert server.ask("/v2/health/ready")[0] == 200


def test_grpc_says_what_is_wrong(server):
    """In a process of its own, for the messages that only one library may register."""
    code = f"""
import numpy as np, tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
client = triton.InferenceServerClient("127.0.0.1:{server.grpc_port}")
image = triton.InferInput("image", [1], "BYTES")
image.set_data_from_numpy(np.array([b"no picture"], dtype=np.object_))
wrong = triton.InferInput("image", [1], "FP32")
wrong.set_data_from_numpy(np.array([np.nan], np.float32))
calls = {{
    "INVALID_ARGUMENT": [lambda: client.infer("thyroid", [image]), lambda: client.infer("thyroid", [wrong])],
    "NOT_FOUND": [lambda: client.infer("other", [image]), lambda: client.infer("thyroid", [image], model_version="9")],
    "PERMISSION_DENIED": [lambda: client.unload_model("thyroid")],
}}
for status, some in calls.items():
    for call in some:
        try:
            call()
        except InferenceServerException as error:
            assert error.status() == f"StatusCode.{{status}}", (status, error.status(), error.message())
        else:
            raise AssertionError(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_clients_that_go_away(server, scan):
    body = json.dumps(one(scan)).encode()
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    for cut in (10, len(body) // 2, len(body)):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(head + body[:cut])
    assert server.ask(PREDICT, one(scan))[0] == 200


@pytest.mark.slow
def test_two_hundred_clients_at_once(server, scan):
    """Each is answered or asked to retry; none hangs, and none fails."""
    body = json.dumps(one(scan)).encode()
    url = f"http://127.0.0.1:{server.port}{PREDICT}"

    together = httpx.Limits(max_connections=200)
    with httpx.Client(timeout=60, limits=together) as client, concurrent.futures.ThreadPoolExecutor(200) as pool:

        def ask(_: int) -> httpx.Response:
            return client.post(url, content=body, headers={"content-type": "application/json"})

        answers = list(pool.map(ask, range(400)))
    statuses = {answer.status_code for answer in answers}
    assert statuses <= {200, 503}
    assert 200 in statuses
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["code"] == "overloaded"
    assert server.ask("/v2/health/ready")[0] == 200


def test_the_queue_is_bounded():
    from thyroid.serve.limits import RequestError
    from thyroid.serve.model import Admission

    admission = Admission(limit=4)
    with admission.admit(10):  # alone, any request is possible
        pass
    with admission.admit(3):
        with pytest.raises(RequestError) as caught, admission.admit(2):
            pass
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        with admission.admit(1):
            assert admission.inside == 4
    assert admission.inside == 0


def test_a_request_without_a_place_waits_for_one_and_is_then_turned_away(monkeypatch):
    """First come, first served; who gave up is passed over."""
    from thyroid.serve.admission import Admission
    from thyroid.serve.limits import RequestError

    admission, came = Admission(limit=1), []

    async def ask(name):
        try:
            await admission.opening()
        except RequestError as error:
            came.append(f"{name}: {error.status} {error.code}")
            return
        with admission.admit(1):
            came.append(name)

    async def together():
        with admission.admit(1):
            monkeypatch.setattr(limits, "PATIENCE", 0.0)
            await ask("impatient")
            monkeypatch.setattr(limits, "PATIENCE", 60.0)
            others = [asyncio.create_task(ask(name)) for name in ("first", "second")]
            gone = asyncio.create_task(ask("gone"))
            others.append(asyncio.create_task(ask("third")))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert came == ["impatient: 503 overloaded"]
        await asyncio.gather(*others)
        await ask("late")

    asyncio.run(together())
    assert came == ["impatient: 503 overloaded", "first", "second", "third", "late"]
    assert admission.inside == 0


def test_who_is_turned_away_is_not_read(monkeypatch):
    from thyroid.serve.admission import Admission
    from thyroid.serve.options import ServeOptions
    from thyroid.serve.protocol.guard import Guard
    from thyroid.serve.state import State

    monkeypatch.setattr(limits, "PATIENCE", 0.0)
    sent, reached = [], []

    async def never(*_):
        raise AssertionError("the body was asked for")

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing():
        return {"type": "http.request", "body": b""}

    async def ask(guard, method, path, receive):
        sent.clear()
        await guard({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}

    async def full():
        state = State(ServeOptions())
        state.admission = Admission(limit=1)
        guard = Guard(app, state)
        with state.admission.admit(1):
            for path in (PREDICT, EXPLAIN, INFER):
                status, headers = await ask(guard, "POST", path, never)
                assert (status, headers["retry-after"]) == (503, "1")
                assert json.loads(sent[1]["body"])["code"] == "overloaded"
            assert (await ask(guard, "GET", "/v2/health/live", nothing))[0] == 200

    asyncio.run(full())
    assert reached == ["/v2/health/live"]


def test_a_connection_outlives_a_refusal(server, scan):
    """The body that was not read does not become the next request."""
    body = json.dumps(one(scan, patient="x" * 128)).encode()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
        for kind, status in (("text/html", 415), ("application/json", 200), ("text/html", 415)):
            assert client.post(PREDICT, content=body, headers={"content-type": kind}).status_code == status


def test_the_deadline(model, scan, monkeypatch):
    """A request that takes too long is given up with a clear word."""
    from thyroid.serve.limits import RequestError
    from thyroid.serve.model import ThyroidModel

    served = ThyroidModel("thyroid", Registry(model).find())
    served.load()
    monkeypatch.setattr(limits, "DEADLINE", 0.05)

    async def stuck(_):
        await asyncio.sleep(10)

    monkeypatch.setattr(served.engine_, "answer", stuck)
    with pytest.raises(RequestError) as caught:
        asyncio.run(served(scan.read_bytes()))
    assert (caught.value.status, caught.value.code) == (504, "deadline")
    assert served.admission.inside == served.in_flight == 0


@pytest.fixture(scope="module")
def strict(model, tmp_path_factory):
    """A server with a certificate, a token and little patience; it yields with the folder of its cert.pem."""
    folder = tmp_path_factory.mktemp("strict")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    (folder / "token").write_text("secret-token\n")
    files = ["--tls-certificate", "cert.pem", "--tls-key", "key.pem", "--token-file", "token"]
    given = [one if one.startswith("--") else str(folder / one) for one in files]
    before = "from thyroid.serve import limits; limits.SLOW_CLIENT = 1.0"
    running = Server(folder / "log", "--registry", str(model), *given, before=before)
    running.wait_for('"serving"', 60)
    yield running, ssl.create_default_context(cafile=str(folder / "cert.pem"))
    assert "secret-token" not in running.kill()


def test_tls_and_token(strict, scan):
    """The certificate and key that are given are those that are served."""
    running, trusted = strict
    with httpx.Client(base_url=f"https://localhost:{running.port}", verify=trusted, timeout=60) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/metrics").status_code == 200
        for sent, status in (({}, 401), ({"authorization": "Bearer wrong"}, 401)):
            assert client.post(PREDICT, json=one(scan), headers=sent).status_code == status
        answer = client.post(PREDICT, json=one(scan), headers={"authorization": "Bearer secret-token"})
        assert answer.status_code == 200
    with pytest.raises(httpx.ConnectError), httpx.Client() as client:
        client.get(f"https://localhost:{running.port}/v2/health/ready")


def test_grpc_has_the_certificate_too(strict):
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as rpc

    running, _ = strict
    address = f"localhost:{running.grpc_port}"
    trusted = grpc.ssl_channel_credentials((running.log.parent / "cert.pem").read_bytes())
    with grpc.secure_channel(address, trusted) as channel:
        asked = rpc.GRPCInferenceServiceStub(channel)
        assert asked.ServerLive(messages.ServerLiveRequest(), timeout=30).live
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        rpc.GRPCInferenceServiceStub(channel).ServerLive(messages.ServerLiveRequest(), timeout=30)


def test_a_slow_client_is_given_up(strict):
    running, trusted = strict
    with (
        socket.create_connection(("localhost", running.port), timeout=30) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        head = "POST /v1/models/thyroid:predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-token\r\n"
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(4096)


def load(server: Server, body: bytes, stop: threading.Event, results: list) -> None:
    with httpx.Client(timeout=60) as client:
        while not stop.is_set():
            try:
                answer = client.post(
                    f"http://127.0.0.1:{server.port}{PREDICT}",
                    content=body,
                    headers={"content-type": "application/json"},
                )
            except (httpx.ConnectError, httpx.ConnectTimeout):
                results.append("refused")  # never accepted
                return
            except httpx.TransportError as error:
                results.append(repr(error))
                return
            version = answer.json()["predictions"][0]["model_version"] if answer.status_code == 200 else None
            results.append((answer.status_code, version))


def enough(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_champions_come_and_go_without_a_failed_request(evaluated, tmp_path, scan):
    """A new one is swapped in under load, a broken one leaves it, and SIGTERM drains what was accepted."""
    root = tmp_path / "registry"

    def promote(version: int) -> None:
        gate = toy_artefact.gate("promoted", version - 1 or None)
        Registry(root).publish(variant(evaluated / "artefact", tmp_path), gate)

    promote(1)
    before = "from thyroid.serve import limits; limits.DRAIN = 1.0"
    running = Server(tmp_path / "log", "--registry", str(root), before=before).wait()
    body, stop, results = json.dumps(one(scan)).encode(), threading.Event(), []
    threads = [threading.Thread(target=load, args=(running, body, stop, results)) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        enough(lambda: len(results) > 20)
        promote(2)
        enough(lambda: (200, 2) in results)

        gate = toy_artefact.gate("refused", 2)
        Registry(root).publish(variant(evaluated / "artefact", tmp_path), gate)
        (root / "thyroid" / "3" / "model.keras").write_bytes(b"broken")
        state = json.loads((root / "thyroid" / "aliases.json").read_text())
        del state["sha256"]
        (root / "thyroid" / "aliases.json").write_bytes(aliases.sealed(state | {"champion": 3, "previous": 2}))
        running.wait_for("changed since it was registered")
        until_now = len(results)
        enough(lambda: len(results) > until_now + 20)
        assert results[-1] == (200, 2)

        until_stop = len(results)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # longer than it takes new ones
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert running.process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert set(results[:until_stop]) == {(200, 1), (200, 2)}
    assert (200, 2) in results[until_stop:], "it goes on for a while"
    assert set(results[until_stop:]) <= {(200, 2), (503, None), "refused"}, "a request was accepted and not answered"


@pytest.mark.slow
def test_a_champion_in_a_bucket_is_served_and_the_next_one_swapped_in(evaluated, tmp_path, scan, gcs):
    """Without the bucket it goes on with what it has, and still ends at once."""
    root = gcs.address("registry")

    def version() -> int:
        status, answer = running.ask(PREDICT, one(scan))
        assert status == 200
        return answer["predictions"][0]["model_version"]

    Registry(root).publish(evaluated / "artefact", toy_artefact.gate("promoted"))
    before = "from thyroid.serve import state; state.WATCH_BUCKET_SECONDS = 0.5"
    running = Server(tmp_path / "log", "--registry", root, before=before).wait()
    assert version() == 1
    gate = toy_artefact.gate("promoted", 1)
    Registry(root).publish(variant(evaluated / "artefact", tmp_path), gate)
    enough(lambda: version() == 2)
    validations.record(Registry(root), 2, validated.of(root, 2))
    enough(lambda: [one["site"] for one in running.ask("/v1/models/thyroid/facts")[1]["validations"]] == ["Seoul East"])
    time.sleep(2)  # some more looks at the registry
    loaded = running.log.read_text().count('"serving"')
    assert loaded == 3, "1, 2, and 1 as the previous one; a validation loads no model anew"
    gcs.proxy.rule = lambda method, path: "503"
    enough(lambda: gcs.proxy.faults > 0)
    assert version() == 2
    started = time.monotonic()
    log = running.stop()
    assert time.monotonic() - started < 20, "it asks again for minutes"
    assert "Traceback" not in log


def mutations(scan: Path, count: int, seed: int):
    """Truncated, flipped and spliced JPEG and PNG files, most of the damage in their headers."""
    rng = random.Random(seed)
    buffer = io.BytesIO()
    small = Image.open(scan).resize((160, 120))
    small.save(buffer, "JPEG", quality=80)
    originals = [buffer.getvalue()]
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    originals.append(buffer.getvalue())
    for _ in range(count):
        data = bytearray(rng.choice(originals))
        kind = rng.randrange(4)
        if kind == 0:
            del data[rng.randrange(1, len(data)) :]
        elif kind == 1:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(min(300, len(data)))] = rng.randrange(256)
        else:
            place = rng.randrange(len(data))
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
        yield bytes(data)


def fuzz(server: Server, scan: Path, count: int) -> dict[int, int]:
    url = f"http://127.0.0.1:{server.port}{PREDICT}"
    counts: dict[int, int] = {}

    def ask(data: bytes) -> int:
        with lock:
            client = clients.pop()
        answer = client.post(url, content=data, headers={"content-type": "image/jpeg"})
        with lock:
            clients.append(client)
        return answer.status_code

    lock, clients = threading.Lock(), [httpx.Client(timeout=60) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for status in pool.map(ask, mutations(scan, count, seed=count)):
            counts[status] = counts.get(status, 0) + 1
    for client in clients:
        client.close()
    return counts


def memory(server: Server) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def test_mutated_files_are_answered_or_refused(server, scan):
    counts = fuzz(server, scan, 300)
    assert set(counts) <= {200, 400, 503}
    assert counts[400] > 50


@pytest.mark.slow
def test_thousands_of_mutated_files(model, tmp_path, scan):
    running = Server(tmp_path / "log", "--registry", str(model)).wait()
    fuzz(running, scan, 500)
    before = memory(running)
    counts = fuzz(running, scan, 3000)
    assert set(counts) <= {200, 400, 503}, counts
    assert counts[400] > 300
    assert memory(running) < before + 60, "memory stays flat"
    log = running.stop()
    assert "Traceback" not in log
    assert errors_in(log) == []


@pytest.mark.slow
def test_schemathesis(model, tmp_path):
    running = Server(tmp_path / "log", "--registry", str(model)).wait()
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"http://127.0.0.1:{running.port}/openapi.json",
    ]
    options = [
        "--checks",
        "not_a_server_error,content_type_conformance,response_schema_conformance",
        "-n",
        "20",
        "--seed",
        "1",
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "", "NO_COLOR": "1"}
    environment.pop("SCHEMATHESIS_HOOKS")
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path)
    running.stop()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_soak(model, tmp_path, scan):
    """Half a minute at about 80 % load; `make soak` takes ten."""
    command = [sys.executable, "bench/soak.py", "--registry", str(model), "--scan", str(scan), "--minutes", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["errors"] == 0


def test_numbers_of_the_limits_are_in_the_documents():
    text = (ROOT / "docs" / "api.md").read_text()
    for number in (
        f"{limits.MAX_BODY:,}",
        str(limits.MAX_INSTANCES),
        f"{limits.DEADLINE:g}",
        f"{limits.SLOW_CLIENT:g}",
    ):
        assert number in text
    assert np.isfinite(limits.DRAIN)
