"""No process opens a connection without being asked to, and all work where packets to the internet are dropped."""

import ast
import concurrent.futures
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT
from tests.support.pages import Page
from tests.support.serving import PREDICT, Server, encoded

WATCH = """
import os, sys, time

def watch(event, values):
    if event == "os.fork":
        told = event
    elif event in ("socket.connect", "socket.sendto"):
        told = f"{event} {values[1]}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        told = f"{event} {values[0]}"
    else:
        return
    with open(os.environ["WATCHED"], "a") as file:
        file.write(told + "\\n")
    if event != "os.fork" and not any(one in told for one in ("127.0.0.1", "localhost", "0.0.0.0", "::", "None")):
        time.sleep(3600)  # its packets are dropped

sys.addaudithook(watch)
"""


@pytest.fixture
def dropped(tmp_path) -> dict[str, str]:
    """An environment whose processes write down whom they want to reach, and reach nobody but this machine.

    OpenVINO's telemetry keeps still where CI is set, or where a file in HOME says so.
    """
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "HOME")}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    return kept | {"PYTHONPATH": path, "HOME": str(tmp_path / "home"), "WATCHED": str(tmp_path / "watched")}


def watched(environment: dict[str, str]) -> list[str]:
    file = Path(environment["WATCHED"])
    return file.read_text().splitlines() if file.exists() else []


def abroad(process: psutil.Process) -> list[str]:
    """Return the addresses outside this machine that a process or its children are connected to, in any language."""
    family = [process, *process.children(recursive=True)]
    ends = [one.raddr.ip for member in family for one in member.connections() if one.raddr]
    return [one for one in ends if not one.startswith(("127.", "::1", "::ffff:127."))]


def quiet(model: Path, scan: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Check that the endpoint and the page answer in this environment, connect to nothing else, and end when asked."""
    server = Server(tmp_path / "log", "--registry", str(model), environment=environment).wait()
    page = Page(tmp_path / "page", f"http://127.0.0.1:{server.port}", environment=environment).wait()
    try:
        assert server.ask(PREDICT, {"instances": [{"image": encoded(scan)}]})[0] == 200
        assert page.visitor().read([(scan.name, scan.read_bytes())]).status_code == 200
        assert abroad(psutil.Process(server.process.pid)) == []
        assert abroad(psutil.Process(page.process.pid)) == []
    finally:
        page.stop()
        log = server.stop()
    assert server.process.returncode in (0, -15)
    assert "Traceback" not in log


@pytest.mark.slow
def test_the_endpoint_and_the_page_talk_to_nobody_else(model, phantoms, tmp_path, dropped):
    quiet(model, next((phantoms / "scans").iterdir()), tmp_path, dropped)
    lines = watched(dropped)
    assert any("127.0.0.1" in line for line in lines), "the page asks the endpoint, and that is seen"
    assert [line for line in lines if "127.0.0.1" not in line and "0.0.0.0" not in line] == []


NOWHERE = """
ip link set lo up
ip link add outside type veth peer name nobody
ip link set outside addrgenmode none up
ip link set nobody addrgenmode none up
ip address add 10.99.0.2/24 dev outside
ip neighbour add 10.99.0.1 lladdr 02:00:00:00:00:01 dev outside
ip route add default via 10.99.0.1
"""
"""A network whose way to the internet leads to nobody: what is sent there is counted and dropped."""
CLONE_NEWNET = 0x40000000


def sent() -> int:
    """Packets that have been dropped."""
    asked = subprocess.run(["ip", "-json", "-statistics", "link", "show", "outside"], capture_output=True, check=True)
    return json.loads(asked.stdout)[0]["stats64"]["tx"]["packets"]


@pytest.fixture
def nowhere() -> Iterator[concurrent.futures.Executor]:
    """A thread in a network of its own, as are the processes that it starts."""
    if shutil.which("ip") is None:
        pytest.skip("ip (iproute2) is not here")
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        if thread.submit(ctypes.CDLL(None).unshare, CLONE_NEWNET).result():
            pytest.skip("this user may make no network namespace")
        for line in NOWHERE.strip().splitlines():
            made = thread.submit(subprocess.run, line.split(), capture_output=True, text=True).result()
            if made.returncode:
                pytest.skip(f"{line}: {made.stderr.strip()}")
        yield thread


@pytest.mark.slow
def test_they_live_where_packets_to_the_internet_are_dropped(model, phantoms, tmp_path, dropped, nowhere):
    """By the kernel, in whatever language something asks for a connection."""
    environment = {name: value for name, value in dropped.items() if name not in ("PYTHONPATH", "WATCHED")}

    def trial() -> tuple[int, int]:
        quiet(model, next((phantoms / "scans").iterdir()), tmp_path, environment)
        before = sent()
        with pytest.raises(TimeoutError):
            socket.create_connection(("192.0.2.1", 443), timeout=1)
        return before, sent()

    before, after = nowhere.submit(trial).result()
    assert before == 0
    assert after > 0, "an attempt would have been seen"


def test_a_conversion_talks_to_nobody(dropped):
    """What the evaluation runs: importing OpenVINO's converter and telling of a conversion."""
    code = (
        "from thyroid.model import engine; import openvino; "
        "from openvino.tools.ovc import convert_impl, telemetry_utils as t\n"
        "t.send_conversion_result('success'); print(convert_impl.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dropped, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub"], done.stderr
    assert watched(dropped) == []


def test_openvino_is_imported_behind_the_switch_alone():
    for folder in ("thyroid", "components", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert "openvino" not in names or path == ROOT / "thyroid" / "model" / "engine.py"


def test_telemetry_is_in_no_lock():
    for lock in (*ROOT.glob("*.lock"), *(ROOT / "images").glob("*.lock")):
        assert "openvino-telemetry" not in lock.read_text(), lock.name


def test_a_fork_has_no_way_to_the_servers_loop():
    """Otherwise a signal that ends the fork would also stop the server."""
    code = """
import asyncio, os, signal
from thyroid.serve import server

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
    child = os.fork()
    if not child:
        os._exit(signal.set_wakeup_fd(-1) != -1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0"], done.stderr
