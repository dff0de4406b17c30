"""A candidate behind the champion: what it answers, that nothing waits for it, and what becomes of its process."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.serve.test_decisions import SECRET, lines, until
from tests.serve.test_decisions_served import FRAME, KEYED, call
from tests.support import ROOT, eager_shadow, toy_artefact, toy_locator
from tests.support.serving import EXPLAIN, LOCATE, PREDICT, Server, encoded, errors_in
from thyroid import cores
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import engine
from thyroid.records.watch import SHADOW_FOLDER, Shadowed
from thyroid.registry.registry import Registry
from thyroid.serve import limits
from thyroid.serve.__main__ import run
from thyroid.serve.admission import Admission
from thyroid.serve.answers import Scored
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.decisions.writer import Line
from thyroid.serve.model import ThyroidModel
from thyroid.serve.options import ServeOptions
from thyroid.serve.payload import Instance
from thyroid.serve.shadow import shadow as module
from thyroid.serve.shadow.process import EndedError, Process
from thyroid.serve.shadow.shadow import Shadow
from thyroid.serve.state import Loader, State

ROI = (180, 60, 90, 70)
EAGER = "tests.support.eager_shadow"
BEFORE = f"from thyroid.serve.shadow import process; process.MODULE = {EAGER!r}"
ANSWERS = "the candidate answers behind the champion"
LEFT_OFF = "candidate left off"


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    """Candidates do not wait for what else runs here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("thyroid.serve.shadow.process.MODULE", EAGER)
        yield


def built(folder: Path, **changes: Any) -> Path:
    """An artefact that a registry takes: no form of it reads model.keras."""
    (folder / "model.keras").write_bytes(folder.name.encode())
    return toy_locator.build(folder, locator=toy_locator.record(), novelty=True, **changes)


@pytest.fixture(scope="module")
def champion(tmp_path_factory) -> Path:
    return built(tmp_path_factory.mktemp("champion"))


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Path:
    """The same network with another threshold: it calls malignant what the champion calls benign."""
    return built(tmp_path_factory.mktemp("candidate"), threshold=0.05)


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "Doe^Jane.jpg"
    path.write_bytes(images.encode(FRAME))
    return path


def shadowed(folder: Path) -> list[Shadowed]:
    return [
        Shadowed.model_validate_json(line)
        for path in sorted((folder / SHADOW_FOLDER).glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def counts() -> dict[str, float]:
    """Images of this process by result, so far."""
    results = (module.SAME, module.CHANGED, module.DROPPED, module.FAILED)
    return {one: REGISTRY.get_sample_value("thyroid_shadow_images_total", {"result": one}) or 0.0 for one in results}


def metrics(server: Server) -> dict[str, float]:
    """The metrics of the shadow."""
    text = server.ask("/metrics")[1].splitlines()
    return {
        name.removeprefix("thyroid_shadow_"): float(value)
        for name, _, value in (line.rpartition(" ") for line in text)
        if name.startswith("thyroid_shadow_") and "_created" not in name
    }


def child_of(server: Server) -> int:
    """The candidate's process."""
    text = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    pids = [int(pid) for path in text for pid in path.read_text().split()]
    (found,) = [pid for pid in pids if EAGER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def asked(champion, candidate, scan, tmp_path_factory) -> dict[str, Any]:
    """What a server with a candidate did whose champion was asked in every way."""
    folder = tmp_path_factory.mktemp("decisions")
    options = (
        "--model-dir",
        str(champion),
        "--shadow-dir",
        str(candidate),
        "--log",
        str(folder),
        "--site",
        "Elsewhere",
    )
    server = Server(folder / "log", *options, "--form", engine.F32, environment=KEYED, before=BEFORE).wait()
    server.wait_for(ANSWERS, 60)
    pid = child_of(server)
    image = encoded(scan)
    body = {"instances": [{"image": image, "patient": "17"}, {"image": image, "roi": list(ROI)}]}
    answers = [server.ask(PREDICT, body), server.ask(EXPLAIN, {"instances": [{"image": image, "domain": "crop"}]})]
    server.ask(LOCATE, body)
    server.ask(PREDICT, {"instances": [{"image": {"b64": "%%%"}}]})
    call(server.grpc_port)
    until(lambda: len(shadowed(folder)) == 4)
    until(lambda: metrics(server)["memory_bytes"])
    found = {
        "first_to_go": Path(f"/proc/{pid}/oom_score_adj").read_text().strip(),
        "metrics": metrics(server),
    }
    log = server.stop()
    assert [status for status, _ in answers] == [200, 200]
    found |= {"folder": folder, "decisions": lines(folder), "shadowed": shadowed(folder)}
    return found | {"errors": errors_in(log), "log": log, "running": running(pid)}


def test_the_log_says_what_the_candidate_would_have_decided(asked, candidate, scan):
    """Exactly what the candidate answers where it is served, under the id of the champion's decision."""
    model = ThyroidModel("thyroid", candidate, form=engine.F32)
    model.load()
    instances = [
        Instance("image", scan.read_bytes()),
        Instance("image", scan.read_bytes(), roi=ROI),
        Instance("image", scan.read_bytes(), domain="crop"),
        Instance("image", FRAME),
    ]
    expected = [asyncio.run(model.score(instance)) for instance in instances]
    assert {one.decision["decision"] for one in expected} >= {"malignant"}
    for decision, line, answer in zip(asked["decisions"], asked["shadowed"], expected, strict=True):
        assert (line.id, line.image, line.patient) == (decision.id, decision.image, decision.patient)
        assert line.probability == pytest.approx(answer.decision["malignant"], abs=1e-9)
        assert (line.decision, line.reasons) == (answer.decision["decision"], answer.decision.get("reasons", []))
        assert line.novelty == pytest.approx(answer.novelty)
        assert line.distance == pytest.approx(answer.distance)
        assert (line.version, line.form) == (1, engine.F32)
    assert asked["shadowed"][0].patient == pseudonyms.of_patient(SECRET, "Elsewhere", 17)
    assert not asked["errors"]


def test_the_metrics_count_what_would_have_changed(asked):
    pairs = [(one.decision, two.decision) for one, two in zip(asked["decisions"], asked["shadowed"], strict=True)]
    found = asked["metrics"]
    assert ("benign", "malignant") in pairs
    assert found['changed_total{from="benign",to="malignant"}'] == pairs.count(("benign", "malignant"))
    assert found['images_total{result="changed"}'] == sum(one != two for one, two in pairs)
    assert found['images_total{result="same"}'] == sum(one == two for one, two in pairs)
    assert found['images_total{result="failed"}'] == found['images_total{result="dropped"}'] == 0
    assert found['info{form="openvino-f32",version="1"}'] == 1
    assert 50e6 < found["memory_bytes"] < limits.SHADOW_MEMORY


def test_the_candidate_goes_first_and_ends_with_the_endpoint(asked):
    assert asked["first_to_go"] == "1000"
    assert not asked["running"]


def test_the_candidate_only_gets_what_is_spare():
    code = """
import os
from thyroid import cores
from thyroid.serve.shadow import __main__ as real

async def serve(folder, form, answers):
    answers.write(b"%d %d %d" % (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), cores.available()))

real._serve = serve
real.main()
"""
    command = [sys.executable, "-c", code, "folder"]
    found = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, cwd=ROOT, check=True).stdout
    assert found == b"%d 19 1" % os.SCHED_IDLE


def test_nothing_names_a_patient(asked):
    text = "".join(path.read_text() for path in asked["folder"].rglob("*") if path.is_file())
    assert "Doe" not in text
    assert '"17"' not in text


class Kept:
    """A sink that keeps what it gets."""

    most, attempts = 100, 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.got: list[bytes] = []

    def write(self, lines: Sequence[Line]) -> None:
        self.got += [line.text for line in lines]


@pytest.fixture(scope="module")
def answered(champion, scan) -> Callable[[int], list[Scored]]:
    """Return a request of so many images with the champion's answers."""
    model = ThyroidModel("thyroid", champion, form=engine.F32, log=DecisionLog([], SECRET))
    model.load()
    scored = asyncio.run(model.score(Instance("image", scan.read_bytes())))
    return lambda count: [scored] * count


@pytest.fixture(scope="module")
def behind(candidate) -> Iterator[tuple[Shadow, Admission]]:
    """A candidate that answers."""
    admission = Admission()
    shadow = Shadow(admission, None, engine.F32)
    shadow.follow(candidate)
    until(lambda: shadow._process is not None and shadow._process.ready)
    yield shadow, admission
    shadow.close()


@contextmanager
def busy(admission: Admission) -> Iterator[None]:
    """A request that is inside within the context, on an event loop as in a server."""
    inside, answered = threading.Event(), threading.Event()

    async def request() -> None:
        with admission.request():
            inside.set()
            await asyncio.to_thread(answered.wait)
        await asyncio.sleep(10 * module._REST)

    loop = threading.Thread(target=asyncio.run, args=(request(),))
    loop.start()
    inside.wait()
    yield
    answered.set()
    loop.join()


def test_nothing_is_handed_on_while_the_server_is_busy_and_the_queue_is_bounded(behind, answered):
    shadow, admission = behind
    before = counts()
    with busy(admission):
        shadow.offer(answered(limits.SHADOW_IMAGES - 1), [])
        shadow.offer(answered(2), [])
        shadow.offer(answered(1), [])
        time.sleep(0.1)
        assert len(shadow._waiting) == limits.SHADOW_IMAGES
        assert counts()["dropped"] == before["dropped"] + 2
        assert counts()["changed"] == before["changed"]
    until(lambda: not shadow._waiting)
    assert counts()["changed"] == before["changed"] + limits.SHADOW_IMAGES
    assert shadow._size == 0


def state(pid: int) -> str:
    """A letter: T for a process that is halted."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_candidate_is_halted_while_a_request_is_inside(behind, answered, monkeypatch):
    """That time does not count against it."""
    shadow, admission = behind
    pid, before = shadow._process._process.pid, counts()
    monkeypatch.setattr(limits, "SHADOW_DEADLINE", 2.0)
    for _ in range(2):
        shadow.offer(answered(1), [])
        with busy(admission):
            until(lambda: state(pid) == "T")
            time.sleep(2.5)
            assert state(pid) == "T"
        until(lambda: state(pid) != "T")
    until(lambda: not shadow._waiting)
    assert counts() == before | {"changed": before["changed"] + 2}
    assert shadow._process._process.pid == pid


def test_a_candidate_that_starts_while_a_request_is_inside_is_halted(candidate):
    admission = Admission()
    shadow = Shadow(admission, None, engine.F32)
    with busy(admission):
        shadow.follow(candidate)
        until(lambda: shadow._process is not None)
        until(lambda: state(shadow._process._process.pid) == "T")
    until(lambda: shadow._process.ready)
    shadow.close()


def test_an_image_that_waits_too_long_is_dropped_even_while_the_server_is_busy(behind, answered, monkeypatch):
    shadow, admission = behind
    monkeypatch.setattr(limits, "SHADOW_WAIT", 0.1)
    before = counts()
    with busy(admission):
        shadow.offer(answered(3), [])
        until(lambda: not shadow._waiting)
    assert counts() == before | {"dropped": before["dropped"] + 3}
    assert shadow._size == 0


def test_the_bytes_that_wait_are_bounded(behind, answered, monkeypatch):
    shadow, admission = behind
    size = module._picture(answered(1)[0], None).size
    monkeypatch.setattr(limits, "SHADOW_BYTES", 3 * size)
    before = counts()
    with busy(admission):
        for _ in range(5):
            shadow.offer(answered(1), [])
        assert len(shadow._waiting) == 3
        assert counts()["dropped"] == before["dropped"] + 2
    until(lambda: not shadow._waiting)


def test_what_waits_holds_nothing_else_of_the_request(answered, scan):
    picture = module._picture(answered(1)[0], None)
    assert picture.image is answered(1)[0].instance.image
    assert json.loads(picture.header).keys() == {"bytes", "shape", "roi", "frame", "clinical", "domain"}


def test_an_image_that_the_candidate_cannot_judge_is_counted_and_the_next_one_is_answered(behind, answered):
    shadow, _ = behind
    before, pid = counts(), shadow._process._process.pid
    (good,) = answered(1)
    clinical = Instance("image", good.instance.image, clinical={"age": 52})
    damaged = Instance("image", b"\xff\xd8\xff damaged")
    for instance in (clinical, damaged, good.instance):
        shadow.offer([Scored(**(vars(good) | {"instance": instance}))], [])
    until(lambda: counts()["changed"] == before["changed"] + 1)
    assert counts()["failed"] == before["failed"] + 2
    assert shadow._process._process.pid == pid


def test_values_that_cannot_be_handed_over_fail_no_answer(behind, answered):
    shadow, _ = behind
    before = counts()
    (good,) = answered(1)
    odd = Instance("image", good.instance.image, clinical={"age": object()})
    shadow.offer([Scored(**(vars(good) | {"instance": odd}))], [])
    assert counts()["failed"] == before["failed"] + 1


def test_a_log_gets_lines_of_the_candidate_only_for_decisions_that_it_has(candidate, answered, monkeypatch):
    monkeypatch.setattr("thyroid.serve.decisions.writer.PAUSE", 0.01)
    own, other = Kept("own"), Kept("other")
    log = DecisionLog([own], SECRET, shadow=[other])
    shadow = Shadow(Admission(), log, engine.F32)
    shadow.follow(candidate)
    until(lambda: shadow._process is not None and shadow._process.ready)
    decisions = log.record(7, engine.F32, answered(1))
    shadow.offer(answered(1), decisions)
    shadow.offer(answered(1), [])
    until(lambda: not shadow._waiting)
    shadow.close()
    log.close()
    (line,) = [Shadowed.model_validate_json(text) for text in other.got]
    assert [json.loads(text)["id"] for text in own.got] == [line.id] == [decisions[0].id]


@pytest.fixture
def hang(tmp_path) -> Path:
    """A file that makes the candidate of `patient` hang at its next image, once."""
    return tmp_path / "hang"


@pytest.fixture
def patient(champion, candidate, tmp_path, hang) -> Iterator[Server]:
    """A server whose candidate has five seconds for an image and is started again at once."""
    soon = (
        f"{BEFORE}; from thyroid.serve import limits; limits.SHADOW_DEADLINE = 5.0; "
        "from thyroid.serve.shadow import shadow; shadow.PAUSE = 0.05"
    )
    options = ("--model-dir", str(champion), "--shadow-dir", str(candidate), "--form", engine.F32)
    server = Server(
        tmp_path / "log", *options, environment=os.environ | {eager_shadow.HANG: str(hang)}, before=soon
    ).wait()
    yield server
    if server.process.poll() is None:
        server.kill()


def test_a_candidate_that_hangs_or_dies_is_started_again_and_the_champion_goes_on(patient, scan, hang):
    body = {"instances": [{"image": encoded(scan)}]}
    patient.wait_for(ANSWERS, 60)
    first = child_of(patient)
    hang.touch()
    assert patient.ask(PREDICT, body)[0] == 200
    until(lambda: metrics(patient)['images_total{result="failed"}'] == 1)
    until(lambda: patient.log.read_text().count(ANSWERS) == 2)
    second = child_of(patient)
    os.kill(second, signal.SIGKILL)
    assert patient.ask(PREDICT, body)[0] == 200
    until(lambda: metrics(patient)['images_total{result="failed"}'] == 2)
    until(lambda: patient.log.read_text().count(ANSWERS) == 3)
    assert patient.ask(PREDICT, body)[0] == 200
    until(lambda: metrics(patient)['images_total{result="changed"}'] == 1)
    assert not running(first)
    third = child_of(patient)
    os.kill(third, signal.SIGSTOP)
    patient.kill()
    until(lambda: not running(third))  # an endpoint that is killed leaves nothing behind


def test_a_candidate_that_fails_again_and_again_is_left_off(candidate, answered, monkeypatch, caplog):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(limits, "SHADOW_ATTEMPTS", 2)
    monkeypatch.setattr(limits, "SHADOW_START", 0.0)
    shadow = Shadow(Admission(), None)
    with caplog.at_level(logging.ERROR, logger="thyroid.serve"):
        shadow.follow(candidate)
        until(lambda: REGISTRY.get_sample_value("thyroid_shadow_left_off"))
        before = counts()["dropped"]
        shadow.offer(answered(2), [])
        assert counts()["dropped"] == before + 2
        time.sleep(0.1)
        assert shadow._process is None
    shadow.close()
    assert [LEFT_OFF in one.message for one in caplog.records] == [True]
    assert caplog.records[0].fields == {"reason": "its process ended 2 times in a row"}


def test_a_candidate_that_was_left_off_gets_another_chance(candidate, monkeypatch):
    """It may have failed because the machine was busy."""
    monkeypatch.setattr(limits, "SHADOW_ATTEMPTS", 1)
    monkeypatch.setattr(limits, "SHADOW_AGAIN", 0.1)
    shadow = Shadow(Admission(), None, engine.F32)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere")
        shadow.follow(candidate)
        until(lambda: REGISTRY.get_sample_value("thyroid_shadow_left_off"))
    until(lambda: shadow._process is not None and shadow._process.ready)
    assert REGISTRY.get_sample_value("thyroid_shadow_left_off") == 0
    shadow.close()


def test_a_process_that_does_not_end_does_not_keep_the_server(candidate, monkeypatch):
    """Such as one that waits for a file system that is away."""
    closing, over, real = threading.Event(), threading.Event(), Process.close
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(Process, "close", lambda self: (closing.set(), over.wait(), real(self)))
    shadow = Shadow(Admission(), None, engine.F32)
    shadow.follow(candidate)
    until(lambda: shadow._process is not None)
    shadow.close()
    assert closing.wait(30)
    assert shadow._thread.is_alive()
    over.set()
    shadow._thread.join()


def test_a_candidate_that_cannot_be_served_leaves_the_champion_alone(champion, candidate, scan, tmp_path):
    broken = shutil.copytree(candidate, tmp_path / "broken")
    (broken / "openvino" / "model.bin").write_bytes(b"x")
    options = ("--model-dir", str(champion), "--shadow-dir", str(broken))
    server = Server(tmp_path / "log", *options, before=BEFORE).wait()
    server.wait_for(LEFT_OFF, 60)
    assert server.ask(PREDICT, {"instances": [{"image": encoded(scan)}]})[0] == 200
    assert metrics(server)["left_off"] == 1
    (error,) = errors_in(server.stop())
    assert "sha256" in error["reason"]


def test_the_registry_names_the_candidate(champion, candidate, scan, tmp_path):
    """It is taken over when it is published, and it ends when it becomes the champion."""
    root = tmp_path / "registry"
    registry = Registry(root)
    registry.publish(champion, toy_artefact.gate("promoted", None))
    server = Server(tmp_path / "log", "--registry", str(root), "--shadow", "--form", engine.F32, before=BEFORE).wait()
    body = {"instances": [{"image": encoded(scan)}]}
    assert server.ask(PREDICT, body)[0] == 200
    registry.publish(candidate, toy_artefact.gate("refused", 1))
    server.wait_for(ANSWERS, 60)
    pid = child_of(server)
    assert metrics(server)['info{form="openvino-f32",version="2"}'] == 1
    assert server.ask(PREDICT, body)[1]["predictions"][0]["decision"] == "benign"
    until(lambda: metrics(server)['images_total{result="changed"}'] == 1)
    registry.promote("2", "a test", "somebody")
    until(lambda: not running(pid))
    until(lambda: server.ask(PREDICT, body)[1]["predictions"][0]["decision"] == "malignant")
    registry.roll_back("a test", "somebody")
    until(lambda: server.ask(PREDICT, body)[1]["predictions"][0]["decision"] == "benign")
    log = server.stop()
    assert log.count(ANSWERS) == 1, "a version that was rolled back does not come back"
    assert not errors_in(log)


def test_a_version_that_waits_for_live_pictures_answers_before_a_newer_one(champion, candidate, tmp_path):
    root, newer = tmp_path / "registry", tmp_path / "newer"
    newer.mkdir()
    registry = Registry(root)
    registry.publish(champion, toy_artefact.gate("promoted", None))
    loader = Loader(State(ServeOptions(registry=root)))
    assert loader.candidate() == (None, None)
    registry.publish(candidate, toy_artefact.gate("waiting", 1))
    registry.publish(built(newer), toy_artefact.gate("refused", 1))
    assert loader.candidate() == (2, registry.find("2"))
    registry.promote("champion", "no time to wait", "somebody")
    assert loader.candidate() == (3, registry.find("3"))


def test_a_process_that_needs_too_much_memory_ends(candidate):
    code = (
        "import sys; from thyroid.serve import limits; limits.SHADOW_MEMORY = 60_000_000; "
        "from thyroid.serve.shadow import __main__ as real; real._give_way = lambda: None; real.main()"
    )
    command = [sys.executable, "-c", code, str(candidate)]
    ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, cwd=ROOT, timeout=60)
    assert ended.returncode != 0
    assert b"version" not in ended.stdout


def test_a_process_that_is_killed_while_it_is_asked_says_so(candidate):
    process = Process(candidate, engine.F32)
    process.kill()
    with pytest.raises(EndedError):
        process.start()
    process.close()
    assert process.memory() == 0


def speaking(path: Path, *lines: str) -> str:
    """A program that says these lines, whatever it is asked."""
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + "cat > /dev/null\n")
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{}", "x" * 100_000, "[" * 60_000, '{"version": 1}'])
def test_a_process_that_does_not_keep_to_the_protocol_does_not_start(tmp_path, candidate, monkeypatch, line):
    monkeypatch.setattr(sys, "executable", speaking(tmp_path / "program", line))
    process = Process(candidate, None)
    with pytest.raises(EndedError):
        process.start()
    process.close()


@pytest.mark.parametrize("line", ["nonsense", "7", "{}", '{"decision": "Doe^Jane"}', '{"decision": ["benign"]}'])
def test_an_answer_that_is_none_ends_the_process(tmp_path, candidate, monkeypatch, line):
    ready = '{"version": 1, "form": "keras"}'
    monkeypatch.setattr(sys, "executable", speaking(tmp_path / "program", ready, line))
    process = Process(candidate, None)
    process.start()
    with pytest.raises(EndedError):
        process.answer(b"{}\n", b"")
    process.close()


def test_a_system_that_starts_no_process_leaves_the_candidate_off(candidate, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(sys, "executable", "/nowhere")
    shadow = Shadow(Admission(), None)
    shadow.follow(candidate)
    until(lambda: REGISTRY.get_sample_value("thyroid_shadow_left_off"))
    shadow.follow(None)  # another candidate gets another chance
    until(lambda: not REGISTRY.get_sample_value("thyroid_shadow_left_off"))
    shadow.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ServeOptions(model_dir=Path("a"), shadow=True), "--shadow: needs --registry"),
        (ServeOptions(registry="a", shadow_dir=Path("b")), "--shadow-dir: needs --model-dir"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message):
        run(options=options)


def test_cores_can_be_limited(monkeypatch):
    monkeypatch.setattr(cores, "_limits", [])
    before = cores.available()
    cores.limit(1)
    assert cores.available() == 1 <= before
