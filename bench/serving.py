"""The endpoint, with HTTP and JPEG decoding, against other servers, each with its best settings and in turns.

    python bench/serving.py [--backbones ResNet50,VGG16,EfficientNetB7] [--rounds 3]
                            [--only log|shadow|descriptors]

ResNet50 at 224 pixels is compared with FastAPI, LitServe and MLServer, each with OpenVINO (bench/peers, in
environments of their own under ~/.cache/thyroid-bench). They run in latency and in throughput mode, and the better
mode counts. The forms are f32 and the form that is served by default, if it is another. The requests are a nodule's
crop as a JPEG, and a frame of 1024 x 768 pixels with its region as JSON. A ratio is the worst over the forms. The
engine's limit is OpenVINO's own throughput mode on the same model without HTTP. Every backbone is also compared with
Keras' `predict` and a `tf.function` in this process, and with a plain KServe server that calls `predict`.

What novelty and the decision log cost is measured between two servers of the same network: one whose artefact has a
reference of the training images and that logs to a folder, and one without either. `--only log` measures only that.
What a candidate behind the champion costs the champion is measured at half of its capacity, between two servers that
both log: one with such a candidate, and one without. `--only shadow` measures only that.
What descriptors cost is measured between two servers with novelty of the same network: one that tells twelve findings,
and one that tells none. `--only descriptors` measures only that.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from endpoint import Endpoint
from load import Load

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import toy_artefact, toy_descriptors
from thyroid import cores, tirads
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY
from thyroid.imaging import geometry, images, phantom
from thyroid.model import backbones, engine
from thyroid.model.artefact import MODEL, Artefact
from thyroid.model.backend import keras, tf
from thyroid.model.descriptors.head import FILE, Head
from thyroid.model.network import Network
from thyroid.records.model import ArtefactRecord, NoveltyRecord, Publication
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Preprocessing

SIZE = 224
SECONDS, WARM = 2.0, 1.0  # seconds of a round, and seconds of warm-up before it
CLIENTS, CROWD = 8, 256
LOAD, HALF = 0.8, 0.5
FINDINGS = [(name, value) for name in tirads.DESCRIPTORS for value in tirads.kinds(name)][:12]
PEERS = ("fastapi", "litserve", "mlserver")
MODES = ("latency", "throughput")
OURS = "/v1/models/thyroid:predict"
HERE = Path(__file__).parent

Request = tuple[bytes, str]  # body and content type
Side = Callable[[int], float]  # takes the round's number, returns the measurement
Figures = dict[str, dict[str, float]]  # name of a figure to its value of every side
RATE, ASKED, GOOD, P50 = "answers/s in a closed loop", "asked/s", "answers/s", "p50 in ms"


def artefact(name: str, folder: Path, novelty: bool = False, descriptors: bool = False) -> Path:
    """Write a model of a backbone with random weights to a folder, as the registry would hold it.

    Args:
        name: Name of the backbone.
        folder: The folder.
        novelty: Whether it has a reference of phantoms that says how unlike them an image is.
        descriptors: Whether it tells `FINDINGS`, by random weights.
    """
    folder.mkdir(parents=True)
    keras.utils.set_random_seed(0)
    network = backbones.build(backbones.get(name), SIZE, None)
    network.save(folder / MODEL)
    graph = folder.with_suffix(".pb")
    unfrozen = 1 if descriptors else None
    graph.write_bytes(Network.trace(network, unfrozen=unfrozen).graph.SerializeToString())
    head = findings(network, folder) if descriptors else None
    names = engine.CLASSIFIER_OUTPUTS[: 3 if novelty else 2]
    engine.convert(graph, folder / engine.OPENVINO, names, folder / FILE if head else None)
    reference = images.encode(geometry.normal(phantom.draw("M", 1, 1).image))
    (folder / "reference.jpg").write_bytes(reference)
    pixels = Preprocessing("cropped", SIZE).prepare(Instance("reference.jpg", reference)).pixels[None]
    expected = network.predict(pixels, verbose=0)
    differences = {}
    for form in engine.openvino_forms():
        answer = engine.OpenVINOEngine(folder / engine.OPENVINO, SIZE, form).predict(pixels)[0]
        differences[form] = float(np.abs(answer - expected).max())
    answers = dict(zip(BINARY.names, expected[0].astype(float).tolist(), strict=True))
    known = ({"novelty": usual(folder).to_dict()} if novelty else {}) | (
        {"descriptors": head.record.to_dict()} if head else {}
    )
    described = toy_artefact.description(differences, backbone=name, image_size=SIZE, reference=answers, **known)
    record = Artefact.describe(folder, described).record
    published = Publication(version=1, created="", parent=None, gate=toy_artefact.gate(reasons=["a benchmark"]))
    ArtefactRecord.parse(record.to_dict() | published.to_dict(), folder).write(folder / "model.json")
    return folder


def findings(network: keras.Model, folder: Path) -> Head:
    """Write a head with random weights that tells `FINDINGS` by the input of a network's last block."""
    channels = int(backbones.split(network, 1)[0].output.shape[-1])
    head = toy_descriptors.head(channels, FINDINGS, unfrozen=1)
    head.write(folder)
    return head


def usual(folder: Path) -> NoveltyRecord:
    """Write the reference of an artefact that says how unlike the phantoms of 40 patients an image is."""
    steps, pixels = Preprocessing("cropped", SIZE), []
    for patient in range(40):
        drawn = phantom.draw("M", patient, 1)
        pixels.append(steps.prepare(Instance("image", images.encode(geometry.region(drawn.image, drawn.roi)))).pixels)
    features = engine.OpenVINOEngine(folder / engine.OPENVINO, SIZE, engine.F32).predict(np.stack(pixels))[2]
    reference, record = toy_artefact.novelty(features, np.arange(len(pixels)))
    reference.write(folder)
    return record


def environment(peer: str) -> Path:
    """Return the interpreter of an environment with only a peer's pinned packages; create it once."""
    listed = HERE / "peers" / f"{peer}.txt"
    digest = hashlib.sha256(listed.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "thyroid-bench" / f"{peer}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        print(f"installing {peer} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", listed], check=True)
        (folder / "done").touch()
    return python


def requests() -> tuple[Request, Request, Request]:
    """Return a nodule's crop as an image and as JSON, and a frame of 1024 x 768 pixels with its region as JSON."""
    drawn = phantom.draw("M", patient=3, image=1)
    cut = images.encode(geometry.region(drawn.image, drawn.roi))
    large = cv2.resize(drawn.image, (1024, 768), interpolation=cv2.INTER_CUBIC)
    scale = 1024 / drawn.image.shape[1]
    frame = {"image": _b64(images.encode(large)), "roi": [round(value * scale) for value in drawn.roi]}
    bodies = ({"instances": [{"image": _b64(cut)}]}, {"instances": [frame]})
    as_crop, as_frame = ((json.dumps(body).encode(), "application/json") for body in bodies)
    return (cut, "image/jpeg"), as_crop, as_frame


def _b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def in_turns(rounds: int, sides: dict[str, Side]) -> dict[str, float]:
    """Return the median of every side over the rounds.

    Every side takes a turn in each round, so that other load on the machine affects all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(sides[name](number))
    return {name: statistics.median(values) for name, values in found.items()}


def rate(load: Load, clients: int = CLIENTS, seconds: float = SECONDS, warm: float = WARM) -> Side:
    """Return a measurement of the good answers per second in a closed loop."""

    def run(_: int) -> float:
        answers = load.closed(clients, warm + seconds)
        return sum(one.status == 200 and warm <= one.there <= warm + seconds for one in answers) / seconds

    return run


def median(load: Load, asked: float | None = None) -> Side:
    """Return a measurement of a request's median seconds.

    Args:
        load: Source of the requests.
        asked: Requests per second as a Poisson process; None for one client that waits for each answer.
    """

    def run(number: int) -> float:
        # a queue grows and shrinks over seconds, so a median over few seconds would be random
        answers = load.closed(1, WARM + SECONDS) if asked is None else load.open(asked, WARM + 5 * SECONDS, seed=number)
        if wrong := {one.status for one in answers} - {200}:
            raise RuntimeError(f"answered {wrong}")
        return statistics.median(one.there - one.asked for one in answers if one.asked >= WARM)

    return run


def timed(call: Callable[[], Any]) -> Side:
    """Return a measurement of a call's median seconds."""

    def run(_: int) -> float:
        taken, end = [], time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    return run


def bare_engine(folder: Path, form: str) -> Side:
    """Return a measurement of the images per second in OpenVINO's throughput mode, fed without a pause."""
    import openvino

    core = openvino.Core()
    network = core.read_model(folder / engine.OPENVINO)
    network.reshape([1, SIZE, SIZE, 3])
    precision = "bf16" if form == engine.BF16 else "f32"
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    queue = openvino.AsyncInferQueue(core.compile_model(network, "CPU", options))
    pixels = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)

    def run(_: int) -> float:
        count, started = 0, time.perf_counter()
        while time.perf_counter() < started + SECONDS:
            queue.start_async({0: pixels})
            count += 1
        queue.wait_all()
        return count / (time.perf_counter() - started)

    return run


def beside_peers(folder: Path, form: str, asked: bool, rounds: int) -> dict[str, float]:
    """Compare one form with the peers, print its rows and return its ratios."""
    cut, cut_json, frame = requests()
    precision = "bf16" if form == engine.BF16 else "f32"
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(Endpoint("--model-dir", str(folder), *(("--form", form) if asked else ())))
        peers = {}
        for peer in PEERS:
            for mode in MODES:
                options = ("--model", str(folder / engine.OPENVINO), "--precision", precision, "--mode", mode)
                script, python = str(HERE / "peers" / f"{peer}_server.py"), environment(peer)
                server = Endpoint(*options, script=script, python=python, ready="/ready")
                peers[f"{peer}, {mode}"] = stack.enter_context(server).url

        def loads(image: Request, as_json: Request) -> dict[str, Load]:
            ours = {"ours": Load(served.url + OURS, *image)}
            return ours | {
                name: Load(f"{url}/predict", *(as_json if name.startswith("litserve") else image))
                for name, url in peers.items()
            }

        crops, frames = loads(cut, cut_json), loads(frame, frame)
        spent, began = time.process_time(), time.perf_counter()
        limit = {"engine": bare_engine(folder, form)}
        many = in_turns(rounds, {name: rate(one) for name, one in crops.items()} | limit)
        wide = in_turns(rounds, {name: rate(one) for name, one in frames.items()})
        wanted = LOAD * many["ours"]
        busy = in_turns(rounds, {name: median(one, wanted) for name, one in crops.items()})
        alone = in_turns(rounds, {name: median(one) for name, one in crops.items()})
        few, all_of_them = (
            rate(crops["ours"], seconds=2 * SECONDS),
            rate(crops["ours"], CROWD, 2 * SECONDS, 3 * WARM),
        )
        crowd = in_turns(rounds, {"few": few, "all": all_of_them})
        client = (time.process_time() - spent) / (time.perf_counter() - began)
        memory = psutil.Process(served.process.pid).memory_info().rss / 1e6
    print(
        f"\nResNet50, {form}, {cores.available()} cores; ours {memory:.0f} MB, ready after "
        f"{served.cold_start:.1f} s; client {client:.0%} of a core"
    )
    print(f"  {'':22}crop/s  frame/s  p50 of one client  p50 at {wanted:.0f}/s")
    for name in crops:
        print(
            f"  {name:22}{many[name]:6.1f}  {wide[name]:7.1f}  {alone[name] * 1000:14.0f} ms  "
            f"{busy[name] * 1000:9.0f} ms"
        )
    print(f"  engine's limit        {many['engine']:6.1f}")
    print(
        f"  {CROWD} clients: {crowd['all']:.1f} good answers a second beside {crowd['few']:.1f} of {CLIENTS}",
        flush=True,
    )
    return {
        "throughput_vs_best_peer": many["ours"] / max(many[name] for name in peers),
        "throughput_vs_engine_limit": many["ours"] / many["engine"],
        "frame_throughput_vs_best_peer": wide["ours"] / max(wide[name] for name in peers),
        "p50_at_80_percent_vs_best_peer": min(busy[name] for name in peers) / busy["ours"],
        "p50_of_one_client_vs_best_peer": min(alone[name] for name in peers) / alone["ours"],
        "goodput_at_256_clients_vs_capacity": crowd["all"] / crowd["few"],
    }


def floors(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """Compare one backbone, in the form that is served by default, with Keras; print its row and return its ratios."""
    (jpeg, kind), as_json, _ = requests()
    network = keras.saving.load_model(folder / MODEL, compile=False)
    network.jit_compile = False
    compiled = tf.function(lambda batch: network(batch, training=False), jit_compile=False)

    def pixels() -> np.ndarray:
        return images.rgb(images.square(jpeg, SIZE))[None]

    plain_options = ("--model", str(folder / MODEL))
    with (
        Endpoint("--model-dir", str(folder)) as served,
        Endpoint(*plain_options, script=str(HERE / "plain_server.py")) as plain,
    ):
        ours, peer = Load(served.url + OURS, jpeg, kind), Load(plain.url + OURS, *as_json)
        network.predict(pixels(), verbose=0)
        compiled(pixels())
        found = in_turns(
            rounds,
            {
                "ours": median(ours),
                "predict": timed(lambda: network.predict(pixels(), verbose=0)),
                "function": timed(lambda: compiled(pixels()).numpy()),
                "ours of many": rate(ours),
                "plain of many": rate(peer),
            },
        )
        form = facts(served)["form"]
    keras.backend.clear_session()
    print(
        f"{name}, {form}: {found['ours'] * 1000:.1f} ms, predict {found['predict'] * 1000:.1f} ms, tf.function "
        f"{found['function'] * 1000:.1f} ms; {found['ours of many']:.1f}/s, plain server "
        f"{found['plain of many']:.1f}/s",
        flush=True,
    )
    key = name.lower()
    return {
        f"{key}_latency_vs_predict": found["predict"] / found["ours"],
        f"{key}_latency_vs_tf_function": found["function"] / found["ours"],
        f"{key}_throughput_vs_plain_server": found["ours of many"] / found["plain of many"],
    }


def off_and_on(
    what: str, off: Endpoint, on: Endpoint, measure: Callable[[dict[str, Load]], Figures]
) -> dict[str, float]:
    """Measure two servers with crops and with frames, print the rows, and return how much worse the second one is.

    Args:
        what: What the second server does and the first does not.
        off: The first server.
        on: The second server.
        measure: Takes the loads on both, "off" and "on", and returns figures of both.

    Returns:
        The ratio of each figure, the smaller one of crops and frames. Below 1 the second server does worse.
    """
    crop, _, frame = requests()
    worst: dict[str, float] = {}
    for kind, request in (("crop", crop), ("frame", frame)):
        figures = measure({"off": Load(off.url + OURS, *request), "on": Load(on.url + OURS, *request)})
        for side in ("off", "on"):
            told = ", ".join(f"{name} {values[side]:.1f}" for name, values in figures.items())
            print(f"{kind}, {what} {side}: {told}", flush=True)
        for name, values in figures.items():
            ratio = values["off"] / values["on"] if name == P50 else values["on"] / values["off"]
            worst[name] = min(ratio, worst.get(name, ratio))
    return worst


def at_half(
    loads: dict[str, Load], most: float, rounds: int, begin: Callable[[Side], Side] = lambda side: side
) -> Figures:
    """Return the good answers a second and the median of their milliseconds at half of a rate as a Poisson process.

    Args:
        loads: Loads on the servers.
        most: The rate, in requests a second.
        rounds: Turns of every side.
        begin: Makes a measurement begin as it should.
    """
    asked = HALF * most
    good = in_turns(rounds, {name: begin(steady(load, asked)) for name, load in loads.items()})
    taken = in_turns(rounds, {name: begin(median(load, asked)) for name, load in loads.items()})
    milliseconds = {name: seconds * 1000 for name, seconds in taken.items()}
    return {ASKED: dict.fromkeys(loads, asked), GOOD: good, P50: milliseconds}


def with_novelty_and_log(folder: Path, rounds: int) -> float:
    """Compare a server with novelty and a decision log with one that has neither; print the rows, return the ratio.

    It is the smaller of two: of the good answers a second in a closed loop, and of those at half of that as a Poisson
    process.
    """
    plain, whole = artefact("ResNet50", folder / "plain"), artefact("ResNet50", folder / "whole", novelty=True)
    os.environ.setdefault(pseudonyms.KEY_VARIABLE, "a secret for the benchmark")

    def measure(loads: dict[str, Load]) -> Figures:
        many = in_turns(rounds, {name: rate(load) for name, load in loads.items()})
        return {RATE: many} | at_half(loads, many["off"], rounds)

    with (
        Endpoint("--model-dir", str(plain), "--form", engine.F32) as off,
        Endpoint("--model-dir", str(whole), "--form", engine.F32, "--log", str(folder / "log")) as on,
    ):
        ratios = off_and_on("novelty and log", off, on, measure)
        memory = [psutil.Process(one.process.pid).memory_info().rss / 1e6 for one in (off, on)]
    logged = sum(1 for path in (folder / "log").iterdir() for _ in path.read_bytes().splitlines())
    print(f"memory off {memory[0]:.0f} MB, on {memory[1]:.0f} MB; {logged} decisions logged", flush=True)
    return min(ratios[RATE], ratios[GOOD])


def with_descriptors(folder: Path, rounds: int) -> float:
    """Compare a server that tells descriptors with one that does not; print the rows and return the ratio.

    It is that of the good answers a second in a closed loop.
    """
    plain = artefact("ResNet50", folder / "plain", novelty=True)
    telling = artefact("ResNet50", folder / "telling", novelty=True, descriptors=True)

    def measure(loads: dict[str, Load]) -> Figures:
        return {RATE: in_turns(rounds, {name: rate(load, seconds=2 * SECONDS) for name, load in loads.items()})}

    with (
        Endpoint("--model-dir", str(plain), "--form", engine.F32) as off,
        Endpoint("--model-dir", str(telling), "--form", engine.F32) as on,
    ):
        return off_and_on(f"{len(FINDINGS)} findings", off, on, measure)[RATE]


def with_shadow(folder: Path, rounds: int) -> float:
    """Compare a server with a candidate behind its champion with one without; print the rows, return the ratio.

    Both get half of the good answers a second that the latter gives in a closed loop, as a Poisson process. The ratio
    is the smaller of two: of their median seconds, and of their good answers a second.
    """
    model = artefact("ResNet50", folder / "champion", novelty=True)
    os.environ.setdefault(pseudonyms.KEY_VARIABLE, "a secret for the benchmark")
    common = ("--model-dir", str(model), "--form", engine.F32)
    with (
        Endpoint(*common, "--log", str(folder / "off")) as off,
        Endpoint(*common, "--log", str(folder / "on"), "--shadow-dir", str(model)) as on,
    ):

        def measure(loads: dict[str, Load]) -> Figures:
            most = in_turns(rounds, {"off": rate(loads["off"])})["off"]
            return at_half(loads, most, rounds, lambda side: rested(side, on))

        while not shadow_metrics(on)["info"]:
            time.sleep(1)
        ratios = off_and_on("shadow", off, on, measure)
        counted = shadow_metrics(on)
    done = {name: int(counted[name]) for name in ("same", "changed", "dropped", "failed")}
    print(f"memory of the candidate {counted['memory_bytes'] / 1e6:.0f} MB; its images: {done}", flush=True)
    return min(ratios[GOOD], ratios[P50])


def rested(side: Side, served: Endpoint) -> Side:
    """Return a measurement that begins when a candidate has answered to all that waits for it.

    Otherwise what is left of one side's turn would be done in the turn of the other.
    """

    def run(number: int) -> float:
        before: dict[str, float] = {}
        while (now := shadow_metrics(served)) != before:
            before = now
            time.sleep(1)
        return side(number)

    return run


def shadow_metrics(served: Endpoint) -> dict[str, float]:
    """Return the images of a candidate behind the champion by result, its memory, and whether it answers (info)."""
    with urllib.request.urlopen(f"{served.url}/metrics") as answer:
        text = answer.read().decode()
    found = dict.fromkeys(("info", "memory_bytes"), 0.0)
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("thyroid_shadow_images_total"):
            found[name.split('"')[1]] = float(value)
        elif name.startswith(("thyroid_shadow_info", "thyroid_shadow_memory_bytes")):
            found[name.partition("{")[0].removeprefix("thyroid_shadow_")] = float(value)
    return found


def steady(load: Load, asked: float) -> Side:
    """Return a measurement of the good answers a second to `asked` requests a second as a Poisson process."""
    seconds = WARM + 5 * SECONDS

    def run(number: int) -> float:
        answers = load.open(asked, seconds, seed=number)
        return sum(one.status == 200 and WARM <= one.there <= seconds for one in answers) / (seconds - WARM)

    return run


def facts(served: Endpoint) -> dict[str, Any]:
    """Return the facts that the endpoint reports about the model that it serves."""
    with urllib.request.urlopen(f"{served.url}/v1/models/thyroid/facts") as answer:
        reported: dict[str, Any] = json.load(answer)
        return reported


def beside_others(folder: Path, names: list[str], rounds: int) -> dict[str, float]:
    """Compare the endpoint with the peers, and these backbones with Keras; print the rows and return the ratios."""
    ratios: dict[str, float] = {}
    model = artefact("ResNet50", folder / "ResNet50")
    with Endpoint("--model-dir", str(model)) as served:
        unasked, rates = facts(served)["form"], facts(served)["images_per_second"]
    print(f"ResNet50 is served unasked as {unasked}; images a second measured at load: {rates or 'no choice'}")
    for form in dict.fromkeys((engine.F32, unasked)):
        for key, value in beside_peers(model, form, form != unasked, rounds).items():
            ratios[key] = min(value, ratios.get(key, value))
    for name in names:
        one = model if name == "ResNet50" else artefact(name, folder / name)
        ratios |= floors(name, one, rounds)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/serving.py", description=__doc__.split("\n")[0])
    parser.add_argument("--backbones", default="ResNet50,VGG16,EfficientNetB7", help="of the ratios against Keras")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side")
    parser.add_argument("--only", choices=["log", "shadow", "descriptors"], help="measure only what one of them costs")
    arguments = parser.parse_args()
    names = [backbones.get(name).name for name in arguments.backbones.split(",")]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ratios: dict[str, float] = {}
        if arguments.only in (None, "log"):
            ratios["with_novelty_and_log_vs_off"] = with_novelty_and_log(folder / "cost", arguments.rounds)
        if arguments.only in (None, "shadow"):
            ratios["with_shadow_vs_off"] = with_shadow(folder / "shadow", arguments.rounds)
        if arguments.only in (None, "descriptors"):
            ratios["with_descriptors_vs_without"] = with_descriptors(folder / "descriptors", arguments.rounds)
        if arguments.only is None:
            ratios |= beside_others(folder, names, arguments.rounds)
    print(json.dumps({"bench": "serving", "ratios": {key: round(value, 2) for key, value in ratios.items()}}))


if __name__ == "__main__":
    main()
