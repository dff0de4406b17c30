"""The listener as a process, on emulated buckets and a host: one run a batch, whatever is killed, lost or away."""

import concurrent.futures
import json
import random
import threading
import time

import pytest

from tests.support import receivers
from tests.support.listening import Listener, eventually, records, written
from thyroid.notify.receivers import PLAIN


def scan(number: int) -> str:
    return f"scans/B_{number:04d}-0001-1.0.jpg"


def test_a_thousand_events_out_of_order_and_repeated_while_the_listener_is_killed(gcs, host, listen):
    """The sender repeats what was not acknowledged; each batch gets one run, and no scan is left out."""
    root = gcs.address().rstrip("/")
    names = [scan(number) for number in range(700)]
    gcs.put(dict.fromkeys(names, b"jpg"))
    dice = random.Random(1)
    events = [(name, 1) for name in names] + [(name, 1) for name in dice.sample(names, 300)]
    dice.shuffle(events)
    host.states = [{"state": "RUNNING"}]
    first = listen(root, "--minimum", "300")
    current: list[Listener] = [first]
    guard, sent = threading.Lock(), 0

    def is_acknowledged(event: tuple[str, int]) -> bool:
        try:
            return current[0].post(written(gcs.bucket, event[0], 1)) == 204
        except OSError:
            return False

    def deliver(event: tuple[str, int]) -> None:
        nonlocal sent
        eventually(lambda: is_acknowledged(event))
        with guard:
            sent += 1

    def killed_after(wave: list[tuple[str, int]], part: int) -> None:
        """Deliver events, and kill the listener when `part` of all have been acknowledged."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            delivering = [pool.submit(deliver, event) for event in wave]
            eventually(lambda: sent >= part)
            current[0].kill()
            current[0] = listen(root, "--minimum", "300", port=first.port)
            for one in delivering:
                one.result()

    def kept() -> dict:
        return json.loads(gcs.read("listen/listen.json"))

    killed_after(events[:600], 200)
    eventually(lambda: host.runs)
    killed_after(events[600:], 800)
    assert sent == 1000
    assert len(host.runs) == 1, "the first run is unfinished"
    host.states = [{"state": "SUCCEEDED"}]
    eventually(
        lambda: len(kept()["seen"]) == 700 and not (kept()["run"] or kept()["sealed"] or kept()["batch"]["last"])
    )
    assert len(host.runs) == len({run["display_name"] for run in host.runs}) >= 2
    before = len(host.runs)
    for name in names[:20]:
        assert current[0].post(written(gcs.bucket, name, 1)) == 204
    time.sleep(0.5)
    log = current[0].stop()
    assert len(host.runs) == before
    assert "B_0" not in log, "names of files hold patients' numbers"
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "moment",
    ["create", pytest.param("confirm", marks=pytest.mark.slow), pytest.param("attempt", marks=pytest.mark.slow)],
)
def test_a_kill_between_the_intent_and_the_confirmation_starts_one_run(gcs, host, listen, moment):
    root = gcs.address().rstrip("/")
    gcs.put({scan(1): b"jpg"})
    die = {
        "attempt": """
from pipelines.kubeflow import submit
submit.create = lambda *a, **b: __import__('os')._exit(9)""",
        "create": """
from pipelines.events import start
plain = start.Pipeline.create
start.Pipeline.create = lambda *a: (plain(*a), __import__('os')._exit(9))""",
        "confirm": """
from pipelines.events import batch
batch.confirm = lambda *a: __import__('os')._exit(9)""",
    }[moment]
    broken = listen(root, code=die)
    assert broken.post(written(gcs.bucket, scan(1))) == 204
    broken.process.wait(timeout=120)
    host.states = [{"state": "SUCCEEDED"}]
    assert len(host.runs) == (moment != "attempt")
    listen(root)
    eventually(lambda: len(host.runs) == 1 and not json.loads(gcs.read("listen/listen.json"))["run"])
    time.sleep(0.5)
    assert len(host.runs) == 1


def test_an_answer_that_is_lost_does_not_start_a_second_run(gcs, host, listen, monkeypatch):
    host.lost = 1
    root = gcs.address().rstrip("/")
    gcs.put({scan(1): b"jpg"})
    with receivers.receiving() as receiver:
        monkeypatch.setenv(PLAIN, receiver.url)
        listener = listen(root)
        assert listener.post(written(gcs.bucket, scan(1))) == 204
        eventually(lambda: receiver.got)
    (told,) = receiver.messages
    assert (told.event, told.run, told.sentence) == (
        "run.started",
        "r1",
        "A run was started for 1 new or changed scan.",
    )
    assert told.link == f"{host.url}/#/runs/details/r1"
    eventually(
        lambda: json.loads(gcs.read("listen/listen.json"))["seen"] and "started a run" in listener.log.read_text()
    )
    assert len(host.runs) == 1
    assert host.runs[0]["experiment_id"] == "e1"
    parameters = host.runs[0]["runtime_config"]["parameters"]
    assert (parameters["minimum"], parameters["recipe"], parameters["scans"]) == (1, "warm", f"{root}/scans")
    assert "run" in parameters


def test_a_host_that_is_away_while_a_batch_is_ready(gcs, host, listen):
    host.refuse_all = (503, {"message": "away"})
    root = gcs.address().rstrip("/")
    gcs.put({scan(1): b"jpg", scan(2): b"jpg"})
    listener = listen(root)
    assert listener.post(written(gcs.bucket, scan(1))) == 204
    eventually(lambda: listener.log.read_text().count('"what": "host"') >= 3)
    assert listener.post(written(gcs.bucket, scan(2))) == 204, "events are taken meanwhile"
    host.states = [{"state": "SUCCEEDED"}]
    host.refuse_all = None
    eventually(lambda: len(host.runs) == 2)
    time.sleep(0.3)
    assert len(host.runs) == 2, "one for each batch"


def test_a_bucket_that_answers_503_delays_the_batch_and_loses_nothing(gcs, host, listen, tmp_path):
    """The state is in a folder, so that events are still taken; the scans are in the bucket."""
    root = gcs.address().rstrip("/")
    gcs.put({scan(1): b"jpg"})
    gcs.proxy.rule = lambda method, path: "503"
    listener = listen(root, state=str(tmp_path / "state"))
    assert listener.post(written(gcs.bucket, scan(1))) == 204
    eventually(lambda: listener.log.read_text().count('"what": "bucket"') >= 3)
    assert not host.runs
    gcs.proxy.rule = lambda method, path: None
    eventually(lambda: host.runs)
    assert f"gs://{gcs.bucket}: Google Cloud Storage failed" in listener.log.read_text()
    assert "B_0001" not in listener.log.read_text()


def test_events_are_refused_while_the_state_cannot_be_written(bucket, host, listen):
    root = bucket.address().rstrip("/")
    bucket.put({scan(1): b"jpg"})
    listener = listen(root)
    body = json.dumps({"objects": [f"{root}/{scan(1)}"]}).encode()
    bucket.proxy.rule = lambda method, path: "503"
    status, answer = listener.ask("POST", "/scans", body)
    assert (status, json.loads(answer)["code"]) == (503, "state")
    bucket.proxy.rule = lambda method, path: None
    status, answer = listener.ask("POST", "/scans", body)
    assert status == 202
    eventually(lambda: host.runs)


def test_objects_that_are_gone_do_not_count(gcs, host, listen):
    root = gcs.address().rstrip("/")
    listener = listen(root)
    for number in range(3):
        assert listener.post(written(gcs.bucket, scan(number))) == 204
    eventually(lambda: "nothing is left of a batch" in listener.log.read_text())
    assert not host.runs
    gcs.put({scan(1): b"jpg"})
    for number in range(3):
        assert listener.post(written(gcs.bucket, scan(number))) == 204
    eventually(lambda: host.runs)
    eventually(lambda: '"scans": 1' in listener.log.read_text())


def test_notifications_of_s3_and_what_does_not_count(s3, host, listen):
    root = s3.address().rstrip("/")
    s3.put({scan(1): b"jpg", "scans/a b/M_0002-0001-1.0.jpg": b"jpg"})
    listener = listen(root, quiet="0.04")
    status, _ = listener.ask("POST", "/", records(s3.bucket, [scan(1), "scans/a+b/M_0002-0001-1.0.jpg"]))
    assert status == 204
    ignored = ["scans/notes.txt", "scans/.hidden/B_0001-0001-1.0.jpg", "elsewhere/B_0001-0001-1.0.jpg"]
    assert listener.ask("POST", "/", records(s3.bucket, ignored))[0] == 204
    assert listener.ask("POST", "/", records(s3.bucket, [scan(3)], "s3:ObjectRemoved:Delete"))[0] == 204
    assert listener.ask("POST", "/", b'{"Service": "Amazon S3", "Event": "s3:TestEvent"}')[0] == 204
    metrics = listener.ask("GET", "/metrics", authorization="")[1].decode()
    assert 'thyroid_listen_objects_total{outcome="counted"} 2.0' in metrics
    assert 'thyroid_listen_objects_total{outcome="ignored"} 5.0' in metrics
    eventually(lambda: host.runs)


def test_two_listeners_on_one_state_start_one_run(gcs, host, listen):
    """Both take events. When the leader is killed, the other one starts the runs."""
    root = gcs.address().rstrip("/")
    gcs.put({scan(number): b"jpg" for number in range(40)})
    host.states = [{"state": "SUCCEEDED"}]
    listeners = [listen(root, "--minimum", "20", quiet="60") for _ in range(2)]
    for number in range(20):
        body = json.dumps({"objects": [f"{root}/{scan(number)}"]}).encode()
        assert listeners[number % 2].ask("POST", "/scans", body)[0] == 202
    eventually(lambda: host.runs)
    time.sleep(0.5)
    assert len(host.runs) == 1
    eventually(lambda: '"scans": 20' in listeners[0].log.read_text())
    listeners[0].kill()
    body = json.dumps({"objects": [f"{root}/{scan(number)}" for number in range(20, 40)]}).encode()
    assert listeners[1].ask("POST", "/scans", body)[0] == 202
    eventually(lambda: len(host.runs) == 2)


def test_files_on_a_volume(tmp_path, host, listen):
    root = tmp_path / "data"
    (root / "scans").mkdir(parents=True)
    (root / scan(1)).write_bytes(b"jpg")
    listener = listen(str(root), "--claim", "thyroid-data")
    body = json.dumps({"objects": [str(root / scan(1)), str(root / scan(2))]}).encode()
    status, answer = listener.ask("POST", "/scans", body)
    assert status == 202
    assert json.loads(answer)["counted"] == 2
    assert "Research use only" in json.loads(answer)["notice"]
    eventually(lambda: '"scans": 1' in listener.log.read_text())
    listener.stop()
    assert len(host.runs) == 1
    assert listener.process.returncode == 0


def test_what_the_leader_asks_the_host_swallows_no_line_of_the_log(tmp_path, host, listen):
    """A run is unfinished when the listener starts, so that the leader asks at once."""
    (tmp_path / "listen.json").write_text('{"run": {"name": "one", "scans": 1, "attempted": 1.0, "id": "r1"}}')
    slow = """
import socket, time
plain = socket.create_server
socket.create_server = lambda *a, **b: (time.sleep(1), plain(*a, **b))[1]
import kfp
ask = kfp.Client.get_run
kfp.Client.get_run = lambda *a: (time.sleep(3), ask(*a))[1]"""
    listener = listen("gs://hospital", state=str(tmp_path), code=slow)
    eventually(lambda: not json.loads((tmp_path / "listen.json").read_text())["run"])
    log = listener.stop()
    assert "listening on" in log
    assert "a run has ended" in log


def test_a_change_of_a_table_makes_a_batch(gcs, host, listen):
    root = gcs.address().rstrip("/")
    gcs.put({"rois.csv": b"filename,x,y,width,height\n"})
    listener = listen(root)
    assert listener.post(written(gcs.bucket, "rois.csv")) == 204
    eventually(lambda: host.runs)
