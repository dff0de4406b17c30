"""Real kills: a training that is stopped anywhere ends, when started again, as if it had never been stopped."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from tensorflow.python.framework import config

from tests.conftest import SOAK
from tests.support import ROOT
from thyroid.data import tables
from thyroid.imaging import phantom
from thyroid.model import inputs
from thyroid.model.artefact import Artefact
from thyroid.model.backend import tf
from thyroid.train import checkpoints, record, train, twophase
from thyroid.train.__main__ import main
from thyroid.train.options import TrainOptions

DRIVER = """
import os, signal, sys
from tests.support import toys
from thyroid.train import checkpoints, plots
from thyroid.train.__main__ import main
toys.install()
place, count = sys.argv[1], int(sys.argv[2])
save, calls = checkpoints.save, []
def counted(path, **arrays):
    save(path, **arrays)
    calls.append(path.name)
    if sum(name.startswith(place) for name in calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save = counted
if place == "history":
    plots.history = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.SAVE_SECONDS = 0.0  # after every batch
sys.exit(main(sys.argv[3:]))
"""


def arguments(data: Path, output: Path) -> list[str]:
    common = "--backbone Toy --domain cropped --weights none --image-size 32 --epochs 3 --batch-size 4 --deterministic"
    return ["--data", str(data), "--output", str(output), *common.split()]


def run(code: str, *given: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module", autouse=True)
def here(toy) -> Iterator[None]:
    """Deterministic kernels go with the last of these tests."""
    yield
    config.disable_op_determinism()


@pytest.fixture(scope="module")
def uninterrupted(cropped, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert main(arguments(cropped, output)) == 0
    return output


def assert_same(output: Path, expected: Path) -> None:
    one, other = record.read(output), record.read(expected)
    varying = {"seconds", "memory_mb", "files"}
    assert one.model_dump(exclude=varying) == other.model_dump(exclude=varying)
    ours, theirs = (pd.read_csv(folder / "history.csv") for folder in (output, expected))
    timed = ["seconds", "elapsed", "images_per_second", "memory_mb"]
    pd.testing.assert_frame_equal(ours.drop(columns=timed), theirs.drop(columns=timed))
    assert not (output / ".work").exists()


def killed(cropped: Path, output: Path, place: str, count: int) -> None:
    done = run(DRIVER, place, str(count), *arguments(cropped, output))
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (output / "train.json").exists()


@pytest.mark.parametrize(
    ("place", "count"),
    [
        pytest.param("1-0", 1, id="frozen part"),
        pytest.param("state", 6, id="after an epoch's last batch"),
        pytest.param("state", 7, id="between epochs"),
        pytest.param("state", 10, id="within an epoch"),
        pytest.param("history", 1, id="before the end"),
    ],
)
@pytest.mark.slow
def test_kill_9_then_the_same_command(cropped, uninterrupted, tmp_path, capsys, place, count):
    killed(cropped, tmp_path, place, count)
    assert main(arguments(cropped, tmp_path)) == 0
    if place == "state" and count == 10:
        assert re.search(r"epoch 2\b.*\b12 images", capsys.readouterr().out)
    assert_same(tmp_path, uninterrupted)


STOPPED = """
import os, signal, sys
from tests.support import toys
from thyroid.train import checkpoints
from thyroid.train.__main__ import main
toys.install()
end = checkpoints.Resume.on_train_batch_end
def told_to_stop(self, batch, logs=None):
    if (self.epoch, batch) == (1, 2):
        os.kill(os.getpid(), signal.SIGTERM)
    end(self, batch, logs)
checkpoints.Resume.on_train_batch_end = told_to_stop
try:
    main(sys.argv[1:])
finally:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "given back"
"""


@pytest.mark.slow
def test_sigterm_saves_first(cropped, uninterrupted, tmp_path, capsys):
    """The signal comes within the second epoch, as a cluster sends it before it kills."""
    stopped = run(STOPPED, *arguments(cropped, tmp_path))
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-2000:]
    assert re.search(r"SIGTERM.*epoch 2\b.*\b12 images", stopped.stderr)
    assert main(arguments(cropped, tmp_path)) == 0
    assert re.search(r"epoch 2\b.*\b12 images", capsys.readouterr().out)
    assert_same(tmp_path, uninterrupted)


KILLED_NODE = """
import os, signal, sys, time
from tests.support import toys
from thyroid import storage
from thyroid.storage import backup
from thyroid.train import checkpoints
from thyroid.train.__main__ import main
toys.install()
place, save, saved = storage.at(sys.argv[1]), checkpoints.save, []
def counted(path, **arrays):
    save(path, **arrays)
    saved.append(path.name)
    if saved.count("state.npz") == 8:
        while not any(entry.name.endswith("main/state.npz") for entry in place.entries()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save, checkpoints.SAVE_SECONDS, backup._POLL = counted, 0.0, 0.01
sys.exit(main(sys.argv[2:]))
"""


def weights(output: Path) -> list[np.ndarray]:
    return train.keras.models.load_model(output / record.read(output).checkpoint, compile=False).get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_goes_on_on_another_node(bucket, cropped, uninterrupted, tmp_path, monkeypatch, capsys, end):
    """Its work is in a bucket, and the other node's cache is empty."""
    place = bucket.address("store/work")
    given = [*arguments(cropped, tmp_path / "out"), "--work", place]
    stopped = run(STOPPED, *given) if end == signal.SIGTERM else run(KILLED_NODE, place, *given)
    assert stopped.returncode == (128 + end if end == signal.SIGTERM else -end), stopped.stderr[-2000:]
    assert "could not be sent" not in stopped.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert main(given) == 0
    assert re.search(r"resumes in epoch [12]\b", capsys.readouterr().out)
    assert_same(tmp_path / "out", uninterrupted)
    for ours, theirs in zip(weights(tmp_path / "out"), weights(uninterrupted), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (done,) = bucket.names()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    assert main([*arguments(cropped, tmp_path / "again"), "--work", place]) == 0
    assert f"the result is read from {bucket.address()}{Path(done).parent}" in capsys.readouterr().out
    assert record.read(tmp_path / "again") == record.read(tmp_path / "out")


def test_a_bucket_that_fails_during_a_training_does_not_end_it(bucket, cropped, tmp_path, capsys):
    bucket.proxy.rule = lambda method, path: "403" if method == bucket.writes else None
    options = TrainOptions(weights="none", image_size=32, epochs=1, work=bucket.address("work"))
    done = train.train(cropped, tmp_path, "Toy", "cropped", options)
    assert done.record == record.read(tmp_path)
    assert "on another node would be done again" in capsys.readouterr().out


def test_a_finished_training_of_a_killed_run_is_not_repeated(cropped, tmp_path, capsys):
    options = TrainOptions(weights="none", image_size=32, epochs=0, work=tmp_path / "work")
    train.train(cropped, tmp_path / "one", "Toy", "cropped", options)
    (work,) = (tmp_path / "work").iterdir()
    assert {path.name for path in work.iterdir()} == {"done", ".lock"}, "features and states are gone"
    capsys.readouterr()
    train.train(cropped, tmp_path / "two", "Toy", "cropped", options)
    assert str(work) in capsys.readouterr().out
    assert record.read(tmp_path / "one") == record.read(tmp_path / "two")
    train.train(cropped, tmp_path / "three", "Toy", "cropped", replace(options, seed=1))
    assert str(tmp_path / "work") not in capsys.readouterr().out


def test_a_damaged_file_is_made_again_with_a_word(tmp_path, capsys):
    file = tmp_path / "state.npz"
    assert checkpoints.load(file) is None
    assert capsys.readouterr().out == ""
    checkpoints.save(file, a=np.arange(1000))
    np.testing.assert_array_equal(checkpoints.load(file)["a"], np.arange(1000))
    data = bytearray(file.read_bytes())
    for damaged in (data[:-30], data[:2000] + b"\xff" + data[2001:], b"", b"no archive"):
        file.write_bytes(damaged)
        assert checkpoints.load(file) is None
        assert f"{file}: damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_kill_9_and_damaged_features_and_state(cropped, uninterrupted, tmp_path, capsys):
    """Damaged files are created again, or the training resumes from the state before.

    No state is unpickled, so none can run code.
    """
    killed(cropped, tmp_path, "state", 9)
    (work,) = (tmp_path / ".work").iterdir()
    with np.load(work / "main" / "state.npz", allow_pickle=False) as file:
        facts = json.loads(str(file["facts"]))
    assert set(facts) == {"epoch", "seen", "rows", "finished", "batch_size", "stopper"}
    for name in ("maps/0-0.npz", "main/state.npz"):
        data = bytearray((work / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (work / name).write_bytes(data)
    assert main(arguments(cropped, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.count(": damaged (") == 2
    assert re.search(r"resumes .*epoch 2\b", printed), "from the state before"
    assert_same(tmp_path, uninterrupted)


def test_nan_stops_with_a_named_error_and_the_last_good_state(cropped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(twophase.keras.optimizers.schedules, "CosineDecay", lambda *_, **__: float("nan"))
    command = [a for a in arguments(cropped, tmp_path) if a != "--deterministic"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.search(r"Toy: .*\bloss\b.*epoch 1\b", error)
    state = Path(error.split("The last good state is ")[1].split("\n")[0])
    assert all(np.isfinite(v).all() for k, v in checkpoints.load(state).items() if k.startswith("weight"))


def test_out_of_memory_halves_the_batch_and_goes_on(cropped, tmp_path, monkeypatch, capsys):
    """Injected as TensorFlow raises it: once in the frozen part, once in the second epoch of fine-tuning."""
    predict, end = train.keras.Model.predict, checkpoints.Resume.on_train_batch_end
    left = {"maps": 1, "step": 1}

    def failing_predict(self, *a, **k):
        if left["maps"] and self.name.endswith("-maps"):
            left["maps"] -= 1
            raise tf.errors.ResourceExhaustedError(None, None, "injected")
        return predict(self, *a, **k)

    def failing_end(self, batch, logs=None):
        if left["step"] and self.epoch == 1 and batch == 1:
            left["step"] -= 1
            raise tf.errors.ResourceExhaustedError(None, None, "injected")
        end(self, batch, logs)

    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train.keras.Model, "predict", failing_predict)
    monkeypatch.setattr(checkpoints.Resume, "on_train_batch_end", failing_end)
    options = TrainOptions(weights="none", image_size=32, epochs=3, batch_size=8)
    facts = train.train(cropped, tmp_path, "Toy", "cropped", options).record
    printed = capsys.readouterr().out
    assert re.findall(r"out of memory.*\b(\d+)$", printed, re.MULTILINE) == ["4", "2"]
    assert re.search(r"resumes .*epoch 2\b", printed)
    assert facts.batch_size == 2
    history = pd.read_csv(tmp_path / "history.csv").query("phase == 'finetune'")
    assert history["epoch"].tolist() == [1, 2, 3]


def test_one_image_that_does_not_fit_is_said(cropped, tmp_path, monkeypatch, capsys):
    def fail(self, *a, **k):
        raise tf.errors.ResourceExhaustedError(None, None, "injected")

    monkeypatch.setattr(train.keras.Model, "predict", fail)
    command = ["--data", str(cropped), "--output", str(tmp_path), "--backbone", "Toy", "--weights", "none"]
    assert main([*command, "--image-size", "32", "--batch-size", "4"]) == 2
    assert re.search(r"error: Toy: .*image size", capsys.readouterr().err)


MIRRORED = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.support import toys
from thyroid.train import train, twophase
from thyroid.train.__main__ import main
toys.install()
twophase.strategy = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
fit = train.keras.Model.fit
def watched(self, *a, **k):
    print("replicas", self.distribute_strategy.num_replicas_in_sync)
    return fit(self, *a, **k)
train.keras.Model.fit = watched
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_devices_train_what_one_does(cropped, uninterrupted, tmp_path):
    """MirroredStrategy, here on two halves of the processor."""
    command = [a for a in arguments(cropped, tmp_path) if a != "--deterministic"]
    done = run(MIRRORED, *command)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (pd.read_csv(folder / "history.csv") for folder in (tmp_path, uninterrupted))
    head = theirs["phase"] == "head"
    np.testing.assert_allclose(ours["loss"][head], theirs["loss"][head], rtol=1e-3)
    first = (theirs["phase"] == "finetune") & (theirs["epoch"] == 1)  # later ones amplify every rounding at this size
    np.testing.assert_allclose(ours["loss"][first], theirs["loss"][first], rtol=0.05)
    assert len(ours) == len(theirs)
    assert done.stdout.count("replicas 2") == 1, "in fine-tuning; the head is fitted without TensorFlow"


def test_a_halved_batch_doubles_the_steps_of_the_schedule_once(tmp_path):
    """Also under loss scaling, whose optimizer wraps another one."""
    for optimizer in (
        train.keras.optimizers.Adam(),
        train.keras.optimizers.LossScaleOptimizer(train.keras.optimizers.Adam()),
    ):
        model = train.keras.Sequential([train.keras.Input((1,)), train.keras.layers.Dense(2)])
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(10)
        stopper = train.keras.callbacks.EarlyStopping(restore_best_weights=True)
        stopper.on_train_begin()
        arrays = [np.zeros((16, 1), np.float16)], np.zeros((16, 2), np.float32), np.arange(16)
        folder = tmp_path / optimizer.name
        folder.mkdir()
        first = checkpoints.Resume(folder, inputs.Epochs(*arrays, 8, 0), stopper, "x")
        first.set_model(model)
        first._save()
        second = checkpoints.Resume(folder, inputs.Epochs(*arrays, 4, 0), stopper, "x")
        second.set_model(model)
        second.epochs.epoch = 0
        second.on_train_batch_begin(0)
        assert int(optimizer.iterations.numpy()) == 20


def outcome(output: Path) -> dict[str, Any]:
    """What a run has found, without what differs from run to run: addresses, times and measured speeds."""
    summary = json.loads((output / "summary.json").read_text())
    # killed after it has registered, a run registers again
    facts = Artefact.verify(Path(summary["model"]["uri"])).record.to_dict()
    scans, regions, _ = tables.read(output / "data")
    found = {name: facts[name] for name in ("data_digest", "threshold", "temperature", "bias")}
    return found | {
        "splits": dict(zip(scans["sha256"], scans["split"], strict=True)),
        "regions": sorted(map(tuple, regions[["x", "y", "width", "height"]].to_numpy().tolist())),
        "test": [model["test"]["cropped"] for model in summary["models"]],
        "gate": summary["gate"]["decision"],
    }


def start_run(scans: Path, output: Path) -> subprocess.Popen[bytes]:
    options = ["--scans", str(scans / "scans"), "--rois", str(scans / "rois.csv"), "--backbones", "VGG16"]
    command = [sys.executable, "-m", "pipelines", "run", *options, "--output", str(output)]
    with output.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


@pytest.mark.slow
def test_kill_9_of_a_whole_run(tmp_path):
    """Kill all processes or only the first one, at any moment; the same command then ends as an uninterrupted run."""
    phantom.generate(tmp_path, patients=48, images_per_patient=1, seed=5)
    assert start_run(tmp_path, tmp_path / "once").wait() == 0
    output, log, chance = tmp_path / "often", tmp_path / "often.log", random.Random(0)
    for number in range(3 * SOAK):
        before = log.stat().st_size if log.exists() else 0
        running = start_run(tmp_path, output)
        done = (2, 3, 4, 0, 1)[number % 5]  # steps: a training, an evaluation and a registration are at work then
        while f"{done} of 8 steps done" not in log.read_text()[before:] and done:
            assert running.poll() is None
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 4 if done in (2, 3) else 1))
        family = psutil.Process(running.pid).children(recursive=True) if number % 2 == 0 else []
        for one in (running, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        assert running.wait() == -signal.SIGKILL
    assert start_run(tmp_path, output).wait() == 0, log.read_text()[-3000:]
    assert outcome(output) == outcome(tmp_path / "once")
    assert "Traceback" not in log.read_text()
