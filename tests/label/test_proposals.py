"""What the bench asks the endpoint in the background, and what it keeps."""

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import toy_locator
from tests.support.locating import PLACES, Locating
from tests.support.serving import Server
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.label import proposals
from thyroid.label.frames import Frame, GoneError
from thyroid.label.proposals import BAND, Proposed, Proposer, describe, read_answer

WIDTH, HEIGHT = 200, 100
BEST = tuple(int(side * size) for side, size in zip(PLACES[0][:4], (WIDTH, HEIGHT) * 2, strict=True))


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(60, 200, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def frame(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Frame:
    return Frame(f"B_{number:03d}-0001-1.0.jpg", f"{number:016x}", *size, number, "B", f"patient-{number}")


class Store:
    """The bytes of frames, and which of them were read."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing = False

    def __call__(self, frame: Frame) -> bytes:
        self.asked.append(frame.path)
        if self.failing:
            raise InputError("gs://scans: the bucket cannot be read")
        if frame.path not in self.data:
            raise GoneError(f"{frame.path}: vanished")
        return self.data[frame.path]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(proposals, "AWAY", 0.1)
    monkeypatch.setattr(proposals, "IDLE", 0.05)
    monkeypatch.setattr("thyroid.web.endpoint.FRESH", 0.05)


@pytest.fixture
def locating() -> Iterator[Locating]:
    running = Locating()
    yield running
    running.stop()


@pytest.fixture
def store() -> Store:
    store = Store()
    store.data = {frame(number).path: png(number) for number in range(1, 6)}
    return store


Make = Callable[..., Proposer]


@pytest.fixture
def make(store, tmp_path) -> Iterator[Make]:
    made = []

    def start(address: str, frames: list[Frame], folder: Path = tmp_path, *, is_starting: bool = False) -> Proposer:
        proposer = Proposer(address, None, folder / ".proposals", store, is_starting=is_starting)
        made.append(proposer)
        proposer.want(frames)
        proposer.start()
        return proposer

    yield start
    for proposer in made:
        proposer.stop()


def test_every_frame_is_asked_about_as_a_full_frame_in_the_order_that_is_needed(make, locating):
    proposer = make(locating.address, [frame(3), frame(1), frame(2)])
    until(lambda: len(proposer.proposed) == 3)
    assert list(proposer.proposed) == [frame(3).path, frame(1).path, frame(2).path]
    assert {path for path, _ in locating.asked} == {"/v1/models/thyroid:predict"}
    for _, body in locating.asked:
        assert [set(one) for one in body["instances"]] == [{"image", "domain"}]
        assert body["instances"][0]["domain"] == "frame"
    found = proposer.of(frame(1).path)
    assert found.boxes[0] == (BEST, PLACES[0][4])
    assert [probability for _, probability in found.boxes] == [place[4] for place in PLACES]
    assert (found.unsure, found.decision, found.malignant, found.reasons) == (False, "malignant", 0.8, ())
    assert found.probability == PLACES[0][4]
    assert proposer.of(frame(4).path) is None


def test_an_unsure_box_and_a_missing_decision_are_kept(make, locating):
    locating.unsure = True
    proposer = make(locating.address, [frame(1)])
    until(lambda: proposer.of(frame(1).path))
    found = proposer.of(frame(1).path)
    assert (found.unsure, found.reasons, found.in_band) == (True, ("box_unsure",), False)


def test_what_was_answered_is_not_asked_again_after_a_restart(make, locating):
    first = make(locating.address, [frame(1), frame(2)])
    until(lambda: len(first.proposed) == 2)
    first.stop()
    locating.asked.clear()
    second = make(locating.address, [frame(1), frame(2), frame(3)])
    until(lambda: len(second.proposed) == 3)
    assert len(locating.asked) == 1
    assert second.of(frame(1).path) == first.of(frame(1).path)


def test_a_frame_whose_bytes_changed_is_asked_about_again(make, locating, store):
    first = make(locating.address, [frame(1)])
    until(lambda: first.proposed)
    first.stop()
    store.data[frame(1).path] = png(77)
    locating.unsure = True
    second = make(locating.address, [frame(1)])
    until(lambda: second.proposed)
    assert second.of(frame(1).path).unsure is True


def test_a_damaged_answer_on_disk_is_asked_for_again(make, locating, tmp_path):
    first = make(locating.address, [frame(1)])
    until(lambda: list(tmp_path.rglob("*.json")))
    first.stop()
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    second = make(locating.address, [frame(1)])
    until(lambda: second.proposed)
    assert len(locating.asked) == 2


def test_another_model_is_asked_about_every_frame_and_meanwhile_the_earlier_answer_stays(make, locating):
    proposer = make(locating.address, [frame(1), frame(2)])
    until(lambda: len(proposer.proposed) == 2)
    before = proposer.of(frame(1).path).model
    locating.predicted, locating.version, locating.unsure = 503, 2, True
    until(lambda: len(locating.asked) > 2)
    assert proposer.of(frame(1).path).model == before
    locating.predicted = 200
    until(lambda: all(one.unsure for one in proposer.proposed.values()))
    assert proposer.of(frame(1).path).model != before


def test_a_frame_that_the_endpoint_refuses_has_no_proposal_and_is_asked_about_once(make, locating):
    locating.predicted = 400
    proposer = make(locating.address, [frame(1), frame(2)])
    until(lambda: len(locating.asked) == 2)  # so the refusal of the first one has arrived
    locating.predicted = 200
    proposer.want([frame(1), frame(3)])
    until(lambda: proposer.of(frame(3).path))
    assert proposer.of(frame(1).path) is None
    assert len(locating.asked) == 3


def test_a_frame_that_cannot_be_read_holds_up_no_other(make, locating, store):
    store.data[frame(2).path] = png(2)[:200]
    proposer = make(locating.address, [frame(9), frame(2), frame(3)])
    until(lambda: proposer.of(frame(3).path))
    assert set(proposer.proposed) == set(proposer.descriptors) == {frame(3).path}


def test_scans_that_cannot_be_read_now_are_read_later(make, locating, store):
    store.failing = True
    proposer = make(locating.address, [frame(1), frame(9)])
    until(lambda: len(store.asked) > 2)
    assert proposer.descriptors == {}
    store.failing = False
    until(lambda: proposer.of(frame(1).path))
    assert set(proposer.descriptors) == {frame(1).path}


def test_an_endpoint_that_is_away_is_asked_again_and_frames_are_described_meanwhile(make, locating):
    locating.stop()
    proposer = make(locating.address, [frame(1), frame(2)])
    until(lambda: proposer.away and len(proposer.descriptors) == 2)
    assert proposer.proposed == {}


def test_an_endpoint_that_was_started_with_the_bench_is_not_away_while_it_starts(make, locating, monkeypatch, caplog):
    facts = locating.facts
    monkeypatch.setattr(locating, "facts", dict)  # not yet those of a model
    proposer = make(locating.address, [frame(1)], is_starting=True)
    until(lambda: proposer.descriptors)
    time.sleep(0.3)
    assert not proposer.away
    monkeypatch.setattr(locating, "facts", facts)
    until(lambda: proposer.proposed)
    assert "away" not in caplog.text
    locating.stop()
    proposer.want([frame(2)])
    until(lambda: proposer.away)


def test_an_endpoint_that_does_not_start_is_away_after_its_time(make, locating, monkeypatch):
    monkeypatch.setattr(proposals, "STARTING", 0.2)
    locating.stop()
    proposer = make(locating.address, [frame(1)], is_starting=True)
    until(lambda: proposer.away)


def test_an_endpoint_that_is_back_is_asked(make, locating):
    locating.predicted = 503
    proposer = make(locating.address, [frame(1), frame(2)])
    until(lambda: proposer.away)
    locating.predicted = 200
    until(lambda: len(proposer.proposed) == 2)
    until(lambda: not proposer.away)


def test_without_an_endpoint_frames_are_described(make):
    proposer = make("", [frame(1), frame(2)])
    until(lambda: len(proposer.descriptors) == 2)
    assert proposer.proposed == {}
    assert not proposer.away


def test_a_model_that_needs_a_box_and_finds_none_is_not_asked(make, locating, monkeypatch):
    facts = locating.facts()
    del facts["locator"]
    monkeypatch.setattr(locating, "facts", lambda: facts)
    proposer = make(locating.address, [frame(1)])
    until(lambda: proposer.descriptors)
    time.sleep(0.2)
    assert locating.asked == []


def test_a_disk_that_cannot_be_written_costs_only_the_cache(make, locating, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    proposer = make(locating.address, [frame(1), frame(2)], tmp_path / "file")
    until(lambda: len(proposer.proposed) == 2)


def test_what_is_wanted_later_replaces_what_was_wanted(make, locating, store):
    gate, plain = threading.Event(), store.__call__

    def read(one: Frame) -> bytes:
        gate.wait(20)
        return plain(one)

    store.__class__ = type("Slow", (Store,), {"__call__": lambda self, one: read(one)})
    proposer = make(locating.address, [frame(1), frame(2)])
    time.sleep(0.05)
    proposer.want([frame(5)])
    gate.set()
    until(lambda: proposer.of(frame(5).path))
    time.sleep(0.1)
    assert frame(2).path not in proposer.proposed


def test_no_name_and_no_answer_is_logged(make, locating, store, caplog):
    locating.changes = {"malignant": "x"}
    proposer = make(locating.address, [frame(9), frame(1), frame(2)])
    until(lambda: len(locating.asked) == 2)
    locating.stop()
    until(lambda: proposer.away)
    assert "jpg" not in caplog.text
    assert "B_00" not in caplog.text


BOX = {"box": [1, 2, 30, 40], "probability": 0.5}


def told(**changes):
    crop = {"proposals": [BOX], "unsure": False}
    return {"crop": crop, "malignant": 0.4, "decision": "benign", "model_version": 3, "data_digest": "ab"} | changes


@pytest.mark.parametrize(
    "answer",
    [
        {},
        told(malignant=1.5),
        told(malignant=float("nan")),
        told(decision=None),
        told(model_version="x"),
        told(crop={"proposals": [BOX | {"box": [1, 2, 30]}]}),
        told(crop={"proposals": [BOX | {"box": [-1, 2, 30, 40]}]}),
        told(crop={"proposals": [BOX | {"box": [1, 2, 0, 40]}]}),
        told(crop={"proposals": [BOX | {"box": [WIDTH - 10, 2, 11, 40]}]}),
        told(crop={"proposals": [BOX | {"probability": 2}]}),
        told(descriptors={"told": {"foci": "none"}}),
        told(descriptors=[]),
    ],
    ids=str,
)
def test_an_answer_of_another_form_proposes_nothing(answer):
    assert read_answer(answer, WIDTH, HEIGHT) is None


def test_features_are_suggested_where_the_model_tells_one_word():
    words = {
        "composition": ["solid"],
        "margin": ["smooth", "lobulated"],
        "foci": ["punctate", "macro"],
        "halo": ["thin"],
    }
    descriptors = {"findings": [], "told": words | {"shape": ["round"], "echogenicity": []}, "assumed_absent": {}}
    found = read_answer(told(descriptors=descriptors), WIDTH, HEIGHT)
    assert found.features == {"composition": "solid", "foci": "macro+punctate"}
    assert read_answer(told(), WIDTH, HEIGHT).features == {}
    assert read_answer(told(descriptors={"told": {"foci": ["none"]}}), WIDTH, HEIGHT).features == {"foci": "none"}


def test_an_answer_is_read():
    assert read_answer(told(), WIDTH, HEIGHT).boxes == (((1, 2, 30, 40), 0.5),)
    whole = read_answer(told(crop={"domain": "normal"}, reason=BAND), WIDTH, HEIGHT)
    assert (whole.boxes, whole.unsure, whole.probability, whole.in_band) == ((), False, None, True)
    names = {read_answer(told(**one), WIDTH, HEIGHT).model for one in ({}, {"model_version": 4}, {"data_digest": "b"})}
    assert len(names) == 3
    assert not any("/" in name for name in names)


def test_a_proposal_survives_the_disk():
    found = read_answer(told(), WIDTH, HEIGHT)
    assert Proposed.model_validate_json(found.model_dump_json()) == found


def test_a_thumbnail_does_not_depend_on_gain_or_a_black_border():
    plain = toy_locator.frame(((100, 80, 60, 50),))
    one = describe(images.encode(plain))
    assert (one.shape, one.dtype) == ((256,), np.float32)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    wider = np.pad(plain, ((30, 30), (50, 50), (0, 0)))
    other = describe(images.encode(toy_locator.frame(((30, 160, 60, 50),), seed=1)))
    for same in (wider, (plain * 0.8).astype(np.uint8)):
        assert np.linalg.norm(one - describe(images.encode(same))) < 0.3 * np.linalg.norm(one - other)
    with pytest.raises(ValueError, match="damaged"):
        describe(images.encode(plain)[:500])


def test_a_real_endpoint_proposes(make, store, tmp_path):
    folder = toy_locator.build(tmp_path / "artefact", locator=toy_locator.record())
    server = Server(tmp_path / "log", "--model-dir", str(folder)).wait()
    try:
        place = (100, 80, 60, 50)
        store.data[frame(1).path] = images.encode(toy_locator.frame((place,)))
        proposer = make(f"http://127.0.0.1:{server.port}", [frame(1, (320, 240))])
        until(lambda: proposer.proposed)
        found = proposer.of(frame(1).path)
        (x, y, width, height), probability = found.boxes[0]
        assert place[0] < x + width / 2 < place[0] + place[2]
        assert place[1] < y + height / 2 < place[1] + place[3]
        assert 0 < probability <= 1
        digest = hashlib.sha256(store.data[frame(1).path]).hexdigest()[:32]
        assert (tmp_path / ".proposals" / found.model / f"{digest}.json").is_file()
    finally:
        server.stop()
