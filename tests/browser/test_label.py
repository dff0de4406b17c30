"""The labelling bench in a real browser, before a stand-in of its server.

Pictures of every state go to output-browser/.
"""

import contextlib
import csv
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, TimeoutError, expect

from tests.browser.test_page import DESK, PHONE, accessible, fits, shot, to_screen
from tests.support import bench, label_server
from tests.support.bench import Bench
from thyroid.imaging import phantom
from thyroid.interval import Interval
from thyroid.label.agreement import Agreement, Figure, Pace, Pair, Work
from thyroid.label.consensus import State
from thyroid.label.readings import Origin

pytestmark = pytest.mark.browser
EN = bench.words("en")
LANGUAGES = ("en", "ko")
FORMS = {"desk": {}, "phone": PHONE}
FEATURES = {
    "composition": "solid",
    "echogenicity": "hypoechoic",
    "shape": "taller",
    "margin": "lobulated",
    "foci": "punctate",
}


@pytest.fixture(scope="module")
def started() -> Iterator[Bench]:
    server = Bench()
    yield server
    server.stop()


@pytest.fixture
def server(started) -> Bench:
    started.reset()
    return started


@pytest.fixture
def visit(browser, server) -> Iterator[Any]:
    """Opens the bench; at the end nothing may have gone wrong in the browser."""
    contexts, wrong = [], []

    def opened(path: str = "/", language: str = "en", **options: Any) -> Page:
        context = browser.new_context(**DESK | {"locale": language} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(server.address + path)
        if path == "/":
            ready(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [one for one in wrong if "Failed to load resource" not in one] == []


def ready(page: Page) -> None:
    """Wait for a frame on the stage, and for the moment after which it may be saved."""
    expect(page.locator("#picture image")).to_be_visible()
    page.wait_for_timeout(250)


def on_stage(page: Page, number: int) -> None:
    expect(page.locator("#frame-title")).to_have_text(EN["frame"].format(number=number, of=8))
    page.wait_for_timeout(250)


def boxes(page: Page) -> list[list[int]]:
    return page.evaluate(
        "[...document.querySelectorAll('#picture .roi')].map("
        "(one) => ['x', 'y', 'width', 'height'].map((side) => Number(one.getAttribute(side))))"
    )


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*to_screen(page, *start))
    page.mouse.down()
    page.mouse.move(*to_screen(page, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    page.mouse.move(*to_screen(page, *end))
    page.mouse.up()


def near(found: list[int], meant: tuple[int, ...], off: int = 2) -> bool:
    return all(abs(one - other) <= off for one, other in zip(found, meant, strict=True))


def saved(page: Page, server: Bench, count: int) -> dict[str, Any]:
    """Wait for so many readings, and return the last one's body."""
    for _ in range(200):
        if len(server.bodies) >= count:
            break
        page.wait_for_timeout(25)
    assert len(server.bodies) == count
    return server.bodies[-1]


def of(server: Bench, number: int) -> bench.Scan:
    return server.scans[f"{number:016x}"]


# ---- keyboard and mouse


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_one_key_accepts_the_best_proposal_and_goes_on(visit, server, key):
    page = visit()
    on_stage(page, 1)
    page.keyboard.press(key)
    on_stage(page, 2)
    body = saved(page, server, 1)
    x, y, width, height = of(server, 1).roi
    (region,) = body["reading"]["regions"]
    assert (region["x"], region["y"], region["width"], region["height"]) == (x + 3, y + 2, width, height)
    assert region["origin"] == "accepted"
    assert (body["id"], body["queue"], body["base"]) == (f"{1:016x}", "order", 0)
    assert (body["effort"]["keys"], body["effort"]["pointer"]) == (1, 0)
    assert 0 < body["effort"]["seconds"] < 60


def test_the_next_frame_is_there_before_the_server_answered(visit, server):
    page = visit()
    page.wait_for_function("performance.getEntriesByName('shown').length === 1")
    page.wait_for_timeout(500)  # the next one is fetched
    server.free.clear()
    page.keyboard.press("Enter")
    on_stage(page, 2)
    assert server.bodies == []
    server.free.set()
    saved(page, server, 1)


def test_a_key_that_is_pressed_twice_saves_one_frame(visit, server):
    page = visit()
    page.wait_for_timeout(500)  # the next frame is fetched
    page.evaluate(
        "for (const _ of [1, 2]) document.querySelector('#picture').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', code: 'Enter', bubbles: true }))"
    )
    on_stage(page, 2)
    saved(page, server, 1)


def test_a_frame_that_could_not_be_fetched_ahead_is_fetched_again(visit, server):
    page = visit("/login")
    page.route("**/frame/*2", lambda route: route.abort())
    page.goto(server.address)
    ready(page)
    page.wait_for_timeout(500)
    expect(page.locator("#line")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#line")).to_be_visible()
    page.unroute("**/frame/*2")
    page.locator("#again").click()
    on_stage(page, 2)
    expect(page.locator("#line")).to_be_hidden()
    assert page.locator("#held > *").count() == 0


def test_a_held_key_saves_one_frame(visit, server):
    page = visit()
    page.keyboard.down("Enter")
    for _ in range(5):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    on_stage(page, 2)
    saved(page, server, 1)


def test_a_box_is_drawn_moved_resized_and_removed(visit, server):
    page = visit()
    drag(page, (100, 120), (180, 200))
    assert near(boxes(page)[0], (100, 120, 80, 80))
    drag(page, (140, 160), (160, 170))
    assert near(boxes(page)[0], (120, 130, 80, 80))
    drag(page, (200, 210), (220, 240))
    assert near(boxes(page)[0], (120, 130, 100, 110))
    x, y, width, height = boxes(page)[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert boxes(page)[0] == [x + 6, y + 3, width, height]
    page.keyboard.press("Shift+ArrowLeft")
    assert boxes(page)[0] == [x + 6, y + 3, width - 3, height]
    page.keyboard.press("z")  # presses of arrows in a row are one step
    assert boxes(page)[0] == [x, y, width, height]
    page.keyboard.press("Delete")
    assert boxes(page) == []
    page.keyboard.press("z")
    assert boxes(page)[0] == [x, y, width, height]
    page.keyboard.press("Enter")
    body = saved(page, server, 1)
    assert [one["origin"] for one in body["reading"]["regions"]] == ["drawn"]
    assert body["effort"]["pointer"] == 3
    assert body["effort"]["keys"] == 8


def test_a_slip_of_the_hand_draws_nothing(visit):
    page = visit()
    drag(page, (500, 300), (503, 400))
    assert boxes(page) == []


def test_a_box_stays_inside_its_frame(visit, server):
    page = visit()
    width, height = of(server, 1).size
    drag(page, (width - 60, height - 60), (width + 40, height + 40))
    x, y, wide, high = boxes(page)[0]
    assert (x + wide, y + high) == (width, height)
    for _ in range(4):
        page.keyboard.press("Control+ArrowDown")
    x, y, wide, high = boxes(page)[0]
    assert y + high == height


def test_several_nodules_with_features(visit, server):
    page = visit()
    page.keyboard.press("1")
    drag(page, (100, 120), (180, 200))
    expect(page.locator("#panel-title")).to_have_text(EN["nodule_of"].format(number=2, count=2))
    for keys in ("c4", "e4", "h2", "m3", "f5"):
        for key in keys:
            page.keyboard.press(key)
    expect(page.locator("#points")).to_have_text(EN["points"].format(points=2 + 2 + 3 + 2 + 3))
    page.locator('#picture [data-region="0"]').focus()
    expect(page.locator("#panel-title")).to_have_text(EN["nodule_of"].format(number=1, count=2))
    page.keyboard.press("Tab")
    expect(page.locator('#picture [data-region="1"]')).to_be_focused()
    expect(page.locator("#panel-title")).to_have_text(EN["nodule_of"].format(number=2, count=2))
    page.locator('#picture [data-region="0"]').focus()
    page.get_by_role("button", name=EN["composition_cystic"]).click()
    page.keyboard.press("c")
    page.keyboard.press("1")  # chosen again: taken back
    page.keyboard.press("m")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    first, second = saved(page, server, 1)["reading"]["regions"]
    assert (first["origin"], first["features"]) == ("accepted", {"margin": "smooth"})
    assert (second["origin"], second["features"]) == ("drawn", FEATURES)


def test_several_kinds_of_foci_add_up_and_none_stands_alone(visit, server):
    page = visit()
    page.keyboard.press("1")
    for key in "c4e4h1m1f5f3":
        page.keyboard.press(key)
    points = page.locator("#points")
    expect(points).to_have_text(EN["points"].format(points=2 + 2 + 3 + 1))
    page.get_by_role("button", name=EN["composition_spongiform"]).click()
    expect(points).to_have_text(EN["points"].format(points=0))
    page.locator('[data-group="foci"] [data-value="none"]').click()
    foci = page.locator('[data-group="foci"] [aria-pressed="true"]')
    expect(foci).to_have_count(1)
    for key in "f5f3":
        page.keyboard.press(key)
    expect(foci).to_have_count(2)
    page.keyboard.press("Enter")
    (region,) = saved(page, server, 1)["reading"]["regions"]
    assert region["features"]["foci"] == "macro+punctate"


def test_what_the_model_suggests_is_chosen_by_nobody_but_the_reader(visit, server):
    next(iter(server.scans.values())).more = {"suggested": {"composition": "solid", "foci": "macro+punctate"}}
    page = visit()
    expect(page.locator("#suggested")).to_be_hidden()  # no box, nothing that it is about
    page.keyboard.press("1")
    suggested = page.locator("#features .suggested")
    expect(page.locator("#suggested")).to_have_text(EN["suggested"])
    expect(suggested).to_have_count(3)
    expect(suggested.first).to_have_attribute("title", EN["suggested_one"])
    expect(page.locator('#features [aria-pressed="true"]')).to_have_count(0)
    accessible(page)
    shot(page, "label-suggested")
    for key in "f4":
        page.keyboard.press(key)
    expect(suggested).to_have_count(1)  # what the reader says replaces what the model says
    page.keyboard.press("2")  # another box
    expect(suggested).to_have_count(0)
    page.keyboard.press("Enter")
    first, second = saved(page, server, 1)["reading"]["regions"]
    assert (first["features"], second["features"]) == ({"foci": "rim"}, {})


def test_a_corrected_proposal_is_said_to_be_corrected(visit, server):
    page = visit()
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    (region,) = saved(page, server, 1)["reading"]["regions"]
    assert (region["origin"], region["x"]) == ("corrected", 17)


def test_a_proposal_is_accepted_by_a_click_and_taken_back_by_its_key(visit, server):
    page = visit()
    x, y, width, height = of(server, 1).roi
    page.mouse.click(*to_screen(page, x + width / 2, y + height / 2))
    assert boxes(page) == [[x + 3, y + 2, width, height]]
    page.keyboard.press("1")
    assert boxes(page) == []


@pytest.mark.parametrize(("key", "verdict"), [("n", "none"), ("u", "unusable")])
def test_a_frame_without_a_nodule_and_one_that_is_not_usable(visit, server, key, verdict):
    page = visit()
    page.keyboard.press("1")
    page.keyboard.press(key)
    assert boxes(page) == []
    expect(page.locator(f'[data-verdict="{verdict}"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    assert saved(page, server, 1)["reading"] == {"verdict": verdict, "regions": [], "side": ""}


def test_keys_work_while_hangul_is_typed(visit):
    page = visit()
    page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'ㅜ', code: 'KeyN', bubbles: true, cancelable: true }))"
    )
    expect(page.locator('[data-verdict="none"]')).to_have_attribute("aria-pressed", "true")


def test_an_unsure_proposal_is_not_accepted_by_saving(visit, server):
    of(server, 1).more = {"unsure": True}
    page = visit()
    page.keyboard.press("Enter")
    expect(page.locator("#hint")).to_have_text(EN["hint_unsure"])
    assert boxes(page) == []
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    assert len(saved(page, server, 1)["reading"]["regions"]) == 1


def test_nothing_marked_and_nothing_proposed_is_not_saved(visit, server):
    of(server, 1).more = {"proposals": [], "unsure": None}
    page = visit()
    page.keyboard.press("Enter")
    expect(page.locator("#hint")).to_have_text(EN["hint_first"])
    on_stage(page, 1)
    assert server.bodies == []


def test_undo_goes_back_to_the_frame_with_what_was_drawn(visit, server):
    page = visit()
    drag(page, (100, 120), (180, 200))
    drawn = boxes(page)
    page.keyboard.press("Enter")
    on_stage(page, 2)
    saved(page, server, 1)
    drag(page, (60, 120), (90, 200))
    other = boxes(page)
    page.keyboard.press("z")  # the box on this frame
    assert boxes(page) == []
    page.keyboard.press("1")
    page.locator("#undo").click()
    page.keyboard.press("z")
    on_stage(page, 1)
    assert boxes(page) == drawn
    assert server.saved == {}
    page.keyboard.press("Enter")
    on_stage(page, 2)
    assert other != drawn
    assert near(
        [server.bodies[0]["reading"]["regions"][0][side] for side in ("x", "y", "width", "height")], (100, 120, 80, 80)
    )


def test_nothing_to_undo(visit):
    page = visit()
    page.keyboard.press("z")
    expect(page.locator("#status")).to_have_text("There is nothing to undo.")


def test_skipping_leaves_a_frame_for_later(visit, server):
    page = visit()
    for number in range(1, 9):
        on_stage(page, number)
        page.keyboard.press("k")
    on_stage(page, 1)
    assert server.bodies == []


def test_zoom_by_the_wheel_and_a_box_in_the_zoomed_frame(visit):
    page = visit()
    where = (300, 260)
    page.mouse.move(*to_screen(page, *where))
    for _ in range(6):
        page.mouse.wheel(0, -120)
    page.wait_for_function("document.querySelector('#picture').classList.contains('near')")
    page.wait_for_timeout(200)
    now = to_screen(page, *where)
    page.mouse.move(*now)
    drag(page, where, (360, 300))
    assert near(boxes(page)[0], (300, 260, 60, 40))
    page.keyboard.press("0")
    assert not page.locator("#picture.near").count()
    assert near(boxes(page)[0], (300, 260, 60, 40))


def test_the_keys_are_listed(visit):
    page = visit()
    page.keyboard.press("?")
    expect(page.locator("#help-box")).to_be_visible()
    accessible(page)
    shot(page, "label-keys")
    page.keyboard.press("n")  # keys do nothing behind it
    page.keyboard.press("Escape")
    expect(page.locator("#help-box")).to_be_hidden()
    expect(page.locator('[data-verdict="none"]')).to_have_attribute("aria-pressed", "false")


# ---- queues


CANDIDATES = [
    {
        "name": "A",
        "reading": {
            "verdict": "nodules",
            "regions": [{"x": 250, "y": 195, "width": 80, "height": 120, "origin": "accepted", "features": FEATURES}],
            "side": "M",
        },
    },
    {
        "name": "B",
        "reading": {
            "verdict": "nodules",
            "regions": [
                {"x": 300, "y": 260, "width": 90, "height": 100, "origin": "drawn", "features": {"shape": "wider"}}
            ],
            "side": "B",
        },
    },
]


@pytest.mark.parametrize(("key", "index"), [("a", 0), ("b", 1)])
def test_an_adjudicator_takes_one_of_two(visit, server, key, index):
    server.role = "adjudicator"
    for scan in server.scans.values():
        scan.more = {"candidates": CANDIDATES, "proposals": [], "asks_side": True}
    page = visit()
    page.locator('[data-queue="adjudicate"]').click()
    expect(page.locator("#candidates")).to_be_visible()
    ready(page)
    page.keyboard.press("Enter")  # neither is taken by default
    expect(page.locator("#hint")).to_have_text(EN["hint_first"])
    assert page.locator(".candidate.a").first.evaluate("(one) => getComputedStyle(one).stroke") != page.locator(
        ".candidate.b"
    ).first.evaluate("(one) => getComputedStyle(one).stroke")
    page.keyboard.press(key)
    page.keyboard.press("Enter")
    body = saved(page, server, 1)
    meant = CANDIDATES[index]["reading"]
    (region,) = body["reading"]["regions"]
    assert body["queue"] == "adjudicate"
    assert {"side": body["reading"]["side"]} == {"side": meant["side"]}
    assert region == meant["regions"][0] | {"origin": "accepted"}
    server.role = "reader"


def test_three_readings_of_a_frame(visit, server):
    server.role = "adjudicator"
    third = CANDIDATES[0] | {"name": "C", "reading": {"verdict": "none", "regions": [], "side": ""}}
    of(server, 1).more = {"candidates": [*CANDIDATES, third]}
    page = visit()
    expect(page.locator("#candidates thead th")).to_have_count(3)
    page.get_by_role("button", name=EN["candidate_take"].format(name="C")).click()
    page.keyboard.press("Enter")
    assert saved(page, server, 1)["reading"]["verdict"] == "none"
    server.role = "reader"


def test_only_adjudicators_see_the_queue(visit):
    assert visit().locator('[data-queue="adjudicate"]').count() == 0


def test_a_suspect_label_is_corrected(visit, server):
    for scan in server.scans.values():
        scan.more = {"suspect": {"label": "B", "suggested": "M", "margin": 0.6}, "asks_side": True}
    page = visit()
    page.locator('[data-queue="suspects"]').click()
    ready(page)
    expect(page.locator("#suspect p")).to_have_text(EN["suspect_text"].format(label="B", suggested="M", margin="0.60"))
    page.keyboard.press("s")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    body = saved(page, server, 1)
    assert (body["queue"], body["reading"]["side"]) == ("suspects", "M")


def test_own_readings_are_reviewed(visit, server):
    page = visit()
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    saved(page, server, 1)
    page.locator('[data-queue="review"]').click()
    on_stage(page, 1)
    expect(page.locator('[data-verdict="none"]')).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    body = saved(page, server, 2)
    assert (body["base"], body["reading"]["verdict"]) == (1, "nodules")


def test_what_was_drawn_survives_another_queue_and_a_skip(visit, server):
    page = visit()
    drag(page, (100, 120), (180, 200))
    page.keyboard.press("k")
    on_stage(page, 2)
    drag(page, (60, 100), (90, 150))
    page.locator('[data-queue="review"]').click()
    held = page.locator("#held [data-kind=passed]")
    expect(held).to_have_count(2)
    page.locator('[data-queue="order"]').click()
    ready(page)
    held.last.get_by_role("button", name=EN["held_show"]).click()
    on_stage(page, 2)
    assert near(boxes(page)[0], (60, 100, 30, 50))
    held.get_by_role("button", name=EN["held_drop"]).click()
    expect(held).to_have_count(0)
    page.keyboard.press("Enter")
    assert saved(page, server, 1)["id"] == f"{2:016x}"


def test_the_end_of_a_queue(visit, server):
    page = visit()
    for number in range(1, 9):
        on_stage(page, number)
        page.keyboard.press("Enter")
    expect(page.locator("#empty h2")).to_have_text(EN["empty"])
    saved(page, server, 8)
    accessible(page)
    shot(page, "label-empty")
    page.keyboard.press("z")
    on_stage(page, 8)


def test_frames_that_others_are_reading_are_not_said_to_be_done(visit, server):
    page = visit("/login")
    answer = {"frame": None, "queue": "order", "progress": server.progress(), "notes": []}
    page.route("**/api/next**", lambda route: route.fulfill(json=answer))
    page.goto(server.address)
    expect(page.locator("#empty p")).to_have_text(EN["empty_taken"])


# ---- what goes wrong


def test_a_full_disk_loses_nothing(visit, server):
    server.refuse = [(507, {"error": "The disk is full."})]
    page = visit()
    page.keyboard.press("Enter")
    expect(page.locator("#line")).to_contain_text("The disk is full.")
    on_stage(page, 2)
    page.keyboard.press("Enter")
    page.locator("#again").click()
    saved(page, server, 2)
    assert [body["id"] for body in server.bodies] == [f"{1:016x}", f"{2:016x}"]
    expect(page.locator("#line")).to_be_hidden()


def test_readings_are_kept_while_the_bench_is_away(visit, server):
    page = visit()
    page.wait_for_timeout(500)
    page.route("**/api/**", lambda route: route.abort())
    page.keyboard.press("Enter")
    expect(page.locator("#line p")).to_have_text(EN["line_offline"].format(count=1))
    on_stage(page, 2)
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    accessible(page)
    shot(page, "label-offline")
    page.unroute("**/api/**")
    page.locator("#again").click()
    saved(page, server, 2)
    on_stage(page, 3)
    expect(page.locator("#line")).to_be_hidden()


def test_undo_while_the_bench_is_away_takes_the_reading_out(visit, server):
    page = visit()
    page.wait_for_timeout(500)
    page.route("**/api/**", lambda route: route.abort())
    drag(page, (100, 120), (180, 200))
    page.keyboard.press("Enter")
    expect(page.locator("#line")).to_be_visible()
    page.keyboard.press("z")
    on_stage(page, 1)
    assert near(boxes(page)[0], (100, 120, 80, 80))
    page.unroute("**/api/**")
    page.keyboard.press("Enter")
    assert saved(page, server, 1)["id"] == f"{1:016x}"


def test_a_reader_who_was_signed_out(visit, server):
    page = visit()
    server.signed_in = False
    page.keyboard.press("Enter")
    expect(page.locator("#line p")).to_have_text(EN["line_login"].format(count=1))
    server.signed_in = True
    page.locator("#again").click()
    saved(page, server, 1)
    expect(page.locator("#line")).to_be_hidden()


def test_a_server_that_was_restarted_gets_its_token(visit, server):
    page = visit()
    server.token = "another"
    page.keyboard.press("Enter")
    saved(page, server, 1)


def test_a_frame_that_changed_meanwhile_is_decided_by_the_reader(visit, server):
    current = {"verdict": "none", "regions": [], "side": ""}
    server.refuse = [(409, {"error": "Changed.", "current": current, "base": 7})]
    page = visit()
    drag(page, (100, 120), (180, 200))
    page.keyboard.press("Enter")
    expect(page.locator("#held [data-kind=stale]")).to_contain_text(EN["held_stale"])
    on_stage(page, 2)
    accessible(page)
    shot(page, "label-stale")
    page.get_by_role("button", name=EN["held_show"]).click()
    on_stage(page, 1)
    expect(page.locator("#candidates")).to_be_visible()
    shot(page, "label-stale-shown")
    page.keyboard.press("Enter")
    body = saved(page, server, 1)
    assert (body["base"], len(body["reading"]["regions"])) == (7, 1)
    on_stage(page, 2)


def test_a_refused_reading_is_shown_again(visit, server):
    server.refuse = [(400, {"error": "regions.0: outside the frame"})]
    page = visit()
    drag(page, (100, 120), (180, 200))
    page.keyboard.press("Enter")
    expect(page.locator("#held [data-kind=refused]")).to_contain_text("regions.0: outside the frame")
    page.get_by_role("button", name=EN["held_show"]).click()
    on_stage(page, 1)
    assert near(boxes(page)[0], (100, 120, 80, 80))


def test_a_frame_that_vanished(visit, server):
    server.gone = {f"{2:016x}"}
    server.refuse = [(410, {"error": "The picture of this frame is gone."})]
    page = visit()
    page.keyboard.press("Enter")
    expect(page.locator("#held [data-kind=gone]")).to_have_count(2)
    on_stage(page, 3)
    assert server.bodies == []
    fits(page)
    shot(page, "label-gone")
    page.get_by_role("button", name=EN["held_again"]).click()
    saved(page, server, 1)
    expect(page.locator("#held [data-kind=gone]")).to_have_count(1)


def test_notes_of_the_server_are_shown(visit, server):
    server.notes = ["rois.csv line 3: the box is outside its frame. Mend it."]
    page = visit()
    expect(page.locator("#notes")).to_contain_text("line 3")


# ---- touch


def touches(page: Page, *steps: list[tuple[float, float]]) -> None:
    """Put fingers on pixels of the frame, move them from step to step, and lift them."""
    session = page.context.new_cdp_session(page)
    for number, points in enumerate(steps):
        spots = [dict(zip(("x", "y"), to_screen(page, *one), strict=True)) | {"id": i} for i, one in enumerate(points)]
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": spots})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(400)  # two touches in a row are a double tap


def tap(page: Page, selector: str) -> None:
    """Tap a button, and again if Chromium was so busy that it took the tap for a long press, which is no click."""
    place = page.locator(selector).first
    place.evaluate("(one) => one.addEventListener('click', () => { window.tapped = true; }, { once: true })")
    page.evaluate("window.tapped = false")
    for _ in range(5):
        place.tap()
        with contextlib.suppress(TimeoutError):
            page.wait_for_function("window.tapped", timeout=2000)
            return
    raise AssertionError(f"{selector}: no click within five taps")


def test_a_phone_draws_accepts_and_saves(visit, server):
    page = visit(**PHONE)
    touches(page, [(100, 120)], [(150, 160)], [(200, 220)])
    assert near(boxes(page)[0], (100, 120, 100, 100), off=4)
    tap(page, "#save")
    on_stage(page, 2)
    tap(page, "#proposals button")
    tap(page, "#save")
    body = saved(page, server, 2)
    assert [one["origin"] for one in body["reading"]["regions"]] == ["accepted"]
    assert server.bodies[0]["effort"]["pointer"] >= 2


def test_two_fingers_zoom_and_draw_nothing(visit):
    page = visit(**PHONE)
    session = page.context.new_cdp_session(page)
    left, right = to_screen(page, 250, 250), to_screen(page, 350, 250)
    spots = [{"x": left[0], "y": left[1], "id": 0}, {"x": right[0], "y": right[1], "id": 1}]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": spots[:1]})
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": spots})
    for far in (10, 20, 40, 60):
        moved = [spots[0] | {"x": left[0] - far}, spots[1] | {"x": right[0] + far}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": moved})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator("#picture.near")).to_be_visible()
    assert boxes(page) == []


# ---- every state, for axe and for the eye


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_state_is_accessible(visit, server, language, form):
    say, name = bench.words(language), f"{language}-{form}"
    server.role = "adjudicator"
    of(server, 2).more = {"candidates": CANDIDATES, "proposals": [], "asks_side": True}
    of(server, 3).more = {"suspect": {"label": "B", "suggested": "M", "margin": 0.6}, "asks_side": True}
    of(server, 4).more = {"unsure": True}
    page = visit(language=language, **FORMS[form])
    expect(page.locator("html")).to_have_attribute("lang", language)
    expect(page.get_by_text(say["notice"]).first).to_be_visible()
    for state, keys in (("proposed", ""), ("marked", "12c"), ("candidates", "a"), ("suspect", "1s"), ("unsure", "")):
        if state not in ("proposed", "marked"):
            page.keyboard.press("Enter")
            page.wait_for_timeout(300)
        for key in keys:
            page.keyboard.press(key)
        accessible(page)
        fits(page)
        shot(page, f"label-{state}-{name}")
    page.keyboard.press("n")
    shot(page, f"label-none-{name}")
    server.role = "reader"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_other_pages_are_accessible(visit, server, language, form):
    server.signed_in = False
    for path in ("/login", "/login?problem=The+token+is+unknown.", "/error"):
        page = visit(path, language, **FORMS[form])
        expect(page.get_by_text(bench.words(language)["notice"]).first).to_be_visible()
        accessible(page)
        fits(page)
        shot(page, f"label-{path[1:].partition('?')[0]}-{language}-{form}")


def figure(value: float, low: float | None, high: float | None, patients: int = 40) -> Figure:
    return Figure(Interval(value, low, high), 62, patients)


MEASURED = Agreement(
    pairs=(
        Pair(
            readers=("Kim", "Park"),
            frames=62,
            contradictions=9,
            agreed=figure(0.85, 0.72, 0.94),
            kappa={
                "verdict": figure(0.71, 0.52, 0.9),
                "side": figure(-0.05, -0.3, 0.2),
                "composition": Figure(None, 3, 1),
                "echogenicity": Figure(None, 30, 20),
                "level": figure(0.5, 0.2, 0.8),
            },
            matched=figure(0.9, 0.8, 0.97),
            iou=figure(0.78, 0.74, 0.82),
        ),
    ),
    paces=(
        Pace(
            "Kim",
            120,
            figure(412, 380, 440),
            figure(6.2, 5.8, 7.1),
            {
                Origin.ACCEPTED: Work(90, figure(0.1, 0, 0.3), figure(1.2, 1.1, 1.4)),
                Origin.DRAWN: Work(1, Figure(None, 1, 1), Figure(None, 1, 1)),
            },
        ),
        Pace("Park", 62, figure(150, None, None), Figure(None, 62, 1), {}),
    ),
    states=dict.fromkeys(State, 12),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_agreement_and_pace(visit, server, language, form):
    say, name = bench.words(language), f"{language}-{form}"
    server.agreement = {"agreement": MEASURED, "progress": server.progress()}
    page = visit("/agreement", language, **FORMS[form])
    expect(page.get_by_text(say["notice"]).first).to_be_visible()
    table = page.get_by_role("table").first
    line = table.get_by_role("row").filter(has_text=say["measure_kappa"].format(name=say["field_verdict"]))
    expect(line).to_contain_text("0.71 (0.52 – 0.90)")
    expect(line).to_contain_text("62 / 40")
    expect(table).to_contain_text(say["too_few"].format(patients=1))
    expect(table).to_contain_text(say["one_answer"])
    accessible(page)
    fits(page)
    shot(page, f"label-agreement-{name}")


def test_agreement_before_anything_was_read(visit, server):
    server.agreement = {"agreement": Agreement(states=dict.fromkeys(State, 0)), "progress": server.progress()}
    page = visit("/agreement")
    expect(page.get_by_text(EN["pairs_none"])).to_be_visible()
    expect(page.get_by_text(EN["pace_none"])).to_be_visible()
    accessible(page)


# ---- the bench itself


@pytest.fixture
def real(tmp_path) -> Iterator[label_server.Bench]:
    """A bench whose frames are all read twice."""
    phantom.generate(tmp_path / "data", patients=8, images_per_patient=1, seed=3)
    (tmp_path / "readers.csv").write_text(label_server.READERS)
    process = label_server.Bench(
        tmp_path / "log",
        tmp_path / "data" / "scans",
        tmp_path / "labelled",
        *("--readers", str(tmp_path / "readers.csv"), "--second", "1.0"),
    )
    yield process.wait()
    process.stop()


def test_two_readers_and_an_adjudicator(browser, real, tmp_path):
    wrong: list[str] = []

    def person(name: str) -> Page:
        page = browser.new_context(**DESK).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(f"{real.address}/?token={label_server.TOKENS[name]}")
        assert "token" not in page.url
        return page

    def title(page: Page) -> str:
        return page.locator("#frame-title").inner_text()

    def next_after(page: Page, before: str) -> None:
        expect(page.locator("#frame-title")).not_to_have_text(before)
        ready(page)

    kim, lee, park = (person(name) for name in label_server.TOKENS)
    ready(kim)
    first = title(kim)
    drag(kim, (200, 150), (300, 250))
    for key in "c4":
        kim.keyboard.press(key)
    kim.keyboard.press("Enter")
    next_after(kim, first)
    second = title(kim)
    kim.keyboard.press("n")
    kim.keyboard.press("Enter")
    next_after(kim, second)
    expect(kim.locator("#progress p")).to_contain_text(EN["progress_done"].format(done=2, of=8))

    lee.locator('[data-queue="second"]').click()
    for _ in range(2):  # in an order of its own
        expect(lee.locator('[data-queue="second"]')).to_have_attribute("aria-pressed", "true")
        ready(lee)
        assert boxes(lee) == []
        assert lee.locator("#candidates").is_hidden()
        now = title(lee)
        if now == first:
            drag(lee, (220, 160), (320, 260))  # the same nodule in a contradicting place
            drag(lee, (60, 150), (90, 190))
        else:
            lee.keyboard.press("n")
        lee.keyboard.press("Enter")
        lee.wait_for_function(
            "(before) => document.querySelector('#frame-title').textContent !== before "
            "|| document.querySelector('#desk').hidden",
            arg=now,
        )
    expect(lee.locator("#empty h2")).to_have_text(EN["empty"])

    park.locator('[data-queue="adjudicate"]').click()
    expect(park.locator("#frame-title")).to_have_text(first)
    expect(park.locator("#candidates tbody tr").nth(1)).to_contain_text("2")
    shot(park, "label-real-adjudication")
    one = park.locator("#candidates tbody tr").nth(1).locator("td").first.inner_text()
    park.keyboard.press("a" if one == "1" else "b")
    assert len(boxes(park)) == 1
    park.keyboard.press("Enter")
    expect(park.locator("#empty h2")).to_have_text(EN["empty"])

    park.goto(f"{real.address}/agreement")
    expect(park.get_by_role("heading", name="Dr. Kim · Dr. Lee")).to_be_visible()
    accessible(park)
    shot(park, "label-real-agreement")
    real.stop()
    rows = list(csv.DictReader((tmp_path / "labelled" / "rois.csv").read_text().splitlines()))
    assert len(rows) == 1
    assert near([int(rows[0][side]) for side in ("x", "y", "width", "height")], (200, 150, 100, 100))
    assert wrong == []
