"""The endpoint, HTTP and JPEG decoding included, against the deck's `predict`, tf.function and a plain KServe Keras server.

    python bench/serving.py [--backbones ResNet50,VGG16,EfficientNetB7]

Closed loop at concurrency 1, 8 and 32, 224 pixels, one run for all sides. The engine's limit is OpenVINO's own throughput mode
on the same model without HTTP.
"""

import argparse
import base64
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from endpoint import Endpoint

from thyroid import backbones, crop, engine, images, phantom, registry
from thyroid.backend import keras, tf
from thyroid.classes import BINARY
from thyroid.network import Network
from thyroid.serve import treatment
from thyroid.serve.payload import Instance

SIZE = 224
SECONDS = 6.0
CONCURRENCY = (1, 8, 32)


def artefact(name: str, folder: Path) -> Path:
    """A model of a backbone with random weights, as the registry would hold it."""
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    network = backbones.build(backbones.get(name), SIZE, None)
    network.save(folder / registry.MODEL)
    engine.convert(Network(network), folder / engine.OPENVINO)
    reference = images.encode(crop.normal(phantom.draw("M", 1, 1).image))
    (folder / "reference.jpg").write_bytes(reference)
    pixels = treatment.prepare(Instance("reference.jpg", reference), "cropped", SIZE).pixels[None]
    expected = network.predict(pixels, verbose=0)
    forms: dict[str, Any] = {engine.KERAS: {}}
    for form in (engine.F32, *((engine.BF16,) if engine.has_bf16() else ())):
        answer = engine.OpenVINOEngine(folder / engine.OPENVINO, SIZE, form).predict(pixels)[0]
        forms[form] = {"largest_difference": float(np.abs(answer - expected).max())}
    facts = {
        "version": 1,
        "backbone": name,
        **BINARY.facts(),
        "image_size": SIZE,
        "serving_domain": "cropped",
        "data_digest": "0" * 64,
        "temperature": 1.0,
        "bias": [0.0, 0.0],
        "threshold": 0.5,
        "thresholds": [0.5, 0.5],
        "gate": {"decision": "promoted", "reasons": ["a benchmark"]},
        "reference": dict(zip(BINARY.names, expected[0].astype(float).tolist(), strict=True)),
        "forms": forms,
    }
    registry.describe(folder, facts)
    return folder


def latency(call: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Median seconds of a call, after a warm-up."""
    for _ in range(3):
        call()
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def ask(url: str, body: bytes, kind: str, clients: int, seconds: float = SECONDS) -> tuple[float, float]:
    """Median seconds of a request and requests a second of a closed loop with so many clients."""
    host = url.removeprefix("http://")
    taken: list[float] = []
    end = [0.0]

    def client(warm: bool) -> None:
        connection = http.client.HTTPConnection(host, timeout=120)
        while time.perf_counter() < end[0]:
            started = time.perf_counter()
            connection.request("POST", "/v1/models/thyroid:predict", body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"answered {answer.status}")
            if not warm:
                taken.append(time.perf_counter() - started)

    for warm, length in ((True, 1.0), (False, seconds)):
        end[0] = time.perf_counter() + length
        threads = [threading.Thread(target=client, args=(warm,)) for _ in range(clients)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return statistics.median(taken), len(taken) / (time.perf_counter() - started)


def engine_limit(folder: Path, form: str) -> float:
    """Images a second of OpenVINO's throughput mode, fed without a pause."""
    import openvino

    core = openvino.Core()
    network = core.read_model(folder / engine.OPENVINO)
    network.reshape([1, SIZE, SIZE, 3])
    precision = "bf16" if form == engine.BF16 else "f32"
    compiled = core.compile_model(
        network, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    )
    queue = openvino.AsyncInferQueue(compiled)
    pixels = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    for length in (1.0, SECONDS):
        count, started = 0, time.perf_counter()
        while time.perf_counter() < started + length:
            queue.start_async({0: pixels})
            count += 1
        queue.wait_all()
    return count / (time.perf_counter() - started)


def in_process(folder: Path, jpeg: bytes) -> tuple[float, float]:
    """Seconds of an image by the deck's predict and by a tf.function, decoding included."""
    network = keras.saving.load_model(folder / registry.MODEL, compile=False)
    network.jit_compile = False
    compiled = tf.function(lambda batch: network(batch, training=False), jit_compile=False)

    def pixels() -> np.ndarray:
        return np.ascontiguousarray(images.rgb(images.square(jpeg, SIZE))[None])

    return latency(lambda: network.predict(pixels(), verbose=0)), latency(lambda: compiled(pixels()).numpy())


def measure(name: str, folder: Path, jpeg: bytes) -> dict[str, float]:
    """One backbone: prints its rows, returns its ratios."""
    model = artefact(name, folder / name)
    predict, function = in_process(model, jpeg)
    keras.backend.clear_session()
    form = engine.choose(registry.verify(model)["forms"])
    limit = engine_limit(model, form)
    b64 = json.dumps({"instances": [{"image": {"b64": base64.b64encode(jpeg).decode()}}]}).encode()
    rows = {}
    with Endpoint("--model-dir", str(model)) as served:
        for clients in CONCURRENCY:
            rows[clients] = ask(served.url, jpeg, "image/jpeg", clients)
        peak = psutil.Process(served.process.pid).memory_info().rss / 1e6
        cold = served.cold_start
    plain = {}
    with Endpoint("--model", str(model / registry.MODEL), script="bench/plain_server.py") as peer:
        for clients in CONCURRENCY:
            plain[clients] = ask(peer.url, b64, "application/json", clients)
    print(f"\n{name}, {form}, {os.cpu_count()} cores: cold start {cold:.1f} s, {peak:.0f} MB")
    print(
        f"  predict in process {predict * 1000:7.1f} ms   tf.function {function * 1000:7.1f} ms   engine limit {limit:.1f}/s"
    )
    for clients in CONCURRENCY:
        (mine, many), (other, fewer) = rows[clients], plain[clients]
        print(
            f"  {clients:>2} clients: {mine * 1000:7.1f} ms {many:6.1f}/s   plain server {other * 1000:7.1f} ms {fewer:6.1f}/s"
        )
    key = name.lower()
    return {
        f"{key}_latency_vs_predict": predict / rows[1][0],
        f"{key}_latency_vs_tf_function": function / rows[1][0],
        f"{key}_throughput_vs_engine_limit": rows[8][1] / limit,
        f"{key}_throughput_vs_plain_server": rows[8][1] / plain[8][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", default="ResNet50,VGG16,EfficientNetB7")
    names = [backbones.get(name).name for name in parser.parse_args().backbones.split(",")]
    drawn = phantom.draw("M", patient=3, image=1)
    jpeg = images.encode(crop.region(drawn.image, drawn.roi))
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            ratios |= measure(name, Path(folder), jpeg)
    print(json.dumps({"bench": "serving", "ratios": {key: round(value, 2) for key, value in ratios.items()}}))


if __name__ == "__main__":
    main()
