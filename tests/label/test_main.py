"""The command of the bench: what it refuses, who may reach it, and the endpoint that it starts."""

import re
import signal
import subprocess
import time

import httpx
import pytest

from tests.support.label_server import READERS, Bench, Visitor, fields
from thyroid import RESEARCH_USE_ONLY
from thyroid.imaging import phantom
from thyroid.label import __main__ as command


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.generate(folder, patients=3, images_per_patient=1, seed=4)
    return folder / "scans"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--scans", "SCANS"], "--labelled"),
        (["--scans", "nowhere"], "nowhere"),
        (["--endpoint", "localhost:8080"], "--endpoint localhost:8080"),
        (["--endpoint", "http://localhost:1", "--registry", "r"], "--registry"),
        (["--host", "0.0.0.0"], "--readers"),
        (["--port", "0"], "port 0"),
        (["--second", "1.5"], "second 1.5"),
        (["--classes", "B"], "classes"),
        (["--readers", "nobody.csv"], "nobody.csv"),
        (["--suspects", "none.csv"], "none.csv"),
        (["--labels", "none.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(scans, tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    given = [str(scans) if one == "SCANS" else one for one in arguments]
    if named != "--labelled":
        given += ["--labelled", str(tmp_path / "labelled")]
    if "--scans" not in given:
        given += ["--scans", str(scans)]
    assert command.main(given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert named in told
    assert not (tmp_path / "labelled").exists()


def test_a_folder_of_results_that_is_none(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    (tmp_path / "labelled").write_text("a file")
    assert command.main(["--scans", str(scans), "--labelled", str(tmp_path / "labelled")]) == 2
    assert str(tmp_path / "labelled") in capsys.readouterr().err


def test_a_reader_alone_gets_an_address_with_a_token(scans, tmp_path):
    bench = Bench(tmp_path / "log", scans, tmp_path / "labelled").wait()
    assert httpx.get(bench.address).status_code == 401
    (token,) = re.findall(r"\?token=([\w-]+)", bench.log.read_text())
    visitor = Visitor.__new__(Visitor)
    visitor.client = bench.client()
    assert visitor.client.get("/", params={"token": token}).status_code == 303
    visitor.renew()
    shown = fields(visitor.next())
    assert visitor.save(shown, {"verdict": "none", "regions": [], "side": ""}).status_code == 200
    assert visitor.next("adjudicate").status_code == 200, "alone, one is the adjudicator, too"
    log = bench.stop(signal.SIGINT)
    assert bench.process.returncode in (0, 130)
    assert RESEARCH_USE_ONLY in log
    assert "Traceback" not in log
    assert "none,0" in (tmp_path / "labelled" / "labels.csv").read_text(), "written before the end"


def children(process: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(one) for one in done.stdout.split()]


def is_alive(process: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_endpoint_of_a_registry_ends_with_the_bench(model, scans, tmp_path, how):
    (tmp_path / "readers.csv").write_text(READERS)
    arguments = ("--registry", str(model), "--readers", str(tmp_path / "readers.csv"))
    bench = Bench(tmp_path / "log", scans, tmp_path / "labelled", *arguments).wait()
    (endpoint,) = children(bench.process.pid)
    assert "away" not in bench.stop(how), "it is only starting"
    deadline = time.monotonic() + 30
    while is_alive(endpoint):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_the_endpoints_packages_a_registry_is_refused(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: None)
    assert command.main(["--scans", str(scans), "--labelled", str(tmp_path / "x"), "--registry", "r"]) == 2
    assert "--endpoint" in capsys.readouterr().err
