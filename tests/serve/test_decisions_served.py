"""The decision log of a real server: every protocol, a full disk, and what waits at the end."""

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import grpc
import kserve
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb2
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as rpc

from tests.serve.test_decisions import SECRET, lines, until
from tests.support import toy_locator
from tests.support.serving import EXPLAIN, INFER, LOCATE, PREDICT, Server, encoded, errors_in
from thyroid.data import pseudonyms
from thyroid.imaging import images
from thyroid.records.watch import Decision

FRAME = toy_locator.frame(((180, 60, 90, 70),))
KEYED = os.environ | {pseudonyms.KEY_VARIABLE: SECRET.decode()}
WHEN_IT_ENDS = "from thyroid.serve.decisions import writer; writer.PAUSE = 600"


@pytest.fixture(scope="module")
def artefact(tmp_path_factory) -> Path:
    return toy_locator.build(tmp_path_factory.mktemp("artefact"), locator=toy_locator.record(), novelty=True)


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "Doe^Jane.jpg"
    path.write_bytes(images.encode(FRAME))
    return path


def call(port: int, **metadata: str) -> tuple[dict[str, str], list[str]]:
    """Ask by gRPC; return the trailing metadata and the decisions."""
    image = kserve.InferInput("image", [1, *FRAME.shape], "UINT8")
    image.set_data_from_numpy(FRAME[None], binary_data=True)
    request: pb2.ModelInferRequest = kserve.InferRequest("thyroid", [image]).to_grpc()

    async def ask() -> tuple[dict[str, str], list[str]]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            asked = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
            answering = rpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=asked)
            answer = kserve.InferResponse.from_grpc(await answering)
            (decision,) = [one.as_numpy().tolist() for one in answer.outputs if one.name == "decision"]
            return dict(await answering.trailing_metadata()), decision

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def asked(artefact, scan, tmp_path_factory) -> tuple[list[Decision], list[dict[str, Any]], dict[str, str]]:
    """The decisions, the predictions, and the metadata of gRPC, of one server that was asked in every way."""
    folder = tmp_path_factory.mktemp("decisions")
    options = ("--log", str(folder), "--log-features", "--site", "Elsewhere")
    server = Server(
        folder / "log", "--model-dir", str(artefact), *options, environment=KEYED, before=WHEN_IT_ENDS
    ).wait()
    body = {
        "instances": [{"image": encoded(scan), "patient": "17"}, {"image": encoded(scan), "roi": [180, 60, 90, 70]}]
    }
    answers = [server.ask(PREDICT, body, x_request_id="first"), server.ask(EXPLAIN, body, x_request_id="second")]
    server.ask(LOCATE, body, x_request_id="boxes")
    server.ask(PREDICT, {"instances": [{"image": {"b64": "%%%"}}]}, x_request_id="bad")
    tensor = {"name": "image", "shape": [1, *FRAME.shape], "datatype": "UINT8", "data": FRAME.ravel().tolist()}
    server.ask(INFER, {"inputs": [tensor]}, x_request_id="Jane Doe, born 1970")
    told, _ = call(server.grpc_port, x_request_id="third")
    call(server.grpc_port, x_request_id="Jane Doe, born 1970")
    assert not lines(folder)
    server.stop()
    assert [status for status, _ in answers] == [200, 200]
    predictions = answers[0][1]["predictions"] + answers[1][1]["explanations"]
    return lines(folder), predictions, told


def test_every_decision_is_logged_once_when_the_server_ends(asked):
    decisions, _, told = asked
    requests = [one.request for one in decisions]
    assert requests[:4] == ["first", "first", "second", "second"]
    assert [one.number for one in decisions] == [0, 1, 0, 1, 0, 0, 0]
    assert (requests[5], told["x-request-id"]) == ("third", "third")
    for own in (requests[4], requests[6]):  # of clients whose ids are not taken
        assert len(own) == 32
    assert len({one.id for one in decisions}) == 7


def test_a_line_is_what_was_answered(asked, scan):
    decisions, predictions, _ = asked
    for decision, answer in zip(decisions, predictions, strict=False):
        assert decision.probability == answer["malignant"]
        assert (decision.decision, decision.reasons) == (answer["decision"], answer.get("reasons", []))
        assert decision.novelty == pytest.approx(answer["novelty"])
        assert decision.distance == pytest.approx(answer["novelty_distance"])
        assert (decision.source, decision.box) == (answer["crop"]["source"], answer["crop"]["box"])
        assert decision.box_probability == answer["crop"].get("probability")
        assert (decision.width, decision.height) == FRAME.shape[1::-1]
        assert decision.image == pseudonyms.of_file(SECRET, hashlib.sha256(scan.read_bytes()).hexdigest())
        assert decision.features
    patients = [one.patient for one in decisions]
    assert patients == [pseudonyms.of_patient(SECRET, "Elsewhere", 17), None] * 2 + [None] * 3
    assert len({one.image for one in decisions[4:]}) == 1, "a decoded image is known by its pixels"


# In a mount namespace of its own (CLONE_NEWNS).
SMALL_DISK = """
import ctypes, subprocess, sys
assert ctypes.CDLL(None).unshare(0x00020000) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", sys.argv[sys.argv.index("--log") + 1]], check=True)
from thyroid.serve.decisions import writer
writer.PAUSE = writer.MOST_PAUSE = 0.05
""".strip().replace("\n", "; ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_answers_go_on_while_the_disk_is_full(artefact, scan, tmp_path):
    folder = tmp_path / "decisions"
    folder.mkdir()
    options = ("--model-dir", str(artefact), "--log", str(folder))
    server = Server(tmp_path / "log", *options, environment=KEYED, before=SMALL_DISK)
    try:
        server.wait()
    except AssertionError as error:
        if "mount" in str(error) or "unshare" in str(error):
            pytest.skip("this root cannot mount")
        raise
    disk = Path(f"/proc/{server.process.pid}/root") / folder.relative_to("/")
    filler = disk / "filler"
    image = {"image": encoded(scan)}

    def ask() -> None:
        assert server.ask(PREDICT, {"instances": [image] * 8})[0] == 200

    ask()
    until(lambda: len(lines(disk)) == 8)
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(1 << 20))
    for _ in range(10):
        ask()
    server.wait_for("decision log not written")
    assert len(lines(disk)) >= 8, "whole lines and no others"
    filler.unlink()
    server.wait_for("decision log written again")
    until(lambda: len(lines(disk)) == 88)
    assert len({one.id for one in lines(disk)}) == 88
    log = server.stop()
    assert "No space left on device" in log
    (full,) = errors_in(log)
    assert full["message"] == "decision log not written"
    assert "Doe" not in log


def test_what_cannot_be_written_is_seen_in_the_metrics(artefact, scan, tmp_path):
    """A folder that goes away: answers go on, and what is lost at the end is counted."""
    folder = tmp_path / "decisions"
    before = "from thyroid.serve.decisions import writer; writer.PAUSE = 0.05; writer.CLOSE_SECONDS = 0.5"
    options = ("--model-dir", str(artefact), "--log", str(folder), "--log-url", "http://127.0.0.1:9/decisions")
    server = Server(tmp_path / "log", *options, environment=KEYED, before=before).wait()
    folder.rmdir()
    assert server.ask(PREDICT, {"instances": [{"image": encoded(scan)}]})[0] == 200
    server.wait_for('"sink": "url"')
    server.wait_for('"sink": "folder"')
    metrics = server.ask("/metrics")[1]
    assert 'thyroid_decision_log_total{result="written",sink="folder"} 0.0' in metrics
    log = server.stop()
    lost = [json.loads(line)["sink"] for line in log.splitlines() if "decisions lost" in line]
    assert "folder" in lost


@pytest.mark.parametrize(("key", "told"), [("", "needs a secret"), ("short", "has 5 characters")])
def test_the_start_says_which_key_is_missing(artefact, tmp_path, key, told):
    options = ("--model-dir", str(artefact), "--log", str(tmp_path / "decisions"))
    server = Server(tmp_path / "log", *options, environment=KEYED | {pseudonyms.KEY_VARIABLE: key})
    assert server.process.wait(timeout=60) == 2
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {pseudonyms.KEY_VARIABLE}: ")
    assert told in line
