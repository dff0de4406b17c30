"""Good requests during attacks on the endpoint and the page: all are answered, none much later, and memory is freed.

    python bench/attacks.py --registry output/registry --scan scan.jpg [--seconds 10]

Both servers run with their default limits and with a token, the endpoint with a decision log as well. A good client
sends requests at a steady rate, a fifth of what is possible, each on a new connection. It asks the endpoint for
predictions and the page for readings of one scan. Once a second it also sends a probe, which fails if it takes longer
than the second that Kubernetes waits by default. The baseline is the same client without the attack, in one turn before
it and one after it. An attack is repeated until `--seconds` have passed. 30 seconds after its end, memory is compared
with the memory before.

The attacker is a single process that sends prepared bytes over sockets. It runs with low priority (nice 10), but it
shares the cores with the servers. On two cores, its processor time therefore affects the ratios, too.
"""

import argparse
import http.client
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import dicoms
from tests.support.attackers import closed, connections, memory, png_header
from tests.support.pages import Page
from tests.support.serving import PREDICT, Server
from thyroid.data.pseudonyms import KEY_VARIABLE

SHARE = 0.2
CLIENTS = 4
REST = 30.0
PROBE_SECONDS = 1.0
MOST_P99, MOST_MEMORY = 3.0, 1.1
MOST_P99_TOKEN = 15.0
"""Of requests with the token, which the server processes: 135 MB of bodies at a time share two cores with the rest."""
TOKEN = "the-token"
INFER = "/inference.GRPCInferenceService/ModelInfer"

Attack = Callable[[], list[str]]
"""A function that runs one round of an attack and returns the answer to each of its requests."""


def address() -> str:
    """Return a random IP address. Each request gets its own, since the page limits the requests of each visitor."""
    return ".".join(["10", *(str(random.randrange(2, 250)) for _ in range(3))])


@dataclass(frozen=True)
class Target:
    """A server, and the good request to it.

    Attributes:
        name: Name of the server: endpoint or page.
        running: The server's process.
        path: Path of the good request.
        body: Body of the good request.
        headers: Headers of the good request.
        probe: Path of the probe.
        limit: Limit of the server's memory in MB.
    """

    name: str
    running: Server | Page
    path: str
    body: bytes
    headers: dict[str, str]
    probe: str
    limit: float

    def ask(self) -> int:
        """Send a good request and return its status; 0 if there was no answer."""
        return self._status("POST", self.path, self.body, self.headers | {"x-forwarded-for": address()})

    def lives(self) -> int:
        """Send a probe and return its status; 0 if there was no answer in time."""
        started = time.perf_counter()
        status = self._status("GET", self.probe, None, {})
        return status if time.perf_counter() - started <= PROBE_SECONDS else 0

    def _status(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
        line = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=60)
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            line.close()


@dataclass(frozen=True)
class Turn:
    """What a good client observed in one turn.

    Attributes:
        seconds: Seconds until each good answer.
        failed: Status of each request that failed.
        peak: Peak of the server's memory in MB.
    """

    seconds: list[float]
    failed: list[int]
    peak: float


@dataclass(frozen=True)
class Row:
    """The result of an attack. Latencies are p50 and p99 in seconds; memory is in MB."""

    target: Target
    attack: str
    answered: int
    failed: int
    alone: tuple[float, float]
    during: tuple[float, float]
    before: float
    peak: float
    after: float

    @property
    def ratio(self) -> float:
        """Ratio of the p99 during the attack to the p99 without it."""
        return self.during[1] / self.alone[1]


def capacity(target: Target, seconds: float = 3.0) -> float:
    """Return the good answers per second to `CLIENTS` clients that send the next request at once."""
    end = time.monotonic() + seconds

    def client(_: int) -> int:
        good = 0
        while time.monotonic() < end:
            good += target.ask() == 200
        return good

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS))) / seconds


def turn(target: Target, rate: float, going: Callable[[], bool]) -> Turn:
    """Send requests at a steady rate, whether or not earlier ones were answered.

    The latency of a request counts from the time at which it was due.
    """
    seconds: list[float] = []
    failed: list[int] = []
    peak = 0.0

    def good(due: float) -> None:
        status = target.ask()
        if status == 200:
            seconds.append(time.perf_counter() - due)
        else:
            failed.append(status)

    def probe() -> None:
        if (status := target.lives()) != 200:
            failed.append(status)

    with ThreadPoolExecutor(64) as pool:
        due = time.perf_counter()
        for number in itertools.count():
            if not going():
                break
            pool.submit(good, due)
            if number % math.ceil(rate) == 0:
                pool.submit(probe)
            time.sleep(0.5 / rate)  # reading the memory takes milliseconds, which must not delay a request
            peak = max(peak, memory(target.running))
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))
    return Turn(seconds, failed, peak)


def repeat(attack: Attack, seconds: float, sender: Connection) -> None:
    """Run the attacker's process and send the counts of its answers when it ends."""
    os.nice(10)
    answers: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answers.update(attack())
    sender.send(answers)


def attacked(
    target: Target, name: str, attack: Attack, *, rate: float, seconds: float, before: Turn
) -> tuple[Row, Turn]:
    """Measure a turn during the attack and one after it, which is also the turn before the next attack."""
    held = memory(target.running)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # a fork has everything imported: importing it again would take seconds of the servers' processor time
    attacker = multiprocessing.get_context("fork").Process(target=repeat, args=(attack, seconds, sender))
    attacker.start()
    during = turn(target, rate, attacker.is_alive)
    ended = time.monotonic()
    if attacker.exitcode:
        raise RuntimeError(f"the attacker of {target.name}, {name}, ended with status {attacker.exitcode}")
    answers = ", ".join(f"{count} x {answer}" for answer, count in sorted(receiver.recv().items()))
    time.sleep(max(0.0, REST - seconds))
    after = turn(target, rate, lambda: time.monotonic() < ended + max(REST, seconds))
    row = Row(
        target,
        name,
        len(during.seconds),
        len(during.failed),
        percentiles(before.seconds + after.seconds),
        percentiles(during.seconds),
        held,
        during.peak,
        memory(target.running),
    )
    wrong = f"; failed with {Counter(during.failed)}" if during.failed else ""
    print(f"{target.name}, {name}: p99 x {row.ratio:.1f}; the attacker got {answers}{wrong}", flush=True)
    return row, after


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in seconds; infinity if there are fewer than two values."""
    if len(seconds) < 2:
        return math.inf, math.inf
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98]


def measure(target: Target, attacks: dict[str, Attack], seconds: float) -> list[Row]:
    """Run all attacks on a server, one after the other."""
    rate = SHARE * capacity(target)
    print(f"{target.name}: {rate:.1f} good requests a second", flush=True)
    end = time.monotonic() + seconds
    rows, last = list[Row](), turn(target, rate, lambda: time.monotonic() < end)
    for name, attack in attacks.items():
        row, last = attacked(target, name, attack, rate=rate, seconds=seconds, before=last)
        rows.append(row)
    return rows


def head(path: str, length: int, kind: str = "application/json", token: str | None = None) -> bytes:
    """Return the head of a request with a body of `length` bytes, from a random address."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {length}"]
    lines += [f"X-Forwarded-For: {address()}", *([f"Authorization: Bearer {token}"] if token else [])]
    return "\r\n".join([*lines, "", ""]).encode()


def half_sent_heads(running: Server | Page) -> list[str]:
    """Open 1,200 connections: a third send nothing, a third part of a line, and a third all but the end of the head."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(connections(running, 400, sent))
            for sent in (b"", b"POST /v1/mod", b"POST /read HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        ]
        return ["closed" if closed(client) else "still open" for some in opened for client in some]


def flood(running: Server | Page, heads: Sequence[bytes], bodies: Sequence[bytes], aborted: bool = False) -> list[str]:
    """Send requests at the same time. Aborted ones close the connection as soon as their bytes are sent."""

    def send(number: int) -> str:
        with suppress(OSError), socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
            with suppress(OSError):  # refused while it was sending
                client.sendall(heads[number])
                client.sendall(bodies[number])
            return "nothing" if aborted else client.recv(65_536)[9:12].decode() or "a closed connection"
        return "a closed connection"

    with ThreadPoolExecutor(len(heads)) as pool:
        return list(pool.map(send, range(len(heads))))


def slow_bodies(running: Server) -> list[str]:
    """Send one byte of each body: 100 small bodies, and 50 that reserve memory before they are read."""
    with (
        connections(running, 100, head(PREDICT, 900_000, token=TOKEN) + b"{") as small,
        connections(running, 50, head(PREDICT, 30_000_000, token=TOKEN) + b"{") as large,
    ):
        return [client.recv(65_536)[9:12].decode() for client in (*small, *large)]


def calls(running: Server, messages: Sequence[bytes], token: str | None = None) -> list[str]:
    """Make gRPC calls at the same time and return the status of each."""
    import grpc  # only in the attacker's process, since grpc's threads do not survive a fork

    metadata = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.max_send_message_length", 60_000_000)]
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", options) as channel:
        call = channel.unary_unary(INFER)
        asked = [call.future(one, metadata=metadata, timeout=60) for one in messages]
        return [one.code().name for one in asked]


def message(size: int) -> bytes:
    """Return a ModelInferRequest with a raw tensor of `size` bytes."""
    length, rest = bytearray(), size
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return b"\x0a\x07thyroid\x3a" + bytes([*length, rest]) + bytes(size)


def mutated(count: int) -> list[bytes]:
    """Return messages with some bytes changed at random."""
    chance, found = random.Random(0), list[bytes]()
    for _ in range(count):
        data = bytearray(message(300))
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        found.append(bytes(data))
    return found


def on_endpoint(running: Server) -> dict[str, Attack]:
    """Return the attacks on the endpoint. An attacker has a token only where the attack's name says so."""
    picture = b'{"instances": [{"image": {"b64": "' + b"A" * 45_000_000 + b'"}}]}'
    empty = b'{"instances": [' + b"{}," * 10_000_000 + b"0]}"
    bombs = [dicoms.regions_bomb(1_000_000), dicoms.deflated_bomb(180)]
    huge = png_header(30_000, 30_000)
    large, odd = message(45_000_000), mutated(200)

    def sent(body: bytes, count: int, token: str | None, kind: str = "application/json") -> list[str]:
        return flood(running, [head(PREDICT, len(body), kind, token) for _ in range(count)], [body] * count)

    def abort() -> list[str]:
        heads = [head(PREDICT, 45_000_000, token=TOKEN) for _ in range(30)]
        return flood(running, heads, [picture[:22_000_000]] * 30, aborted=True)

    def dicom() -> list[str]:
        some = bombs * 6
        return flood(running, [head(PREDICT, len(one), "application/dicom", TOKEN) for one in some], some)

    return {
        "1,200 half-sent heads": lambda: half_sent_heads(running),
        "30 bodies of 45 MB": lambda: sent(picture, 30, None),
        "gRPC, 12 messages of 45 MB": lambda: calls(running, [large] * 12),
        "gRPC, mutated messages": lambda: calls(running, odd),
        "slow bodies, token": lambda: slow_bodies(running),
        "30 bodies of 45 MB, token": lambda: sent(picture, 30, TOKEN),
        "gRPC, 12 messages of 45 MB, token": lambda: calls(running, [large] * 12, TOKEN),
        "gRPC, mutated messages, token": lambda: calls(running, odd, TOKEN),
        "aborted uploads of 45 MB, token": abort,
        "bodies of empty values, token": lambda: sent(empty, 4, TOKEN),
        "12 DICOM bombs, token": dicom,
        "pictures of too many pixels, token": lambda: sent(huge, 12, TOKEN, "image/png"),
    }


def on_page(page: Page) -> dict[str, Attack]:
    """Return the attacks on the page by a visitor."""
    kind = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    form = part + b"A" * 35_000_000 + b"\r\n--x--\r\n"
    bombs = [dicoms.regions_bomb(1_000_000), dicoms.deflated_bomb(180)]

    def abort() -> list[str]:
        heads = [head("/read", 35_000_000, kind) for _ in range(30)]
        return flood(page, heads, [form[:17_000_000]] * 30, aborted=True)

    def dicom() -> list[str]:
        def send(number: int) -> str:
            visitor = page.visitor(x_forwarded_for=address())
            return str(visitor.picture("bomb.dcm", bombs[number % 2]).status_code)

        with ThreadPoolExecutor(12) as pool:
            return list(pool.map(send, range(12)))

    return {
        "1,200 half-sent heads": lambda: half_sent_heads(page),
        "30 bodies of 35 MB": lambda: flood(page, [head("/read", len(form), kind) for _ in range(30)], [form] * 30),
        "aborted uploads of 35 MB": abort,
        "12 DICOM bombs": dicom,
    }


def reading(page: Page, scan: bytes) -> Target:
    """Return the page as a target, with the form that its script sends for one scan."""
    visitor = page.visitor()
    data = {"csrf_token": visitor.token, "roi": [""]}
    files = [("files", ("scan.jpg", scan, "image/jpeg"))]
    asked = visitor.client.build_request("POST", "/read", data=data, files=files, headers={"x-requested-with": "fetch"})
    return Target("page", page, "/read", asked.read(), dict(asked.headers), "/health", 1000)


def table(rows: Sequence[Row]) -> str:
    """Return the results as an aligned table."""
    lines = [
        ("attack", "good answers", "failed", "p50, p99 without", "p50, p99 during", "ratio", "MB before, peak, after")
    ]
    for row in rows:
        alone, during = (f"{p50 * 1000:.0f}, {p99 * 1000:.0f} ms" for p50, p99 in (row.alone, row.during))
        held = f"{row.before:.0f}, {row.peak:.0f}, {row.after:.0f}"
        name = f"{row.target.name}: {row.attack}"
        lines.append((name, str(row.answered), str(row.failed), alone, during, f"{row.ratio:.2f}", held))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(wide) for cell, wide in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/attacks.py", description=__doc__.split("\n")[0])
    parser.add_argument("--registry", required=True)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="of every turn")
    arguments = parser.parse_args()
    scan = arguments.scan.read_bytes()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        token = ("--token-file", str(folder / "token"))
        log = ("--log", str(folder / "decisions"), "--log-features")
        keyed = os.environ | {KEY_VARIABLE: "a secret for the benchmark"}  # and no key is made in the registry
        server = Server(folder / "endpoint.log", "--registry", arguments.registry, *token, *log, environment=keyed)
        stack.callback(server.kill)
        server.wait()
        page = Page(folder / "page.log", f"http://127.0.0.1:{server.port}", "--proxies", "1", *token)
        stack.callback(page.stop)
        page.wait()
        headers = {"content-type": "image/jpeg", "authorization": f"Bearer {TOKEN}"}
        endpoint = Target("endpoint", server, PREDICT, scan, headers, "/v2/health/live", 1200)
        rows = measure(endpoint, on_endpoint(server), arguments.seconds)
        rows += measure(reading(page, scan), on_page(page), arguments.seconds)
    print(table(rows))
    ratios = {"memory_after_vs_before": max(row.after / row.before for row in rows)}
    for target in {row.target.name: row.target for row in rows}.values():
        own = [row for row in rows if row.target is target]
        trusted = [row.ratio for row in own if row.attack.endswith(", token")]
        ratios[f"{target.name}_p99_beside_attacks"] = max(
            row.ratio for row in own if not row.attack.endswith(", token")
        )
        if trusted:
            ratios[f"{target.name}_p99_beside_token_holders"] = max(trusted)
        ratios[f"{target.name}_peak_mb_vs_limit"] = max(row.peak for row in own) / target.limit
    limits = {
        "memory_after_vs_before": MOST_MEMORY,
        "endpoint_p99_beside_attacks": MOST_P99,
        "endpoint_p99_beside_token_holders": MOST_P99_TOKEN,
        "page_p99_beside_attacks": MOST_P99,
    }
    print(json.dumps({"bench": "attacks", "ratios": {key: round(value, 2) for key, value in ratios.items()}}))
    failed = any(row.failed for row in rows)
    return 1 if failed or any(value > limits.get(key, 1.0) for key, value in ratios.items()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
