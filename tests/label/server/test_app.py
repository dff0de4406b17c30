"""The bench over HTTP: who gets in, what is shown to whom, and what becomes of a reading."""

import csv
import errno
import io
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support import label_server
from tests.support.label_server import READERS, TOKENS, Visitor, fields, nodule
from tests.support.locating import PLACES, Locating
from thyroid import RESEARCH_USE_ONLY, storage
from thyroid.imaging import phantom
from thyroid.label.server import app
from thyroid.label.server.bench import Bench, LabelOptions
from thyroid.label.server.readers import Readers
from thyroid.storage import Folder
from thyroid.web.words import Words

NONE = {"verdict": "none", "regions": [], "side": ""}
KIM, LEE, PARK = TOKENS
"""Two readers and an adjudicator."""


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Sixteen frames of eight patients."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.generate(folder, patients=8, images_per_patient=2, seed=3)
    return folder / "scans"


@pytest.fixture
def readers(tmp_path) -> Path:
    path = tmp_path / "readers.csv"
    path.write_text(READERS)
    return path


@pytest.fixture
def opened(scans, readers, tmp_path):
    """Return a function that opens a bench on `labelled` within this process and returns its application."""
    benches = []

    def open_bench(folder: Path = scans, labelled: storage.Location = tmp_path / "labelled", endpoint="", **options):
        bench = Bench(LabelOptions(folder, labelled, **options), endpoint)
        bench.start()
        benches.append(bench)
        return app.create(app.Options(bench, Readers.read(readers), "secret"))

    yield open_bench
    for bench in benches:
        bench.close()


@pytest.fixture
def site(opened):
    return opened()


@pytest.fixture
def visitor(site) -> Visitor:
    return Visitor(site.test_client(), KIM)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- who gets in


@pytest.mark.parametrize("path", ["/api/next?queue=order", "/frame/0123456789abcdef"])
def test_nobody_gets_anything_without_a_token(site, path):
    answer = site.test_client().get(path)
    assert answer.status_code == 401
    assert set(answer.json) == {"error"}


@pytest.mark.parametrize("path", ["/api/reading", "/api/undo"])
def test_nobody_changes_anything_without_a_token(site, path, tmp_path):
    answer = site.test_client().post(path, json={})
    assert answer.status_code == 401
    assert set(answer.json) == {"error"}
    assert not (tmp_path / "labelled" / "journal").exists()


def test_pages_ask_a_stranger_for_the_token(site):
    client = site.test_client()
    for path in ("/", "/agreement"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
        assert RESEARCH_USE_ONLY in answer.text
    assert client.get("/health").json == {"status": "ok"}
    answer = client.get("/nothing")
    assert answer.status_code == 404
    assert 'href="/report"' not in answer.text, "of the page, which the bench has not"


def test_a_token_in_the_address_opens_a_session_and_leaves_the_address(site):
    client = site.test_client()
    answer = client.get("/", query_string={"token": TOKENS[KIM]}, base_url="https://localhost")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    (cookie,) = [one for one in answer.headers.getlist("set-cookie") if one.startswith("thyroid-label=")]
    assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=Strict"))
    assert TOKENS[KIM] not in cookie
    home = client.get("/", base_url="https://localhost")
    assert KIM in home.text
    assert RESEARCH_USE_ONLY in home.text


def test_the_form_opens_a_session_and_logging_out_ends_it(site):
    client = site.test_client()
    form = client.get("/login").text
    csrf = form.partition('name="csrf_token" value="')[2].partition('"')[0]
    assert client.post("/login", data={"token": TOKENS[KIM]}).status_code == 400, "without the token against forgery"
    assert client.post("/login", data={"token": "x" * 20, "csrf_token": csrf}).status_code == 401
    assert client.post("/login", data={"token": TOKENS[KIM], "csrf_token": csrf}).status_code == 303
    assert client.get("/api/next").status_code == 200
    assert client.post("/logout").status_code == 400
    home = client.get("/").text
    csrf = home.partition('name="csrf_token" value="')[2].partition('"')[0]
    assert client.post("/logout", data={"csrf_token": csrf}).status_code == 303
    assert client.get("/api/next").status_code == 401


def test_tokens_cannot_be_guessed_for_long(site, visitor):
    client = site.test_client()
    codes = [client.get("/", query_string={"token": f"{number:020}"}).status_code for number in range(11)]
    assert codes == [401] * 10 + [429]
    assert visitor.next().status_code == 200, "who is in stays in"


def test_a_forged_session_is_none(site, opened):
    client = site.test_client()
    client.set_cookie("thyroid-label", "eyJyZWFkZXIiOiJEci4gS2ltIn0.aaaaaa.bbbbbbbbbbbbbbbbbbbb")
    assert client.get("/api/next").status_code == 401


def test_requests_of_other_sites_are_refused(visitor):
    shown = visitor.next().json
    for csrf in ("", "x" + visitor.csrf):
        visitor.csrf, kept = csrf, visitor.csrf
        refused = visitor.save(shown, NONE)
        assert (refused.status_code, refused.headers["x-token"]) == (400, "expired")
        assert visitor.undo().status_code == 400
        visitor.csrf = kept
    assert visitor.save(shown, NONE).status_code == 200


def test_headers_that_keep_others_out(visitor):
    for path in ("/", "/api/next", "/login", "/nothing"):
        answer = visitor.client.get(path)
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


# ---- reading


def test_a_reading_goes_into_journal_and_tables(visitor, scans, tmp_path):
    shown = visitor.next().json
    frame = shown["frame"]
    assert (shown["base"], shown["reading"], shown["candidates"], shown["suspect"]) == (0, None, None, None)
    assert shown["classes"] == [{"name": "B", "side": "B"}, {"name": "M", "side": "M"}]
    assert shown["asks_side"] is False
    picture = visitor.client.get(f"/frame/{frame['id']}")
    assert picture.mimetype == "image/jpeg"
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (frame["width"], frame["height"])
    saved = visitor.save(shown, nodule(10, 20, 60, 40, features={"shape": "taller"}))
    assert (saved.status_code, saved.json["number"]) == (200, 1)
    assert {name: saved.json["progress"][name] for name in ("done", "of", "left")} == {"done": 1, "of": 16, "left": 15}
    labelled = tmp_path / "labelled"
    until(lambda: len(rows(labelled / "rois.csv")) == 1)
    (roi,) = rows(labelled / "rois.csv")
    assert (scans / roi["filename"]).read_bytes() == picture.data
    assert [roi[name] for name in ("x", "y", "width", "height")] == ["10", "20", "60", "40"]
    until(lambda: (labelled / "clinical.csv").exists())
    entry = json.loads((labelled / "journal" / "00000001.json").read_text())
    assert (entry["reader"], entry["role"], entry["effort"]["keys"]) == (KIM, "reader", 2)
    assert visitor.next().json["frame"]["id"] != frame["id"]


def test_a_reading_is_reviewed_and_undone(visitor):
    shown = visitor.next().json
    visitor.save(shown, nodule(10, 20, 60, 40))
    review = visitor.next("review").json
    assert (review["frame"]["id"], review["base"]) == (shown["frame"]["id"], 1)
    assert review["reading"]["regions"][0]["width"] == 60
    assert visitor.save(review, NONE).json["number"] == 2
    assert visitor.undo().json == {"id": shown["frame"]["id"], "queue": "review"}
    assert visitor.next("review").json["reading"]["verdict"] == "nodules"
    assert visitor.undo().json == {"id": shown["frame"]["id"], "queue": "order"}
    again = visitor.next("order", id=shown["frame"]["id"]).json
    assert (again["frame"]["id"], again["reading"], again["base"]) == (shown["frame"]["id"], None, 4)
    nothing = visitor.undo()
    assert nothing.status_code == 409
    assert set(nothing.json) == {"error"}
    assert visitor.save(again, NONE).status_code == 200


def test_a_stale_reading_is_refused_with_what_holds(visitor, site):
    other_tab = Visitor(site.test_client(), KIM)
    shown = visitor.next().json
    assert other_tab.next("order", id=shown["frame"]["id"]).json["base"] == 0
    assert other_tab.save(shown, NONE).status_code == 200
    stale = visitor.save(shown, nodule(10, 20, 60, 40))
    assert stale.status_code == 409
    assert (stale.json["current"]["verdict"], stale.json["base"]) == ("none", 1)
    assert visitor.save(shown, nodule(10, 20, 60, 40), base=stale.json["base"]).json["number"] == 2


def test_every_frame_once_and_then_none(visitor):
    seen = []
    while (shown := visitor.next().json)["frame"] is not None:
        seen.append(shown["frame"]["id"])
        assert visitor.save(shown, NONE).status_code == 200
    assert len(seen) == len(set(seen)) == 16
    assert shown["progress"]["left"] == 0
    assert shown["progress"]["per_hour"] == pytest.approx(3600 / 3.5)


def test_what_is_skipped_does_not_come(visitor):
    shown: list[str] = []
    for _ in range(16):
        shown.append(visitor.next("order", skip=shown).json["frame"]["id"])
    assert len(set(shown)) == 16
    assert visitor.next("order", skip=shown).json["frame"] is None
    assert visitor.next("order", skip="0123456789abcdef").json["frame"] is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reading": nodule(0, 0, 5000, 10)}, "reading.regions.0"),
        ({"reading": nodule(-1, 0, 10, 10)}, "reading.regions.0.x"),
        ({"reading": nodule(0, 0, 0, 10)}, "reading.regions.0.width"),
        ({"reading": nodule(0.5, 0, 10, 10)}, "reading.regions.0.x"),
        ({"reading": NONE | {"verdict": "maybe"}}, "reading.verdict"),
        ({"reading": NONE | {"verdict": "nodules"}}, "reading"),
        ({"reading": NONE | {"side": "X"}}, "reading.side"),
        ({"reading": None}, "reading"),
        ({"reading": nodule(0, 0, 9, 9, features={"shape": "odd"})}, "reading.regions.0"),
        ({"queue": "mine"}, "queue"),
        ({"base": -1}, "base"),
        ({"effort": {"seconds": -1}}, "effort.seconds"),
        ({"more": 1}, "more"),
    ],
)
def test_a_reading_that_cannot_be_is_refused_by_field(visitor, changes, named, tmp_path):
    refused = visitor.save(visitor.next().json, NONE, **changes)
    assert refused.status_code == 400
    assert refused.json["error"].startswith(f"{named}:")
    assert not (tmp_path / "labelled" / "journal").exists()


def test_a_box_outside_is_named(visitor):
    shown = visitor.next().json
    width = shown["frame"]["width"]
    refused = visitor.save(shown, nodule(width - 9, 3, 10, 12))
    assert refused.status_code == 400
    assert f"{width - 9}, 3, 10, 12" in refused.json["error"]
    assert visitor.save(shown, nodule(width - 10, 3, 10, 12)).status_code == 200


def test_bodies_that_are_none(visitor):
    headers = {"x-csrftoken": visitor.csrf}
    for data in (b"", b"[]", b"{", b"[" * 60_000, b'"a"', b"\xff"):
        answer = visitor.client.post("/api/reading", data=data, content_type="application/json", headers=headers)
        assert answer.status_code == 400, data[:10]
    large = visitor.client.post("/api/reading", data=b" " * 70_000, content_type="application/json", headers=headers)
    assert large.status_code == 413


def test_frames_that_are_none(visitor):
    for path in ("/frame/0123456789abcdef", "/api/next?id=0123456789abcdef"):
        answer = visitor.client.get(path)
        assert answer.status_code == 404
        assert set(answer.json) == {"error"}
    assert visitor.client.get("/api/next?queue=other").status_code == 400
    assert visitor.save(visitor.next().json, NONE, id="0123456789abcdef").status_code == 404


def test_errors_are_said_in_the_visitors_language(visitor):
    told = [visitor.client.get(f"/frame/0123456789abcdef?lang={language}").json["error"] for language in ("en", "ko")]
    assert told[0].isascii()
    assert not told[1].isascii()


def test_a_frame_that_vanished_is_gone_and_the_others_go_on(opened, scans, tmp_path):
    copies = tmp_path / "scans"
    copies.mkdir()
    for scan in list(scans.rglob("*.jpg"))[:3]:
        (copies / scan.name).write_bytes(scan.read_bytes())
    visitor = Visitor(opened(copies).test_client(), KIM)
    shown = visitor.next().json
    kept = {path: path.read_bytes() for path in copies.iterdir()}
    for path in kept:
        path.unlink()
    assert visitor.client.get(f"/frame/{shown['frame']['id']}").status_code == 410
    gone = visitor.save(shown, NONE)
    assert gone.status_code == 410
    assert not any(path.name in gone.text for path in kept)
    for path, data in kept.items():
        path.write_bytes(data)
    assert visitor.save(shown, NONE).status_code == 200


def test_a_full_disk_loses_nothing_that_was_said_to_be_saved(visitor, monkeypatch, tmp_path):
    shown = visitor.next().json
    assert visitor.save(shown, NONE).status_code == 200
    until(lambda: any(row["verdict"] == "none" for row in rows(tmp_path / "labelled" / "labels.csv")))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", full)
        second = visitor.next().json
        refused = visitor.save(second, NONE)
        assert refused.status_code == 507
        assert str(tmp_path) not in refused.text
        assert visitor.undo().status_code == 507
        assert visitor.next("review").json["frame"]["id"] == shown["frame"]["id"]
    with monkeypatch.context() as patched:

        def denied(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        patched.setattr(Folder, "write", denied)
        assert visitor.save(second, NONE).status_code == 503
    assert visitor.save(second, NONE).json["number"] == 2


def test_a_table_that_cannot_be_read_is_shown_until_it_is_mended(visitor, tmp_path, monkeypatch):
    labelled = tmp_path / "labelled"
    visitor.save(visitor.next().json, nodule(10, 20, 60, 40))
    until(lambda: len(rows(labelled / "rois.csv")) == 1)
    good = (labelled / "rois.csv").read_text()
    (labelled / "rois.csv").write_text(good.replace("60", "6000"))
    visitor.save(visitor.next().json, NONE)
    until(lambda: any("rois.csv" in note for note in visitor.next().json["notes"]))
    assert "6000" in (labelled / "rois.csv").read_text()
    (labelled / "rois.csv").write_text(good)
    visitor.save(visitor.next().json, NONE)
    until(lambda: visitor.next().json["notes"] == [])


def test_a_bucket_is_used_as_a_folder(opened, gcs):
    visitor = Visitor(opened(labelled=gcs.address("labelled")).test_client(), KIM)
    assert visitor.save(visitor.next().json, nodule(10, 20, 60, 40)).json["number"] == 1
    bucket = gcs.client.bucket(gcs.bucket)
    until(lambda: b",10,20,60,40" in bucket.blob("labelled/rois.csv").download_as_bytes())
    assert "labelled/journal/00000001.json" in gcs.names()


# ---- proposals


@pytest.fixture
def locating():
    running = Locating()
    yield running
    running.stop()


def test_of_what_a_model_says_only_the_boxes_are_shown(opened, locating):
    visitor = Visitor(opened(endpoint=locating.address).test_client(), KIM)
    until(lambda: len(visitor.next().json["proposals"]) == len(PLACES))
    shown = visitor.next()
    assert [one["probability"] for one in shown.json["proposals"]] == [place[4] for place in PLACES]
    assert all(len(one["box"]) == 4 and set(one) == {"box", "probability"} for one in shown.json["proposals"])
    assert shown.json["unsure"] is False
    assert not {"decision", "malignant", "threshold", "reasons"} & set(re.findall(r'"(\w+)":', shown.text))


def test_features_are_suggested_unless_a_reading_is_blind(opened, locating):
    locating.changes = {"descriptors": {"told": {"composition": ["solid"], "foci": ["macro", "punctate"]}}}
    site = opened(endpoint=locating.address, second=1.0)
    first, second = (Visitor(site.test_client(), name) for name in (KIM, LEE))
    until(lambda: first.next().json["proposals"])
    shown = first.next().json
    assert shown["suggested"] == {"composition": "solid", "foci": "macro+punctate"}
    assert shown["reading"] is None, "nothing is chosen"
    first.save(shown, NONE)
    id = shown["frame"]["id"]
    assert first.next("review", id=id).json["suggested"] == shown["suggested"]
    for queue in ("second", "order", "suspects", "review"):
        blind = second.next(queue, id=id).json
        assert blind["proposals"]
        assert blind["suggested"] == {}
    second.save(second.next("second", id=id).json, NONE)
    assert second.next("review", id=id).json["suggested"] == {}


def test_the_bench_goes_on_without_the_endpoint_and_says_so(opened, locating):
    locating.predicted = 503
    visitor = Visitor(opened(endpoint=locating.address).test_client(), KIM)
    until(lambda: visitor.next().json["notes"] == [Words("en", app.FOLDERS)("note_away")])
    shown = visitor.next().json
    assert (shown["proposals"], shown["unsure"]) == ([], None)
    assert visitor.save(shown, NONE).status_code == 200


# ---- several readers


def test_readers_at_once_get_different_frames_and_lose_nothing(opened, tmp_path):
    site = opened()
    both = [Visitor(site.test_client(), name) for name in (KIM, LEE)]
    gate, seen = threading.Barrier(2), {KIM: [], LEE: []}

    def work(visitor: Visitor, own: list[str]) -> None:
        gate.wait()
        while (shown := visitor.next().json)["frame"] is not None:
            own.append(shown["frame"]["id"])
            assert visitor.save(shown, nodule(len(own), 20, 60, 40)).status_code == 200

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, *pair) for pair in zip(both, seen.values(), strict=True)]:
            done.result()
    assert len(seen[KIM]) + len(seen[LEE]) == 16
    assert not set(seen[KIM]) & set(seen[LEE])
    assert len(list((tmp_path / "labelled" / "journal").iterdir())) == 16
    until(lambda: len(rows(tmp_path / "labelled" / "rois.csv")) == 16)


def test_a_frame_that_is_shown_to_one_reader_is_not_given_to_another(site, visitor):
    first = visitor.next().json["frame"]["id"]
    ahead = visitor.next("order", skip=first).json["frame"]["id"]
    other = Visitor(site.test_client(), LEE)
    shown: list[str] = []
    while (found := other.next("order", skip=shown).json)["frame"] is not None:
        shown.append(found["frame"]["id"])
    assert len(shown) == 14
    assert not {first, ahead} & set(shown)


BOX = (11, 23, 67, 41)


def holds_box(answer) -> bool:
    """Whether the first reader's box can be found in an answer."""
    text = answer.text
    return any(
        f'"{name}":{value}' in text.replace(" ", "") for name, value in zip(("x", "width"), BOX[::2], strict=True)
    )


def test_a_second_reader_never_gets_what_the_first_one_said(opened, tmp_path):
    site = opened(second=1.0)
    first, second = (Visitor(site.test_client(), name) for name in (KIM, LEE))
    shown = first.next().json
    assert first.save(shown, nodule(*BOX, features={"foci": "rim"})).status_code == 200
    assert holds_box(first.next("review")), "the test would find it"
    id = shown["frame"]["id"]
    answers = [second.next(queue) for queue in ("order", "second", "suspects", "review")]
    answers += [second.next(queue, id=id) for queue in ("order", "second", "suspects", "review")]
    waiting = second.next("second").json
    assert (waiting["frame"]["id"], waiting["reading"], waiting["base"]) == (id, None, 0)
    assert waiting["progress"]["second"] == 1
    answers += [second.next("adjudicate"), second.next("adjudicate", id=id), second.undo()]
    assert [answer.status_code for answer in answers[-3:]] == [403, 403, 409]
    answers.append(second.save(waiting, NONE, base=1))
    assert (answers[-1].status_code, answers[-1].json["current"]) == (409, None)
    answers += [second.save(waiting, NONE, queue="adjudicate"), second.client.get("/"), second.client.get("/agreement")]
    answers += [second.client.get(path) for path in ("/labelled/rois.csv", "/rois.csv", "/journal/00000001.json")]
    saved = second.save(waiting, NONE)
    answers += [saved, second.next("review"), second.next("second", id=id), second.next("adjudicate", id=id)]
    assert saved.status_code == 200
    assert not any(holds_box(answer) or (answer.is_json and "rim" in answer.text) for answer in answers)


def test_an_adjudicator_gets_nothing_before_readers_contradict_each_other(opened):
    site = opened(second=1.0)
    first, park = (Visitor(site.test_client(), name) for name in (KIM, PARK))
    shown = first.next().json
    first.save(shown, nodule(*BOX))
    id = shown["frame"]["id"]
    for answer in (park.next("adjudicate"), park.next("adjudicate", id=id), park.next("second", id=id)):
        assert not holds_box(answer)
    assert park.next("adjudicate", id=id).status_code == 403
    assert park.save(shown, NONE, queue="adjudicate").status_code == 403


def test_contradictions_are_adjudicated_blindly(opened, tmp_path):
    site = opened(second=1.0)
    first, second, park = (Visitor(site.test_client(), name) for name in (KIM, LEE, PARK))
    shown = first.next().json
    first.save(shown, nodule(*BOX))
    second.save(second.next("second").json, NONE)
    labelled = tmp_path / "labelled"
    contested = park.next("adjudicate").json
    assert contested["progress"]["contested"] == 1
    assert contested["reading"] is None
    assert [one["name"] for one in contested["candidates"]] == ["A", "B"]
    assert {one["reading"]["verdict"] for one in contested["candidates"]} == {"none", "nodules"}
    text = json.dumps(contested)
    assert KIM not in text
    assert LEE not in text
    until(lambda: (labelled / "labels.csv").exists())
    assert rows(labelled / "rois.csv") == []
    chosen = next(one["reading"] for one in contested["candidates"] if one["reading"]["regions"])
    assert park.save(contested, chosen).status_code == 200
    until(lambda: len(rows(labelled / "rois.csv")) == 1)
    assert json.loads((labelled / "journal" / "00000003.json").read_text())["role"] == "adjudicator"
    assert park.next("adjudicate").json["frame"] is None
    assert park.undo().json == {"id": shown["frame"]["id"], "queue": "adjudicate"}
    assert park.next("adjudicate").json["candidates"] is not None


def test_an_adjudicators_own_reading_is_one_of_the_candidates(opened):
    site = opened(second=1.0)
    first, park = (Visitor(site.test_client(), name) for name in (KIM, PARK))
    first.save(first.next().json, nodule(*BOX))
    park.save(park.next("second").json, NONE)
    contested = park.next("adjudicate").json
    assert contested["reading"] is None
    assert len(contested["candidates"]) == 2
    assert park.save(contested, NONE).status_code == 200
    assert park.next("review").json["reading"]["verdict"] == "none"


def test_suspects_are_looked_at_once(opened, scans, tmp_path, readers):
    names = sorted(path.relative_to(scans).as_posix() for path in scans.rglob("*.jpg"))
    table = tmp_path / "suspects.csv"
    lines = [f"{names[5]},B,M,0.1,0.8", f"{names[2]},M,B,0.2,0.6", "unknown.jpg,M,B,0.2,0.6"]
    table.write_text("\n".join(["path,label,suggested,self_confidence,margin", *lines]) + "\n")
    visitor = Visitor(opened(suspects=table).test_client(), KIM)
    shown = visitor.next("suspects").json
    assert shown["suspect"] == {"label": "B", "suggested": "M", "margin": 0.8}
    assert shown["asks_side"] is True
    assert shown["progress"]["suspects"] == 2
    assert visitor.next("order", id=shown["frame"]["id"]).json["suspect"] is None
    assert visitor.save(shown, NONE | {"side": "M"}).json["progress"]["suspects"] == 1
    again = Visitor(opened(suspects=table).test_client(), LEE)
    assert again.next("suspects").json["progress"]["suspects"] == 1, "also after a restart"
    table.write_text("\n".join(["path,label,suggested,self_confidence,margin", lines[0]]) + "\n")
    later = Visitor(opened(suspects=table).test_client(), LEE)
    assert later.next("suspects").json["progress"]["suspects"] == 1, "a new table is looked at anew"


# ---- the process


def test_the_process_writes_no_name_and_goes_on_after_a_kill(scans, readers, tmp_path):
    log, labelled = tmp_path / "log", tmp_path / "labelled"
    arguments = ("--readers", str(readers))
    bench = label_server.Bench(log, scans, labelled, *arguments).wait()
    visitor = bench.visitor(KIM)
    shown = fields(visitor.next())
    assert visitor.save(shown, nodule(10, 20, 60, 40, features={"echogenicity": "hypoechoic"})).status_code == 200
    assert httpx.get(f"{bench.address}/", params={"token": "wrong-" + "w" * 16}).status_code == 401
    cookies = dict(visitor.client.cookies)
    bench.stop(signal.SIGKILL)
    bench = label_server.Bench(log, scans, labelled, *arguments).wait()
    again = Visitor.__new__(Visitor)
    again.client = bench.client(**cookies)
    again.renew()
    assert len(rows(labelled / "rois.csv")) == 1, "what was saved is in the tables from the start"
    review = fields(again.next("review"))
    assert (review["frame"]["id"], review["base"]) == (shown["frame"]["id"], 1)
    following = fields(again.next())
    assert following["frame"]["id"] != shown["frame"]["id"]
    assert again.save(following, nodule(10, 20, 61, 40)).status_code == 200
    text = bench.stop()
    assert bench.process.returncode == 0
    assert len(rows(labelled / "rois.csv")) == 2, "the tables are written before the end"
    secrets = [*TOKENS.values(), *TOKENS, "wrong-", "hypoechoic", shown["frame"]["id"]]
    secrets += [path.name for path in scans.rglob("*.jpg")]
    assert [one for one in secrets if one in text] == []
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert {line["route"] for line in lines if line["message"] == "request"} >= {"index", "reading", "following"}
    assert RESEARCH_USE_ONLY in text
