"""The endpoint with a decision log under about 80 % load for some minutes: no error, and flat memory.

python bench/soak.py --registry output/registry --scan scan.jpg --minutes 10
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from endpoint import Endpoint

from thyroid.data.pseudonyms import KEY_VARIABLE

LOAD = 0.8
CLIENTS = 8
GROWTH_MB = 60.0


async def rate(url: str, body: bytes, seconds: float, pause: float = 0.0) -> tuple[list[float], list[str]]:
    """Return the latencies in seconds and the errors of `CLIENTS` clients, each with a pause between its requests."""
    latencies: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    async def client() -> None:
        async with httpx.AsyncClient(timeout=60) as session:
            while time.monotonic() < end:
                started = time.monotonic()
                try:
                    answer = await session.post(url, content=body, headers={"content-type": "image/jpeg"})
                    if answer.status_code != 200:
                        errors.append(str(answer.status_code))
                except httpx.HTTPError as error:
                    errors.append(repr(error))
                latencies.append(time.monotonic() - started)
                await asyncio.sleep(pause)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return latencies, errors


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/soak.py", description=__doc__.split("\n")[0])
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--scan", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    body = arguments.scan.read_bytes()
    os.environ.setdefault(KEY_VARIABLE, "a secret for the benchmark")  # and no key is made in the registry
    with (
        tempfile.TemporaryDirectory() as log,
        Endpoint("--registry", str(arguments.registry), "--log", log, "--log-features") as endpoint,
    ):
        url = f"{endpoint.url}/v1/models/thyroid:predict"
        full, errors = asyncio.run(rate(url, body, 10))
        # with this pause between requests, the clients together ask for LOAD of what was possible
        pause = CLIENTS / (LOAD * len(full) / 10) - CLIENTS / (len(full) / 10)
        memory, latencies = [], []
        minutes = max(1, round(arguments.minutes))
        for minute in range(minutes):
            some, wrong = asyncio.run(rate(url, body, arguments.minutes * 60 / minutes, pause))
            latencies += some
            errors += wrong
            memory.append(psutil.Process(endpoint.process.pid).memory_info().rss / 1e6)
            print(f"minute {minute + 1}: {len(some)} requests, {len(wrong)} errors, {memory[-1]:.0f} MB", flush=True)
    growth = memory[-1] - memory[0]
    told = {
        "requests": len(latencies),
        "errors": len(errors),
        "median_ms": round(statistics.median(latencies) * 1000, 1),
        "p99_ms": round(statistics.quantiles(latencies, n=100)[98] * 1000, 1),
        "growth_mb": round(growth, 1),
    }
    for error in sorted(set(errors)):
        print(f"error: {error}")
    print(json.dumps(told))
    return 1 if errors or growth > GROWTH_MB else 0


if __name__ == "__main__":
    raise SystemExit(main())
